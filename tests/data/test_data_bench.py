"""What `lapa data bench` compares gives true frame pairs, and its figures belong together."""

import importlib.util
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
import pytest
import simplejpeg
from tiny import succeed

from data_pipelines.bench import arms as bench_arms
from data_pipelines.bench import compare, corpus, start
from data_pipelines.index import load_index
from data_pipelines.loader.ahead import Buffers
from experiments import base

SIZE, WINDOW, BATCH = 32, 5, 8


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    directory = corpus.make(folder, corpus.Shape(episodes=6, size=SIZE, steps=12))
    assert corpus.make(folder, corpus.Shape(6, SIZE, 12)) == directory
    data = base.stage_defaults("quantizer").data
    data.image_size = (SIZE, SIZE)
    data.corpora.bench = base.corpus(str(directory), window_seconds=0.5)
    frames = corpus.array_record(directory)
    return bench_arms.Setting(directory, data, BATCH, 2, WINDOW, frames)


def first_batches(setting, arm):
    return list(itertools.islice(bench_arms.ARMS[arm].batches(setting), 2))


@pytest.mark.slow
@pytest.mark.parametrize("arm", bench_arms.ARMS)
def test_every_arm_gives_frames_a_window_apart(setting, arm):
    if arm == "grain" and importlib.util.find_spec("grain") is None:
        pytest.skip("pip install grain")
    index = load_index(setting.directory)
    jpegs = corpus.jpegs(index, np.arange(index.num_frames))
    frames = np.stack([simplejpeg.decode_jpeg(jpeg, "RGB") for jpeg in jpegs]).astype(np.float32)
    if arm == "grain":  # sets up the logging of its process
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            batches = pool.submit(first_batches, setting, arm).result()
    else:
        batches = first_batches(setting, arm)
    for batch in batches:
        assert batch.shape == (BATCH, 2, SIZE, SIZE, 3) and batch.dtype == np.uint8
        apart = np.abs(batch[:, :, None] - frames).mean(axis=(3, 4, 5))  # (B, 2, F)
        rows = apart.argmin(axis=2)
        assert apart.min(axis=2).max() < 3  # decoders round otherwise
        if not arm.endswith("limit"):
            np.testing.assert_array_equal(rows[:, 1] - rows[:, 0], WINDOW)
            episodes = index.episode_of_rows(rows)
            np.testing.assert_array_equal(episodes[:, 0], episodes[:, 1])


@pytest.mark.slow
def test_frames_cost_what_those_of_photographs_do(tmp_path):
    directory = corpus.make(tmp_path, corpus.Shape(episodes=3, steps=4))
    assert 20_000 < load_index(directory).frame_length.mean() < 30_000


@pytest.mark.slow
def test_figures_belong_together(setting):
    arms = ["threads", "threads_limit"]
    rows = compare.compare(setting, arms, rounds=2, seconds=0.05)
    assert [row["arm"] for row in rows] == arms
    for row in rows:
        assert len(row["by_round"]) == 2 and row["pairs_per_second"] > 0
        assert row["pairs_per_cpu_second"] == pytest.approx(np.mean(row["by_round"]))
    found = compare.ratios(rows)
    pairs = zip(rows[0]["by_round"], rows[1]["by_round"], strict=True)
    assert found["threads_vs_limit"] == pytest.approx(np.mean([a / b for a, b in pairs]), abs=1e-3)
    assert found.keys() == compare.GOALS.keys() and found["tfdata_vs_octo"] is None


def test_what_is_not_installed_is_skipped_by_name(setting, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = compare.compare(setting, ["grain"], rounds=1, seconds=1)
    assert row["skipped"] == "grain, array_record not installed: pip install grain array_record"
    assert "pip install grain" in compare.to_text([row], compare.ratios([row]))


@pytest.mark.slow
def test_the_verb_ends_with_the_ratios(tmp_path):
    given = "--arms threads,threads_limit --rounds 1 --seconds 0.05 --episodes 6 --size 32 --json"
    out = succeed("data", "bench", "--workdir", str(tmp_path), *given.split())
    about, *rows, state, ratios = [json.loads(line) for line in out.splitlines()]
    assert about["size"] == 32 and state["state_bytes"] < 1024
    assert [row["step"] for row in rows[2:]] == [0, 10**5, 10**8]
    assert ratios["threads_vs_limit"] > 0 and ratios["tfdata_vs_grain"] is None


def test_the_index_of_many_episodes_is_one(setting):
    directory = start.many_episodes(setting.directory, 100)
    index, once = load_index(directory), load_index(setting.directory)
    assert index.num_episodes == 100 and index.num_frames > 12 * once.num_frames
    assert start.many_episodes(setting.directory, 100) == directory
    rows = np.random.default_rng(0).choice(index.num_frames, 50)
    known = set(corpus.jpegs(once, np.arange(once.num_frames)))
    assert set(corpus.jpegs(index, rows)) <= known  # checksums fit
    np.testing.assert_array_equal(np.sort(index.shard_of_episode), index.shard_of_episode)


def test_memory_is_used_again_only_when_nothing_looks_at_it():
    buffers = Buffers(limit=1)
    array = buffers.take((4, 3))
    place, view = array.ctypes.data, array[1:].reshape(-1)
    view[:] = 7
    del array
    other = buffers.take((4, 3))
    assert other.ctypes.data != place
    other[:] = 0
    assert (view == 7).all()
    del view
    again = buffers.take((2, 6))
    assert again.ctypes.data == place and again.shape == (2, 6)
    assert buffers.take((5,)).shape == (5,)


def test_memory_that_a_device_took_over_is_not_used_again():
    """On a CPU JAX copies an array or takes its memory, by where that begins."""
    buffers, put, shared = Buffers(limit=50), [], 0
    arrays = [buffers.take((8, 8, 3)) for _ in range(50)]
    for number, array in enumerate(arrays):
        array[:] = number
        put.append(jax.block_until_ready(jax.device_put(array)))
        shared += put[-1].unsafe_buffer_pointer() == array.ctypes.data
    assert shared > 0
    del array, arrays
    for _ in range(50):
        buffers.take((8, 8, 3))[:] = 255
    assert [int(one[0, 0, 0]) for one in put] == list(range(50))
