"""UniVLA's, ALAM's and AdaWorld's models become runs that label and are measured like ours."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from tiny import lapa, needs_torch, succeed
from zoo import ZOO

from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.interop.formats import FORMATS
from lapa_jax.runs import label, loaded, unipi

pytestmark = [pytest.mark.usefixtures("quick_compile"), needs_torch]
SIDE = 16
GIVEN = {
    "univla": (ZOO / "univla_stage2_dinov2_tiny.ckpt", {"heads": 4}),
    "adaworld": (ZOO / "adaworld_tiny.ckpt", {}),
    "alam": (ZOO / "alam_tiny", {"labels": "latents"}),
}
SHAPES = {"univla": (4,), "adaworld": (1, 6), "alam": (5, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("form", GIVEN)
def test_a_run_labels_is_measured_and_given_away(form, tmp_path):
    corpus = tiny.write_corpus(tmp_path / "corpus", size=SIDE, episodes=3)
    of_corpus = dict(path=str(corpus), split="train", sidecar_dir="", image_key="", fps=0.0)
    of_corpus["window_seconds"] = 0.2
    source, options = GIVEN[form]
    flags = [x for name, value in options.items() for x in (f"--{name}", value)]
    run, plain, again = (tmp_path / name for name in ("run", "plain", "again"))
    flags += ["--image_size", SIDE, "--out", run]
    succeed("import", "--format", form, "--source", source, *flags)
    model = loaded.load(run)
    with pytest.raises(ValueError, match="was imported, and does not know the windows"):
        label.label(model, "z", of_corpus | {"window_seconds": 0.0})
    found = label.label(model, "z", of_corpus)
    index = load_index(corpus, split="train")
    labels = LabelSet.open(index.sidecar_dir, "z", index)
    assert found["bad"] == 0 and labels.values.shape == SHAPES[form]
    if form != "univla":
        return
    assert_as_recorded(model)
    report = evaluate_quantizer(model, of_corpus, max_pairs=100).report
    assert report["pairs"] == found["labelled"] and report["reconstruction"]["skill"] < 1
    with pytest.raises(ValueError, match="--quantizer predicts features"):
        policy = loaded.Model(model.config, model.stage, {}, {})
        policy.stage.head = type("Head", (), {"describe": dict, "acts": False})
        unipi.check_quantizer(policy, model)
    succeed("export", "--format", "safetensors", "--workdir", run, "--out", plain)
    succeed("import", "--format", "safetensors", "--source", plain, "--out", again)
    assert loaded.load(again).params_hash == model.params_hash


def assert_as_recorded(model: loaded.LoadedQuantizer) -> None:
    """From pixels, by its own DINOv2, to codes and features: what the original gave."""
    golden = np.load(ZOO / "univla_stage2_dinov2_tiny_io.npz")
    first, last = golden["in/frames_u8"].transpose(1, 0, 3, 4, 2)
    stage, weights = model.stage, (model.params, model.variables)

    @jax.jit
    def used(*weights):
        read = stage.read(*weights, first, last)
        seen = stage.target(*weights, np.concatenate([first, last]))
        return read, seen, stage.decode_latent(*weights, first, read.received_BLQ)

    read, seen, predicted = used(*weights)
    np.testing.assert_array_equal(read.z_BL, golden["out/indices"])
    features = golden["dino/x_norm_patchtokens"].reshape(3, 2, 4, 4, 64).swapaxes(0, 1)
    for found, expected in (
        (read.latent_BLQ, golden["out/z_pre_quant"]),
        (seen, features.reshape(6, 4, 4, 64)),
        (predicted, golden["out/recon"].reshape(3, 4, 4, 64)),
    ):
        np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


def tensor(name: str, value: object = None):
    """Of a file: one is another, of zeros of this shape, or is not there."""

    def change(path: Path) -> None:
        import torch

        path = path / "pytorch_model.bin" if path.is_dir() else path
        whole = torch.load(path, weights_only=True)
        tensors = whole.get("state_dict", whole)
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = torch.zeros(value)
        torch.save(whole, path)

    return change


def hyper_parameters(path: Path) -> None:
    """A trainer keeps what made its optimizer, a function, beside the weights."""
    import functools

    import torch

    whole = torch.load(path, weights_only=True)
    whole["hyper_parameters"] = {"optimizer": functools.partial(torch.optim.AdamW, lr=1e-4)}
    torch.save(whole, path)


def settings(before: str, after: str):
    def change(folder: Path) -> None:
        path = folder / "config.yaml"
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    return change


def nothing(path: Path) -> None:
    pass


DINO, REGISTERS, CODES, FREQS = (
    "lam.dino_encoder.patch_embed.proj.weight",
    "lam.dino_encoder.register_tokens",
    "lam.vq_action.codebook.weight",
    "lam.encoder.transformer_blocks.1.temporal_attn.rotary_embedding.freqs",
)


@pytest.mark.parametrize(
    "form, change, options, message",
    [
        ("univla", tensor(DINO), {}, "'dino_encoder.patch_embed.proj.weight' is missing"),
        ("univla", tensor(REGISTERS), {}, "'dino_encoder.register_tokens' is missing: the DINOv2"),
        ("univla", tensor("lam.to_codebook.bias"), {}, r"missing: \['to_codebook.bias'\] \(1\)"),
        ("univla", tensor("lam.more", (2,)), {}, r"not known: \['more'\] \(1\)"),
        ("univla", tensor(CODES, (16, 9)), {}, "'vq_action.codebook.weight' of shape .* should"),
        ("univla", tensor("lam.patch_up.weight", (20, 9)), {}, r"gives patch_up/kernel .*\[9, 20"),
        ("univla", hyper_parameters, {}, "holds more than tensors: it names .*save"),
        ("univla", nothing, {"heads": None}, "a width of 20 is no multiple of 64, .* --heads"),
        ("univla", nothing, {"heads": 3}, "model.dim=20 must be even and a multiple of .*heads=3"),
        ("univla", nothing, {"heads": 0}, "model.heads=0 must be an integer in"),
        ("univla", nothing, {"image_size": 18}, r"image_size=\(18, 18\) must be a multiple of"),
        ("univla", nothing, {"image_size": 0}, "--image_size 0 must be at least 1"),
        ("adaworld", tensor("lam.action_prompt"), {}, "'action_prompt' is missing: not AdaWorld's"),
        ("adaworld", tensor("lam.fc.weight", (10, 24)), {}, r"gives moments/kernel .*\[24, 10\]"),
        ("adaworld", tensor(FREQS, (4,)), {}, r"freqs' does not hold 10000\^\(-2i/8\)"),
        ("alam", settings("num_heads: 4\n", ""), {}, "lacks num_heads: not the settings of ALAM's"),
        ("alam", settings("model_dim: 24", "model_dim: 32"), {}, r"\[48, 24\], .*\[48, 32\]"),
        ("alam", settings("num_latents: 24", "num_latents: 'a'"), {}, "codebook_size='a' must be"),
        ("alam", settings("in_dim: 3", "in_dim: 1"), {}, "in_dim=1 must be 3"),
        ("alam", nothing, {"labels": "both"}, "model.labels='both' must be one of"),
    ],
)
def test_files_that_do_not_fit(form, change, options, message, tmp_path):
    source, given = GIVEN[form]
    copy = shutil.copytree if source.is_dir() else shutil.copy
    path = Path(copy(source, tmp_path / source.name))
    change(path)
    way = FORMATS[form].read
    given = {"image_size": SIDE} | given | options
    with pytest.raises(ValueError, match=message) as caught:
        way.call(path, way.options(**given))
    assert "\n" not in str(caught.value)


def test_a_file_without_its_encoder(tmp_path):
    """That of the first phase and that of the second; a file of another model."""
    for name, message in (
        ("univla_stage1_tiny.ckpt", "'dino_encoder.patch_embed.proj.weight' is missing"),
        ("adaworld_tiny.ckpt", "'dino_encoder.patch_embed.proj.weight' is missing"),
    ):
        source, out = ZOO / name, tmp_path / "run"
        code, _, error = lapa("import", "--format", "univla", "--source", source, "--out", out)
        assert code == 2 and message in error.strip().splitlines()[-1] and not out.exists()
