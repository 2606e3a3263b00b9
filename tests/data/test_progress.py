"""What long work tells of itself: lines in a log, a bar on a terminal, waiting apart."""

import io

import pytest

from data_pipelines.progress import Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(progress, clock, seconds, stream, **fields):
    for took in seconds:
        clock.now += took
        progress.update(**fields)
    progress.close()
    return stream.getvalue().splitlines()


def test_a_log_has_lines_at_intervals_and_no_carriage_returns():
    clock, stream = Clock(), io.StringIO()
    bar = Progress("train", 100, unit="step", done=20, stream=stream, clock=clock)
    found = lines_of(bar, clock, [1.0] * 80, stream, loss="0.5")
    assert found == [
        "train: step 25/100, loss 0.5, 01:15 left",  # early, then every half minute
        "train: step 55/100, loss 0.5, 00:45 left",
        "train: step 85/100, loss 0.5, 00:15 left",
        "train: step 100/100, loss 0.5, 01:20 taken",
    ]
    assert "\r" not in stream.getvalue()


def test_compilation_is_told_and_not_in_the_time_left():
    """A minute of XLA, then a second a step: what is left is told as seconds."""
    clock, stream = Clock(), io.StringIO()
    bar = Progress("train", 100, unit="step", stream=stream, clock=clock)
    bar.waits()
    found = lines_of(bar, clock, [60.0] + [1.0] * 99, stream)
    assert found[:2] == ["train: step 0/100, compiling", "train: step 6/100, 01:34 left"]
    assert found[-1] == "train: step 100/100, 02:39 taken"


def test_a_terminal_has_a_bar_that_says_what_it_waits_for(monkeypatch):
    clock, stream = Clock(), Terminal()
    monkeypatch.setattr("tqdm.std.time", clock)
    bar = Progress("train", 4, unit="step", done=1, stream=stream)
    bar.waits()
    assert "compiling" in stream.getvalue().split("\r")[-1]
    for seconds in (60.0, 1.0, 1.0):
        clock.now += seconds
        bar.update(loss="0.25")
    bar.close()
    drawn = stream.getvalue().split("\r")
    assert not any("compiling" in one for one in drawn[-2:])
    assert "3/4 [00:01<00:01" in stream.getvalue(), drawn
    assert "4/4" in drawn[-1] and "loss 0.25" in drawn[-1]


@pytest.mark.parametrize(
    ("unit", "total", "updates", "last"),
    [
        ("B", 3000, [1500, 1500], "x: 3.00kB/3.00kB, 00:02 taken"),
        ("frame", None, [7] * 6, "x: frame 35, 00:05 taken"),
        ("video", 3, [2, 2], "x: video 4/3, 00:02 taken"),  # more than was announced
        ("frame", 0, [], None),  # nothing to do, nothing to say
    ],
)
def test_bytes_and_unknown_totals(unit, total, updates, last):
    clock, stream = Clock(), io.StringIO()
    with Progress("x", total, unit=unit, stream=stream, clock=clock) as bar:
        for pieces in updates:
            clock.now += 1.0
            bar.update(pieces)
    assert (stream.getvalue().splitlines() or [None])[-1] == last
