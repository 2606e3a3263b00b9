"""What the public originals of latent action models gave, beside ours (golden/zoo).

Tolerances are some ten times the originals' own spread between float32 and float64.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from lapa_jax import stages
from lapa_jax.interop import exact, vision, vit_mae
from lapa_jax.interop.exact import Mapped
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import arrays, functional, to_theirs
from lapa_jax.nn.module import flatten, unflatten
from lapa_jax.nn.vit import ViT, ViTConfig

ZOO = Path(__file__).parent / "golden" / "zoo"


class Golden:
    """A model of others, imported, beside what the original gave."""

    def __init__(self, name: str, given: Imported | Mapped, form: ModuleType, prefix: str = ""):
        """`form`: of the interop room; `prefix`: of the original's names of tensors. What `given`
        lacks of the variables, counters and weights that nothing here asks for, is 0."""
        self.io = dict(np.load(ZOO / f"{name}_io.npz"))
        self.params, variables = given.params, given.variables
        if isinstance(given, Mapped):
            self.stage = given.stage
            expected = flatten(self.stage.model.abstract()[1])
            zeros = {path: np.zeros(x.shape, x.dtype) for path, x in expected.items()}
            variables = unflatten(zeros | variables)
        else:
            self.stage = stages.build(given.config, given.assets)
        self.model, self.config = self.stage.model, self.stage.model_config
        self.variables = jax.tree.map(jnp.asarray, variables)
        self.rules, self.prefix = form.rules(self.config), prefix
        self.sizes = getattr(form, "sizes", exact.genie_sizes)(self.config)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.io[key]

    def apply(self, method: str, *given: Any, params: Any, **options: Any) -> Any:
        return self.model.apply(params, self.variables, method, *given, **options)[0]

    def near(self, found: Any, key: str, atol: float = 5e-5) -> None:
        expected = self.io[key]
        found = np.asarray(found).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, atol=atol, rtol=0, err_msg=key)

    def losses(self, metrics: dict, names: dict[str, str], group: str = "loss") -> None:
        for ours, theirs in names.items():
            expected = self.io[f"{group}/{theirs}"]
            np.testing.assert_allclose(metrics[ours], expected, rtol=1e-5, err_msg=theirs)

    def named(self, tree: Any) -> dict[str, np.ndarray]:
        """Parameters, or gradients, by the original's names."""
        ours = [rule for rule in self.rules if getattr(rule, "ours", None) in flatten(tree)]
        found = arrays(to_theirs(tree, ours, self.sizes))
        return {self.prefix + name: value for name, value in found.items()}

    def trained(
        self,
        loss: Callable[..., Any],
        optimizer: optax.GradientTransformation,
        terms: dict[str, str],
        *,
        lr: float,
        steps: Sequence[Any] = (None,) * 10,
        at: Any = None,
        others: Mapping[str, Any] | None = None,
    ) -> Callable[[Any], dict[str, Any]]:
        """`optimizer`: of all parameters as one vector, which is quicker to compile.

        Gradients (of input `at`; of `others`, by group), their norms and ten steps.
        `loss(params, input of a step)` gives (value, more), among it `metrics`; returns what gives
        `more` of an input."""

        @jax.jit
        def step(params, state, given):
            (value, more), grads = jax.value_and_grad(loss, has_aux=True)(params, given)
            more["metrics"]["loss"] = value
            (flat, tree), (flat_grads, _) = map(jax.flatten_util.ravel_pytree, (params, grads))
            updates, state = optimizer.update(flat_grads, state, flat)
            return tree(optax.apply_updates(flat, updates)), state, grads, more

        state = optimizer.init(jax.flatten_util.ravel_pytree(self.params)[0])
        start = params, state = self.params, state
        for group, given in ({"grad": at} | dict(others or {})).items():
            self.gradients(self.named(step(*start, given)[2]), group)
        for i, given in enumerate(steps):
            params, state, grads, more = step(params, state, given)
            squares = (np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(grads))
            expected = self.io["traj/grad_norm_before_clip"][i]
            np.testing.assert_allclose(np.sqrt(sum(squares)), expected, rtol=3e-5)
            for ours, theirs in ({"loss": "loss"} | terms).items():
                expected = self.io[f"traj/{theirs}"][i]
                np.testing.assert_allclose(more["metrics"][ours], expected, rtol=3e-5)
        final, off = self.named(params), []
        for key in (x for x in self.io if x.startswith("traj_final/")):
            apart = np.abs(final[key.removeprefix("traj_final/")] - self.io[key])
            assert apart.max() <= 10 * lr, key
            off.append(apart.reshape(-1) > 5e-6)
        assert np.concatenate(off).mean() <= 0.005
        return lambda given: jax.tree.map(np.asarray, step(*start, given)[3])

    def gradients(self, grads: dict[str, np.ndarray], group: str) -> None:
        for key in (x for x in self.io if x.startswith(f"{group}/")):
            expected = self.io[key]
            found = grads[key.removeprefix(f"{group}/")].reshape(expected.shape)
            scale = np.abs(expected).max() + 1e-6
            assert np.abs(found - expected).max() / scale <= 1e-3, key
        if group != "grad":
            return
        for name, norm in zip(self.io["gradnorm/names"], self.io["gradnorm/values"], strict=True):
            found = np.linalg.norm(grads[str(name)].astype(np.float64))
            np.testing.assert_allclose(found, norm, rtol=1e-4, atol=1e-6, err_msg=name)


def adamw_of_some(
    params: Any, decays: Callable[[str], bool], *, lr: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW of all parameters as one vector, with decay of those whose paths `decays`."""
    each = {
        path: np.full(x.shape, weight_decay * decays(path), np.float32)
        for path, x in flatten(params).items()
    }
    decay = jax.flatten_util.ravel_pytree(unflatten(each))[0]
    return optax.chain(
        optax.scale_by_adam(b2=b2),
        optax.stateless(lambda updates, params: updates + decay * params),
        optax.scale_by_learning_rate(lr),
    )


def write_mae(folder: Path, *, dim: int, side: int) -> Path:
    """A masked autoencoder's encoder of random weights, as it is given away: of images of `side`
    patches of 4 pixels a side."""
    sizes = dict(depth=1, heads=2, head_dim=dim // 2, mlp_dim=16, layer_scale=False, norm_eps=1e-12)
    config = ViTConfig(grid=(side, side), patch_size=4, dim=dim, **sizes)
    params, rng = functional(ViT, config, dtype=jnp.float32).abstract()[0], np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), params)
    tensors = arrays(to_theirs(params, vit_mae.rules(config), vision.sizes(config)))
    save_file(tensors, folder / "model.safetensors")
    settings = {"model_type": "vit_mae", "num_attention_heads": 2, "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
