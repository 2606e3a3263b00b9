"""`lapa data verify`: every kind of fault is found by name, and what is left out is none."""

import json
import re

import numpy as np
import pytest
import simplejpeg
from shards import data_config, picture

from data_pipelines.checks.verify import KINDS, exclude_list, to_text, verify_corpus
from data_pipelines.index import build_index, load_index
from data_pipelines.index.labels import LabelSetWriter
from data_pipelines.loader import Loader
from data_pipelines.rlds import schema, tfrecord
from lapa_jax.verbs import data

STEPS = 6
SHARD = "toy-train.tfrecord-00001-of-00002"
RNG = np.random.default_rng(0)


def jpeg(size=16):
    return simplejpeg.encode_jpeg(picture(RNG, size), 95)


def features(number, **changes):
    found = {
        schema.IMAGE: [jpeg() for _ in range(STEPS)],
        schema.INSTRUCTION: [f"do thing {number % 2}"] * STEPS,
        schema.ACTION: RNG.normal(size=(STEPS, 2)).astype(np.float32),
        schema.IS_FIRST: np.arange(STEPS) == 0,
        schema.EPISODE_ID: f"episode-{number}",
        schema.FPS: np.float32(5),
    }
    return found | changes


def write(directory, records):
    """Records (features, or the bytes of one) in two shards."""
    directory.mkdir(parents=True, exist_ok=True)
    for shard, numbers in enumerate(np.array_split(np.arange(len(records)), 2)):
        with open(directory / f"toy-train.tfrecord-{shard:05d}-of-00002", "wb") as file:
            for record in (records[number] for number in numbers):
                encoded = record if isinstance(record, bytes) else tfrecord.encode_example(record)
                tfrecord.write_record(file, encoded)


def verify(directory, **options):
    return verify_corpus(directory, progress=False, workers=2, **options)


def actions(value, shape=(STEPS, 2)):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32) * np.float32(value)


def test_a_sound_corpus_has_no_faults(tmp_path):
    write(tmp_path, [features(i) for i in range(6)])
    report = verify(tmp_path)
    assert not report.faults and (report.shards, report.episodes, report.images) == (2, 6, 36)
    assert report.notes == ["split train has no index of image_key image"]
    build_index(tmp_path, progress=False)
    report = verify(tmp_path)
    assert not report.faults and not report.notes and to_text(report).endswith("sound")


def test_the_action_of_the_last_step_may_be_anything(tmp_path):
    values = actions(1)
    values[-1] = np.nan
    last = np.arange(STEPS) == STEPS - 1
    records = [features(i) | {schema.ACTION: values + i, schema.IS_LAST: last} for i in range(6)]
    write(tmp_path, records)
    assert not verify(tmp_path).faults
    build_index(tmp_path, progress=False)
    write(tmp_path / "open", [one | {schema.IS_LAST: np.zeros(STEPS, bool)} for one in records])
    assert {fault.kind for fault in verify(tmp_path / "open").faults} == {"action"}
    with pytest.raises(ValueError, match="the action of step 5, dimension 0 is nan"):
        build_index(tmp_path / "open", progress=False)


