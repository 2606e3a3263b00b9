"""How chunks are acted on, against the numbers of ACT, LeRobot, UniVLA, openpi and Kinetix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ROOT

from lapa_jax.envs.execution import (
    SCHEDULES,
    Chunks,
    Execution,
    action_at,
    blend,
    check_rate,
    going_on,
    prefix_weights,
)
from lapa_jax.policy.heads.flow import euler, guided


@pytest.fixture(scope="module")
def golden():
    with np.load(ROOT / "tests/golden/heads/acting.npz") as file:
        return dict(file)


def acted(how: Execution, answers: np.ndarray, steps: int) -> np.ndarray:
    """Actions of `steps`, whose questions are answered by these chunks (questions, ..., n, A)."""
    chunks, answers = Chunks(how), iter(answers)
    found = []
    for _ in range(steps):
        if chunks.due:
            chunks.answered(next(answers))
        found.append(chunks.next())
    return np.array(found)


def traced(how: Execution, answers: np.ndarray, steps: int) -> np.ndarray:
    """The same by JAX, from chunks that hold NaN where there is none yet."""
    n = answers.shape[-2]

    def step(chunks, t):
        asked = jnp.concatenate([jnp.asarray(answers)[t // how.execute][None], chunks[:-1]])
        chunks = jnp.where(t % how.execute == 0, asked, chunks)
        return chunks, action_at(chunks, t, how, jnp)

    none = jnp.full((how.kept(n), *answers.shape[1:]), jnp.nan)
    return np.asarray(jax.lax.scan(step, none, jnp.arange(steps))[1])


@pytest.mark.parametrize("run", [acted, traced])
def test_ensembles_are_the_originals(run, golden):
    """ACT and LeRobot count from the oldest answer, UniVLA from the newest."""
    act = golden["ens_act/preds"]
    of_act = Execution(execute=1, ensemble="oldest_first", ensemble_decay=0.01)
    found = run(of_act, act, 9)
    np.testing.assert_allclose(found, golden["ens_act/actions"], atol=1e-6)
    for decay in (0.01, 0.0, -0.5, 0.3):
        how = Execution(execute=1, ensemble="oldest_first", ensemble_decay=decay)
        np.testing.assert_allclose(run(how, act, 9), golden[f"ens_lerobot/{decay}"], atol=1e-6)
    low, high, mask = (golden[f"ens_univla/{name}"] for name in ("low", "high", "mask"))
    said = golden["ens_univla/preds"]
    said = np.where(mask, 0.5 * (said + 1) * (high - low) + low, said).astype(np.float32)
    how = Execution(execute=1, ensemble="newest_first", ensemble_decay=0.1)
    np.testing.assert_allclose(run(how, said, 9), golden["ens_univla/actions"], atol=1e-6)
    # An answer with a 0 in it counts as any other: ACT's own leaves it out.
    zero = golden["ens_act_zero/preds"]
    expected = np.array(
        [
            blend(np.array([zero[t - k, k] for k in range(min(t + 1, 5))]), min(t + 1, 5), of_act)
            for t in range(9)
        ]
    )
    np.testing.assert_allclose(run(of_act, zero, 9), expected, atol=1e-6)
    assert np.abs(expected - golden["ens_act_zero/actions"]).max() > 0.1
    # Where the weights differ by more than floats do, the newest alone counts, or the oldest.
    for decay, taken in ((-10.0, 9900), (10.0, 99)):
        how = Execution(execute=1, ensemble="oldest_first", ensemble_decay=decay)
        assert run(how, numbered(100, 100), 100)[-1] == pytest.approx(taken, abs=0.02)


def numbered(questions: int, n: int) -> np.ndarray:
    """100 times the number of the question and the step's."""
    first = 100 * np.arange(questions, dtype=np.float32)[:, None, None]
    return first + np.arange(n, dtype=np.float32)[:, None]


@pytest.mark.parametrize("run", [acted, traced])
def test_which_actions_are_taken(run):
    """The first `execute` of each answer; with a delay the first `delay` of it are dropped, while
    the answer before goes on. The first answer is waited for."""
    for how, expected in (
        (dict(execute=1), [0, 100, 200, 300, 400, 500, 600]),
        (dict(execute=3), [0, 1, 2, 100, 101, 102, 200]),
        (dict(execute=5), [0, 1, 2, 3, 4, 100, 101]),
        (dict(execute=3, delay=2), [0, 1, 2, 3, 4, 102, 103]),
        (dict(execute=3, delay=1), [0, 1, 2, 3, 101, 102, 103]),
        (dict(execute=2, delay=2), [0, 1, 2, 3, 102, 103, 202]),
    ):
        found = run(Execution(**how), numbered(7, 5), 7)
        assert found[:, 0].tolist() == expected, how


