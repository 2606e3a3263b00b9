"""The ViT is DINOv2, and foreign weights are read whole or not at all."""

import json
import shutil

import dinov2_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ROOT

from lapa_jax import stages
from lapa_jax.interop import dinov2, siglip, tensor_files, vision, vit_mae
from lapa_jax.interop.formats import FORMATS
from lapa_jax.interop.mapping import arrays, to_theirs
from lapa_jax.nn.flops import counted
from lapa_jax.nn.module import Functional, flatten
from lapa_jax.nn.vit import PIXELS, ViT, ViTConfig, bicubic

pytestmark = pytest.mark.usefixtures("quick_compile")
ZOO = ROOT / "tests" / "golden" / "zoo"


def images(rows, columns):
    shape = (2, rows, columns, 3)
    return np.random.default_rng(1).uniform(0, 1, shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("rows, columns", [(20, 20), (32, 12)])
@pytest.mark.parametrize("registers, swiglu", [(0, False), (3, False), (0, True)])
def test_parity(registers, swiglu, rows, columns, tmp_path):
    """At the grid of the learned positions, and at one that is larger and smaller."""
    from safetensors.numpy import save_file

    tensors = dinov2_reference.random_tensors(registers=registers, swiglu=swiglu)
    save_file(tensors, tmp_path / "model.safetensors")
    config, params = dinov2.from_tensors(tensor_files.tensors(tmp_path / "model.safetensors"))
    assert (config.heads, config.depth, config.registers) == (2, 2, registers)
    assert (config.grid, config.patch_size, config.mlp_dim) == ((5, 5), 4, 96)
    model = Functional(lambda rngs: ViT(config, dtype=jnp.float32, rngs=rngs))
    tokens = model.apply(params, {}, "__call__", images(rows, columns))[0]
    expected = dinov2_reference.forward(tensors, images(rows, columns))
    np.testing.assert_allclose(tokens, expected, atol=2e-5)
    features = model.apply(params, {}, "features", images(rows, columns))[0]
    grid = expected[:, 1 + registers :].reshape(2, rows // 4, columns // 4, 128)
    np.testing.assert_allclose(features, grid, atol=2e-5)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("inputs, outputs", [(37, 16), (16, 37), (4, 7), (5, 5)])
def test_bicubic_is_that_of_torch(inputs, outputs, antialias):
    import torch

    x = np.random.default_rng(0).normal(size=(inputs, inputs))
    y = torch.nn.functional.interpolate(
        torch.from_numpy(x)[None, None],
        (outputs, outputs),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    weights = bicubic(inputs, outputs, antialias=antialias)
    np.testing.assert_allclose(weights @ x @ weights.T, y[0, 0], atol=1e-12)


@pytest.mark.slow
def test_the_way_back_and_classifiers():
    tensors = dinov2_reference.random_tensors(registers=3)
    config, params = dinov2.from_tensors(tensors)
    back = arrays(to_theirs(params, dinov2.rules(config), vision.sizes(config)))
    assert set(back) == set(tensors)
    for name in set(tensors) - {dinov2.MASK_TOKEN}:
        np.testing.assert_array_equal(back[name], tensors[name], err_msg=name)
    for prefix in ("dinov2.", "dinov2_with_registers.", "state_dict.model._orig_mod."):
        named = {prefix + name: x for name, x in tensors.items()}
        named |= {"classifier.weight": np.zeros((3, 256)), "classifier.bias": np.zeros(3)}
        again = dinov2.from_tensors(named)
        assert again[0] == config
        jax.tree.map(np.testing.assert_array_equal, again[1], params)
    del tensors[dinov2.MASK_TOKEN]
    assert dinov2.from_tensors(tensors)[0] == config


def drop(tensors, name):
    del tensors[name]


LAYER = "encoder.layer.1"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: drop(t, f"{LAYER}.norm1.bias"), rf"missing: \['{LAYER}.norm1.bias'\]"),
        (lambda t: t.update(extra=t["layernorm.bias"]), r"not known: \['extra'\]"),
        (lambda t: drop(t, "embeddings.patch_embeddings.projection.weight"), "projection.weight"),
        (lambda t: t.update({f"{LAYER}.norm2.weight": np.zeros(64, np.float32)}), "norm2.weight"),
        (lambda t: t.update({"layernorm.bias": np.zeros(128, np.int8)}), "int8"),
        (lambda t: t.update({"layernorm.bias": np.full(128, np.nan, np.float16)}), "not numbers"),
        (lambda t: t.update({"embeddings.position_embeddings": np.zeros((1, 8, 128))}), "7 posi"),
        (lambda t: t.update({"encoder.layer.3.norm1.bias": np.zeros(128)}), r"\[0, 1, 3\]"),
    ],
)
def test_files_that_do_not_fit(change, message):
    tensors = dinov2_reference.random_tensors()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        dinov2.from_tensors(tensors)


