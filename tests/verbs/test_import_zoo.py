"""Latent action models of others become runs like ours."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from safetensors.numpy import load_file, save_file
from tiny import lapa, needs_torch, succeed
from zoo import ZOO, write_mae

from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.interop import moto
from lapa_jax.interop.formats import FORMATS
from lapa_jax.runs import label, loaded

pytestmark = [pytest.mark.usefixtures("quick_compile"), needs_torch]
SIDES = {"villax": 18, "moto": 12}
OF_CORPUS = {
    "split": "train", "sidecar_dir": "", "image_key": "", "fps": 0.0, "window_seconds": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_mae(tmp_path_factory.mktemp("mae"), dim=14, side=3)


def given(form: str, source: Path, encoder: Path) -> list:
    more = ["--encoder", encoder] if form == "moto" else []
    return ["import", "--format", form, "--source", source, *more]


@pytest.mark.parametrize("form", SIDES)
def test_a_run_labels_is_measured_and_given_away(form, encoder, tmp_path):
    corpus = tiny.write_corpus(tmp_path / "corpus", size=SIDES[form], episodes=3)
    run = tmp_path / "run"
    succeed(*given(form, ZOO / f"{form}_tiny", encoder), "--out", run)
    model = loaded.load(run)
    found = label.label(model, "z", OF_CORPUS | {"path": str(corpus)})
    index = load_index(corpus, split="train")
    labels = LabelSet.open(index.sidecar_dir, "z", index)
    assert found["bad"] == 0 and labels.codebook_size == 16 and labels.code_length == 3
    if form == "villax":
        report = evaluate_quantizer(model, OF_CORPUS | {"path": str(corpus)}, max_pairs=100).report
        assert report["pairs"] == found["labelled"]

        succeed("export", "--format", "safetensors", "--workdir", run, "--out", tmp_path / "plain")
        code, _, error = lapa(
            "export", "--format", "laq_torch", "--workdir", run, "--out", run / "x"
        )
        assert code == 2 and "lapa export --format safetensors" in error.splitlines()[-1]


def changed(name: str, value: object):
    """Of a file of settings: a key, dotted, is another."""

    def change(folder: Path) -> None:
        path = next(folder.glob("*.json"), folder / "config.yaml")
        settings = yaml.safe_load(path.read_text())
        *parents, last = name.split(".")
        part = settings
        for key in parents:
            part = part[key]
        part[last] = value
        path.write_text(json.dumps(settings))

    return change


def tensor(name: str, value: np.ndarray | None, **more: float):
    """Of villa-X's weights: one is another, or is not there; and some more."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors.pop(name, None)
        tensors |= {key: np.array(x) for key, x in more.items()}
        save_file(tensors | ({} if value is None else {name: value}), path)

    return change


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


CODES, PLACES = "vq.embedding.weight", "encoder.pe_spatial"
QUANTIZER, FORMER, DECODER = "vector_quantizer", "m_former.config", "decoder.config"


@pytest.mark.parametrize(
    "form, change, message",
    [
        ("villax", tensor(CODES, None, x=1), rf"missing: \['{CODES}'\] \(1\), not known: \['x'\]"),
        ("villax", tensor(CODES, np.zeros((8, 6), "f")), r"\[8, 6\], the model has .*\[16, 6\]"),
        ("villax", tensor(PLACES, None), f"tensor '{PLACES}' is missing: not villa-X's"),
        ("villax", tensor(PLACES, np.zeros((1, 9, 16), "f")), "does not hold the waves by column"),
        ("villax", changed("config.decoder_depth", "x"), "decoder_depth='x' must be a number"),
        ("villax", changed("config.st_use_qk_norm", 1), "st_use_qk_norm=1 must be true or false"),
        ("villax", changed("config.map_heads", 5), "dim=16 must be .* of model.pool_heads=5"),
        ("villax", changed("config.resolution", 20), r"image_size=\(20, 20\) must be a multiple"),
        ("villax", changed("config.depth_of_thought", 2), r"unknown keys \['depth_of_thought'\]"),
        ("villax", changed("architecture", "Other"), "architecture='Other' is not read here"),
        ("villax", changed("config.resolution", 60000), r"pe_spatial.*\(1, 9, 16\) should have"),
        ("villax", changed("config.encoder_embed_dim", 80000), r"model.dim=80000 must be"),
        ("villax", changed("config", 3), "config=3 must be an object"),
        ("moto", changed(f"{DECODER}.query_fusion_mode", "concat"), "='concat' is not read here"),
        ("moto", changed(f"{DECODER}.use_mask_token", True), "use_mask_token=True is not read"),
        ("moto", changed(f"{DECODER}.image_size", 16), "is for images of 12 pixels a side, .* 16"),
        ("moto", changed(f"{FORMER}.input_hidden_size", 16), "width 14, .* is 16: another"),
        ("moto", changed(f"{QUANTIZER}.n_e", 8), r"\[16, 6\], the model has float32\[8, 6\]"),
        ("moto", changed(QUANTIZER, None), "vector_quantizer=None must be a mapping"),
        ("moto", write("config.yaml", "a: &x [1]\nb: *x\n"), "has aliases"),
        ("moto", write("config.yaml", "a: [\n"), "is no YAML"),
        ("moto", write("config.yaml", "- a\n"), "holds no mapping"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(form, change, message, encoder, tmp_path):
    folder = tmp_path / form
    shutil.copytree(ZOO / f"{form}_tiny", folder)
    change(folder)
    options = moto.Options(encoder=str(encoder)) if form == "moto" else None
    with pytest.raises(ValueError, match=message) as caught:
        FORMATS[form].read.call(folder, options)
    assert "\n" not in str(caught.value)


def test_moto_needs_its_encoder(tmp_path):
    source, out = ZOO / "moto_tiny", tmp_path / "run"
    for more, message in (
        ([], "--encoder"),
        (
            ["--encoder", tmp_path / "x"],
            f"{tmp_path / 'x'} does not exist: the folder of a vit_mae",
        ),
        (["--encoder", source], "config.json does not exist"),
    ):
        code, _, error = lapa("import", "--format", "moto", "--source", source, "--out", out, *more)
        assert code == 2 and message in error.strip().splitlines()[-1] and not out.exists()