def test_chunks_meet_as_in_the_queue_of_lerobot(golden):
    """Three are taken, an answer is waited for for two steps more; then it goes on behind these."""
    first = np.arange(24, dtype=np.float32).reshape(8, 3)
    chunks = Chunks(Execution(execute=3, delay=2))
    assert chunks.going_on() is None
    chunks.answered(first)
    for _ in range(3):
        chunks.next()
    before, weights = chunks.going_on()
    np.testing.assert_array_equal(before[:5], golden["queue/left_over_after_3"])
    np.testing.assert_array_equal(weights, prefix_weights(2, 5, 8))
    assert not before[5:].any() and weights[:2].tolist() == [1, 1] and not weights[5:].any()
    np.testing.assert_array_equal(going_on(first[None, None], 0, chunks.how)[1], np.zeros(8))
    chunks.answered(200 + 2 * first)
    taken = [chunks.next() for _ in range(3)]
    np.testing.assert_array_equal(taken, [*first[3:5], golden["queue/next_after_merge2"]])
    whole = acted(Execution(execute=8), np.stack([first, 100 + first]), 11)
    np.testing.assert_array_equal(whole[7:], golden["queue/no_rtc_sequence"])


def test_guidance_is_kinetix(golden):
    """Weights, steps and samples of real-time chunking as published, with the Jacobian."""
    for schedule in SCHEDULES:
        expected = golden[f"weights/kinetix/{schedule.upper()}"]
        for (start, end), weights in zip(golden["weights/start_end"], expected, strict=True):
            found = prefix_weights(int(start), int(end), 8, schedule)
            np.testing.assert_allclose(found, weights, atol=1e-6)
    with pytest.raises(ValueError, match="schedule='half' must be one of"):
        prefix_weights(1, 2, 8, "half")
    W, B = golden["field/W"], golden["field/B"]
    before, (delay, end, most, steps) = (
        golden["step/prev"],
        golden["sample/delay_horizon_maxw_steps"],
    )
    assert most == 5

    def velocity(x, time):
        return -jnp.tanh(x @ W + (1.0 - time)) @ B

    def follows(schedule):
        weights = prefix_weights(int(delay), int(end), 8, schedule)[:, None]
        return guided(velocity, lambda ended: weights * (before - ended))

    for time in (1.0, 0.7, 0.5, 0.1):
        found = follows("exp")(jnp.asarray(golden["step/x_t"]), jnp.float32(time))
        expected = golden[f"step/kinetix_v_in_openpi_sign/{time}"]
        np.testing.assert_allclose(found, expected, atol=2e-5)
    for schedule in SCHEDULES:
        sample = jax.jit(functools.partial(euler, follows(schedule), steps=int(steps)))
        found = sample(jnp.asarray(golden["sample/noise"]))
        np.testing.assert_allclose(found, golden[f"sample/kinetix/{schedule}"], atol=1e-4)


@pytest.mark.parametrize(
    "wrong, horizon, why",
    [
        (dict(execute=-1), 1, r"execute=-1 must be an integer in \[0"),
        (dict(ensemble="all"), 1, "ensemble='all' must be"),
        (dict(execute=1, ensemble="oldest_first", ensemble_decay=float("nan")), 1, "decay=nan"),
        (dict(execute=2, ensemble="oldest_first"), 4, "asks at every step: execute=2 must be 1"),
        (dict(execute=1, ensemble="newest_first", delay=1), 4, "delay=1 must be 0"),
        (dict(execute=2, delay=3), 9, "delay=3 must be at most execute=2"),
        (dict(execute=5), 4, "execute=5 must be from 1 to 4"),
        (dict(execute=3, delay=2), 4, "delay=2: 5 actions of an answer are needed, and the policy"),
    ],
)
def test_what_cannot_be_executed_is_named(wrong, horizon, why):
    with pytest.raises(ValueError, match=why):
        Execution(**wrong).of(1).check(horizon)


def test_nothing_is_taken_of_a_bad_answer():
    good = numbered(2, 3)
    lost = good[1].copy()
    lost[2] = np.nan  # also where it would not be executed
    for second, why in (
        (lost, "at step 1 the policy's actions are not finite: none is taken"),
        (good[1, :2], r"actions of shape \[2, 1\], and before \[3, 1\]"),
        (np.zeros((3, 2)), r"actions of shape \[3, 2\], and before"),
    ):
        chunks = Chunks(Execution(execute=1))
        chunks.answered(good[0])
        assert chunks.next() == 0
        with pytest.raises(ValueError, match=why):
            chunks.answered(second)
        with pytest.raises(RuntimeError, match="the policy is to be asked first"):
            chunks.next()
        chunks.answered(good[1])
        assert chunks.next() == 100
        chunks.reset()
        assert chunks.due and chunks.going_on() is None
    check_rate(None, 5.0, "it", "there")
    check_rate(5.05, 5.0, "it", "there")
    with pytest.raises(ValueError, match="it acts at 10 Hz, there at 5 Hz"):
        check_rate(10.0, 5.0, "it", "there")
    for no_rate in (-1.0, np.nan, np.inf, "5", True):
        with pytest.raises(ValueError, match=f"there acts at {no_rate!r} Hz: it must be positive"):
            check_rate(None, no_rate, "it", "there")
