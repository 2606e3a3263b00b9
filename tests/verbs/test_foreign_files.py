"""Weights as others keep them: within what trainers write, in other dtypes, whole or not."""

import argparse
import json
import pickle
import struct
from fractions import Fraction
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from tiny import NO_TORCH, lapa
from tiny_policy import tokenizer

from lapa_jax.interop import hf_llama, laq_pt, mapping, msgpack_stream, tensor_files, vqgan
from lapa_jax.interop.formats import FORMATS
from lapa_jax.interop.hf_llama import Options
from lapa_jax.nn.module import flatten

torch = pytest.importorskip("torch", reason=NO_TORCH)
GOLDEN = Path(__file__).parents[1] / "golden"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 17\n"


@pytest.fixture(scope="module")
def state():
    return torch.load(GOLDEN / "laq" / "laq_tiny1.pt", weights_only=True)


def ema(state, begun=True, of="{}"):
    copies = {
        f"{copy}.{of.format(name)}": x + (copy != chosen)
        for chosen in ("ema_model" if begun else "online_model",)
        for copy in ("online_model", "ema_model")
        for name, x in state.items()
    }
    return {"initted": torch.tensor(begun), "step": torch.tensor(9), **copies}


def named(state, form):
    return {form.format(name): x for name, x in state.items()}


WRAPPERS = {
    "DDP": lambda s: named(s, "module.{}"),
    "torch.compile": lambda s: named(s, "_orig_mod.{}"),
    "compiled and parallel": lambda s: {"model": named(s, "module._orig_mod.{}")},
    "a compiled part": lambda s: {
        name.replace("vq.", "vq._orig_mod.").replace(
            "layers.0.", "layers.0._checkpoint_wrapped_module."
        ): x
        for name, x in s.items()
    },
    "FSDP": lambda s: named(s, "_fsdp_wrapped_module.{}"),
    "the original's package": lambda s: {"model": s, "optim": {"state": {0: s}}, "steps": 100.0},
    "Lightning": lambda s: {"state_dict": named(s, "model.laq.{}"), "epoch": 3, "callbacks": {}},
    "a loss, flags and paths": lambda s: {
        "model": s, "best": np.float64(1), "seen": np.int64(2), "epoch": np.float32(3),
        "args": argparse.Namespace(lr=0.1, out=Path("x"), optimizer=None),
    },
    "accelerate": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"exp_avg": s}},
    "DeepSpeed": lambda s: {"module": s, "ds_version": "0.14", "optimizer": None},
    "ema_pytorch": ema,
    "ema_pytorch of DDP in a package": lambda s: {"vae": ema(s, of="module.{}")},
    "ema_pytorch before it begins": lambda s: ema(s, begun=False),
    "a model and its average": lambda s: {
        "model": {name: x + 1 for name, x in s.items()}, "model_ema": s
    },
    "a model and its ema_pytorch": lambda s: {
        "model": {name: x + 1 for name, x in s.items()}, "ema": ema(s)
    },
    "a model and its ema_pytorch before it begins": lambda s: {"model": s, "ema": ema(s, False)},
    "an averaged model": lambda s: {"n_averaged": torch.tensor(3), **named(s, "module.{}")},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_model_is_found_in_what_trainers_write(wrapper, state, tmp_path):
    torch.save(WRAPPERS[wrapper](state), tmp_path / "x.pt")
    found = tensor_files.tensors(tmp_path / "x.pt")
    found = mapping.unwrapped(found, laq_pt.ANCHOR, laq_pt.ORIGINAL)
    assert found.keys() == state.keys()
    for name, x in state.items():
        np.testing.assert_array_equal(found[name], x.numpy())


