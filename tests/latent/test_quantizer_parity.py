"""The legacy quantizer against arrays recorded from the original implementation (float32).

tests/golden/laq holds its state dicts, inputs, activations, gradients and a trajectory of 24
training steps; tolerances are those within which the original meets them itself.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import needs_torch

from lapa_jax.interop import laq_pt, mapping, tensor_files
from lapa_jax.latent import Quantizer
from lapa_jax.latent.bottlenecks import nsvq
from lapa_jax.latent.legacy import mix_channels
from lapa_jax.nn.module import Functional, flatten

pytestmark = pytest.mark.usefixtures("quick_compile")
GOLDEN = Path(__file__).parents[1] / "golden" / "laq"
NAMES = ("laq_tiny4", "laq_tiny1")


def state_dict(name):
    """As torch wrote it, or (the larger one) its tensors."""
    torch_file = GOLDEN / f"{name}.pt"
    return tensor_files.tensors(torch_file) if torch_file.exists() else arrays(f"{name}_params")


@functools.cache
def load(name):
    """(config, model, params, variables) of a recorded state dict."""
    config, params = laq_pt.from_tensors(state_dict(name), image_size=64)
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    variables = jax.jit(model.init)(jax.random.key(0))[1]
    return config, model, jax.tree.map(jnp.asarray, params), variables


def arrays(name):
    return dict(np.load(GOLDEN / f"{name}.npz"))


def frames_of(video_u8):
    """uint8 (B, 3, 2, H, W) → (B, 2, H, W, 3), as our models take them."""
    return np.moveaxis(video_u8, 1, -1)


def channels_last(frames):
    return np.moveaxis(frames, 1, -1)


def assert_close(found, expected, atol):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol)


def assert_same_codes(found, expected, margin):
    """Equal; a difference is excused only where two codes are equally near."""
    differs = np.asarray(found) != expected
    assert (margin[differs] < 1e-5).all(), margin[differs]


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("name", NAMES)
def test_activations_codes_and_reconstructions(name):
    config, model, params, variables = load(name)
    io = arrays(f"{name}_io")
    frames = frames_of(io["video_u8"])

    def forward(net, frames):
        embedded = net.patches(net.frames(frames))
        spatial = net.spatial(embedded, net.bias())
        tokens = net.temporal(spatial)
        z = [net.code_projection(tokens[:, t]) for t in (0, 1)]
        out = net(frames, train=False)
        quantized = net.context(mix_channels(net.bottleneck.lookup(out["z"])))
        by_hand = net.decode(frames[:, 0], io["user_indices"])
        return embedded, net.bias(), spatial, tokens, z, out, quantized, by_hand

    Probe = type("Probe", (Quantizer,), {"forward": forward})
    probe = Functional(lambda rngs: Probe(config, rngs=rngs))
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda f: probe.apply(params, variables, "forward", f)[0])(frames)
    embedded, bias, spatial, tokens, z, out, quantized, by_hand = found
    assert out["z"].dtype == jnp.int32 and out["z"].shape == io["inference_indices"].shape
    for x, key in ((embedded, "patch_emb"), (bias, "spatial_bias"), (spatial, "spatial_out")):
        assert_close(x, io[key], 5e-5)
    assert_close(tokens[:, :1], io["first_tokens"], 5e-5)
    assert_close(tokens[:, 1:], io["last_tokens"], 5e-5)
    for x, key in zip(z, ("z_first", "z_last"), strict=True):
        assert_close(x.reshape(-1, config.quant_dim), io[key], 1e-5)
    assert_same_codes(out["z"], io["inference_indices"], io["inference_margin"])
    assert_close(quantized, io["inference_quantized"], 5e-5)
    assert_close(out["recon"], channels_last(io["inference_recon"]), 2e-5)
    assert_close(by_hand, channels_last(io["user_recon"]), 2e-5)


def recorded_noise(monkeypatch, noise):
    """Training draws this noise (M, D) instead of its own."""
    monkeypatch.setattr(
        nsvq.LegacyNSVQ, "noise", lambda self, rng, shape: jnp.asarray(noise).reshape(shape)
    )


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("name", NAMES)
def test_training_loss_gradients_and_use_counter(name, monkeypatch):
    config, model, params, variables = load(name)
    io, grads = arrays(f"{name}_io"), arrays(f"{name}_grads")
    recorded_noise(monkeypatch, io["noise"])
    frames = frames_of(io["video_u8"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_grads(params, variables):
        out, variables = model.apply(
            params, variables, "__call__", frames, train=True, rng=jax.random.key(0)
        )
        return out["loss"], (out, variables)

    with jax.default_matmul_precision("highest"):
        (loss, (out, after)), found = loss_and_grads(params, variables)
        for _ in range(2):
            (_, (_, after)), _ = loss_and_grads(params, after)
    np.testing.assert_allclose(loss, io["train_loss"], rtol=1e-5)
    assert_close(out["recon"], channels_last(io["train_recon"]), 2e-5)
    assert_same_codes(out["z"], io["train_indices"], io["inference_margin"])
    np.testing.assert_array_equal(after["bottleneck"]["used"], io["codebooks_used_after_3"])
    np.testing.assert_allclose(optax.global_norm(found), io["grad_global_norm"], rtol=1e-4)
    theirs = laq_pt.to_tensors(config, jax.tree.map(np.asarray, found))
    for key, expected in grads.items():
        # The softmax ignores a constant: this gradient is zero but for rounding.
        noise = key == "spatial_rel_pos_bias.net.2.bias"
        scale = 1e-3 if noise else np.abs(expected).max(initial=0.0)
        difference = np.abs(theirs[key] - expected).max(initial=0.0)
        assert difference / (scale + 1e-6) < 1e-3, key
    unused = set(theirs) - set(grads)
    assert set(io["grad_none_keys"]) <= unused
    assert all("beta" in k for k in unused - set(io["grad_none_keys"])), unused


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("name", NAMES)
def test_every_code_of_a_spread_codebook(name):
    config, model, params, variables = load(name)
    spread = arrays(f"{name}_spread")
    params = {**params, "bottleneck": {"codebook": jnp.asarray(spread["codebooks"])}}
    frames = frames_of(spread["video_u8"])

    @jax.jit
    def run(frames):
        out, _ = model.apply(params, variables, "__call__", frames, train=False)
        return model.apply(params, variables, "encode", frames[:, 0], frames[:, 1])[0], out

    with jax.default_matmul_precision("highest"):
        z, out = run(frames)
    assert_close(z.reshape(-1, config.quant_dim), spread["z"], 1e-5)
    assert_same_codes(out["z"], spread["indices"], spread["margin"])
    assert set(np.unique(out["z"])) == set(range(config.codebook_size))
    assert_close(out["recon"], channels_last(spread["recon"]), 2e-5)


@pytest.mark.slow
def test_training_trajectory_with_replacements(monkeypatch):
    config, model, params, variables = load("laq_tiny4")
    golden = arrays("laq_tiny4_trajectory")
    params = {**params, "bottleneck": {"codebook": jnp.asarray(golden["initial_codebooks"])}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(float(golden["max_grad_norm"])),
        optax.adam(
            float(golden["lr"]), *(float(b) for b in golden["betas"]), eps=float(golden["eps"])
        ),
    )
    monkeypatch.setattr(nsvq.LegacyNSVQ, "noise", lambda self, rng, shape: rng.reshape(shape))
    monkeypatch.setattr(nsvq.LegacyNSVQ, "shuffle", lambda self, rng, used: rng)

    @jax.jit
    def step(params, variables, opt_state, frames, noise, order, i):
        def loss(params):
            out, new = model.apply(params, variables, "__call__", frames, train=True, rng=noise)
            return out["loss"], (out["z"], new)

        (value, (z, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        params, new = model.after_update(params, new, i, order)
        return params, new, opt_state, value, z, optax.global_norm(grads)

    opt_state = optimizer.init(params)
    with jax.default_matmul_precision("highest"):
        for i in range(24):
            order = np.zeros(config.codebook_size, np.int32)
            if i in (10, 20):
                recorded = golden[f"step{i}_permutation"]
                order[: len(recorded)] = recorded
            params, variables, opt_state, loss, z, norm = step(
                params,
                variables,
                opt_state,
                frames_of(golden["videos_u8"][i]),
                golden["noise"][i],
                order,
                jnp.int32(i),
            )
            np.testing.assert_allclose(loss, golden["losses"][i], rtol=1e-5, err_msg=f"step {i}")
            np.testing.assert_allclose(norm, golden["grad_norms"][i], rtol=1e-4)
            assert_same_codes(z, golden["indices"][i], golden["margin"][i])
            assert_close(params["bottleneck"]["codebook"], golden["codebooks"][i], 1e-5)
            np.testing.assert_array_equal(
                variables["bottleneck"]["used"], golden["codebooks_used"][i]
            )
    final = arrays("laq_tiny4_trajectory_final_params")
    theirs = laq_pt.to_tensors(config, jax.tree.map(np.asarray, params))
    # What never gets a gradient keeps its value there; here it is not kept at all.
    unused = set(arrays("laq_tiny4_io")["grad_none_keys"])
    differences = np.concatenate(
        [np.abs(theirs[k] - v).ravel() for k, v in final.items() if k not in unused]
    )
    assert np.mean(differences <= 5e-5) >= 0.999 and differences.max() <= 2.5e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["few_unused", "many_unused", "none_used", "edge_tenth", "all_used"]
)
def test_replacement_of_unused_codes(case):
    golden = arrays("laq_codebook_replacement")
    unused = golden[f"{case}_used"] / np.float32(golden["num_batches"]) < np.float32(0.1)
    order = np.zeros(8, np.int32)
    recorded = golden[f"{case}_permutation"]
    order[: len(recorded)] = recorded
    found = nsvq.copy_used_codes(jnp.asarray(golden[f"{case}_before"]), unused, order)
    np.testing.assert_allclose(found, golden[f"{case}_after"], rtol=0, atol=1e-9)


def test_random_order_is_a_permutation_of_the_tiled_used_codes():
    config, model, params, variables = load("laq_tiny4")
    used = jnp.array([1, 1, 1, 0, 0, 0, 0, 0], bool)  # 3 used, 5 unused: tiled twice
    order = jax.jit(lambda key: nsvq.LegacyNSVQ.shuffle(None, key, used))
    orders = np.stack([order(jax.random.key(i)) for i in range(20)])
    assert all(sorted(o[:6]) == list(range(6)) for o in orders)
    assert len({tuple(o[:6]) for o in orders}) > 10


@pytest.mark.slow
@needs_torch
def test_state_dict_round_trip_and_released_shapes():
    import json

    for name in NAMES:
        original = state_dict(name)
        prefixed = {f"module.{key}": x for key, x in original.items()}
        config, params = laq_pt.from_tensors(prefixed, image_size=64)
        written = laq_pt.to_tensors(config, params)
        assert list(written) == list(original)
        dead = set(arrays(f"{name}_io")["grad_none_keys"])
        for key, x in original.items():
            assert written[key].dtype == x.dtype and written[key].shape == x.shape
            if key not in dead:
                np.testing.assert_array_equal(written[key], x)
    shapes = json.loads((GOLDEN / "laq_released_state_dict_shapes.json").read_text())
    released = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config = laq_pt.infer_config(released, 256, None)
    assert (config.dim, config.mlp_dim, config.heads, config.code_length) == (1024, 2730, 16, 4)
    model = Functional(lambda rngs: Quantizer(config, rngs=rngs))
    expected = flatten(model.abstract()[0])
    rules = laq_pt.rules(config)
    names = [n for rule in rules for n in mapping.names(rule)]
    assert laq_pt._order(names) == list(shapes)
    assert {r.ours for r in rules if isinstance(r, laq_pt.Rule)} == set(expected)


@pytest.mark.slow
def test_a_state_dict_that_does_not_fit_is_refused():
    original = state_dict("laq_tiny4")

    def read(changes=None, drop=None, image_size=64, code_length=None):
        tensors = {k: x for k, x in original.items() if k != drop} | (changes or {})
        return laq_pt.from_tensors(tensors, image_size, code_length)

    scale = "enc_spatial_transformer.layers.1.1.q_scale"
    with pytest.raises(ValueError, match=f"missing: .'{scale}'"):
        read(drop=scale)
    with pytest.raises(ValueError, match="not known: .'extra'"):
        read({"extra": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=r"patches/project/bias.*\[7\], the model has.*\[56\]"):
        read({"to_patch_emb_first_frame.2.bias": np.zeros(7, np.float32)})
    bias = np.linspace(0, 1, 56)  # float64 is rounded
    rounded, given = (
        flatten(read({"to_patch_emb_first_frame.2.bias": x})[1])
        for x in (bias, bias.astype(np.float32))
    )
    for path, value in rounded.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, given[path])
    with pytest.raises(ValueError, match="norm_out.beta.*another model"):
        read({"enc_spatial_transformer.norm_out.beta": np.ones(56, np.float32)})
    with pytest.raises(ValueError, match="12x12 patch grid fit no code_length"):
        read(image_size=96)
    assert read(image_size=128)[0].code_length == 16  # what the shapes leave open
    with pytest.raises(ValueError, match="code_length=1"):
        read(code_length=1)
