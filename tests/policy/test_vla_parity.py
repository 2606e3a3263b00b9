"""The legacy policy against recordings of the original implementation, float32 on a CPU.

Tolerances: logits 2e-5, losses 1e-5 relative, gradients 1e-5, bfloat16 logits 0.05.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import token_heads

from lapa_jax.interop import lapa_stream, llama, msgpack_stream
from lapa_jax.interop.mapping import to_ours
from lapa_jax.nn.module import Functional, flatten
from lapa_jax.nn.position import rope_tables
from lapa_jax.policy.decoding import decode
from lapa_jax.policy.heads.tokens import cross_entropy
from lapa_jax.policy.modality import ACTION, IMAGE, LATENT
from lapa_jax.policy.vla import VLA, VLAConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "lm"
DELTA = dict(dim=64, mlp_dim=96, depth=3, heads=4)
ACTIONS = dict(dim=32, mlp_dim=56, depth=2, heads=2)
HEADS = {"image": "vision", "text": "text", "latent": "delta", "action": "action"}


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"lm_tiny_{name}.npz") as file:
        return dict(file)


def build(params: dict, shape: dict, dtype: str = "float32"):
    """(model, parameters) from the original's tensors."""
    vocabularies = lapa_stream.vocabularies(params)
    heads = {m: vocabularies.pop(f"{m}_vocab") for m in ("latent", "action")}
    heads = token_heads(**{m: size for m, size in heads.items() if size})
    config = VLAConfig(
        **vocabularies,
        **shape,
        **lapa_stream.LWM,
        head_dim=shape["dim"] // shape["heads"],
        front_end={"name": "cached_tokens", "num_tokens": 16},
        compute_dtype=dtype,
        param_dtype="float32",
        attention="xla",
        remat="none",
        unroll=1,
        legacy=True,
        lora_rank=0,
        lora_alpha=1.0,
        lora_pattern="",
    )
    model = Functional(lambda rngs: VLA(config, heads, rngs=rngs))
    return model, read(model, params, config)


def rules_of(params: dict, config: VLAConfig) -> list:
    return lapa_stream.rules(params, config.depth)


def read(model: Functional, tensors: dict, config: VLAConfig) -> dict:
    sizes = llama.sizes(config.heads, config.head_dim)
    found = to_ours(tensors, rules_of(tensors, config), sizes, model.abstract()[0])
    return jax.tree.map(jnp.asarray, found)


def rows(io: dict, mask: str = "attention_mask") -> list[jax.Array]:
    """tokens, modality, segments of a recording."""
    modality = IMAGE * io["vision_masks"] + LATENT * io["delta_masks"]
    modality = modality + ACTION * io.get("action_masks", np.zeros_like(modality))
    return [jnp.asarray(x, jnp.int32) for x in (io["input_ids"], modality, io[mask])]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, shape", [("delta_scan", DELTA), ("delta_noscan", DELTA), ("action_scan", ACTIONS)]
)
def test_logits(name, shape):
    model, params = build(golden(f"{name}_params"), shape)
    io = golden(f"{name}_io")
    heads = {ours: theirs for ours, theirs in HEADS.items() if f"{theirs}_logits" in io}
    assert len(heads) >= 3
    run = jax.jit(lambda *x: model.apply(params, {}, "outputs", *x, slots=dict.fromkeys(heads))[0])
    found, padded = run(*rows(io)), run(*rows(io, "padded_attention_mask"))
    seen = io["padded_attention_mask"] == 1
    for ours, theirs in heads.items():
        np.testing.assert_allclose(found[ours], io[f"{theirs}_logits"], atol=2e-5)
        expected = io[f"padded_{theirs}_logits"]
        np.testing.assert_allclose(padded[ours][seen], expected[seen], atol=2e-5)


@pytest.mark.slow
def test_bfloat16_logits():
    model, params = build(golden("delta_scan_params"), DELTA, "bfloat16")
    io = golden("delta_scan_io") | golden("delta_scan_bf16_io")
    heads = dict.fromkeys(("image", "text", "latent"))
    found, _ = model.apply(params, {}, "outputs", *rows(io), slots=heads)
    for ours in heads:
        np.testing.assert_allclose(found[ours], io[f"{HEADS[ours]}_logits"], atol=0.05)


@pytest.mark.slow
def test_loss_and_gradients():
    """Row by row, as rows of the recording have different numbers of text targets."""
    model, params = build(golden("delta_scan_params"), DELTA)
    io = golden("delta_scan_io")
    text_mask = 1 - io["target_vision_masks"] * (1.0 - io["target_delta_masks"])
    masks = {"latent": io["target_delta_masks"], "text": text_mask}
    slots = {
        head: [np.flatnonzero(row) for row in io["loss_masks"] * mask]
        for head, mask in masks.items()
    }

    def loss(params):
        losses, hits = {"latent": [], "text": []}, {"latent": [], "text": []}
        for b in range(2):
            row = [x[b : b + 1] for x in rows(io)]
            at = {head: jnp.asarray(found[b])[None] for head, found in slots.items()}
            logits, _ = model.apply(params, {}, "outputs", *row, slots=at)
            for head in losses:
                targets = io["target_tokens"][b, slots[head][b]]
                if head == "text":  # the id 0 at the latent positions: legacy rows have it
                    targets = np.where(io["target_delta_masks"][b, slots[head][b]], 0, targets)
                value, correct = cross_entropy(logits[head], jnp.asarray(targets)[None])
                losses[head].append(value)
                hits[head].append(correct.mean())
        means = {head: sum(values) / 2 for head, values in losses.items()}
        return 0.99 * means["latent"] + 0.01 * means["text"], (means, hits)

    (total, (means, hits)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(total, io["loss"], rtol=1e-5)
    np.testing.assert_allclose(means["latent"], io["delta_loss"], rtol=1e-5)
    np.testing.assert_allclose(means["text"], io["text_loss"], rtol=1e-5)
    assert np.mean(hits["latent"]) == io["delta_acc"] and np.mean(hits["text"]) == io["text_acc"]
    expected = flatten(read(model, golden("delta_scan_grads"), _config(model)))
    for path, gradient in flatten(grads).items():
        np.testing.assert_allclose(gradient, expected[path], atol=1e-5, err_msg=path)


def _config(model: Functional) -> VLAConfig:
    return model._module().config


@pytest.mark.slow
def test_cached_decoding():
    model, params = build(golden("delta_scan_params"), DELTA)
    io = golden("delta_scan_decode")
    names = ("tokens", "modality", "segments")
    io["delta_masks"] = np.zeros_like(io["vision_masks"])
    prompts = dict(zip(names, rows(io), strict=True))
    ids, logits = decode(model, params, {}, prompts, None, "latent", 4)
    np.testing.assert_array_equal(ids, io["delta_tokens"])
    np.testing.assert_allclose(logits, io["delta_logits"], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind, dtype", [("fp32", jnp.float32), ("bf16", jnp.bfloat16)])
def test_rotary_tables(kind, dtype):
    with np.load(GOLDEN / "lm_rope_tables.npz") as file:
        tables = dict(file)
    where = jnp.arange(384)[None]
    found = rope_tables(where, int(tables["head_dim"]), float(tables["theta"]), dtype)
    for actual, name in zip(found, ("real", "imag"), strict=True):
        np.testing.assert_allclose(actual[0], tables[f"{kind}_{name}"], atol=5e-5)


def test_streamed_file_is_bit_equal():
    tensors = msgpack_stream.read(GOLDEN / "lm_tiny_delta_scan.streaming_params")
    expected = golden("delta_scan_params")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(tensor).astype(np.float32), expected[name])
