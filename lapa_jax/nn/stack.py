"""A stack of equal layers: parameters with a leading layer axis, run by `jax.lax.scan`.

For decoding there is a second form, a parameter for each layer (`unstack`): a token is fed to a
layer in less time than it takes to copy that layer's weights out of the stack, which the compiler
does before every product.

`remat` names what the backward pass may keep of a layer, besides its input; `unroll` is the number
of layers per scan iteration (0: all, which lets the compiler fuse across layers and is the fast
choice for small models).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lapa_jax.nn.module import AXES, Tree, flatten, unflatten

ATTENTION_OUT = "attention_out"  # the name of what attention gives (attention.py)

_POLICIES = jax.checkpoint_policies
REMAT: dict[str, Any] = {
    "none": None,  # everything is kept
    "full": _POLICIES.nothing_saveable,
    "dots": _POLICIES.dots_saveable,
    "dots_no_batch": _POLICIES.dots_with_no_batch_dims_saveable,
    # Attention is computed again for its own gradient only.
    "attention_out": _POLICIES.save_only_these_names(ATTENTION_OUT),
    # The same, but kept in the host's memory.
    "attention_out_offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[ATTENTION_OUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def check_remat(remat: str, platform: str) -> None:
    """Refuses a policy that the devices cannot train with; `platform` as of a `jax.Device`."""
    if remat == "attention_out_offload" and platform != "tpu":
        raise ValueError(
            f"model.remat={remat!r} keeps activations in the host's memory, which is for TPUs; "
            f"these devices are {platform!r}: set model.remat='attention_out' or 'full'"
        )


class Stack(nnx.Module):
    """`depth` layers built by `make(rngs)`; calling the stack threads a carry through them.

    Parameter paths are `<stack>/layers/<path in the layer>`, every leaf with a leading "layers"
    axis; unless `stacked`, `<stack>/layers/<number>/<path in the layer>`.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        remat: str,
        unroll: int,
        rngs: nnx.Rngs,
        stacked: bool = True,
    ):
        if remat not in REMAT:
            raise ValueError(f"model.remat={remat!r} must be one of {sorted(REMAT)}")
        if depth < 1:
            raise ValueError(f"a stack needs a depth of at least 1, got {depth}")
        if not 0 <= unroll:
            raise ValueError(f"model.unroll={unroll} must be 0 (all layers) or positive")
        self.depth, self.remat, self.unroll, self.stacked = depth, remat, unroll or depth, stacked
        keys = jax.random.split(rngs.params(), depth)
        if not stacked:
            layers = {_number(i): make(nnx.Rngs(params=key)) for i, key in enumerate(keys)}
            self.layers = nnx.data(layers)
            return
        graph, template = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))))
        leaves = jax.vmap(lambda key: jax.tree.leaves(nnx.split(make(nnx.Rngs(params=key)))[1]))(
            keys
        )
        self.layers = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(template), leaves))
        for _, node in nnx.iter_graph(self.layers):
            if isinstance(node, nnx.Variable):
                node.set_metadata(AXES, ("layers", *node.get_metadata()[AXES]))

    @property
    def apart(self) -> bool:
        """Whether the layers are computed one by one, so that the last may do something else."""
        return not self.stacked or self.unroll >= self.depth

    def __call__(
        self,
        carry: Any,
        *shared: Any,
        per_layer: Any = None,
        method: str = "__call__",
        last: Callable[[Any, Any], Any] | None = None,
    ) -> tuple[Any, Any]:
        """Returns (carry, stacked second outputs).

        Each layer runs `method(carry, *shared)` → carry, or, given `per_layer` (a pytree with a
        leading layer axis), `method(carry, *shared, slice)` → (carry, out). Unless stacked,
        `per_layer` and the second outputs are sequences, and nothing is rematerialised. Of a stack
        that is `apart`, `last(layer, carry)` is what the last layer does, and gives the same.
        """
        if not self.stacked:
            return self._one_by_one(carry, shared, per_layer, method, last)
        graph, state = nnx.split(self.layers)

        def final(carry, layer_state):
            return last(nnx.merge(graph, layer_state), carry)

        def body(carry, inputs):
            layer_state, extra = inputs
            function = getattr(nnx.merge(graph, layer_state), method)
            if per_layer is None:
                return function(carry, *shared), None
            return function(carry, *shared, extra)

        if self.remat != "none":
            body, final = (
                jax.checkpoint(f, policy=REMAT[self.remat], prevent_cse=False)
                for f in (body, final)
            )
        if last is None:
            unroll = min(self.unroll, self.depth)
            return jax.lax.scan(body, carry, (state, per_layer), length=self.depth, unroll=unroll)
        given = (state, per_layer)
        before, (own, _) = (jax.tree.map(lambda x, i=i: x[i], given) for i in (slice(-1), -1))
        carry, outs = jax.lax.scan(body, carry, before, length=self.depth - 1, unroll=True)
        if per_layer is None:
            return final(carry, own), None
        carry, out = final(carry, own)
        return carry, jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), outs, out)

    def _one_by_one(self, carry, shared, per_layer, method, last):
        outs = []
        for i in range(self.depth):
            function = getattr(self.layers[_number(i)], method)
            if last is not None and i == self.depth - 1:
                found = last(self.layers[_number(i)], carry)
            elif per_layer is None:
                found = function(carry, *shared)
            else:
                found = function(carry, *shared, per_layer[i])
            carry, out = (found, None) if per_layer is None else found
            outs += [] if per_layer is None else [out]
        return carry, outs


def _number(layer: int) -> str:
    return f"{layer:03d}"


def unstack(params: Tree, stack: str) -> Tree:
    """The parameters of a model whose `stack` (its path) is not stacked, of one where it is. Takes
    the stacked leaves out of `params`, so that there is at most one of them twice at a time."""
    *parents, name = stack.split("/")
    node = params
    for parent in parents:
        node = node[parent]
    flat = flatten(node.pop(name)["layers"])
    apart = {}
    for path in list(flat):
        for i, layer in enumerate(flat.pop(path)):
            apart[f"layers/{_number(i)}/{path}"] = layer
    node[name] = unflatten(apart)
    return params