def config(**changes):
    small = dict(grid=(4, 4), patch_size=4, dim=32, depth=2, heads=2, head_dim=16, mlp_dim=48)
    return ViTConfig(**{**small, "registers": 0, "swiglu": False, **changes})


def test_images_that_cannot_be():
    model = Functional(lambda rngs: ViT(config(), dtype=jnp.float32, rngs=rngs))
    with pytest.raises(ValueError, match="images of 16x18 are not a multiple.*patch_size=4"):
        jax.eval_shape(
            lambda p: model.apply(p, {}, "features", jnp.zeros((1, 16, 18, 3))), model.abstract()[0]
        )


@pytest.mark.slow
def test_bytes_are_floats_and_flops_are_those_of_the_compiler():
    model = Functional(lambda rngs: ViT(config(), dtype=jnp.float32, unroll=0, rngs=rngs))
    params, _ = model.init(jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)

    def features(params, x):
        return model.apply(params, {}, "features", x)[0]

    np.testing.assert_allclose(features(params, pixels), features(params, pixels / 255), atol=1e-5)
    compiled = jax.jit(features).lower(params, pixels).cost_analysis()["flops"]
    # That of norms and gelu comes on top.
    assert 1.0 < compiled / counted(features, params, pixels) < 1.3


@pytest.mark.parametrize(
    "form, pixels, output",
    [("vit_mae", "imagenet", "out/last_hidden_state_ordered"),
     ("siglip", "centred", "out/last_hidden_state")],
)  # fmt: skip
def test_encoders_of_others(form, pixels, output):
    """Recordings of transformers' ViTMAEModel and SiglipVisionModel."""
    golden = np.load(ZOO / f"{form}_tiny_io.npz")
    mean, deviation = (np.asarray(x, np.float32) for x in PIXELS[pixels])
    images = golden["in/pixel_values"].transpose(0, 2, 3, 1) * deviation + mean
    run = FORMATS[form].read.call(ZOO / f"{form}_tiny", None)
    stage = stages.build(run.config, {})
    assert stage.model_config.heads == 3 and stage.model_config.depth == 2
    found = jax.jit(stage.features)(run.params, {}, images)
    expected = golden[output][:, -9:].reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=5e-5)


def test_encoders_within_others_and_those_that_do_not_fit(tmp_path):
    folder = ZOO / "vit_mae_tiny"
    tensors = {k: np.asarray(x) for k, x in tensor_files.tensors(folder).items()}
    named = {f"vit.{k}": x for k, x in tensors.items()} | {"decoder.mask_token": np.zeros(3)}
    assert vit_mae.from_tensors(named, 3, 1e-12)[0] == vit_mae.from_tensors(tensors, 3, 1e-12)[0]
    settings = json.loads((folder / "config.json").read_text())
    for form, changes, message in (
        ("vit_mae", {"num_attention_heads": 5}, "width of 24 is no multiple of num_attention_"),
        ("vit_mae", {"num_attention_heads": None}, "num_attention_heads=None must be a number"),
        ("vit_mae", {"hidden_act": "relu"}, "hidden_act='relu' is not read here: 'gelu' is"),
        ("vit_mae", {"model_type": "vit"}, "model_type='vit' must be 'vit_mae'"),
        ("siglip", {}, "model_type='vit_mae' must be 'siglip_vision_model'"),
        ("siglip", {"model_type": "siglip", "vision_config": 3}, "vision_config=3 must be"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | changes))
        shutil.copy(folder / "model.safetensors", tmp_path)
        with pytest.raises(ValueError, match=message):
            FORMATS[form].read.call(tmp_path, None)
    with pytest.raises(ValueError, match="x.npz: a width of 24 is of no ViT-MAE"):
        vit_mae.read(save(tmp_path / "x.npz", mae_of_authors()), None)


