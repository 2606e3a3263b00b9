"""Runs in foreign formats, and back: what another program computes from the files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from tiny import lapa, needs_torch, succeed
from tiny_policy import INSTRUCTIONS, TOKENIZER_MODEL, make_policy, tokenizer, write

import lapa_jax
from data_pipelines import storage
from experiments import base
from lapa_jax.interop import (
    hf,
    hf_llama,
    safetensors_files,
    staged,
    torch_code,
)
from lapa_jax.nn.module import flatten
from lapa_jax.policy import text
from lapa_jax.runs import loaded

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def policy(quick_compile, tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy") / "run", "action")


def export(run: Path, out: Path, form: str, *flags) -> dict:
    """Exports; what parity.json says."""
    succeed("export", "--format", form, "--workdir", run, "--out", out, *flags)
    assert not list(out.parent.glob(f"{out.name}.*"))
    return json.loads((out / "parity.json").read_text())


@pytest.mark.slow
def test_plain_arrays_come_back_bit_for_bit(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files.write, "__kwdefaults__", {"shard_bytes": 20_000})
    told = export(policy, tmp_path / "plain", "safetensors")
    assert told["passed"] and told["checks"]["tensors_that_differ"]["value"] == 0
    files = list((tmp_path / "plain").glob("model-*-of-*.safetensors"))
    index = json.loads((tmp_path / "plain" / "model.safetensors.index.json").read_text())
    assert len(files) > 1 and set(index["weight_map"].values()) == {f.name for f in files}
    from safetensors.numpy import load_file

    assert (
        sum(x.nbytes for f in files for x in load_file(f).values())
        == (index["metadata"]["total_size"])
    )
    back = tmp_path / "back"
    succeed("import", "--format", "safetensors", "--source", tmp_path / "plain", "--out", back)
    old, new = loaded.load(policy), loaded.load(back)
    assert new.params_hash == old.params_hash == told["params_hash"]
    assert new.assets == old.assets and new.config.model == old.config.model


@pytest.mark.slow
def test_plain_arrays_in_bfloat16(policy, tmp_path):
    export(policy, tmp_path / "plain", "safetensors", "--precision", "bf16")
    assert_rounded(policy, tmp_path / "plain", "safetensors")


def assert_rounded(policy, source, form):
    """Every parameter comes back as bfloat16 holds it."""
    back = source.with_name("back")
    succeed("import", "--format", form, "--source", source, "--out", back)
    new, old = (flatten(loaded.load(x).params) for x in (back, policy))
    for path, x in old.items():
        expected = np.asarray(x).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(new[path]), expected)


@pytest.mark.slow
def test_a_run_keeps_its_variables(tmp_path):
    """A quantizer's codebook statistics are no parameters."""
    from experiments.quantizer import tabletop

    config = tabletop.get_config("quick=True")
    config.model.update(
        dim=32, mlp_dim=64, heads=4, head_dim=8, spatial_depth=1, temporal_depth=1, decoder_depth=1
    )
    run = write(tmp_path / "run", config.lock(), {})
    export(run, tmp_path / "plain", "safetensors")
    back = tmp_path / "back"
    succeed("import", "--format", "safetensors", "--source", tmp_path / "plain", "--out", back)
    old, new = loaded.load(run), loaded.load(back)
    assert new.params_hash == old.params_hash and flatten(old.variables)
    jax.tree.map(np.testing.assert_array_equal, new.variables, old.variables)
    code, _, error = lapa(
        "export", "--format", "safetensors", "--workdir", run, "--out", tmp_path / "x",
        "--precision", "bf16",
    )  # fmt: skip
    assert code == 2 and "a run of stage 'quantizer' is float32" in error