def test_dtypes_are_widened_and_two_models_are_not_chosen_from(state, tmp_path):
    kinds = [torch.float16, torch.bfloat16, torch.float64, torch.float32]
    given = {name: x.to(kinds[i % 4]) for i, (name, x) in enumerate(state.items())}
    torch.save(given, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    _, found = laq_pt.from_tensors(tensor_files.tensors(tmp_path / "x.pt"), 64)
    save_file({name: x.float().numpy() for name, x in given.items()}, tmp_path / "x.safetensors")
    _, expected = laq_pt.from_tensors(tensor_files.tensors(tmp_path / "x.safetensors"), 64)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {str(x.dtype) for x in flatten(found).values()} == {"float32"}
    torch.save({"student": state, "teacher": state}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="several models, 'student.', 'teacher.': write"):
        laq_pt.from_tensors(tensor_files.tensors(tmp_path / "x.pt"), 64)
    for bad, message in (
        ({"x": torch.zeros(2).to(torch.complex64)}, "complex64"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "sparse"),
        ({"x": torch.zeros(2), "y": Fraction(1, 2)}, "names fractions.Fraction, which is not run"),
        ([torch.zeros(2)], "no state dict"),
    ):
        torch.save(bad, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=message) as error:
            tensor_files.tensors(tmp_path / "x.pt")
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("kind", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_float8_is_widened_where_nothing_scales_it(kind, tmp_path):
    bits = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    weights = bits.view(getattr(torch, f"float8_{kind}"))
    torch.save({"a.weight": weights, "norm.scale": torch.ones(1)}, tmp_path / "x.pt")
    save_torch({"norm.scale": torch.ones(1), "a.weight": weights}, tmp_path / "x.safetensors")
    for path in (tmp_path / "x.pt", tmp_path / "x.safetensors"):
        found = np.asarray(tensor_files.tensors(path)["a.weight"]).astype(np.float32)
        np.testing.assert_array_equal(found, weights.float().numpy())
    scaled = ("b.scale", "b.weight_scale", "b.weight_scale_inv", "b.weight.scale", "scaled_fp8")
    for name in scaled:
        given = {"b.weight": weights, "c.bias": torch.ones(1), name: torch.ones(1)}
        save_torch(given, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=f"'b.weight' is float8_{kind}, scaled by '{name}'"):
            tensor_files.tensors(tmp_path / "x.safetensors")


def test_damage_that_pytorch_reads_on_is_named(state, tmp_path):
    torch.save(state, tmp_path / "x.pt")
    found = bytearray((tmp_path / "x.pt").read_bytes())
    found[len(found) // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(found)
    with pytest.raises(ValueError, match="x.pt is no whole file .*Bad CRC-32 for file 'x/data/"):
        tensor_files.tensors(tmp_path / "x.pt")


def test_image_tokenizers_and_streams_too(tmp_path):
    params = dict(np.load(GOLDEN / "vqgan" / "vqgan_tiny_params.npz"))
    config, whole = vqgan.from_tensors(params)
    half = {f"params/{name}": x.astype(ml_dtypes.bfloat16) for name, x in params.items()}
    (tmp_path / "vqgan").write_bytes(pickle.dumps(nested(half)))
    again, found = vqgan.from_tensors(vqgan.load_arrays(tmp_path / "vqgan"))
    assert again == config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), found, whole)
    stream = msgpack_stream.read(GOLDEN / "lm" / "lm_tiny_delta_scan.streaming_params")
    state = {f"params/params/{k}": v for k, v in stream.items()}
    state |= {f"opt_state/1/0/mu/params/{k}": v for k, v in stream.items()}
    own = mapping.unwrapped(state, "transformer/wte/embedding", "a policy", sep="/")
    assert own.keys() == stream.keys()


def nested(flat):
    tree = {}
    for path, x in flat.items():
        *parents, leaf = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[leaf] = x
    return tree


# --- LLaMAs ---

SIZES = dict(
    vocab_size=352, hidden_size=24, intermediate_size=16, num_hidden_layers=2,
    num_attention_heads=6, initializer_range=0.2,
)  # fmt: skip


def llama(**changes):
    rng, c = np.random.default_rng(0), SIZES | {"num_hidden_layers": 1} | changes
    V, D, F = (c[x] for x in ("vocab_size", "hidden_size", "intermediate_size"))
    keys = c.get("num_key_value_heads", c["num_attention_heads"]) * D // c["num_attention_heads"]
    at = "model.layers.0."
    shapes = {"model.embed_tokens": (V, D), "lm_head": (V, D), "model.norm": (D,)}
    shapes |= {f"{at}{x}_layernorm": (D,) for x in ("input", "post_attention")}
    shapes |= {f"{at}self_attn.{x}_proj": (keys if x in "kv" else D, D) for x in "qkvo"}
    shapes |= {f"{at}mlp.{x}_proj": (F, D) for x in ("gate", "up")} | {f"{at}mlp.down_proj": (D, F)}
    tensors = {f"{k}.weight": rng.normal(size=n).astype(np.float32) for k, n in shapes.items()}
    return c | {"model_type": "llama"}, tensors


def read_llama(folder, config, tensors, **options):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.model").write_bytes(tokenizer())
    found = hf_llama.read(folder, Options(**options))
    return {path: np.asarray(x) for path, x in flatten(found.params).items()}


def test_forms_of_llamas(tmp_path):
    config, tensors = llama()
    whole = read_llama(tmp_path, config, tensors)
    same = lambda found: jax.tree.map(np.testing.assert_array_equal, found, whole)  # noqa: E731
    same(
        read_llama(tmp_path, config | {"num_key_value_heads": None, "rope_scaling": None}, tensors)
    )
    same(read_llama(tmp_path, config, named(tensors, "_orig_mod.{}")))
    mixed = {k: x.astype(ml_dtypes.bfloat16) if "proj" in k else x for k, x in tensors.items()}
    mixed["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    found = read_llama(tmp_path, config, mixed)
    np.testing.assert_array_equal(found["norm/scale"], tensors["model.norm.weight"])
    assert {str(x.dtype) for x in found.values()} == {"float32"}
    rounded = read_llama(tmp_path, config, tensors, precision="bf16")
    for path, x in whole.items():
        np.testing.assert_array_equal(rounded[path], x.astype(ml_dtypes.bfloat16))
    tied = config | {"tie_word_embeddings": True}
    table = tensors["model.embed_tokens.weight"]
    for left in ("lm_head.weight", "model.embed_tokens.weight"):
        rest = {name: x for name, x in tensors.items() if name != left}
        rest |= {name: table for name in rest if "lm_head" in name}
        found = read_llama(tmp_path, tied, rest)
        np.testing.assert_array_equal(found["embeddings/text/table"], table)
        np.testing.assert_array_equal(found["heads/text/kernel"], table.T)
    grouped = read_llama(tmp_path, *llama(num_key_value_heads=2))
    for name in "kv":
        kernel = grouped[f"backbone/layers/attention/{name}/kernel"]
        np.testing.assert_array_equal(kernel, np.repeat(kernel[:, :, ::3], 3, axis=2))
        assert not np.array_equal(kernel[:, :, 0], kernel[:, :, 3])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "mistral"}, "model_type='mistral', not 'llama'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'rope_type': 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"attention_bias": True}, "'attention_bias': True"),
        ({"mlp_bias": True}, "'mlp_bias': True"),
        ({"hidden_act": "gelu"}, "'hidden_act': 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"num_key_value_heads": 4}, "no multiple of num_key_value_heads=4"),
        ({"num_key_value_heads": 3}, r"k_proj.weight' of shape \(24, 24\) should be \(12, 24\)"),
        ({"num_attention_heads": 5}, "no multiple of num_attention_heads=5"),
        ({"hidden_size": None}, "hidden_size=None must be a number above 0"),
        ({"rope_scaling": ["linear"]}, r"rope_scaling=\['linear'\] must be an object"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0 must be"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ({"vocab_size": 300}, "has 320 pieces, the weights have 300"),
    ],
)
def test_llamas_that_are_others(changes, message, tmp_path):
    config, tensors = llama()
    with pytest.raises(ValueError, match=message):
        read_llama(tmp_path, config | changes, tensors)


# --- Files that are not what was meant ---

OF_FOLDERS = ("alam", "hf", "hf_llama", "laq_torch", "moto", "safetensors", "villax")


def flags(form, folder):
    """What a format needs beside its source."""
    more = {"laq_pt": ["--image_size", 64]}.get(form, [])
    if form == "moto":
        more = ["--encoder", folder]
    if form in ("hf_llama", "lapa_stream"):
        (folder / "tokenizer.model").write_bytes(tokenizer())
        more = ["--tokenizer", folder / "tokenizer.model"]
    return [*more, "--size", "debug"] if form == "lapa_stream" else more


@pytest.mark.parametrize("form", sorted(name for name, one in FORMATS.items() if one.read))
def test_sources_that_are_not_what_was_meant(form, tmp_path):
    """Every format: a line that names the file, no traceback, no run."""
    more, folder = flags(form, tmp_path), tmp_path / "folder"
    folder.mkdir()
    file = tmp_path / ("x.safetensors" if form == "dinov2" else "x")

    def refused(source, *words):
        out = tmp_path / "run"
        code, _, error = lapa("import", "--format", form, "--source", source, "--out", out, *more)
        told = error.strip().splitlines()[-1]
        assert code == 2 and told.startswith("lapa: ") and not out.exists(), error
        assert str(source) in told and "lapa_jax[" not in told, told
        assert all(word in told for word in words), told

    refused(tmp_path / "nothing", "does not exist")
    refused(folder)
    file.write_bytes(POINTER)
    refused(file, "is a file" if form in OF_FOLDERS else "git lfs pull")
    whole = struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    for content in (b"", b"\x80", b"PK\x03\x04", b"{}", whole, np.zeros(99).tobytes()):
        file.write_bytes(content)
        refused(file)
    if form not in OF_FOLDERS:
        return
    names = ("config.json", "lapa_run.json")
    for content in (b"", b"{", b"[]", b"\xff", POINTER, b'{"model_type": "llama"}'):
        for name in names:
            (folder / name).write_bytes(content)
        refused(folder)


def test_shards_and_tokenizers_that_are_not_what_was_meant(tmp_path):
    config, tensors = llama()
    read_llama(tmp_path, config, tensors)
    options = Options(tokenizer=str(tmp_path / "tokenizer.model"))
    single, index = tmp_path / tensor_files.SINGLE, tmp_path / tensor_files.INDEX
    whole = single.read_bytes()

    def refused(message, read=lambda: hf_llama.read(tmp_path, options)):
        with pytest.raises((ValueError, OSError), match=message):
            read()

    for content, message in ((whole[:-9], "no whole safetensors file"), (POINTER, "Git LFS")):
        single.write_bytes(content)
        refused(message)
    single.rename(tmp_path / "a.safetensors")
    refused("holds none of model.safetensors, model.safetensors.index.json, pytorch_model.bin")
    for map_, message in (
        ({"x": "b.safetensors"}, "b.safetensors does not exist: a shard that"),
        ({"x": "../a.safetensors"}, "names a file elsewhere"),
        ([], "no weight_map"),
        ({"x": "a.safetensors"}, "tensor 'x' is not in a.safetensors"),
    ):
        (tmp_path / "a.safetensors").write_bytes(whole)
        index.write_text(json.dumps({"weight_map": map_}))
        refused(message)
    index.unlink()
    torch.save({k: torch.from_numpy(x) for k, x in tensors.items()}, tmp_path / "pytorch_model.bin")
    hf_llama.read(tmp_path, options)
    for content, message in (
        (b"IQ== 0\nIg== 1\n", "tokenizer.model: no SentencePiece model: 14 bytes"),
        (b'{"version": "1.0"}', "tokenizer.json, or the tiktoken file of Llama 3, is none"),
        (POINTER, "git lfs pull"),
        (b"", "is empty"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(content)
        refused(message)
    (tmp_path / "tokenizer.model").unlink()
    refused(r"tokenizer.model does not exist: a SentencePiece model \(--tokenizer\) is meant")
