"""Parts of a conversion become shards of the right size, whatever stops it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.convert import conversion, staging
from data_pipelines.convert.decode import encode_jpeg
from data_pipelines.rlds import schema, shards, tfrecord, writer

SPEC = schema.EpisodeSpec((8, 8, 3), 0, False, "test", fps=1.0)
FRAME = encode_jpeg(np.zeros((8, 8, 3), np.uint8))


class Numbers:
    """A unit is a number of frames; 0 cannot be converted."""

    noun, place, spec = "number", "in the list", SPEC

    def read(self, unit):
        if not unit.work:
            raise conversion.RecordingError("it is nothing")
        yield conversion.Found(schema.Episode([FRAME] * unit.work, None, "", unit.name))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(conversion, "PART_RECORDINGS", 3)
    monkeypatch.setattr(conversion, "SHARD_BYTES", 40_000)


LENGTHS = [2 + number % 7 for number in range(40)] + [0]


def convert(out, lengths=LENGTHS, **options):
    units = [conversion.Unit(f"{n:03d}", length) for n, length in enumerate(lengths)]
    options = conversion.Options(out=out, **dict(progress=False, name="numbers") | options)
    return conversion.convert(Numbers(), units, options, {})


def names(out):
    return [
        tfrecord.parse_example(record)[schema.EPISODE_ID].byte_items(record)[0].decode()
        for path in shards.find_shards(out, "train")
        for record in tfrecord.read_payloads(path)
    ]


def content(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3000), max_size=6), min_size=1, max_size=20),
    st.integers(500, 20_000),
)
def test_shards_are_of_like_size_and_hold_every_record_once(sizes, target):
    plan = staging.plan_by_size(list(enumerate(sizes)), target)
    framed = [[size + 16 for size in one] for one in sizes]
    found = [piece for planned in plan for piece in planned.pieces]
    for part, one in enumerate(framed):  # in order, without gap or overlap
        starts, stops = np.array([(p.start, p.stop) for p in found if p.part == part] or [(0, 0)]).T
        assert (0, *stops) == (*starts, sum(one))
    assert sum(planned.episodes for planned in plan) == sum(map(len, sizes))
    assert sum(planned.payload_bytes for planned in plan) == sum(map(sum, sizes))
    total = sum(map(sum, framed))
    even = total / max(1, round(total / target))
    for planned in plan:
        size = sum(piece.stop - piece.start for piece in planned.pieces)
        assert abs(size - even) < max(map(max, filter(None, framed))) + 1


def test_shards_by_size_hold_all_in_order(tmp_path):
    report = convert(tmp_path / "out")
    wanted = [f"{number:03d}" for number in range(40)]
    assert names(tmp_path / "out") == wanted and report.episodes == 40
    assert report.bad == [("040", "it is nothing")] and report.found == 41
    files = shards.find_shards(tmp_path / "out", "train")
    sizes = [path.stat().st_size for path in files]
    assert report.shards == len(files) > 2
    assert min(sizes) > 20_000 and max(sizes) < 60_000
    info = writer.read_info(tmp_path / "out")["splits"][0]
    assert (
        sum(map(int, info["shardLengths"])) == 40 and not (tmp_path / "out/.staging-train").exists()
    )


def test_shards_by_number(tmp_path):
    convert(tmp_path / "out", per_shard=8)
    files = shards.find_shards(tmp_path / "out", "train")
    assert [len(list(tfrecord.read_payloads(path))) for path in files] == [8] * 5
    assert names(tmp_path / "out") == [f"{number:03d}" for number in range(40)]


def test_a_small_corpus_is_one_shard(tmp_path):
    assert convert(tmp_path / "out", [3, 4, 5, 6, 7]).shards == 1
    assert len(names(tmp_path / "out")) == 5


@pytest.mark.parametrize("stop", range(0, 4))
def test_a_stop_while_joining_is_continued(tmp_path, monkeypatch, stop):
    convert(tmp_path / "whole")
    out, original, seen = tmp_path / "out", staging.join, []

    def join(job):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(job)
        return original(job)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(staging, "join", join)
        convert(out)
    left = {path.name for path in (out / ".staging-train").glob("part-*.tfrecord")}
    assert len(left) < 14 or not stop  # parts of joined shards are gone
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_write_unit", None)  # nothing is converted again
        report = convert(out)
    assert content(out) == content(tmp_path / "whole")
    assert (report.episodes, report.resumed_parts, len(report.bad)) == (40, 14, 1)
