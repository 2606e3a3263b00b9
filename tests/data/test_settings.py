"""The typed settings of the data, and hashes that older runs have in their checkpoints."""

import json
import zlib

import numpy as np
import pytest
from shards import data_config

from data_pipelines.index import build_index, load_index
from data_pipelines.index.labels import LabelSetWriter
from data_pipelines.loader import DataSettings, Loader, open_mixture
from data_pipelines.rlds import schema, tfrecord

PROVENANCE = {
    "quantizer_hash": "q",
    "window_seconds": 0.4,
    "codebook_size": 8,
    "code_length": 2,
    "code_version": "1",
}
LABELS = {"num_frames": 1, "a__label_set": "z", "b__label_set": "z", "sampling": "per_video"}
# fields, keys; what runs of before these settings have: the mixture hash, and a checksum of which
# examples the first 30 steps hold
HISTORY = {"history_seconds": 0.4, "tail": "clamp"}
CHAINS = {"chain_pairs": 2, "a__weight": 3, "a__fps": 5}
WINDOWED = {"access": "windowed", "block_mib": 1, "lanes": 2}
FILTERS = {"a__min_episode_steps": 5, "b__require_instruction": True, "b__fraction": 0.9}
CLIPS = {"num_frames": 3, "a__window_seconds": 0.2, "b__image_key": ""}
CASES = [
    ("frames", {}, "eed980c35181bde6cf2f5d40db5296a0", 2719622181),
    ("instruction action", HISTORY, "d0ba5fcbfeffcbc7d3954721c30f489c", 246096064),
    ("instruction latent_action", LABELS, "3bdba1c9620419fef3aa65aee789d36f", 3540150838),
    ("frames", CHAINS, "3a125e8779e775570f43c23b38541a07", 1839806385),
    ("frames", WINDOWED, "40caf36242397289babaeabcc86b6284", 545740628),
    ("action", {"num_frames": 1} | FILTERS, "826bd84b597557acce995ce3b20fdc26", 1450788387),
    ("frames action", CLIPS, "1152ec9e61e553c14e7755c8d7ffc63a", 1370974984),
]
INDEX_HASH = "0b9a37c094a2bdf50b9583e2ef4f1625"


def write_plain(directory, seed, lengths=(7, 4, 9, 5, 6)):
    """A corpus of the same bytes by any library: its images are none."""
    directory.mkdir()
    with open(directory / "toy-train.tfrecord-00000-of-00001", "wb") as file:
        for number, steps in enumerate(lengths):
            episode = {
                schema.OBSERVATION + "image": [
                    b"%d %d %d" % (seed, number, t) for t in range(steps)
                ],
                "steps/action": np.arange(2 * steps, dtype=np.float32) + seed,
                "steps/language_instruction": [b"do thing %d" % (number % 2)] * steps,
                "episode_metadata/fps": np.array([5.0], np.float32),
            }
            tfrecord.write_record(file, tfrecord.encode_example(episode))
    build_index(directory, progress=False)
    writer = LabelSetWriter(directory, "z", load_index(directory), provenance=PROVENANCE)
    writer.write_shard(0, np.stack([np.arange(sum(lengths)) % 8] * 2, axis=1))
    writer.finish()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    for seed, name in enumerate("ab"):
        write_plain(root / name, seed)
    return {name: root / name for name in "ab"}


@pytest.mark.slow
@pytest.mark.parametrize("fields, keys, expected, drawn", CASES)
def test_runs_of_before_see_the_same_data(corpora, fields, keys, expected, drawn):
    loader = Loader(data_config(corpora, **keys), fields=fields.split(), global_batch=4, seed=1)
    assert loader.fingerprint(5) == {
        "step": 5,
        "seed": 1,
        "global_batch": 4,
        "mixture_hash": expected,
        "index_hash": INDEX_HASH,
    }
    steps = [where for step in range(30) for where in loader.describe(step)]
    found = [(where["corpus"], where["episode"], where["steps"]) for where in steps]
    assert zlib.crc32(json.dumps(found).encode()) == drawn


