"""Motion sets, and the static pairs that they leave out."""

import sys

import numpy as np
import pytest
import simplejpeg
from shards import LENGTHS, data_config, spec, write_corpus
from test_loader import label, write_undecodable

from data_pipelines.index import build_index, load_index
from data_pipelines.index.labels import LabelSet
from data_pipelines.loader import FingerprintError, Loader, check_fingerprint
from data_pipelines.loader.flow import write_flow
from data_pipelines.loader.motion import MOTION, STEPS_PER_LEVEL, write_motion
from data_pipelines.rlds import schema, tfrecord
from lapa_jax.verbs import data as data_verbs

STILL = {0: range(2, 7), 2: range(0, 5)}  # episode → steps that show one picture


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(directory, frames by row), with a motion set of 0.4 s, two steps; nobody changes it."""
    directory = tmp_path_factory.mktemp("motion")
    frames = write_still(directory)
    write_motion(directory, window_seconds=0.4, progress=False, workers=2)
    return directory, frames


def write_still(directory):
    episodes = write_corpus(directory, index=False)
    for number, steps in STILL.items():
        for step in steps:
            episodes[number].images[step] = episodes[number].images[steps[0]]
    for shard in range(2):
        with open(directory / f"toy-train.tfrecord-{shard:05d}-of-00002", "wb") as file:
            for episode in episodes[3 * shard : 3 * shard + 3]:
                tfrecord.write_record(file, schema.encode_episode(episode, spec()))
    build_index(directory, progress=False)
    images = [simplejpeg.decode_jpeg(image) for e in episodes for image in e.images]
    return np.array(images).astype(float)


def make(directory, **options):
    fields = options.pop("fields", ("frames",))
    config = data_config({"a": directory}, min_pair_difference=1.0, **options)
    return Loader(config, fields=fields, global_batch=4, seed=0)


def starts(loader):
    """(episode, step) at which examples stand."""
    corpus = loader.mixture.corpora[0]
    rows = corpus.frame_rows(np.arange(corpus.num_samples), np.zeros(corpus.num_samples, int), 0)
    rows = rows[:, corpus.frames.current]
    episode = corpus.index.episode_of_rows(rows)
    steps = rows - corpus.index.episode_start[episode]
    return list(zip(episode.tolist(), steps.tolist(), strict=True))


def test_it_is_the_mean_difference_of_each_pair(corpus):
    directory, frames = corpus
    index = load_index(directory)
    found = LabelSet.open(directory, "0.4", index, MOTION).labels(np.arange(index.num_frames))
    row = 0
    for length in LENGTHS:
        for step in range(length):
            later = row - step + min(step + 2, length - 1)
            expected = np.abs(frames[row] - frames[later]).mean()
            assert abs(found[row, 0] / STEPS_PER_LEVEL - expected) < 0.003
            row += 1


def test_static_pairs_are_not_drawn(corpus):
    still = {(0, t) for t in (2, 3, 4)} | {(2, t) for t in (0, 1, 2)}
    every = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length - 2)]
    assert starts(make(corpus[0])) == [pair for pair in every if pair not in still]
    clamped = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length - 1)]
    still |= {(0, 5)}
    assert starts(make(corpus[0], tail="clamp")) == [pair for pair in clamped if pair not in still]
    label(corpus[0], skip=[0])
    policy = make(
        corpus[0], num_frames=1, a__label_set="z", fields=("frames", "latent_action"), tail="clamp"
    )
    assert starts(policy) == [p for p in clamped if p not in still and p != (0, 0)]
    loader = make(corpus[0], a__fraction=1.0)
    config = data_config({"a": corpus[0]}, min_pair_difference=200.0)
    with pytest.raises(ValueError, match="no eligible frame.*data.min_pair_difference"):
        Loader(config, fields=("frames",), global_batch=4, seed=0)
    config.min_pair_difference = 0.5
    other = Loader(config, fields=("frames",), global_batch=4, seed=0)
    with pytest.raises(FingerprintError, match="mixture_hash"):
        check_fingerprint(loader.fingerprint(0), other.fingerprint(0))


def test_what_was_left_out_is_told(corpus, caplog):
    with caplog.at_level("INFO", logger="absl"):
        make(corpus[0])
    assert (
        "'a': of 21 examples 6 have frames that differ by less than data.min_pair_difference=1.0"
        in caplog.text
    )


def test_a_set_of_other_pairs_is_refused(corpus):
    with pytest.raises(
        FileNotFoundError, match=r"no motion set '0.6'.*known: \['0.4'\].*lapa data"
    ):
        make(corpus[0], a__window_seconds=0.6)
    with pytest.raises(ValueError, match="other steps .*delete it and .*--fps 10"):
        make(corpus[0], a__fps=10.0)
    with pytest.raises(ValueError, match="data.min_pair_difference=300.0 must be"):
        config = data_config({"a": corpus[0]}, min_pair_difference=300.0)
        Loader(config, fields=("frames",), global_batch=4, seed=0)


def test_undecodable_frames_have_no_value_and_are_not_drawn(tmp_path):
    write_undecodable(tmp_path, {15}, lengths=(10, 10))
    write_motion(tmp_path, window_seconds=0.4, progress=False)
    found = starts(make(tmp_path))
    assert set(found) == {(e, t) for e in range(2) for t in range(8)} - {(1, 3), (1, 5)}


def test_the_verb_tells_how_much_moves(corpus, capsys, tmp_path):
    command = ["motion", str(corpus[0]), "--window_seconds", "0.2", "--sidecar_dir", str(tmp_path)]
    build_index(corpus[0], sidecar_dir=tmp_path, progress=False)
    assert data_verbs.main(command) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}/motion/0.2/image" in told and "0.25" in told


def test_flow_is_a_column_of_batches(tmp_path, monkeypatch):
    write_corpus(tmp_path)
    config = data_config({"a": tmp_path})

    def opened(*fields, fps=0.0):
        config.corpora.a.fps = fps
        return Loader(config, fields=("frames", *fields), global_batch=4, seed=0)

    with pytest.raises(FileNotFoundError, match="lapa data flow"):
        opened("flow")
    told = dict(window_seconds=0.4, cell=8, progress=False, workers=2)

    def estimate(first, last):  # of what is brighter, in pixels to the right and down
        change = (last.astype(np.float32) - first).mean(-1, keepdims=True)
        return np.concatenate([change, -change], -1)

    write_flow(tmp_path, method="dis", estimate=estimate, **told)
    loader = opened("flow")
    batch = loader.batch(0)
    assert batch["flow"].shape == (4, 4, 2) and batch["flow"].dtype == np.float32
    for frames, flow in zip(batch["frames"], batch["flow"], strict=True):
        expected = estimate(*frames).reshape(2, 8, 2, 8, 2).mean(axis=(1, 3)).reshape(4, 2)
        np.testing.assert_allclose(flow, expected, rtol=1e-3, atol=1e-2)
    assert loader.mixture.hash != opened().mixture.hash
    with pytest.raises(ValueError, match="other steps .*delete it and .*`lapa data flow` --fps 10"):
        opened("flow", fps=10.0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="--method dis needs OpenCV: pip install"):
        data_verbs.main(["flow", str(tmp_path), "--window_seconds", "0.4"])
