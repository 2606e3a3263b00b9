"""Experts and flow against pi0's and pi0.5's own numbers: their weights in our layers.

Theirs: heads share keys and values, rotary pairs are halves of a head, norms have 1 + scale.
"""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import ROOT

from lapa_jax.nn.module import Functional, unflatten
from lapa_jax.nn.position import rope_tables
from lapa_jax.nn.stack import Stack
from lapa_jax.policy.expert import (
    AdaptiveNorm,
    Context,
    Expert,
    Fed,
    Given,
    Layer,
    Size,
    time_embedding,
)
from lapa_jax.policy.heads.flow import euler, times

pytestmark = pytest.mark.usefixtures("quick_compile")
GOLDEN = ROOT / "tests/golden/heads"
KEPT = dict(rope_theta=10_000.0, norm_eps=1e-6, init_std=0.1, compute_dtype="float32")
MODEL = SimpleNamespace(
    heads=4, head_dim=8, dim=32, attention="xla", remat="none", unroll=0, **KEPT
)
STEPS = (2, 10)
HALVES = np.arange(8).reshape(2, 4).T.reshape(-1)  # of a head, as pairs


@pytest.fixture(scope="module")
def misc():
    with np.load(GOLDEN / "flow_misc.npz") as file:
        return dict(file)


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "pi0_tiny.npz") as file:
        sizes = json.loads(str(file["config_json"]))
        assert (sizes["big"]["width"], sizes["small"]["width"], sizes["H"]) == (32, 24, 4)
        return {k.removeprefix(f"{name}/"): file[k] for k in file if k.startswith(f"{name}/")}


class Policy(nnx.Module):
    """Both experts; the one of text and images is a stack of layers without a context."""

    def __init__(self, adaptive: bool, *, rngs):
        big = Size(32, 40, 2, False, "gelu")
        self.prefix = Stack(
            lambda rngs: Layer(big, MODEL, 0, rngs=rngs), 2, remat="none", unroll=0, rngs=rngs
        )
        size = Size(24, 36, 2, adaptive, "gelu")
        self.expert = Expert({"action": (4, 5)}, size, MODEL, sees_hidden=False, rngs=rngs)

    def context(self, tokens_BTD, valid_BT):
        """Of tokens that all see each other."""
        segments = valid_BT.astype(jnp.int32)
        where = jnp.cumsum(segments, axis=1) - 1
        given = Given(rope_tables(where, 8, 10_000.0), segments, segments)
        none = jnp.zeros((2, len(tokens_BTD), 0, 4, 8))
        x, kv = self.prefix(tokens_BTD, given, per_layer=(none, none), method="joint")
        return x, Context(segments, kv)

    def velocity(self, x, time, context, state, embedded=None):
        """pi0's has the state as a token before the actions, which sees none of them."""
        if state is None and embedded is None:
            return self.expert(Fed(time[:, None], {"action": x}), context)["action"]
        embedded = time_embedding(time, 24) if embedded is None else embedded
        tokens, condition = self.expert.timed(
            self.expert.into["action"](x)[:, None], embedded[:, None]
        )
        if state is None:
            x = self.expert.seeing(tokens, condition, context)
            return tokens, x, self.expert.out["action"](x)
        tokens = jnp.concatenate([state[:, None], tokens], axis=1)
        (B, T), n = context.segments_BT.shape, tokens.shape[1]
        where = context.segments_BT.sum(axis=1)[:, None] + jnp.arange(n)
        own = jnp.ones((B, n), jnp.int32)
        keys = jnp.concatenate([context.segments_BT, own], axis=1)
        given = Given(
            rope_tables(where, 8, 10_000.0), own, keys, jnp.broadcast_to(LAST + T, own.shape)
        )
        x, _ = self.expert.layers(tokens, given, per_layer=context.keys_and_values, method="joint")
        x = self.expert.norm(x)
        return tokens, x, self.expert.out["action"](x[:, 1:])


LAST = np.array([0, 4, 4, 4, 4])  # of a state and four actions, which token each sees last