BAD = [
    ("image", {schema.IMAGE: [jpeg() for _ in range(5)] + [jpeg()[:-200]]}, "1 of 6 of image"),
    ("image", {schema.IMAGE: [b"text"] * STEPS}, "6 of 6 .* not a JPEG"),
    ("image_size", {schema.IMAGE: [jpeg(24)] * STEPS}, "24x24, most are 16x16"),
    ("lengths", {schema.IS_FIRST: np.arange(4) == 0}, "4 values of steps/is_first, 6 steps"),
    ("lengths", {schema.ACTION: actions(1, (5, 2))}, "10 values of steps/action, 6 steps"),
    ("lengths", {schema.IMAGE: []}, "0 images of steps/observation/image"),
    ("instruction", {schema.INSTRUCTION: [" "] * STEPS}, "it is empty"),
    ("instruction", {schema.INSTRUCTION: ["go"] * 3 + ["stop"] * 3}, "it changes"),
    ("instruction", {schema.INSTRUCTION: [b"\xff\xfe"] * STEPS}, "not UTF-8"),
    ("action", {schema.ACTION: actions(np.nan)}, "12 values are not finite; .*step 0"),
    ("action", {schema.ACTION: actions(1, (STEPS, 3))}, "3 dimensions, most episodes have 2"),
    ("action", {schema.ACTION: ["a"] * STEPS}, "steps/action holds bytes, not numbers"),
    ("action", {schema.ACTION: np.full(STEPS, 2**24 + 1)}, "16777217, which float32 cannot"),
    ("constant_action", {schema.ACTION: np.ones((STEPS, 2), np.float32)}, "at all of 5 steps"),
    ("duplicate_id", {schema.EPISODE_ID: "episode-0"}, "'episode-0' is also .*00000-of-00002:0"),
    ("proto", b"\x0a\xff\xff", "a field|varint"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, change, told", BAD)
def test_a_fault_of_a_record_is_named_and_left_out(tmp_path, kind, change, told):
    records = [features(i) for i in range(6)]
    records[4] = change if isinstance(change, bytes) else records[4] | change
    write(tmp_path, records)
    report = verify(tmp_path)
    assert [(f.kind, f.place) for f in report.faults] == [(kind, f"{SHARD}:1")]
    assert re.search(told, report.faults[0].reason), report.faults[0].reason
    assert KINDS[kind] in to_text(report) and report.to_json()["counts"] == {kind: 1}
    assert not verify(tmp_path, allow=[kind]).faults
    build_index(tmp_path, progress=False, exclude=[(SHARD, 1)])
    again = verify(tmp_path)
    assert not again.faults and again.left_out == report.faults
    assert exclude_list(again) == exclude_list(report)


def test_damage_is_found_by_shard_and_record(tmp_path):
    write(tmp_path, [features(i) for i in range(6)])
    path = tmp_path / SHARD
    whole = path.read_bytes()
    records = list(tfrecord.iterate_records(whole))
    _, offset, _ = records[1]
    path.write_bytes(whole[: offset + 99] + bytes([whole[offset + 99] ^ 1]) + whole[offset + 100 :])
    (fault,) = verify(tmp_path).faults
    assert (fault.kind, fault.place) == ("checksum", f"{SHARD}:1")
    path.write_bytes(whole[: offset - 3] + b"xyz" + whole[offset:])
    (fault,) = verify(tmp_path).faults
    assert (fault.kind, fault.place) == ("shard", SHARD)
    assert "from record 1 on: the checksum of the record's length" in fault.reason
    path.write_bytes(whole[:-3])
    (fault,) = verify(tmp_path).faults
    assert fault.kind == "shard" and "from record 2 on: truncated" in fault.reason
    assert exclude_list(verify(tmp_path)) == ""
    path.write_bytes(whole[: records[2][1] - tfrecord.HEADER_BYTES])  # a record less
    info = {"splits": [{"name": "train", "shardLengths": ["3", "3"]}]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (fault,) = verify(tmp_path).faults
    assert fault.reason == "2 records, dataset_info.json announces 3"


def test_sidecars_that_do_not_fit_are_found(tmp_path):
    noise = [
        [
            simplejpeg.encode_jpeg(RNG.integers(0, 256, (128, 128, 3)).astype(np.uint8), 95)
            for _ in range(STEPS)
        ]
        for _ in range(6)
    ]
    records = [features(i, **{schema.IMAGE: images}) for i, images in enumerate(noise)]
    write(tmp_path, records)
    build_index(tmp_path, progress=False)
    index = load_index(tmp_path)
    provenance = dict(
        quantizer_hash="q", window_seconds=0.4, codebook_size=8, code_length=1, code_version="1"
    )
    writer = LabelSetWriter(tmp_path, "z", index, provenance=provenance)
    (fault,) = verify(tmp_path).faults
    assert fault.kind == "labels" and "is not finished" in fault.reason
    for shard in range(2):
        writer.write_shard(shard, np.zeros((18, 1), np.int16))
    writer.finish()
    assert not verify(tmp_path).faults
    # In the middle of a shard, where only reading it all shows that it was rewritten.
    write(tmp_path, [*records[:4], records[4] | {schema.IMAGE: noise[4][::-1]}, records[5]])
    load_index(tmp_path)
    (fault,) = verify(tmp_path).faults
    assert (fault.kind, fault.place) == ("index", SHARD)
    assert "the images of record 1 are not those indexed" in fault.reason
    write(tmp_path, records)
    build_index(tmp_path, progress=False, exclude=[(SHARD, 0)])
    (fault,) = verify(tmp_path).faults
    assert fault.kind == "labels" and "was made for corpus" in fault.reason
    write(tmp_path, [features(i) for i in range(6)])
    (fault,) = verify(tmp_path).faults
    assert fault.kind == "index" and "stale" in fault.reason


def test_numbers_identify_episodes_of_a_file(tmp_path):
    path = schema.METADATA + "file_path"
    ids = [(0, "a"), (1, "a"), (0, "b"), (1, "b"), (0, "a"), (0, "")]
    records = [features(i, **{schema.EPISODE_ID: n, path: p}) for i, (n, p) in enumerate(ids)]
    write(tmp_path, records)
    (fault,) = verify(tmp_path).faults
    assert (fault.kind, fault.place) == ("duplicate_id", f"{SHARD}:1")
    assert "'a:0' is also toy-train.tfrecord-00000-of-00002:0" in fault.reason


def test_corpora_without_language_or_actions_are_sound(tmp_path):
    bare = [features(i, **{schema.INSTRUCTION: [""] * STEPS}) for i in range(4)]
    for record in bare:
        del record[schema.ACTION]
    write(tmp_path, bare)
    assert not verify(tmp_path).faults
    with pytest.raises(ValueError, match=r"no images of image_key \['image_0'\]; images: image"):
        verify(tmp_path, image_keys=["image_0"])
    with pytest.raises(ValueError, match=r"allow is \['typos'\]; the kinds"):
        verify(tmp_path, allow=["typos"])


def test_the_verb_and_what_the_loader_makes_of_it(tmp_path, capsys):
    records = [features(i) for i in range(6)]
    records[1][schema.IMAGE][3] = b"junk"
    records[4][schema.ACTION] = actions(np.inf)
    write(tmp_path / "toy", records)
    listed = tmp_path / "exclude.txt"
    command = ["verify", str(tmp_path / "toy"), "--exclude_file", str(listed)]
    assert data.main(command) == 1
    told = capsys.readouterr().out
    assert "1 image  " in told and "1 action  " in told and told.endswith("2 faults\n")
    lines = listed.read_text().splitlines()
    assert [line.split("  # ")[0] for line in lines] == [
        "toy-train.tfrecord-00000-of-00002:1",
        f"{SHARD}:1",
    ]
    assert "image: 1 of 6" in lines[0]
    assert data.main(["index", str(tmp_path / "toy"), "--exclude_file", str(listed)]) == 0
    assert "train: 4 episodes" in capsys.readouterr().out
    assert data.main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_out"]) == 2
    assert listed.read_text().splitlines() == lines
    loader = Loader(
        data_config({"toy": tmp_path / "toy"}, max_bad_fraction=0.0),
        fields=("frames", "action"),
        global_batch=4,
        seed=0,
    )
    names = {(e["file"][-14:-9], e["record"]) for s in range(9) for e in loader.describe(s)}
    assert names == {("00000", 0), ("00000", 2), ("00001", 0), ("00001", 2)}
    for step in range(9):
        assert np.isfinite(loader.batch(step)["action"]).all()