def test_mistakes_are_named(corpora):
    def refused(**keys):
        with pytest.raises(ValueError) as info:
            DataSettings.of(data_config(corpora, **keys))
        return str(info.value)

    assert "data.block_mib=0.0 must be a number in (0, 1048576)" in refused(block_mib=0)
    assert "data.corpora.b.fraction=1.5 must be a number in (0, 1]" in refused(b__fraction=1.5)
    assert "data.prefetch_batches=0 must be an integer in [1, 4096]" in refused(prefetch_batches=0)
    assert "data.sampling='all' must be one of ['per_frame'," in refused(sampling="all")
    assert "data.max_bad_fraction=2.0 must be a number in [0, 1]" in refused(max_bad_fraction=2)
    assert "data: unknown keys ['num_framez'], missing keys []" in refused(num_framez=2)
    assert "data.corpora.a: unknown keys ['window']" in refused(a__window=2)
    with pytest.raises(ValueError, match=r"data: .*missing keys \['image_size'\]"):
        DataSettings.of({"corpora": {}})
    with pytest.raises(ValueError, match="data.corpora is empty"):
        Loader({"image_size": (8, 8)}, fields=["frames"], global_batch=4, seed=0)
    with pytest.raises(ValueError, match=r"data.corpora.a: .*missing keys \['path'\]"):
        DataSettings.of({"image_size": (8, 8), "corpora": {"a": {"fps": 1.0}}})


def test_like_the_first_corpus_but_there(corpora):
    settings = DataSettings.of(data_config(corpora, a__fps=3.0, b__fps=4.0, a__fraction=0.5))
    assert DataSettings.of(settings) is settings
    there = settings.on({"y": {"path": "/y", "fps": 1.0}, "x": "/x"}, split="test")
    assert [(c.name, c.path, c.split, c.fps, c.fraction) for c in there.corpora] == [
        ("x", "/x", "test", 0.0, 0.5),
        ("y", "/y", "test", 1.0, 0.5),
    ]
    beside = DataSettings.of(data_config(corpora, a__sidecar_dir="/a", b__sidecar_dir="/b"))
    paths = {name: f"{one.path}/" for name, one in zip("ab", beside.corpora, strict=True)}
    paced = settings.on(paths | {"c": {"path": paths["b"], "fps": 0.0}})
    assert [one.fps for one in paced.corpora] == [3.0, 4.0, 0.0]
    there = beside.on({**paths, "x": "/x", "y": {"path": "/y", "sidecar_dir": "/s"}})
    assert [one.sidecar_dir for one in there.corpora] == ["/a", "/b", "", "/s"]
    none = settings.on({})
    assert not none.corpora and none.on({"x": "/x"}).corpora[0].image_key == "image"
    with pytest.raises(ValueError, match="data.corpora is empty"):
        Loader(none, fields=["frames"], global_batch=4, seed=0)
    with pytest.raises(ValueError, match="data.corpora.x: unknown keys .'framerate'"):
        settings.on({"x": "/x"}, framerate=3)


def test_walking_takes_every_pair_and_drawing_any_takes_every_example(corpora):
    keys = {"a__fraction": 0.8, "a__label_set": "z", "b__min_episode_steps": 9, "num_frames": 1}
    settings = DataSettings.of(data_config(corpora, sampling="per_video", **keys))
    every = open_mixture(settings.in_order())
    assert every.num_frames == 2 and every.sizes == [21, 21]
    assert open_mixture(settings).sizes == [3, 1]
    chained = DataSettings.of(data_config(corpora, **CHAINS, **WINDOWED))
    assert chained.draw_any() == DataSettings.of(
        data_config(corpora, block_mib=1, lanes=2, a__weight=3, a__fps=5)
    )
