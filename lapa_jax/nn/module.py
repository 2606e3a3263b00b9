"""An NNX module as pure functions over plain nested dicts.

Models are written as `flax.nnx` modules; everything outside this package sees only pytrees.
`Functional` builds the module abstractly once, and from then on `init`, `apply` and `after_update`
are pure functions that may be jitted, differentiated and evaluated by shape. Logical axis names
travel as parameter metadata under a key of our own, which NNX does not act on (its own key would
demand a mesh context).
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from lapa_jax.parallel.trees import Tree, flatten, paths, unflatten  # noqa: F401  of models, too

AXES = "logical_axes"


def param(value: jax.Array, *axes: str | None) -> nnx.Param:
    """A trained parameter with one logical axis name per dimension."""
    if len(axes) != value.ndim:
        raise ValueError(f"parameter of shape {value.shape} given {len(axes)} axis names {axes}")
    return nnx.Param(value, **{AXES: axes})


class Frozen(nnx.Variable):
    """A weight that another run has trained: among the variables, so without gradient, optimizer
    state or moving average."""


class Held(nnx.Param):
    """A parameter in fewer bits than training needs: it must be frozen. See int8.py."""


def freeze(module: nnx.Module) -> None:
    """Makes every parameter of a module `Frozen`, in place."""
    for _, node in list(nnx.iter_graph(module)):
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, nnx.Param):
                    setattr(node, name, Frozen(value[...], **value.get_metadata()))


def follow(average: nnx.Module, module: nnx.Module, decay: float | jax.Array) -> None:
    """Moves every variable of `average` to decay · itself + (1 − decay) · the one at the same path
    of `module`, in place. Frozen, it is what `module` was in the last 1 / (1 − decay) steps."""
    followed = dict(nnx.iter_graph(module))
    for path, variable in nnx.iter_graph(average):
        if isinstance(variable, nnx.Variable):
            now = followed[path][...]
            variable[...] = (decay * variable[...] + (1.0 - decay) * now).astype(now.dtype)


class Functional:
    """`constructor(rngs) -> nnx.Module`, as pure functions.

    The module must not keep `rngs`: a method that needs randomness takes a key as its `rng`
    argument. Parameters are the `nnx.Param`s; every other Variable is a non-trained variable.
    """

    def __init__(self, constructor: Callable[[nnx.Rngs], nnx.Module]):
        self._constructor = constructor
        module = nnx.eval_shape(lambda: constructor(nnx.Rngs(params=0)))
        self._graph, params, variables = nnx.split(module, nnx.Param, ...)
        self._params, self._variables = _Pure("params", params), _Pure("variables", variables)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (params, variables)."""
        module = self._constructor(nnx.Rngs(params=key))
        graph, params, variables = nnx.split(module, nnx.Param, ...)
        if graph != self._graph:
            raise ValueError("the module's structure depends on its random key")
        return nnx.to_pure_dict(params), nnx.to_pure_dict(variables)

    def axes(self) -> Tree:
        """The logical axis names of every parameter, in the structure of `params`."""
        return self._params.axes()

    @property
    def held(self) -> frozenset[str]:
        """Paths of the parameters that are `Held`."""
        variables = self._params.variables().items()
        return frozenset(path for path, variable in variables if isinstance(variable, Held))

    def abstract(self) -> tuple[Tree, Tree]:
        """(params, variables) as `jax.ShapeDtypeStruct`s."""
        return self._params.tree, self._variables.tree

    def apply(
        self,
        params: Tree,
        variables: Tree,
        method: str,
        *args: Any,
        rng: jax.Array | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Tree]:
        """Calls `method`; returns (its result, the new variables)."""
        out, _, variables = self._call(params, variables, method, args, rng, kwargs)
        return out, variables

    def after_update(
        self, params: Tree, variables: Tree, step: jax.Array, key: jax.Array
    ) -> tuple[Tree, Tree]:
        """The module's own `after_update(step, rng)`, run after optimizer step `step` (from 0).

        A module without that method is returned unchanged.
        """
        if not hasattr(self._module(), "after_update"):
            return params, variables
        _, *new = self._call(params, variables, "after_update", (step,), key, {})
        return tuple(new)

    def _module(self) -> nnx.Module:
        return nnx.merge(self._graph, self._params.state, self._variables.state)

    def _call(self, params, variables, method, args, rng, kwargs):
        module = nnx.merge(self._graph, self._params.bind(params), self._variables.bind(variables))
        function = getattr(module, method, None)
        if function is None:
            raise ValueError(f"{type(module).__name__} has no method {method!r}")
        if rng is not None:
            kwargs = {**kwargs, "rng": rng}
        out = function(*args, **kwargs)
        graph, params, variables = nnx.split(module, nnx.Param, ...)
        if graph != self._graph:
            raise ValueError(f"{type(module).__name__}.{method} changed the module's structure")
        return out, nnx.to_pure_dict(params), nnx.to_pure_dict(variables)


class _Pure:
    """One `nnx.State` and its plain-dict form, with the way back."""

    def __init__(self, what: str, state: nnx.State):
        self.what, self.state = what, state
        self.tree = nnx.to_pure_dict(state)
        self._dict_structure = jax.tree.structure(self.tree)
        steps = (step for path, _ in jax.tree.leaves_with_path(self.tree) for step in path)
        if numbers := [step.key for step in steps if not isinstance(step.key, str)]:
            raise ValueError(
                f"{what}: a part is named {numbers[0]!r}, as those of an nnx.List are, which a "
                "checkpoint gives back as text: give every part a name"
            )
        leaves, self._state_structure = jax.tree.flatten(state)
        if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(self.tree)]:
            raise ValueError(f"{what}: the state and its dict form order their leaves differently")

    def variables(self) -> dict[str, nnx.Variable]:
        found = jax.tree.leaves(self.state, is_leaf=lambda x: isinstance(x, nnx.Variable))
        return dict(zip(flatten(self.tree), found, strict=True))

    def axes(self) -> Tree:
        names = []
        for path, variable in self.variables().items():
            axes = variable.get_metadata().get(AXES)
            if axes is None or len(axes) != len(variable.shape):
                raise ValueError(f"{path} of shape {variable.shape} has the axis names {axes}")
            names.append(axes)
        return jax.tree.unflatten(self._dict_structure, names)

    def bind(self, tree: Tree) -> nnx.State:
        leaves, structure = jax.tree.flatten(tree)
        if structure != self._dict_structure:
            given, expected = paths(tree), paths(self.tree)
            raise ValueError(
                f"{self.what} do not fit the model: missing {sorted(expected - given)[:8]}, "
                f"unknown {sorted(given - expected)[:8]}"
            )
        return jax.tree.unflatten(self._state_structure, leaves)
