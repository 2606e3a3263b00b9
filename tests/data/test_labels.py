"""Label sets: resumable writing, and every reason to refuse one."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
from shards import LENGTHS, write_corpus
from test_settings import write_plain

from data_pipelines.index import load_index
from data_pipelines.index.labels import IMAGE_TOKENS, LATENT_ACTIONS, LabelSet, LabelSetWriter
from data_pipelines.sidecar import SidecarError

PROVENANCE = {
    "quantizer_hash": "abc",
    "window_seconds": 0.6,
    "codebook_size": 8,
    "code_length": 4,
    "code_version": "1",
}

TOKENS = {
    "tokenizer_hash": "t",
    "image_size": [16, 16],
    "codebook_size": 2**16 - 1,
    "tokens_per_frame": 3,
    "code_version": "1",
}


@pytest.fixture
def index(tmp_path):
    write_corpus(tmp_path, shards=3)
    return load_index(tmp_path)


def labels_of(index, shard):
    rows = index.rows_of_shard(shard)
    labels = np.random.default_rng(shard).integers(0, 8, (rows.stop - rows.start, 4))
    labels[-1] = -1
    return labels


def write(index, shards=(0, 1, 2), **provenance):
    writer = LabelSetWriter(index.sidecar_dir, "z", index, provenance={**PROVENANCE, **provenance})
    for shard in shards:
        writer.write_shard(shard, labels_of(index, shard))
    return writer


def test_round_trip_and_provenance(index):
    write(index).finish()
    found = LabelSet.open(index.sidecar_dir, "z", index)
    expected = np.concatenate([labels_of(index, shard) for shard in range(3)])
    rows = np.array([31, 0, 7, 7])
    np.testing.assert_array_equal(found.labels(rows), expected[rows])
    assert found.labels(rows).dtype == np.int32 and found.code_length == 4
    np.testing.assert_array_equal(found.valid, expected[:, 0] >= 0)
    assert found.provenance == {
        **PROVENANCE,
        "corpus_hash": index.hash,
        "image_key": "image",
        "num_frames": sum(LENGTHS),
    }


def test_writing_continues_where_it_stopped(index):
    assert write(index, shards=[1]).missing_shards() == [0, 2]
    with pytest.raises(SidecarError, match=r"not finished: shards \[0, 2\] of 3.*lapa label"):
        LabelSet.open(index.sidecar_dir, "z", index)
    second = write(index, shards=[0])
    assert second.missing_shards() == [2]
    with pytest.raises(SidecarError, match=r"lacks shards \[2\] of 3"):
        second.finish()
    third = write(index, shards=[2])
    third.finish()
    third.finish()
    again = write(index, shards=[])
    assert again.complete and again.missing_shards() == []
    with pytest.raises(SidecarError, match="is finished"):
        again.write_shard(0, labels_of(index, 0))


def test_labels_of_another_quantizer_do_not_mix(index):
    write(index, shards=[1])
    with pytest.raises(SidecarError, match="quantizer_hash: 'abc' → 'other'"):
        write(index, shards=[], quantizer_hash="other")


def test_labels_of_another_corpus_are_refused(index, tmp_path):
    write(index).finish()
    write_corpus(tmp_path / "other", seed=9, shards=3)
    with pytest.raises(SidecarError, match=f"made for corpus {index.hash}.*lapa label"):
        LabelSet.open(index.sidecar_dir, "z", load_index(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"no label set 'y'.*known: \['z'\].*lapa label"):
        LabelSet.open(index.sidecar_dir, "y", index)


def test_damaged_labels_are_refused(index):
    write(index).finish()
    path = index.sidecar_dir / "labels/z/train.npy"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    for use in (lambda: LabelSet.open(index.sidecar_dir, "z", index), lambda: write(index, ())):
        with pytest.raises(SidecarError, match=r"train.npy is damaged .* delete .*/train\.\* and"):
            use()
    for file in path.parent.glob("train.*"):
        file.unlink()
    write(index).finish()


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.zeros((11, 4)), "float64"),
        (np.zeros((10, 4), int), r"expected integers \(11, 4\)"),
        (np.full((11, 4), 8), "codebook_size is 8"),
        (np.full((11, 4), -2), "codebook_size is 8"),
        (np.tile([0, -1, 0, 0], (11, 1)), "row 0 is .* as a whole"),
    ],
)
def test_wrong_labels_are_named(index, labels, message):
    with pytest.raises(ValueError, match=f"shard 0.*{message}"):
        write(index, shards=[]).write_shard(0, labels)


def test_provenance_is_required(index):
    with pytest.raises(ValueError, match=r"lacks \['quantizer_hash'"):
        LabelSetWriter(index.sidecar_dir, "z", index, provenance={})
    with pytest.raises(ValueError, match="letters, digits"):
        LabelSetWriter(index.sidecar_dir, "../z", index, provenance=PROVENANCE)


def test_image_tokens_are_unsigned_and_by_camera(index):
    """Every code up to the last but one of uint16; what cannot be decoded has none."""

    def writer(**changes):
        return LabelSetWriter(
            index.sidecar_dir, "v", index, provenance=TOKENS | changes, kind=IMAGE_TOKENS
        )

    tokens = np.random.default_rng(0).integers(0, 2**16 - 1, (index.num_frames, 3))
    tokens[5], tokens[7] = -1, 2**16 - 2
    one = writer()
    for shard in range(3):
        one.write_shard(shard, tokens[index.rows_of_shard(shard)])
    one.finish()
    folder = index.sidecar_dir / "image_tokens/v/image"
    stored = np.load(folder / "train.npy")
    assert stored.dtype == np.uint16 and stored.shape == tokens.shape
    assert sorted(path.name for path in folder.iterdir()) == ["train.manifest.json", "train.npy"]
    found = LabelSet.open(index.sidecar_dir, "v", index, IMAGE_TOKENS)
    got = found.labels(np.arange(index.num_frames).reshape(2, -1))
    assert got.dtype == np.int32 and got.shape == (2, index.num_frames // 2, 3)
    np.testing.assert_array_equal(got.reshape(-1, 3), tokens)
    np.testing.assert_array_equal(np.flatnonzero(~found.valid), [5])
    with pytest.raises(ValueError, match="codebook_size is 65536 .must be 1 to 65535, .* uint16"):
        writer(codebook_size=2**16)
    with pytest.raises(SidecarError, match="tokenizer_hash: 't' → 'u'"):
        writer(tokenizer_hash="u")
    message = r"no image token set 'w' of image_key 'image'.*known: \['v'\].*--what image_tokens"
    with pytest.raises(FileNotFoundError, match=message):
        LabelSet.open(index.sidecar_dir, "w", index, IMAGE_TOKENS)
    with pytest.raises(FileNotFoundError, match=r"no label set 'v'.*known: none"):
        LabelSet.open(index.sidecar_dir, "v", index)


VECTORS = {key: value for key, value in PROVENANCE.items() if key != "codebook_size"}


def write_vectors(index, dtype="float32", **changes):
    """Three vectors of five numbers a row; row 9 has none. Returns the set and what it holds."""
    provenance = VECTORS | {"code_length": 3, "width": 5, "dtype": dtype}
    one = LabelSetWriter(index.sidecar_dir, dtype, index, provenance=provenance)
    values = np.random.default_rng(0).normal(size=(index.num_frames, 3, 5)).astype(np.float32)
    values[9] = np.nan
    for row, value in changes.items():
        values[int(row[1:])] = value
    for shard in range(3):
        one.write_shard(shard, values[index.rows_of_shard(shard)])
    one.finish(least=index.num_frames - 1)
    return LabelSet.open(index.sidecar_dir, dtype, index), values


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_round_trip(index, dtype):
    found, values = write_vectors(index, dtype)
    rows = np.array([[31, 9], [7, 7]])
    got = found.labels(rows)
    assert got.dtype == np.float32 and got.shape == (2, 2, 3, 5)
    np.testing.assert_array_equal(got, values[rows].astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(np.flatnonzero(~found.valid), [9])
    assert found.codebook_size is None and found.code_length == 3
    manifest = json.loads((found.folder / "train.manifest.json").read_text())["content"]
    assert (manifest["format"], manifest["dtype"], manifest["shape"]) == (2, dtype, [3, 5])
    assert np.load(found.folder / "train.npy").dtype == dtype
    assert np.isnan(
        LabelSetWriter(index.sidecar_dir, "w", index, provenance=found.provenance).unlabelled(0)
    ).all()


def test_wrong_and_damaged_vectors_are_named(index):
    def refused(error=ValueError, **changes):
        with pytest.raises(error) as info:
            write_vectors(index, **changes)
        return str(info.value)

    half = np.where(np.arange(15) < 7, np.nan, 0.0).reshape(3, 5)
    told = refused(r2=half)
    assert "shard 0" in told and "row 2 is [[nan, nan" in told and "or not at all (nan" in told
    assert "to inf; the largest float32 is 3.40" in refused(r4=np.inf)
    assert "to 100000.0; the largest float16 is 65504" in refused(dtype="float16", r5=1e5)
    assert "dtype is float64 (must be one of ('float32'," in refused(dtype="float64")
    provenance = VECTORS | {"width": 0}
    with pytest.raises(ValueError, match="code_length is 4 .*, width is 0 .must be at least 1"):
        LabelSetWriter(index.sidecar_dir, "w", index, provenance=provenance)
    one = LabelSetWriter(index.sidecar_dir, "w", index, provenance=VECTORS | {"width": 2})
    with pytest.raises(ValueError, match=r"int64\(11, 4\), expected floats \(11, 4, 2\)"):
        one.write_shard(0, labels_of(index, 0))
    write_vectors(index)
    path = index.sidecar_dir / "labels/float32/train.npy"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(SidecarError, match="labels/float32/train.npy is damaged"):
        LabelSet.open(index.sidecar_dir, "float32", index)


@pytest.mark.parametrize("kind", ["codes", "vectors", "image tokens"])
def test_a_shard_that_is_damaged_before_the_end_is_made_again(index, kind):
    """Whatever it holds then: other labels, other types, half a file, nothing."""
    settings, fill = dict(provenance=PROVENANCE), 3
    if kind == "vectors":
        settings, fill = dict(provenance=VECTORS | {"width": 2}), np.ones((4, 2), np.float32)
    if kind == "image tokens":
        settings = dict(provenance=TOKENS, kind=IMAGE_TOKENS)
    writer = LabelSetWriter(index.sidecar_dir, "v", index, **settings)
    arrays = [writer.unlabelled(shard) for shard in range(3)]
    for shard, array in enumerate(arrays):
        array[:] = fill
        writer.write_shard(shard, array)
    part = writer.folder / "train-00001.npy"
    whole, other = part.read_bytes(), np.load(part)
    other[3] = 2
    damages = [
        lambda: np.save(part, other),
        lambda: np.save(part, np.load(part).astype(np.float64)),
        lambda: part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        lambda: part.write_bytes(whole[: len(whole) // 2]),
        lambda: part.write_bytes(b""),
        part.unlink,
    ]
    for damage in damages:
        damage()
        with pytest.raises(SidecarError, match="train-00001.npy is damaged.* makes it again"):
            writer.finish()
        assert writer.missing_shards() == [1]
        writer.write_shard(1, arrays[1])
    writer.finish()
    found = LabelSet.open(index.sidecar_dir, "v", index, settings.get("kind", LATENT_ACTIONS))
    assert (found.labels(np.arange(index.num_frames)) == fill).all()


def test_a_shard_of_earlier_code_has_no_digest_and_is_made_again(index):
    writer = write(index)
    (writer.folder / "train-00002.json").unlink()
    assert writer.missing_shards() == [2]
    with pytest.raises(SidecarError, match=r"not finished: shards \[2\] of 3 are missing"):
        LabelSet.open(index.sidecar_dir, "z", index)


def test_sets_of_format_1_are_read(tmp_path):
    """Written before there were vectors, with these codes, of a corpus with these bytes."""
    write_plain(tmp_path / "a", 0)
    folder = tmp_path / "a/labels/z"
    for path in (tiny.ROOT / "tests/golden/labels_v1").iterdir():
        shutil.copy(path, folder)
    index = load_index(tmp_path / "a")
    found = LabelSet.open(index.sidecar_dir, "z", index)
    assert json.loads((folder / "train.manifest.json").read_text())["content"]["format"] == 1
    rows = np.arange(31)
    np.testing.assert_array_equal(found.labels(rows), np.stack([rows % 8] * 2, axis=1))
    assert found.labels(rows).dtype == np.int32 and found.valid.all() and found.codebook_size == 8
    assert found.hash == "b6875251a4b3864a0824edb28ee047ea"


OTHER = """
import sys, json
from data_pipelines.index import load_index
from data_pipelines.index.labels import LabelSetWriter
directory, provenance, shards = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
index = load_index(directory)
writer = LabelSetWriter(directory, "z", index, provenance=provenance)
print(writer.claim(shards), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_refuse_to_write_one_shard(index):
    """Whatever their shares are called; and a process that dies gives back what it claimed."""
    arguments = [str(index.directory), json.dumps(PROVENANCE), "[1, 2]"]
    with write(index, shards=[2]) as ours:
        pipe = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        other = subprocess.Popen([sys.executable, "-c", OTHER, *arguments], **pipe)
        try:
            assert other.stdout.readline() == "[1]\n"  # 2 is done
            with pytest.raises(SidecarError, match="shard 1 of label set .*another process.*--ind"):
                ours.claim([0, 1])
            assert ours.claim([0]) == [0]
        finally:
            other.kill()
            other.communicate()
        assert ours.claim([0, 1]) == [0, 1]


def test_the_number_of_labels_is_checked_at_the_end(index):
    with pytest.raises(SidecarError, match=r"29 labelled rows of 32, expected 30 to 32"):
        write(index).finish(least=30, most=32)
    with pytest.raises(SidecarError, match=r"29 labelled rows of 32, expected 0 to 28"):
        write(index, shards=[]).finish(most=28)
    one, two = write(index, shards=[]), write(index, shards=[])
    assert one.missing_shards() == two.missing_shards() == []
    one.finish(least=29, most=29)
    two.finish(least=29, most=29)  # finds that it is done
    assert two.complete and two.claim([0, 1, 2]) == []
