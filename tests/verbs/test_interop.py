"""Foreign weights in and out, and models as objects."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import lapa, needs_torch, succeed

import lapa_jax
from lapa_jax.interop import laq_pt, tensor_files
from lapa_jax.runs.loaded import load

GOLDEN = Path(__file__).parents[1] / "golden" / "laq"
pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def imported(quick_compile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    source, out = folder / "laq_tiny4.pt", folder / "run"
    laq_pt.save_file(source, dict(np.load(GOLDEN / "laq_tiny4_params.npz")))
    told = succeed(
        "import", "--format", "laq_pt", "--source", source, "--image_size", 64, "--out", out
    )
    assert f"{source} -> {out}" in told
    return out


@pytest.mark.slow
@needs_torch
def test_an_imported_quantizer_acts_as_the_original(imported):
    io = dict(np.load(GOLDEN / "laq_tiny4_io.npz"))
    frames = np.moveaxis(io["video_u8"], 1, -1)
    quantizer = lapa_jax.load_quantizer(imported)
    z = quantizer.encode(frames[:, 0], frames[:, 1])
    np.testing.assert_array_equal(z, io["inference_indices"])
    recon = quantizer.decode(frames[:, 0], z)
    np.testing.assert_allclose(recon, np.moveaxis(io["inference_recon"], 1, -1), atol=2e-5)
    floats = (frames / np.float32(255)).astype(np.float32)
    np.testing.assert_array_equal(quantizer.encode(floats[:, 0], floats[:, 1]), z)
    for bad, message in (
        (lambda: quantizer.decode(frames[:, 0], z + 5), "the codebook has 8"),
        (lambda: quantizer.decode(frames[:, 0], z[:, :2]), r"shape \(3, 4\)"),
        (lambda: quantizer.encode(frames[:, 0, :32], frames[:, 1]), "first of shape"),
        (lambda: quantizer.encode(frames[:, 0], 2 * floats[:, 1]), "last holds values"),
        (lambda: quantizer.encode(frames[:, 0].astype(int), frames[:, 1]), "dtype int"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


@pytest.mark.slow
@needs_torch
def test_export_is_the_way_back(imported, tmp_path):
    path = tmp_path / "laq.pt"
    succeed("export", "--format", "laq_pt", "--workdir", imported, "--out", path)
    original, again = np.load(GOLDEN / "laq_tiny4_params.npz"), tensor_files.tensors(path)
    assert list(again) == list(original.files)
    out = tmp_path / "again"
    succeed("import", "--format", "laq_pt", "--source", path, "--image_size", 64, "--out", out)
    assert load(out).params_hash == load(imported).params_hash
    code, _, error = lapa("export", "--format", "laq_pt", "--workdir", imported, "--out", path)
    assert code == 2 and "exists" in error
    code, _, error = lapa(
        "import", "--format", "laq_pt", "--source", path, "--image_size", 64, "--out", out
    )
    assert code == 2 and "not empty" in error


@pytest.mark.slow
@needs_torch
def test_imported_weights_can_be_trained_on(imported, tiny_data, tmp_path):
    model = {f"model__{k}": v for k, v in load(imported).config.model.items()
             if k not in ("bottleneck", "objective")}  # fmt: skip
    arguments = [
        a for a in tiny.arguments("quantizer", tiny_data, init_from=imported, **model)
        if "bottleneck" not in a
    ]  # fmt: skip
    code, _, error = lapa("train", *arguments, "--workdir", tmp_path / "run")
    assert code == 0, error
    report = (tmp_path / "run" / "init_from.json").read_text()
    assert '"initialised": []' in report


@pytest.mark.slow
def test_a_native_quantizer_is_not_exported_as_the_original(tiny_data, tmp_path):
    succeed("train", *tiny.arguments("quantizer", tiny_data, steps=2), "--workdir", tmp_path / "q")
    code, _, error = lapa(
        "export", "--format", "laq_pt", "--workdir", tmp_path / "q", "--out", tmp_path / "x.pt"
    )
    assert code == 2 and "model.legacy=False" in error and not (tmp_path / "x.pt").exists()
