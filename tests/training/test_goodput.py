"""Where time goes, over attempts that were killed."""

import pytest

from lapa_jax.training.clock import Clock as Watch
from lapa_jax.training.clock import read_goodput, split_goodput


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def attempt(workdir, clock, start, steps, *, save_every=4):
    """Ten seconds of init, five of compilation, then steps of one second for data and two more."""
    watch = Watch(workdir, clock=clock)
    clock.now += 10.0
    watch.begin(start)
    with watch.phase("compile"):
        clock.now += 5.0
    for step in steps:
        with watch.phase("data"):
            clock.now += 1.0
        clock.now += 2.0
        if step % save_every == 0:
            with watch.phase("checkpoint"):
                clock.now += 0.5
        watch.write(step)


@pytest.mark.slow
def test_every_second_has_one_place(tmp_path):
    clock = Clock()
    attempt(tmp_path, clock, 0, range(1, 9))
    found = split_goodput(read_goodput(tmp_path))
    assert found == {
        "init": 10.0,
        "compile": 5.0,
        "data": 8.0,
        "step": 16.0,
        "checkpoint": 1.0,
        "evaluation": 0.0,
        "lost": 0.0,
        "total": 40.0,
    }


def test_what_is_done_again_and_the_time_between_are_lost(tmp_path):
    clock = Clock()
    attempt(tmp_path, clock, 0, range(1, 7))  # killed after step 6; step 4 was saved
    clock.now += 60.0
    attempt(tmp_path, clock, 4, range(5, 9))
    attempts = read_goodput(tmp_path)
    found = split_goodput(attempts)
    assert found["lost"] == pytest.approx(60.0 + 2 * 3.0)
    assert found["data"] == pytest.approx(8.0) and found["step"] == pytest.approx(16.0)
    assert found["init"] == 20.0 and found["compile"] == 10.0
    assert found["total"] == pytest.approx(attempts[-1]["ended"] - attempts[0]["started"])