def test_a_failed_check_is_a_failed_export(policy, tmp_path, monkeypatch):
    """Nobody finds weights under the name that was asked for."""
    real = safetensors_files._write_file

    def damaged(path, tensors):
        real(path, tensors)
        with open(path, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x55")
        return path

    monkeypatch.setattr(safetensors_files, "_write_file", damaged)
    out = tmp_path / "out"
    code, _, error = lapa("export", "--format", "safetensors", "--workdir", policy, "--out", out)
    assert code == 2 and "tensors_that_differ=1 (at most 0)" in error
    assert not out.exists()
    told = json.loads((tmp_path / "out.failed" / "parity.json").read_text())
    assert not told["passed"]
    monkeypatch.undo()
    export_error = lapa("export", "--format", "safetensors", "--workdir", policy, "--out", policy)
    assert export_error[0] == 2 and "exists" in export_error[2]


def test_a_place_that_takes_nothing_is_named_as_it_was_given():
    out = Path("/proc/policy")
    for place in (staged.staged(out, None, None), storage.atomic_path(out)):
        with pytest.raises(OSError, match=f": '{out}'$"), place as made:
            made.write_text("")


# --- Hugging Face ---

LEGACY = {
    "front_end": "cached_tokens", "legacy": True, "text_length": 128, "image_vocab": 8200,
    "rope_theta": 5e7,
}  # fmt: skip
POLICIES = {
    "action_patches": ("action", {}),
    "latent_two_images": ("latent", {"num_frames": 2}),
    "latent_vqgan": (
        "latent",
        {"front_end": "vqgan", "image_vocab": 70, "compute_dtype": "bfloat16"},
    ),
    "latent_cached": ("latent", {"front_end": "cached_tokens", "image_vocab": 40}),
    "latent_legacy": ("latent", LEGACY | {"compute_dtype": "bfloat16"}),
    "action_legacy": ("action", LEGACY | {"action_horizon": 2}),
}


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_in_torch(name, tiny_data, tmp_path):
    """The export compares logits, tokens and actions itself, of the run's own data, too; the way
    back has every bit."""
    head, settings = POLICIES[name]
    real = name == "action_patches"
    if real:
        settings = settings | {"corpus": tiny_data / "robot", "image_size": (64, 64)}
    run = make_policy(tmp_path / "run", head, **settings)
    told = export(run, tmp_path / "hf", "hf")
    heads = {f"{x}_logits" for x in ("text", head)}
    heads |= {f"{head}_logits_of_examples"}
    if "image_vocab" in settings:
        heads |= {"image_logits"}
    if name == "latent_vqgan":
        heads |= {"image_tokens_that_differ"}
    assert told["passed"] and heads <= told["checks"].keys()
    assert told["stated"]["tokenizer.json"] == "written: the same ids"
    given = told["stated"]["instructions"]
    assert len(given) > 1 and any("square to place" in text for text in given) == real
    assert (told["stated"]["real_inputs"] == "none: no corpus of the run is at hand") == (not real)
    assert ("actions" in told["checks"]) == (head == "action")
    if settings.get("compute_dtype") == "bfloat16":
        assert told["stated"]["bfloat16_latent"]["argmax_agreement"] > 0.9
    succeed("import", "--format", "hf", "--source", tmp_path / "hf", "--out", tmp_path / "back")
    old, new = loaded.load(run), loaded.load(tmp_path / "back")
    assert new.params_hash == old.params_hash
    jax.tree.map(np.testing.assert_array_equal, new.variables, old.variables)


IN_TORCH = """
import json, sys
import numpy as np
from transformers import AutoModel, AutoTokenizer, LlamaForCausalLM
directory, inputs, outputs = sys.argv[1:]
first = AutoModel.from_pretrained(directory, trust_remote_code=True)
assert not first._keep_in_fp32_modules_strict
directory += "_again"  # as after fine-tuning or quantizing
first.save_pretrained(directory)
model = AutoModel.from_pretrained(directory, trust_remote_code=True)
given = np.load(inputs)
texts = json.loads(str(given["texts"]))
found = {
    "one": model.predict_action(given["images"][0], texts[0]),
    "all": model.predict_action(given["images"], texts),
    "text": model.logits(given["tokens"], np.zeros_like(given["tokens"]))["text"],
    "llama": LlamaForCausalLM.from_pretrained(directory)(model._tensor(given["tokens"])).logits
    .detach(),
}
words = AutoTokenizer.from_pretrained(directory)
found["words"] = json.dumps([words(text)["input_ids"] for text in [*texts, "  Two \\u00bd\\n "]])
np.savez(outputs, **found)
ours = {"jax", "flax", "lapa_jax"} & set(sys.modules)
assert not ours, ours
"""


def in_torch(code: str, folder: Path) -> dict:
    """What a process that may not look anything up makes of folder/hf and folder/given.npz."""
    places = [folder / "hf", folder / "given.npz", folder / "found.npz"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "USE_TF": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, places)],
        capture_output=True, text=True, env=os.environ | offline, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(folder / "found.npz")