def golden_tensors(form):
    return {k: np.asarray(x) for k, x in tensor_files.tensors(ZOO / f"{form}_tiny").items()}


def save(path, tensors):
    np.savez(path, **tensors)
    return path


def mae_of_authors():
    """The golden one as its authors' files have it, with parts of a decoder."""
    tensors, found = golden_tensors("vit_mae"), {"mask_token": np.zeros(3), "decoder_pred.bias": 0}
    for i in range(2):
        each = f"encoder.layer.{i}.attention.attention.{{}}.{{}}"
        for x in ("weight", "bias"):
            three = [tensors.pop(each.format(name, x)) for name in ("query", "key", "value")]
            found[f"blocks.{i}.attn.qkv.{x}"] = np.concatenate(three)
    names = (
        ("encoder.layer.", "blocks."), ("attention.output.dense", "attn.proj"),
        ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layernorm", "norm"),
        ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.", ""),
    )  # fmt: skip
    for name, tensor in tensors.items():
        for theirs, authors in names:
            name = name.replace(theirs, authors)
        found[name] = tensor
    return {f"model.{name}": x for name, x in found.items()}


def siglip_of_authors(stacked):
    """The golden one as its authors' files have it."""
    config, params = siglip.from_tensors(golden_tensors("siglip"), 3, 1e-6)
    flat = flatten(params)
    found = {
        "embedding/kernel": flat["project/kernel"].reshape(3, 4, 4, 12).transpose(1, 2, 0, 3),
        "embedding/bias": flat["project/bias"],
        "pos_embedding": flat["positions"][None],
        "MAPHead_0/probe": np.zeros((1, 1, 12)),
    }
    parts = {"attention_norm": "LayerNorm_0", "mlp_norm": "LayerNorm_1"}
    parts |= {"mlp/wi": "MlpBlock_0/Dense_0", "mlp/wo": "MlpBlock_0/Dense_1"}
    for ours, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
        parts[f"attention/{ours}"] = f"MultiHeadDotProductAttention_0/{name}"
    for path, value in flat.items():
        if path.startswith("norm/"):
            found[f"Transformer/encoder_norm/{path[5:]}"] = value
        elif path.startswith("blocks/layers/"):
            part, _, leaf = path.removeprefix("blocks/layers/").rpartition("/")
            if stacked:
                found[f"Transformer/encoderblock/{parts[part]}/{leaf}"] = value
            else:
                for i in range(2):
                    found[f"Transformer/encoderblock_{i}/{parts[part]}/{leaf}"] = value[i]
    return {f"params/img/{name}": x for name, x in found.items()} | {"params/t": np.zeros(1)}


def test_encoders_in_files_of_their_authors(tmp_path):
    found = vit_mae.from_authors(mae_of_authors())
    assert found.keys() == golden_tensors("vit_mae").keys()
    for name, tensor in golden_tensors("vit_mae").items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    expected = siglip.from_tensors(golden_tensors("siglip"), 3, 1e-6)
    for stacked in (False, True):
        run = siglip.read(save(tmp_path / "x.npz", siglip_of_authors(stacked)), None)
        jax.tree.map(np.testing.assert_array_equal, run.params["encoder"], expected[1])
        assert (
            stages.build(run.config, {}).model_config.architecture() == expected[0].architecture()
        )
    whole = (tmp_path / "x.npz").read_bytes()
    for content in (b"", whole[:-9], whole[:99], b"PK\x03\x04", np.zeros(9).tobytes()):
        (tmp_path / "y.npz").write_bytes(content)
        with pytest.raises(ValueError, match="y.npz is (empty|no whole file of NumPy's arrays)"):
            siglip.read(tmp_path / "y.npz", None)
    (tmp_path / "z.npz").unlink(missing_ok=True)
    np.savez(tmp_path / "z.npz", **{"params/t": np.array([None])})
    with pytest.raises(ValueError, match="tensor 'params/t' is object: numbers as they are"):
        siglip.read(tmp_path / "z.npz", None)
