"""The codec against TensorFlow and against damage."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.rlds import tfrecord

VALUES = st.one_of(
    st.lists(st.binary(max_size=40), max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), max_size=8).map(
        lambda items: np.array(items, np.float32)
    ),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8).map(
        lambda items: np.array(items, np.int64)
    ),
)
EXAMPLES = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


def decoded(record: bytes) -> dict:
    read = {tfrecord.BYTES: "byte_items", tfrecord.FLOAT: "floats", tfrecord.INT64: "ints"}
    return {
        key: getattr(feature, read[feature.kind])(record)
        for key, feature in tfrecord.parse_example(record).items()
    }


@settings(max_examples=60, deadline=None)
@given(EXAMPLES)
def test_round_trip(features):
    found = decoded(tfrecord.encode_example(features))
    assert found.keys() == features.keys()
    for key, value in features.items():
        np.testing.assert_array_equal(found[key], value)


@settings(max_examples=30, deadline=None)
@given(EXAMPLES)
def test_tensorflow_reads_ours_and_we_read_theirs(features):
    import tensorflow as tf

    ours = tf.train.Example.FromString(tfrecord.encode_example(features)).features.feature
    theirs = tf.train.Example()
    for key, value in features.items():
        kind = (
            "bytes_list"
            if isinstance(value, list)
            else ("float_list" if value.dtype == np.float32 else "int64_list")
        )
        assert ours[key].WhichOneof("kind") == kind
        assert list(getattr(ours[key], kind).value) == list(value)
        getattr(theirs.features.feature[key], kind).value.extend(list(value))
    found = decoded(theirs.SerializeToString())
    for key, value in features.items():
        if len(value):
            np.testing.assert_array_equal(found[key], value)


def test_unpacked_lists():
    def message(field, payload):
        return bytes([field << 3 | 2, len(payload)]) + payload

    floats = b"\x0d" + np.float32(1.5).tobytes() + b"\x0d" + np.float32(-2).tobytes()
    ints = b"\x08\x05\x08\xac\x02\x08" + b"\xff" * 9 + b"\x01"
    record = message(
        1,
        b"".join(
            message(1, message(1, key) + message(2, message(field, payload)))
            for key, field, payload in ((b"f", 2, floats), (b"i", 3, ints))
        ),
    )
    found = decoded(record)
    assert found["f"].tolist() == [1.5, -2.0]
    assert found["i"].tolist() == [5, 300, -1]


def test_files_are_exchanged_with_tensorflow(tmp_path):
    import tensorflow as tf

    payloads = [b"", b"abc", bytes(range(256)) * 50]
    with open(tmp_path / "ours", "wb") as file:
        for payload in payloads:
            tfrecord.write_record(file, payload)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert list(tfrecord.read_payloads(tmp_path / "theirs")) == payloads


def test_float64_is_not_cast_silently():
    with pytest.raises(ValueError, match="'a' has dtype float64"):
        tfrecord.encode_example({"a": np.zeros(3)})


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_any_damage_to_a_file_is_noticed(place, flip, truncate):
    file = io.BytesIO()
    for payload in (b"first record", b"second"):
        tfrecord.write_record(file, payload)
    data = bytearray(file.getvalue())
    place %= len(data)
    if truncate:
        data = data[:place]
    else:
        data[place] ^= flip
    whole = (0, tfrecord.HEADER_BYTES + 12 + tfrecord.FOOTER_BYTES)
    if truncate and place in whole:
        return  # a shorter but valid file: dataset_info.json or the index's size tells
    with pytest.raises(tfrecord.RecordError, match=r"shard-x, record [01], byte offset \d+"):
        list(tfrecord.iterate_records(bytes(data), path="shard-x"))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_garbled_examples_raise_nothing_but_record_errors(place, flip, truncate):
    data = bytearray(
        tfrecord.encode_example(
            {
                "image": [b"x" * 200, b"y"],
                "action": np.arange(5, dtype=np.float32),
                "n": np.array([1, -5, 10**12]),
            }
        )
    )
    place %= len(data)
    if truncate:
        data = data[:place]
    else:
        data[place] ^= flip
    try:
        features = tfrecord.parse_example(bytes(data), path="shard-x", number=3, offset=100)
        for feature in features.values():
            for offset, length in feature.spans:
                assert 0 <= offset and offset + length <= len(data)
            if feature.kind == tfrecord.INT64:
                feature.ints(bytes(data))
    except tfrecord.RecordError as error:
        assert "shard-x, record 3, byte offset" in str(error)
