"""Real robot episodes and a real video, from the raw files to labels."""

import json

import numpy as np
import pytest
import tiny
from tiny import succeed

from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSet
from lapa_jax.runs import loaded

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_compile", "real_data"),
]


def train_arguments(path, **corpus) -> list[str]:
    """A tiny quantizer on one corpus. `corpus`: keys under data.corpora."""
    changes = {f"data__corpora__robot__{key}": value for key, value in corpus.items()}
    return tiny.arguments("quantizer", path.parent, data__corpora__robot__path=path, **changes)


def check_labels(index, workdir) -> None:
    labels = LabelSet.open(index.sidecar_dir, "laq", index)
    run = loaded.load(workdir)
    assert labels.provenance["quantizer_hash"] == run.params_hash
    codes = labels.labels(np.flatnonzero(labels.valid))
    assert len(codes) and codes.min() >= 0 and codes.max() < run.config.model.codebook_size
    # A start frame is labelled if the frame one window later is in the same episode.
    step = np.arange(index.num_frames) - np.repeat(index.episode_start, index.episode_length)
    fps = np.nan_to_num(index.fps, nan=5.0)
    window = np.rint(run.config.data.corpora.robot.window_seconds * fps)
    ends = np.repeat(index.episode_length - window, index.episode_length)
    np.testing.assert_array_equal(labels.valid, step < ends)


@pytest.mark.slow
def test_bridge_episodes(real_data, tmp_path):
    """RLDS as TFDS wrote it: other keys, no fps, a folder in which nothing may be written."""
    corpus, sidecars = real_data / "bridge_dataset" / "1.0.0", tmp_path / "sidecars"
    before = sorted(path.name for path in corpus.iterdir())
    where = ("--image_key", "image_0", "--sidecar_dir", sidecars)
    out = succeed("data", "index", corpus, "--workers", 1, "--fps", 0, *where)  # not the table's
    assert "(64, 64)" in out and "7 dimensions" in out and "val:" in out

    keys = dict(image_key="image_0", sidecar_dir=sidecars, window_seconds=0.4)
    code, _, err = tiny.lapa(
        "train", *train_arguments(corpus, **keys), "--workdir", tmp_path / "refused"
    )
    assert code == 2 and "set data.corpora.robot.fps" in err

    workdir = tmp_path / "quantizer"
    succeed("train", *train_arguments(corpus, fps=5.0, **keys), "--workdir", workdir)
    succeed(
        *("label", "--workdir", workdir, "--corpus", corpus, "--name", "laq", "--fps", 5.0),
        *where,
    )
    index = load_index(corpus, split="train", sidecar_dir=sidecars, image_key="image_0")
    assert np.isnan(index.fps).all() and index.action_dim == 7
    check_labels(index, workdir)

    found = json.loads(succeed("data", "inspect", corpus, "--sidecar_dir", sidecars, "--json"))
    assert found["splits"].keys() == {"train", "val"}
    assert [labels["name"] for labels in found["label_sets"]] == ["laq"]
    assert sorted(path.name for path in corpus.iterdir()) == before, "nothing was written"


@pytest.mark.slow
def test_a_video(real_data, tmp_path):
    corpus, workdir = tmp_path / "videos", tmp_path / "quantizer"
    succeed("data", "convert", "video", real_data / "videos", "--out", corpus, "--fps", 10)
    assert "actions none" in succeed("data", "index", corpus, "--workers", 1)
    succeed("train", *train_arguments(corpus), "--workdir", workdir)
    succeed("label", "--workdir", workdir, "--corpus", corpus, "--name", "laq")
    check_labels(load_index(corpus, split="train"), workdir)
    page = tmp_path / "page.html"
    succeed("data", "inspect", corpus, "--html", page)
    assert (
        "<summary>laq, split train</summary>" in page.read_text()
        and "data:image/" in page.read_text()
    )
    result = json.loads(succeed("evaluate", "--workdir", workdir, "--max_examples", 30))
    assert "probe" not in result["robot"], "there are no actions to predict"