def test_who_sees_whom_and_where():
    """Segments and last keys are theirs of masks and flags."""
    for name, last in (("pi0", LAST), ("pi05", np.full(4, 3))):
        own = read(name)
        (B, T), n = own["prefix_mask"].shape, len(last)
        segments = np.concatenate([own["prefix_mask"], np.ones((B, n), bool)], axis=1)
        last = np.concatenate([np.full(T, T - 1), T + last])
        seen = (segments[:, :, None] & segments[:, None]) & (np.arange(T + n) <= last[:, None])
        np.testing.assert_array_equal(seen, own["attn_mask"])
        where = np.cumsum(segments, axis=1) - 1
        np.testing.assert_array_equal(where, own["positions"])


def ours(theirs: dict[str, jax.Array], adaptive: bool):
    """Our parameters, of theirs by path."""
    llm = "PaliGemma/llm/"

    def norm(name: str, adaptive: bool) -> dict[str, jax.Array]:
        if not adaptive:
            return {"scale": 1.0 + theirs[f"{llm}{name}/scale"]}
        kernel, bias = (theirs[f"{llm}{name}/Dense_0/{x}"] for x in ("kernel", "bias"))
        apart = {"kernel": kernel, "bias": bias}
        return {
            f"change/{k}": x.reshape(*x.shape[:-1], 3, x.shape[-1] // 3) for k, x in apart.items()
        }

    def layers(end: str, adaptive: bool) -> dict[str, jax.Array]:
        q, kv, out = (
            theirs[f"{llm}layers/attn/{x}{end}/w"]
            for x in ("q_einsum", "kv_einsum", "attn_vec_einsum")
        )
        gating, down = (theirs[f"{llm}layers/mlp{end}/{x}"] for x in ("gating_einsum", "linear"))
        k, v = (jnp.repeat(jnp.moveaxis(kv[:, i], 1, 2), 4, axis=2) for i in (0, 1))
        found = {
            "attention/q/kernel": jnp.moveaxis(q, 1, 2)[..., HALVES],
            "attention/k/kernel": k[..., HALVES],
            "attention/v/kernel": v,
            "attention/out/kernel": out,
            "mlp/gate/kernel": gating[:, 0],
            "mlp/up/kernel": gating[:, 1],
            "mlp/down/kernel": down,
        }
        for name, own in (("attention_norm", "pre_attention_norm"), ("mlp_norm", "pre_ffw_norm")):
            of_norm = norm(f"layers/{own}{end}", adaptive)
            found |= {f"{name}/{k}": x for k, x in of_norm.items()}
        return found

    flat = {f"prefix/layers/{k}": x for k, x in layers("", False).items()}
    flat |= {f"expert/layers/layers/{k}": x for k, x in layers("_1", adaptive).items()}
    flat |= {f"expert/norm/{k}": x for k, x in norm("final_norm_1", adaptive).items()}
    time = "time_mlp" if adaptive else "action_time_mlp"
    for name, own in (
        ("into/action", "action_in_proj"),
        ("out/action", "action_out_proj"),
        ("time_in", f"{time}_in"),
        ("time_out", f"{time}_out"),
    ):
        flat |= {f"expert/{name}/{k}": theirs[f"{own}/{k}"] for k in ("kernel", "bias")}
    return unflatten(flat)


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_velocities_gradients_and_samples(name):
    own, adaptive = read(name), name == "pi05"
    params = {k.removeprefix("params/"): x for k, x in own.items() if k.startswith("params/")}
    module = Functional(lambda rngs: Policy(adaptive, rngs=rngs))

    def call(theirs, method, *given):
        return module.apply(ours(theirs, adaptive), {}, method, *given)[0]

    def prefix(theirs):
        table = theirs["PaliGemma/llm/embedder/input_embedding"]
        images = own["image_tokens"].reshape(3, -1, 32)
        tokens = jnp.concatenate([images, table[own["prompt"]] * 32**0.5], axis=1)
        return tokens, call(theirs, "context", tokens, own["prefix_mask"])

    def state_of(theirs):
        if adaptive:
            return None
        return own["state"] @ theirs["state_proj/kernel"] + theirs["state_proj/bias"]

    def loss(theirs, embedded):
        tokens, (seen, context) = prefix(theirs)
        at = own["x_t"], own["time"], context, state_of(theirs)
        suffix, out, v = call(
            theirs,
            "velocity",
            *at,
            time_embedding(own["time"], 24) if embedded is None else embedded,
        )
        each = jnp.square(v - own["u_t"]).mean(axis=-1)
        return each.mean(), (tokens, seen, suffix, out, v, each)

    names = ("prefix_tokens", "prefix_out", "suffix_tokens", "suffix_out", "v_t", "loss")
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (mean, found), grads = gradient(params, time_embedding(own["time"], 24))
    np.testing.assert_allclose(
        own["x_t"],
        own["time"][:, None, None] * own["noise"]
        + (1 - own["time"])[:, None, None] * own["actions"],
        atol=1e-6,
    )
    np.testing.assert_allclose(mean, own["mean_loss"], atol=5e-4)
    found = dict(zip(names, found, strict=True))
    np.testing.assert_allclose(found.pop("prefix_tokens"), own["prefix_tokens"], atol=1e-6)
    del found["prefix_out"]  # before their last norm
    for what, value in found.items():
        np.testing.assert_allclose(value, own[what], atol=5e-4, err_msg=what)
    # Their own sines of up to 1571 rad in float32 are what the rest of the difference comes from.
    exact = gradient(params, own["time_embedding"])[0][1]
    for what, value in dict(zip(names[2:], exact[2:], strict=True)).items():
        np.testing.assert_allclose(value, own[what], atol=2e-5, err_msg=what)
    for path, found in grads.items():
        norm = own[f"gradnorm/{path}"]
        np.testing.assert_allclose(jnp.linalg.norm(found), norm, rtol=5e-3, err_msg=path)

    @jax.jit
    def sampled(theirs):
        _, (_, context) = prefix(theirs)

        def velocity(x, time):
            found = call(theirs, "velocity", x, jnp.full(3, time), context, state_of(theirs))
            return found if adaptive else found[-1]

        return [euler(velocity, own["sample_noise"], steps) for steps in STEPS]

    for steps, sample in zip(STEPS, sampled(params), strict=True):
        np.testing.assert_allclose(sample, own[f"sample_{steps}"], atol=1e-3, err_msg=steps)


def test_times_sines_norms_and_steps(misc):
    for width in (8, 24):
        found = time_embedding(misc["posemb/t"], width)
        np.testing.assert_allclose(found, misc[f"posemb/w{width}"], atol=3e-4)
    drawn = np.quantile(times(jax.random.key(0), (50_000,)), misc["time/q"])
    np.testing.assert_allclose(drawn, misc["time/exact_quantiles"], atol=8e-3)

    norm = Functional(lambda rngs: AdaptiveNorm(6, 7, eps=1e-6, dtype=jnp.float32, rngs=rngs))
    flat = {"change/kernel": misc["adarms/kernel"].reshape(7, 3, 6)}
    flat["change/bias"] = misc["adarms/bias"].reshape(3, 6)
    condition = np.repeat(misc["adarms/cond"][:, None], 3, axis=1)
    out, gate = norm.apply(unflatten(flat), {}, "__call__", misc["adarms/x"], condition)[0]
    np.testing.assert_allclose(out, misc["adarms/out"], atol=1e-5)
    np.testing.assert_allclose(gate[:, :1], misc["adarms/gate"], atol=1e-5)

    # Of a field, of which theirs says where it leads.
    def field(x, t):
        return jnp.cos(3.0 * t) * x + t

    for steps in (1, 4, 10):
        end = euler(field, jnp.asarray(misc["euler/x1"]), steps)
        np.testing.assert_allclose(end, misc[f"euler/field_{steps}"], atol=1e-5)
