"""What opening and reading an index takes grows with its episodes, not with its frames."""

import tracemalloc

import big_index
import numpy as np
import pytest
from shards import data_config
from test_loader import assert_same

from data_pipelines import sidecar
from data_pipelines.loader import Loader


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    found = tmp_path_factory.mktemp("big") / "corpus"
    big_index.make(found, 500, 2000, shards=4, actions=2)
    return found


def test_no_array_of_all_frames_is_made(directory):
    tracemalloc.start()
    config = data_config({"a": directory}, size=big_index.SIZE)
    with Loader(config, fields=("frames", "action"), global_batch=8, seed=0) as loader:
        for step in (0, 10**5, 10**10):
            assert loader.batch(step)["frames"].shape == (8, 2, 64, 64, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loader.mixture.corpora[0].index.num_frames == 10**6
    assert peak < 8e6, "int64 of every frame alone are that"


def test_rows_of_large_arrays_are_read_not_mapped(directory, monkeypatch):
    def batch():
        config = data_config({"a": directory}, size=big_index.SIZE)
        with Loader(config, fields=("frames", "action"), global_batch=8, seed=0) as loader:
            return loader.batch(3), loader.mixture.corpora[0].index

    mapped, index = batch()
    assert not hasattr(index.actions, "file")
    monkeypatch.setattr(sidecar, "_LARGE_BYTES", 0)
    read, index = batch()
    assert_same(mapped, read)
    rows = np.array([[999_999, 0], [17, 17]])
    for array in (index.actions, index.frame_crc, index.frame_offset):
        np.testing.assert_array_equal(sidecar.take(array, rows), array[rows])
        assert sidecar.take(array, rows).dtype == array.dtype
    index.actions.file.close()  # nothing else reads them
    with pytest.raises(ValueError, match="closed file"):
        sidecar.take(index.actions, rows)