@pytest.mark.slow
@needs_torch
def test_a_directory_is_all_that_torch_needs(policy, tmp_path):
    """By name through transformers, in a process without JAX, and saved again by it; its LLaMA has
    our backbone."""
    export(policy, tmp_path / "hf", "hf")
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    tokens = rng.integers(0, 320, (2, 9))
    given = {"images": images, "tokens": tokens, "texts": json.dumps(INSTRUCTIONS)}
    np.savez(tmp_path / "given.npz", **given)
    found, ours = in_torch(IN_TORCH, tmp_path), lapa_jax.load_policy(policy)
    expected = np.asarray(ours.predict_action(images, INSTRUCTIONS))
    np.testing.assert_allclose(found["all"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["one"], expected[0], rtol=1e-6)
    words = text.TextTokenizer(tokenizer())
    assert json.loads(str(found["words"])) == [
        [words.bos, *words.ids(x)] for x in [*INSTRUCTIONS, "  Two \u00bd\n "]
    ]
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # what transformers 4 knows
    made = hf.read(tmp_path / "hf_again", None)
    old = loaded.load(policy).params
    jax.tree.map(np.testing.assert_array_equal, made.params, old)
    text_logits = np.asarray(ours.logits(tokens, np.zeros_like(tokens))["text"])
    for name in ("text", "llama"):
        difference = np.abs(found[name] - text_logits).max() / np.abs(text_logits).max()
        assert difference < 1e-4, name


@pytest.mark.slow
@needs_torch
def test_a_policy_of_cached_tokens_with_its_tokenizer(tmp_path):
    """Takes pixels then, and ids as before; the tokenizer is not rounded with the policy."""
    config = base.stage_defaults("image_tokenizer")
    config.compute_dtype, config.model = "float32", ConfigDict(TOKENIZER_MODEL)
    config.model.architecture = "vqgan"
    made = write(tmp_path / "vqgan", config.lock(), {})
    settings = {"front_end": "cached_tokens", "num_tokens": 24, "image_vocab": 64}
    run = make_policy(tmp_path / "run", "action", **settings)
    told = export(run, tmp_path / "hf", "hf", "--image_tokenizer", made)
    assert told["checks"]["image_tokens_that_differ"]["passed"]
    ours = lapa_jax.load_policy(run, image_tokenizer=made)
    image = np.random.default_rng(5).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    ids = np.asarray(lapa_jax.load_image_tokenizer(made).encode(image[None])).reshape(-1)
    expected = np.asarray(ours.predict_action(image, INSTRUCTIONS[0]))
    module = torch_code.load(tmp_path / "hf", hf.MODELING)
    rounded = module.LapaPolicy.from_pretrained(tmp_path / "hf", dtype="bfloat16")
    kept = {str(x.dtype) for x in rounded.image_tokenizer.parameters()}
    assert kept == {"torch.float32"} and str(rounded.dtype) == "torch.bfloat16"
    model = hf.load(tmp_path / "hf")
    for given in (image, ids):
        found = model.predict_action(given, INSTRUCTIONS[0])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    succeed("import", "--format", "hf", "--source", tmp_path / "hf", "--out", tmp_path / "back")
    assert loaded.load(tmp_path / "back").params_hash == loaded.load(run).params_hash


@needs_torch
def test_a_tokenizer_that_does_not_fit(policy, tmp_path):
    code, _, error = lapa(
        "export", "--format", "hf", "--workdir", policy, "--out", tmp_path / "x",
        "--image_tokenizer", policy,
    )  # fmt: skip
    assert code == 2 and "takes no image tokens" in error
    code, _, error = lapa(
        "export", "--format", "safetensors", "--workdir", policy, "--out", tmp_path / "x",
        "--image_tokenizer", policy,
    )  # fmt: skip
    assert code == 2 and "does not take --image_tokenizer" in error


@pytest.mark.slow
@needs_torch
def test_a_policy_in_torch_in_bfloat16(policy, tmp_path):
    """The check is of the rounded weights, computed with in float32; they are what comes back."""
    told = export(policy, tmp_path / "hf", "hf", "--precision", "bf16")
    assert told["checks"]["action_logits"]["value"] < 1e-4
    assert told["stated"]["bfloat16_action"]["argmax_agreement"] > 0.9
    assert_rounded(policy, tmp_path / "hf", "hf")


@pytest.mark.slow
@needs_torch
def test_wrong_weights_are_found_out(policy, tmp_path, monkeypatch):
    """Queries left as pairs, where torch rotates halves."""
    tiny.misread(monkeypatch, hf_llama, "rules", "q_proj", "(k c) d -> d k c")
    out = tmp_path / "hf"
    code, _, error = lapa("export", "--format", "hf", "--workdir", policy, "--out", out)
    assert code == 2 and "action_logits=" in error and "(at most 0.0001)" in error
    assert not out.exists() and (tmp_path / "hf.failed").exists()
