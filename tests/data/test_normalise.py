"""Statistics and normalisation, against what the public originals computed (tests/golden/heads)."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.normalise import Gripper, Normaliser, OtherDataError, absolute, relative

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heads" / "normalise.npz")
NUMBERS = ("mean", "std", "min", "max", "q01", "q99")


def stats(of: str, mode: str, **said) -> Normaliser:
    """Of RLDS statistics files."""
    numbers = {name: tuple(GOLDEN[f"rlds/stats/{of}/{name}"].tolist()) for name in NUMBERS}
    return Normaliser(mode, **numbers, **said)


@pytest.mark.parametrize("of", ["action", "proprio"])
def test_statistics_are_exact(of):
    found = Normaliser.fit(GOLDEN[f"rlds/{of}"])
    for name in NUMBERS:
        np.testing.assert_allclose(
            getattr(found, name), GOLDEN[f"rlds/stats/{of}/{name}"], atol=1e-6, err_msg=name
        )
    assert found.count == 400


def test_statistics_are_those_of_all_frames_and_no_envelope_of_episodes():
    found = Normaliser.fit(GOLDEN["stats/x"])
    for name, key in (("mean", "mean"), ("std", "std"), ("q01", "q.01"), ("q99", "q.99")):
        np.testing.assert_allclose(getattr(found, name), GOLDEN[f"stats/exact/{key}"], atol=1e-6)
    # What merging the quantiles of episodes gives instead is visibly wider.
    assert GOLDEN["stats/lerobot/aggregated/q99"][2] > found.q99[2] + 1


FORMS = [("BOUNDS_Q99", "q01_q99"), ("BOUNDS", "min_max"), ("NORMAL", "mean_std")]


@pytest.mark.parametrize(("original", "mode"), FORMS)
@pytest.mark.parametrize("of", ["action", "proprio"])
def test_openvla_normalisation_where_it_does_not_explode(of, original, mode):
    mask = tuple(GOLDEN["rlds/stats/action/mask"].tolist()) if of == "action" else ()
    ours = stats(of, mode, mask=mask, clip=mode != "mean_std")
    x = GOLDEN[f"rlds/{of}"]
    found, theirs = ours.normalise(x)[::8], GOLDEN[f"rlds/openvla/{original}/{of}"]
    same = np.ones(ours.dim, bool)
    if of == "action" and mode == "q01_q99":
        same[2] = False  # its quantiles are equal, and not its extremes: theirs are ±1 alone
        assert ours.forms[2] == "min_max"
    np.testing.assert_allclose(found[:, same], theirs[:, same], rtol=1e-6, atol=2e-6)


def test_openvla_and_oft_restore():
    ours = stats("action", "q01_q99", mask=tuple(GOLDEN["rlds/stats/action/mask"].tolist()))
    found, same = ours.restore(GOLDEN["rlds/unnorm/in"]), np.arange(7) != 2
    for name in ("openvla", "oft"):  # the latter with an epsilon
        np.testing.assert_allclose(
            found[:, same], GOLDEN[f"rlds/unnorm/{name}"][:, same], atol=1e-6
        )


def test_openpi_and_lerobot_restore_what_they_normalised():
    """Their epsilons are in both directions; ours has none, so that results differ by up to the
    epsilon. Constant dimensions are ours alone."""
    keys = {n: f"norm/{n}" for n in ("mean", "std", "q01", "q99")}
    keys |= {n: f"lerobot/{n}" for n in ("min", "max")}
    given = {n: tuple(GOLDEN[f"transforms/{key}"].tolist()) for n, key in keys.items()}
    x = GOLDEN["transforms/norm/x"]
    for mode, y, live in (
        ("q01_q99", "norm/quantile/y", [0, 1, 2]),
        ("mean_std", "norm/zscore/y", [0, 1, 2, 4]),
        ("q01_q99", "lerobot/QUANTILES/y", [0, 1, 2]),
        ("mean_std", "lerobot/MEAN_STD/y", [0, 1, 2, 4]),
        ("min_max", "lerobot/MIN_MAX/y", [0, 1, 2, 4]),
    ):
        ours, theirs = Normaliser(mode, **given), GOLDEN[f"transforms/{y}"]
        np.testing.assert_allclose(
            ours.normalise(x)[:, live], theirs[:, live], rtol=2e-5, atol=1e-5, err_msg=y
        )
        np.testing.assert_allclose(ours.restore(theirs)[:, live], x[:, live], atol=3e-5, err_msg=y)
        assert ours.forms[3] == "constant"
        assert np.abs(ours.normalise(x)[:, 3:]).max() < 4  # theirs: 2e8


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("mode", ["q01_q99", "min_max", "mean_std", "none"])
def test_restore_is_the_inverse(mode, xp):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2, 5)).astype(np.float32) * [1, 1e-3, 100, 0, 0] + [0, 0, 5, 0.7, 0]
    x = x.astype(np.float32)
    x[0, 0, 4] = 1.0  # a gripper that closes once
    ours = Normaliser.fit(x.reshape(-1, 5), mode)
    y = ours.normalise(xp.asarray(x), xp)
    assert y.dtype == np.float32 and np.isfinite(y).all() and np.abs(np.asarray(y)).max() < 400
    np.testing.assert_allclose(ours.restore(y, xp), x, rtol=1e-5, atol=1e-5)
    if mode != "none":
        assert (np.asarray(y)[..., 3] == 0).all()
        assert (np.asarray(ours.restore(y + 1, xp))[..., 3] == np.float32(0.7)).all()
        assert "dimension 3 is constant, 0.7" in "".join(ours.peculiarities())
    if mode == "q01_q99":
        assert ours.forms[4] == "min_max" and np.asarray(y)[0, 0, 4] == 1
        assert any(
            "dimension 4 has nearly equal q01 and q99" in line for line in ours.peculiarities()
        )


def test_quantiles_that_are_close_beside_the_extremes():
    """A finger that trembles, and closes once: it is not its trembling that is to be seen."""
    rng = np.random.default_rng(0)
    x = np.append(1e-5 * rng.normal(size=500), 1.0)[:, None]
    ours = Normaliser.fit(x)
    assert ours.forms == ("min_max",) and np.abs(ours.normalise(x)).max() <= 1 + 1e-9
    np.testing.assert_allclose(ours.restore(ours.normalise(x)), x, atol=1e-12)


def test_quantiles_that_are_equal_and_no_extremes_fall_back_to_the_deviation():
    ours = Normaliser("q01_q99", q01=(0.0,), q99=(0.0,), mean=(0.01,), std=(0.1,))
    np.testing.assert_allclose(ours.normalise(np.array([[1.0]])), [[9.9]])


@pytest.mark.parametrize("xp", [np, jnp])
def test_what_is_out_of_range(xp):
    x = np.linspace(-1, 1, 101)[:, None] * np.float32([1, 2]) + np.float32([0, 1000])
    ours = Normaliser.fit(np.append(x, np.ones((101, 1)), 1), "min_max")
    inside = ours.restore(ours.normalise(np.append(x, np.ones((101, 1)), 1).astype(np.float32)))
    assert not np.asarray(ours.beyond(xp.asarray(inside), xp)).any()
    given = xp.asarray([[1.1, 1000, 1], [0, 1003, 1.1], [0, 1000, 1], [5, 5, 5]], dtype=xp.float32)
    np.testing.assert_allclose(ours.out_of_range(given, xp), [0.5, 0.5, 0.5])
    where = xp.asarray([True, False, True, False])
    np.testing.assert_allclose(ours.out_of_range(given, xp, where), [0.5, 0, 0])
    np.testing.assert_allclose(ours.out_of_range(given, xp, where & False), [0, 0, 0])
    assert np.asarray(ours.beyond(xp.full((1, 3), xp.nan), xp)).all()
    unknown = Normaliser("none", mean=(0.0,), std=(1.0,))
    assert not np.asarray(unknown.beyond(xp.asarray([[1e9]]), xp)).any()
    clipped = dataclasses.replace(ours, clip=True, mask=(True, False, True))
    np.testing.assert_allclose(clipped.normalise(given, xp)[0], [1, 1000, 0])


def test_relative_actions():
    actions, state = GOLDEN["transforms/delta/actions"], GOLDEN["transforms/delta/state"]
    dims = np.flatnonzero(GOLDEN["transforms/delta/mask"])
    found = relative(actions, state, dims)
    np.testing.assert_allclose(found, GOLDEN["transforms/delta/out"], atol=1e-6)
    np.testing.assert_allclose(absolute(found, state, dims, jnp), actions, atol=1e-6)
    batch = relative(np.stack([actions, actions]), np.stack([state[:2], -state[:2]]), dims)
    np.testing.assert_allclose(batch[0], found, atol=1e-6)
    with pytest.raises(ValueError, match="delta dimension 3.*has 2"):
        relative(actions, state[:2], [3])


def test_a_file_holds_everything_and_nothing_else():
    ours = Normaliser.fit(
        np.random.default_rng(0).normal(size=(9, 3)),
        names=("x", "y", "gripper"),
        units=("m", "m", ""),
        grippers=(Gripper(2, "binary", 1.0), Gripper(1, "continuous")),
        mask=(True, True, False),
        delta=(0, 1),
        control_hz=5,
        source="abc",
    )
    assert Normaliser.from_json(ours.to_json()) == ours
    values = json.loads(ours.to_json())
    for change, message in (
        ({"mode": "max"}, "normalisation 'max' must be one of"),
        ({"extra": 1}, "extra"),
        ({"mean": None, "mode": "mean_std"}, "needs mean"),
        ({"std": [1, 2]}, "one number of dimensions.*'std': 2"),
        ({"std": [1, -2, 3]}, "std of dimension 1 is -2.0"),
        ({"q01": [9, 9, 9]}, "q01 of dimension 0 is 9.0, above its q99"),
        ({"min": [float("nan"), 0, 0]}, "min of dimension 0 is nan"),
        ({"max": ["1", 2, 3]}, "max is .*not of float"),
        ({"mask": [1, 0, 1]}, "mask is .*not of bool"),
        ({"grippers": [{"dimension": 3, "kind": "binary", "open": None}]}, "dimensions are 0 to 2"),
        ({"grippers": [{"dimension": 2, "kind": "soft", "open": None}]}, "gripper kind 'soft'"),
        ({"delta": [3]}, "delta"),
        ({"floor": 0}, "floor"),
        ({"clip": True, "mode": "mean_std"}, "clip"),
    ):
        with pytest.raises(ValueError, match=message):
            Normaliser.from_json(json.dumps(values | change).encode())
    with pytest.raises(OtherDataError, match="state.json are the statistics of other data"):
        ours.check_source("def", "state.json")
    ours.check_source("abc", "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[0.0, np.nan, 0.0]], "value nan of dimension 1 is not finite"),
        ([[0.0, 0.0, -np.inf]], "value -inf of dimension 2"),
        ([[0.0, 0.0]], "vectors of 2 numbers.*of 3 dimensions"),
        (0.0, "vectors of 0 numbers"),
    ],
)
def test_what_is_no_vector_is_refused(given, message):
    ours = Normaliser.fit(np.eye(3))
    for method in (ours.normalise, ours.restore):
        with pytest.raises(ValueError, match=message):
            method(np.array(given))
    if np.ndim(given) == 2 and len(given[0]) == 3:
        with pytest.raises(ValueError, match=message):
            Normaliser.fit(np.array(given))
        # On devices nothing can be raised: it stays what it is, in constant dimensions too.
        flat = Normaliser.fit(np.ones((2, 3)))
        assert not np.isfinite(flat.normalise(jnp.asarray(given), jnp)).all()
