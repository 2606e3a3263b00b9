"""LAOM's numbers (golden/zoo/laom.npz), by our losses and our moving average around its network."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lapa_jax.latent.objectives.base import mean_squared_error
from lapa_jax.latent.objectives.known import error_where_known
from lapa_jax.nn.module import follow

pytestmark = pytest.mark.usefixtures("quick_compile")
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "zoo" / "laom.npz")
STEPS, RATE, DECAY, LABEL_WEIGHT = 8, 0.01, 0.9, 0.05


def group(prefix):
    return {k.removeprefix(prefix): GOLDEN[k] for k in GOLDEN if k.startswith(prefix)}


def conv(x_BHWC, p, name, stride=1):
    kernel = jnp.transpose(p[f"{name}.weight"], (2, 3, 1, 0))
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x_BHWC, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=layout
    )
    return y + p[f"{name}.bias"]


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def encode(p, frames):
    x = (frames.astype(jnp.float32) / 255.0 - 0.5) * 2.0
    for i in range(2):
        x = conv(x, p, f"encoder.{i}.conv", stride=2)
        y = conv(jax.nn.relu6(x), p, f"encoder.{i}.blocks.0.block.2")
        x = x + conv(jax.nn.relu6(y), p, f"encoder.{i}.blocks.0.block.5")
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)


def head(p, name, x, given):
    """Three blocks, each of what the last one said and of what is given."""
    for i in range(3):
        x = linear(jnp.concatenate([x, given], axis=-1), p, f"{name}.proj{i}")
        inner = linear(x, p, f"{name}.block{i}.mlp.0")
        x = x + linear(jax.nn.relu6(inner), p, f"{name}.block{i}.mlp.2")
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        scale, shift = (p[f"{name}.block{i}.norm.{what}"] for what in ("weight", "bias"))
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + shift
    return linear(x, p, f"{name}.proj_end")


def loss(p, target, batch):
    x = encode(p, jnp.concatenate([batch["obs"], batch["future_obs"]]))
    first, later = jnp.split(x, 2)
    z = head(p, "idm_head", first[:, :0], jnp.concatenate([first, later], axis=-1))
    predicted = head(p, "fdm_head", jax.lax.stop_gradient(first), z)
    wanted = jax.lax.stop_gradient(encode(target, batch["next_obs"]))
    error = mean_squared_error(predicted, wanted)
    x = encode(p, jnp.concatenate([batch["label_obs"], batch["label_future_obs"]]))
    both = jnp.concatenate(jnp.split(x, 2), axis=-1)
    said = linear(head(p, "idm_head", both[:, :0], both), p, "true_actions_head")
    label = error_where_known(said, batch["label_actions"], batch["label_known"])
    return error + LABEL_WEIGHT * label, (error, label, first, z, predicted, wanted)


def check_first(expected, seen, gradient):
    """What the first step says, and the norm of every gradient (-1: there is none)."""
    error, label, *arrays = seen
    labels = ("obs_hidden", "latent_action", "latent_next_obs", "target")
    for name, found in zip(labels, arrays, strict=True):
        np.testing.assert_allclose(found, expected[name], atol=5e-6, err_msg=name)
    np.testing.assert_allclose(error, expected["fdm_loss"], rtol=1e-5)
    if "label_loss" in expected:
        np.testing.assert_allclose(label, expected["label_loss"], rtol=1e-5)
    # Labels have no part in what the original recorded here, and none in the forward model.
    norms = {k.removeprefix("gradnorm/"): v for k, v in expected.items() if k.startswith("gradn")}
    assert len(norms) > 20
    for name, norm in named(norms).items():
        if norm >= 0 and ("label_loss" not in expected or name.startswith("fdm_head")):
            found = jnp.linalg.norm(gradient[name])
            np.testing.assert_allclose(found, norm, rtol=1e-4, atol=5e-6, err_msg=name)


class Weights(nnx.Module):
    """Of the two networks that `follow` moves."""

    def __init__(self, values):
        self.values = nnx.data({name: nnx.Param(value) for name, value in values.items()})


OPTIMIZER = optax.adam(lambda i: RATE * (1 - i / STEPS))


@jax.jit
def step(p, target, opt_state, batch):
    (total, seen), gradient = jax.value_and_grad(loss, has_aux=True)(p, target, batch)
    updates, opt_state = OPTIMIZER.update(gradient, opt_state)
    p = optax.apply_updates(p, updates)
    average, now = Weights(target), Weights(p)
    follow(average, now, DECAY)
    target = {name: value[...] for name, value in average.values.items()}
    return p, target, opt_state, total, seen, gradient


def named(weights):
    """The heads as they are called with labels; without, the head of actions is of no use."""
    theirs = {"act_head": "idm_head", "obs_head": "fdm_head"}
    found = {}
    for name, value in weights.items():
        first, dot, rest = name.partition(".")
        found[theirs.get(first, first) + dot + rest] = value
    return found


@pytest.mark.parametrize("case", ["laom", "laom_labels"])
def test_losses_gradients_and_weights_are_those_of_the_original(case):
    labels = ("label_obs", "label_future_obs", "label_actions")
    known = f"{case}/{labels[0]}" in GOLDEN
    unused = {k: np.zeros_like(v) for k, v in group("laom_labels/init/true_actions_head").items()}
    p = target = named(group(f"{case}/init/"))
    if not known:
        p = target = p | {f"true_actions_head{name}": value for name, value in unused.items()}
    opt_state, logged = OPTIMIZER.init(p), []
    for i in range(STEPS):
        batch = {c: GOLDEN[f"{case}/{c}"][i] for c in ("obs", "next_obs", "future_obs")}
        batch |= {c: GOLDEN[f"laom_labels/{c}"][i] for c in labels}
        batch["label_known"] = np.full(len(batch["label_obs"]), known)
        p, target, opt_state, total, seen, gradient = step(p, target, opt_state, batch)
        logged.append([total, *seen[:2], optax.global_norm(gradient)])
        if i == 0:
            check_first(group(f"{case}/first/"), seen, gradient)
    total, error, label, norm = np.array(logged).T
    log = group(f"{case}/log/")
    np.testing.assert_allclose(error, log["mse_loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, log["grad_norm"], rtol=1e-4)
    if known:
        np.testing.assert_allclose(label, log["true_action_mse_loss"], rtol=1e-5)
        np.testing.assert_allclose(total, log["total_loss"], rtol=1e-5)
    for when, found in (("final", p), ("final_target", target)):
        for name, value in named(group(f"{case}/{when}/")).items():
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=f"{when} {name}")
