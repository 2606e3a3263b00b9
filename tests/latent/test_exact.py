"""Latent action models of others compute what their public originals do.

golden/zoo holds what the originals gave, at tiny sizes: weights, outputs, every term of the loss,
gradients, ten optimizer steps. Tolerances are some ten times the originals' own spread between
float32 and float64. Keys are gone through in the order in which the data go.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lapa_jax import stages
from lapa_jax.interop import adaworld, alam, exact, tensor_files
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import arrays, to_theirs
from lapa_jax.latent.exact.blocks import rotate
from lapa_jax.nn.module import flatten, unflatten

pytestmark = [pytest.mark.usefixtures("quick_compile"), tiny.needs_torch]

ZOO = Path(__file__).parents[1] / "golden" / "zoo"


class Golden:
    """A model of others, imported, beside what the original gave."""

    def __init__(self, name: str, imported: Imported, rules: Callable, prefix: str = ""):
        self.io = dict(np.load(ZOO / f"{name}_io.npz"))
        self.stage = stages.build(imported.config, imported.assets)
        self.model, self.config = self.stage.model, self.stage.model_config
        self.params, self.variables = imported.params, imported.variables
        self.rules, self.prefix = rules(self.config), prefix

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
        found = arrays(to_theirs(tree, ours, exact.genie_sizes(self.config)))
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
    ) -> Callable[[Any], dict[str, Any]]:
        """Gradients (of input `at`), their norms and ten steps. `loss(params, input of a step)`
        gives (value, more), among it `metrics`; returns what gives `more` of an input."""

        @jax.jit
        def step(params, state, given):
            (value, more), grads = jax.value_and_grad(loss, has_aux=True)(params, given)
            updates, state = optimizer.update(grads, state, params)
            more["metrics"]["loss"] = value
            return optax.apply_updates(params, updates), state, grads, more

        start = params, state = self.params, jax.jit(optimizer.init)(self.params)
        self.gradients(self.named(step(*start, at)[2]), "grad")
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
        return lambda given: step(*start, given)[3]

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


def test_adaworld():
    tensors = tensor_files.tensors(ZOO / "adaworld_tiny.ckpt")
    imported = adaworld.from_tensors(tensors, (8, 12))
    golden = Golden("adaworld_tiny", imported, adaworld.rules, "lam.")
    videos, third = golden["in/videos"], golden["in/third_frame"][:, 0]
    q = jnp.asarray(golden["rotary/q"]).transpose(0, 2, 1, 3)[:, :, None]
    golden.near(rotate(q)[:, :, 0].transpose(0, 2, 1, 3), "rotary/q_rotated")

    @jax.jit
    def used(params):
        tokens, encoded = (golden.apply(x, videos, params=params) for x in ("tokens", "encoded"))
        read = golden.apply("read", videos[:, 0], videos[:, 1], params=params)
        moved = golden.apply("decode_latent", third, read.received_BLQ, params=params)
        return tokens, encoded[1], read, moved

    tokens, log_variance, read, moved = used(golden.params)
    golden.near(tokens, "out/encoder")
    golden.near(log_variance, "out/z_var")
    golden.near(read.latent_BLQ, "out/z_mu")
    assert read.z_BL is None
    golden.near(moved, "transfer/recon", 1e-5)

    def loss(params, noise):
        out = golden.apply("__call__", videos, params=params, train=True, noise_MQ=noise)
        return out["loss"], {"metrics": out["metrics"], "recon": out["recon"]}

    terms = {"mse": "mse_loss", "kl": "kl_loss"}
    optimizer = optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(2.5e-5, weight_decay=1e-2))
    noise = golden["in/eps"], np.zeros_like(golden["in/eps"])
    steps = golden["traj_noise/eps"]
    of = golden.trained(loss, optimizer, terms, lr=2.5e-5, steps=steps, at=noise[0])
    for given, group, recon in zip(noise, ("", "_eval"), ("train", "eval"), strict=True):
        found = of(given)
        golden.near(found["recon"], f"out/recon_{recon}", 1e-5)
        golden.losses(found["metrics"], terms | {"loss": "loss"}, f"loss{group}")


@pytest.mark.parametrize("other", [False, True], ids=["known", "other"])
def test_alam(other):
    folder = ZOO / "alam_tiny"
    tensors, settings = tensor_files.tensors(folder), alam.settings_of(folder / alam.CONFIG)
    if other:  # name of the codebook, and place of the weight of 0.25
        tensors[alam.CODEBOOKS[1]] = tensors.pop(alam.CODEBOOKS[0])
        settings |= {"codebook_weight": 1.0, "commitment_weight": 0.25}
    golden = Golden("alam_tiny", alam.from_tensors(tensors, (12, 16), **settings), alam.rules)
    frames = [golden[f"in/frame{i}"].transpose(0, 2, 3, 1) for i in range(3)]

    def loss(params, perceptual):  # what has no gradient there, and is not computed here
        out = golden.apply("__call__", np.stack(frames, axis=1), params=params, train=True)
        return out["loss"] + perceptual, out

    if other:
        grads, out = jax.jit(jax.grad(loss, has_aux=True))(golden.params, 0.0)
        golden.gradients(golden.named(grads), "grad_alt")
        golden.losses(out["metrics"], {"quantization_loss": "avg_commit_loss"}, "loss_alt")
        return

    pairs = ("01", "12", "02", "10")
    first, last = (np.concatenate([frames[int(pair[i])] for pair in pairs]) for i in (0, 1))
    known = golden["sum_01_12/indices"]

    @jax.jit
    def used(params):
        def apply(*given):
            return golden.apply(*given, params=params)

        read = apply("read", first, last)
        a01, a12, *_ = jnp.split(read.latent_BLQ, 4)
        given = jnp.concatenate([read.received_BLQ, a01 + a12, apply("lookup", known)])
        starts = np.concatenate([first, frames[0], frames[0]])
        return read, jnp.split(apply("decode_latent", starts, given), 6)

    read, drawn = used(golden.params)
    for i, pair in enumerate(pairs):
        own = slice(2 * i, 2 * i + 2)
        golden.near(read.latent_BLQ[own], f"out/a_{pair}")
        np.testing.assert_array_equal(read.z_BL[own], golden[f"out/indices_{pair}"])
        golden.near(drawn[i].transpose(0, 3, 1, 2), f"out/recon_{pair}", 1e-5)
    golden.near(read.received_BLQ[:2], "vq_encode01/z_q")
    np.testing.assert_array_equal(drawn[4], drawn[5])  # a sum of latents is quantised

    terms = {
        "quantization_loss": "avg_commit_loss",
        "recon_loss": "avg_recons_loss",
        "additivity_loss": "add_loss",
        "cycle_loss": "cyc_loss",
    }
    # what has two axes there
    matrices = {
        path: path.endswith(("kernel", "codes", "queries")) for path in flatten(golden.params)
    }
    optimizer = optax.adamw(5e-5, b2=0.99, weight_decay=1e-4, mask=unflatten(matrices))
    perceptual = golden["traj/avg_perceptual_loss"]
    of = golden.trained(loss, optimizer, terms, lr=5e-5, steps=perceptual, at=perceptual[0])
    found = of(golden["loss/avg_perceptual_loss"])["metrics"]
    golden.losses(found, terms | {"loss": "loss", "active_codes": "active_code_num"})
