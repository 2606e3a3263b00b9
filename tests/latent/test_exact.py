"""Latent action models of others compute what their public originals do.

golden/zoo holds what the originals gave, at tiny sizes: weights, outputs, every term of the loss,
gradients, ten optimizer steps. Keys are gone through in the order in which the data go.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from zoo import ZOO, Golden, adamw_of_some, write_mae

from lapa_jax.interop import adaworld, alam, moto, tensor_files, villax
from lapa_jax.interop.mapping import functional, to_theirs
from lapa_jax.latent import ARCHITECTURES
from lapa_jax.latent.exact import villax as villax_model
from lapa_jax.latent.exact.blocks import image_patches, rotate, weighed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compile"),
    tiny.needs_torch,
]


def test_adaworld():
    tensors = tensor_files.tensors(ZOO / "adaworld_tiny.ckpt")
    imported = adaworld.from_tensors(tensors, (8, 12))
    golden = Golden("adaworld_tiny", imported, adaworld, "lam.")
    videos, third = golden["in/videos"], golden["in/third_frame"][:, 0]
    q = jnp.asarray(golden["rotary/q"]).transpose(0, 2, 1, 3)[:, :, None]
    golden.near(rotate(q)[:, :, 0].transpose(0, 2, 1, 3), "rotary/q_rotated")

    def loss(params, noise):
        def apply(*given):
            return golden.apply(*given, params=jax.lax.stop_gradient(params))

        out = golden.apply("__call__", videos, params=params, train=True, noise_MQ=noise)
        moved = apply("decode_latent", third, golden["out/z_mu"][:, None])
        return out["loss"], out | {"tokens": apply("tokens", videos), "moved": moved}

    terms = {"mse": "mse_loss", "kl": "kl_loss"}
    optimizer = optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(2.5e-5, weight_decay=1e-2))
    noise = golden["in/eps"], np.zeros_like(golden["in/eps"])
    steps = golden["traj_noise/eps"]
    of = golden.trained(loss, optimizer, terms, lr=2.5e-5, steps=steps, at=noise[0])
    for given, group, recon in zip(noise, ("", "_eval"), ("train", "eval"), strict=True):
        found = of(given)
        golden.near(found["recon"], f"out/recon_{recon}", 1e-5)
        golden.losses(found["metrics"], terms | {"loss": "loss"}, f"loss{group}")
    golden.near(found["tokens"], "out/encoder")
    moments = golden.params["moments"]
    moments = found["tokens"][:, 1, 0] @ moments["kernel"] + moments["bias"]
    for found_of, key in zip(np.split(moments, 2, axis=1), ("mu", "var"), strict=True):
        golden.near(found_of, f"out/z_{key}")
    golden.near(found["moved"], "transfer/recon", 1e-5)


@pytest.mark.parametrize("other", [False, True], ids=["known", "other"])
def test_alam(other):
    folder = ZOO / "alam_tiny"
    tensors, settings = tensor_files.tensors(folder), alam.settings_of(folder / alam.CONFIG)
    if other:  # name of the codebook, and place of the weight of 0.25
        tensors[alam.CODEBOOKS[1]] = tensors.pop(alam.CODEBOOKS[0])
        settings |= {"codebook_weight": 1.0, "commitment_weight": 0.25}
    golden = Golden("alam_tiny", alam.from_tensors(tensors, (12, 16), **settings), alam)
    frames = [golden[f"in/frame{i}"].transpose(0, 2, 3, 1) for i in range(3)]

    pairs = ("01", "12", "02", "10")
    first, last = (np.concatenate([frames[int(pair[i])] for pair in pairs]) for i in (0, 1))
    known = golden["sum_01_12/indices"]

    def used(params):
        def apply(*given):
            return golden.apply(*given, params=jax.lax.stop_gradient(params))

        read = apply("read", first, last)
        a01, a12, *_ = jnp.split(read.latent_BLQ, 4)
        given = jnp.concatenate([read.received_BLQ, a01 + a12, apply("lookup", known)])
        starts = np.concatenate([first, frames[0], frames[0]])
        return {"read": read, "drawn": jnp.split(apply("decode_latent", starts, given), 6)}

    def loss(params, perceptual):  # what has no gradient there, and is not computed here
        out = golden.apply("__call__", np.stack(frames, axis=1), params=params, train=True)
        return out["loss"] + perceptual, out | ({} if other else used(params))

    if other:
        grads, out = jax.jit(jax.grad(loss, has_aux=True))(golden.params, 0.0)
        golden.gradients(golden.named(grads), "grad_alt")
        golden.losses(out["metrics"], {"quantization_loss": "avg_commit_loss"}, "loss_alt")
        return

    terms = {
        "quantization_loss": "avg_commit_loss",
        "recon_loss": "avg_recons_loss",
        "additivity_loss": "add_loss",
        "cycle_loss": "cyc_loss",
    }

    def matrix(path):  # what has two axes there
        return path.endswith(("kernel", "codes", "queries"))

    how = dict(lr=5e-5, b2=0.99, weight_decay=1e-4)
    optimizer = adamw_of_some(golden.params, matrix, **how)
    perceptual = golden["traj/avg_perceptual_loss"]
    of = golden.trained(loss, optimizer, terms, lr=5e-5, steps=perceptual, at=perceptual[0])
    found = of(golden["loss/avg_perceptual_loss"])
    terms |= {"loss": "loss", "active_codes": "active_code_num"}
    golden.losses(found["metrics"], terms)
    read, drawn = found["read"], found["drawn"]
    for i, pair in enumerate(pairs):
        own = slice(2 * i, 2 * i + 2)
        golden.near(read.latent_BLQ[own], f"out/a_{pair}")
        np.testing.assert_array_equal(read.z_BL[own], golden[f"out/indices_{pair}"])
        golden.near(drawn[i].transpose(0, 3, 1, 2), f"out/recon_{pair}", 1e-5)
    golden.near(read.received_BLQ[:2], "vq_encode01/z_q")
    np.testing.assert_array_equal(drawn[4], drawn[5])  # a sum of latents is quantised


def test_villax():
    folder = ZOO / "villax_tiny"
    golden = Golden("villax_tiny", villax.of_folder(folder), villax)
    clips = golden["in/clips_u8"]
    frames, window = clips / np.float32(255), clips[:, :4]
    prepared = villax_model.normalized(frames).transpose(0, 1, 4, 2, 3)
    np.testing.assert_allclose(prepared, golden["out/preprocessed"], atol=1e-5)
    short = 4 - golden["in/ragged_lens"][1]  # the last two of the first four frames
    first_q = golden["out/idm_vq_tokens"][:, 0].reshape(2, 3, 6)

    @jax.jit
    def used(params):
        latents = golden.apply("latents", frames, params=params)
        ragged = golden.apply("encode", clips[1:, short], clips[1:, 3], params=params)
        drawn = golden.apply("decode_latent", clips[:, 0], first_q, params=params)
        codes, found = params["codebook"]["codes"], latents[:, :3].reshape(-1, 3, 6)
        return latents, ragged, drawn, villax_model.entropy_loss(found, codes)

    latents, ragged, drawn, entropy = used(golden.params)
    golden.near(latents, "out/idm_tokens")
    golden.near(jnp.concatenate([latents[0, :3], ragged]), "ragged/latent")
    np.testing.assert_allclose(0.1 * entropy, golden["loss/entropy_extra"], rtol=1e-5)
    golden.near(image_patches(villax_model.normalized(drawn), 6), "fdm/patches")
    levels = np.clip(255 * np.asarray(drawn), 0, 255).astype(int).transpose(0, 3, 1, 2)
    assert np.abs(levels - golden["fdm/image_u8"]).max() <= 1

    def loss(params):
        out = golden.apply("__call__", window, params=params, train=True)
        return out["loss"], out

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(golden.params)
    np.testing.assert_array_equal(out["z"], golden["window/indices"])
    golden.near(image_patches(villax_model.normalized(out["recon"]), 6), "window/recon_patches")
    terms = out["metrics"] | {"vq": weighed(golden.config, out["metrics"])}
    golden.losses(terms, {"recon_loss": "recon", "vq": "vq"})
    np.testing.assert_allclose(out["loss"], terms["recon_loss"] + terms["vq"], rtol=1e-6)
    golden.gradients(golden.named(grads), "grad")


def test_moto(tmp_path):
    encoder = write_mae(tmp_path, dim=14, side=3)
    golden = Golden("moto_tiny", moto.of_folder(ZOO / "moto_tiny", moto.Options(encoder)), moto)
    states = [golden[f"in/{name}_hidden_states"] for name in ("cond", "target")]
    first, last = (
        golden[f"in/{name}_pixel_values"].transpose(0, 2, 3, 1) for name in ("cond", "target")
    )

    def loss(params, given):
        """`given`: what has no gradient, and the weights of codes and of latents."""

        def apply(*given):
            return golden.apply(*given, params=params)

        drawn, codes, value, metrics = apply("learn", *states, first, last)
        placed = metrics["codebook_loss"] * given[1] + metrics["commitment_loss"] * given[2]
        metrics["quantization_loss"] = placed
        more = {"metrics": metrics, "recon": drawn, "z": codes, "value": value}
        more |= {name: apply(name, *states) for name in ("former", "latent")}
        more["up"] = apply("up", apply("lookup", codes))
        return metrics["recon_loss"] + placed + given[0], more

    terms = {"recon_loss": "recons_loss", "quantization_loss": "commit_loss"}

    def matrix(path):
        return not path.endswith(("bias", "scale"))

    how = dict(lr=5e-5, b2=0.99, weight_decay=1e-4)
    optimizer = adamw_of_some(golden.params, matrix, **how)
    weights = golden.config.codebook_weight, golden.config.commitment_weight
    assert weights == (0.25, 1.0)
    steps = [np.array([x, *weights]) for x in golden["traj/perceptual_loss"]]
    of = golden.trained(
        loss, optimizer, terms, lr=5e-5, steps=steps, at=steps[0],
        others={"grad_legacy_false": np.array([0.0, 1.0, 0.25])},
    )  # fmt: skip
    found = of(np.array([golden["loss/perceptual_loss"], *weights]))
    golden.losses(found["metrics"], terms | {"loss": "loss"})
    golden.near(found["former"], "out/m_former_tokens")
    golden.near(found["latent"], "out/z_pre_quant")
    np.testing.assert_array_equal(found["z"], golden["out/indices"])
    golden.near(found["up"], "out/up")
    for key in ("out/recon", "decode/recon_of_indices"):
        golden.near(found["recon"].transpose(0, 3, 1, 2), key)
    own = found["value"] + golden["loss/perceptual_loss"]
    np.testing.assert_allclose(own, golden["loss/loss"], rtol=1e-5)


@pytest.mark.parametrize("name", ["villax_code_defaults", "moto"])
def test_released_shapes(name):
    """The defaults of our configs have the names and shapes of the released tensors."""
    form, changes = (moto, {}) if name == "moto" else (villax, {"decoder_depth": 8})
    kind, module = ARCHITECTURES[name.split("_")[0]]
    config = kind(image_size=(224, 224), num_frames=2, compute_dtype="float32", **changes)
    params = functional(module, config).abstract()[0]
    tensors = to_theirs(params, form.rules(config), form.sizes(config))
    found = {name: list(x.shape) for name, x in tensors.items()}
    if form is villax:
        found |= {name: [1, count, dim] for name, count, dim, _ in villax.tables(config)}
    released = json.loads((ZOO / "released_shapes.json").read_text())[name]["keys"]
    expected = {
        key.replace("#", str(i)): shape
        for key, (count, shape) in released.items()
        for i in range(count)
    }
    assert found == expected
