"""Latents of LARYBench's pictures are in the files that its probes read."""

import csv
import json
import re

import av
import jax
import numpy as np
import pytest
import simplejpeg
import tiny
from PIL import Image
from tiny import lapa

from data_pipelines.convert import looks
from experiments import base
from lapa_jax import stages
from lapa_jax.interop.imported import Imported, write_run
from lapa_jax.runs import loaded

pytestmark = pytest.mark.usefixtures("quick_compile")


def quantizer(out, data, bottleneck):
    config = tiny.config("quantizer", data)
    config.model.bottleneck = base.bottleneck(bottleneck)
    rng = np.random.default_rng(0)
    params, variables = jax.tree.map(
        lambda x: (0.2 * np.abs(rng.normal(size=x.shape)) + 0.1).astype(x.dtype),
        stages.build(config, {}).model.abstract(),
    )
    write_run(out, Imported(config, params, variables=variables), source="x", source_format="x")
    return out


def metadata(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def export(run, out, told, folder, *more):
    given = ["--metadata", told, "--data", folder, "--dataset", "calvin", "--part", "val", *more]
    return lapa("export", "--format", "lary", "--workdir", run, "--out", out, *given)


@pytest.fixture(scope="module")
def run(quick_compile, tiny_data, tmp_path_factory):
    return quantizer(tmp_path_factory.mktemp("run") / "codes", tiny_data, "nsvq")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    for number, image in enumerate(smooth):
        Image.fromarray(image).resize((80, 60)).save(folder / f"{number}.png")
    return folder


def test_image_pairs(run, pictures, tmp_path):
    rows = [
        {
            "dataset": "CALVIN",
            "src_img": f"{n}.png",
            "tgt_img": f"{n + 1}.png",
            "action": f"{n}.npy",
        }
        for n in range(2)
    ]
    told = metadata(tmp_path / "calvin_metadata_val.csv", rows)
    code, out, _ = export(run, tmp_path / "out", told, pictures, "--stride", 5, "--model", "mine")
    assert code == 0
    with open(tmp_path / "out" / "val_la_calvin_5_mine.csv", newline="") as file:
        found = list(csv.DictReader(file))
    paths = [row.pop("la_path") for row in found]
    assert found == rows and paths[1] == "calvin/val/mine/latent_action_00000001.npz"
    model = loaded.load_quantizer(run)
    first, last = (
        simplejpeg.decode_jpeg(
            simplejpeg.encode_jpeg(
                looks.fit_image(np.asarray(Image.open(pictures / f"{n}.png")), (64, 64), "stretch"),
                92,
            )
        )[None]
        for n in (1, 2)
    )
    read = model.stage.read(model.params, model.variables, first, last)
    latent = np.load(tmp_path / "out" / paths[1])
    np.testing.assert_allclose(latent["tokens"], read.received_BLQ[0], atol=1e-5)
    np.testing.assert_array_equal(latent["indices"], read.z_BL[0])
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["passed"]
    assert "python -m lary.cli regress" in (tmp_path / "out" / "README.md").read_text()


def test_videos_of_a_model_without_codes(tiny_data, tmp_path):
    run = quantizer(tmp_path / "run", tiny_data, "gaussian")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for level in range(0, 240, 40):
            picture = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    rows = [{"video_path": "clip.mp4", "sample_indices": "0,2,5", "action": "lift"}]
    told = metadata(tmp_path / "videos.csv", rows)
    assert export(run, tmp_path / "out", told, tmp_path)[0] == 0
    assert (tmp_path / "out" / "val_la_calvin_lapa_jax.csv").exists()
    latent = np.load(tmp_path / "out/calvin/val/lapa_jax/latent_action_00000000.npz")
    assert latent["tokens"].shape[0] == 2 and latent["tokens"].dtype == np.float32
    assert latent["indices"].shape == (2, 0)
    rows[0]["sample_indices"] = "0,99"
    code, _, error = export(run, tmp_path / "no", metadata(told, rows), tmp_path)
    assert code == 2 and "row 0 of the metadata: " in error and "has no frame 99" in error
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_read_is_named(run, pictures, tmp_path):
    rows = [{"src_img": "0.png", "tgt_img": "none.png"}]
    told = metadata(tmp_path / "m.csv", rows)
    for more, words in (
        ([], "--stride is part of the name"),
        (["--stride", 5], "row 0 of the metadata: .*none.png"),
        (["--stride", 5, "--model", "a/b"], "--model 'a/b' must be the name of a folder"),
    ):
        code, _, error = export(run, tmp_path / "out", told, pictures, *more)
        assert code == 2 and re.search(words, error)
    told = metadata(tmp_path / "other.csv", [{"image": "0.png"}])
    code, _, error = export(run, tmp_path / "out", told, pictures, "--stride", 5)
    assert code == 2 and "neither src_img, tgt_img nor video_path, sample_indices" in error
    told = tmp_path / "broken.csv"
    for text, words in (
        (b"src_img,tgt_img\n0.png,0.png\n0.png\n", "row 1 of .*broken.csv has not as many cells"),
        (b"src_img,tgt_img\n0.png,0.png,5\n", "row 0 of .*broken.csv has not as many cells"),
        (b"src_img,tgt_img\n\xff\xfe.png,0.png\n", "broken.csv is no text"),
    ):
        told.write_bytes(text)
        code, _, error = export(run, tmp_path / "out", told, pictures, "--stride", 5)
        assert code == 2 and re.search(words, error.strip().splitlines()[-1])
        assert not (tmp_path / "out").exists()
