import json

import numpy as np
import pytest

from lapa_jax.diagnostics.label_efficiency import label_efficiency, label_folds
from lapa_jax.diagnostics.networks import class_trace, regression_trace, schedule
from lapa_jax.diagnostics.probes import linear_probe, one_hot_codes

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")

EPISODE = np.repeat(np.arange(40), 15)


def world(seed=0):
    """Two slots; the action is linear in them, and in its second dimension their exclusive or."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 2, (len(EPISODE), 2))
    actions = np.stack([z[:, 0] + 0.5 * z[:, 1], z[:, 0] ^ z[:, 1]], 1)
    return z, actions + 0.05 * rng.normal(size=actions.shape)


@pytest.fixture(scope="module")
def found():
    z, actions = world()
    noise = np.random.default_rng(1).normal(size=(len(z), 6))
    features = {"latent_action": one_hot_codes(z, 2), "first_frame": noise}
    return label_efficiency(features, actions, EPISODE, seed=0, resamples=100)


def test_the_network_reads_what_a_line_cannot(found):
    code = found["latent_action"]
    assert code["linear"]["all"]["r2"][0] > 0.95 and code["mlp"]["all"]["r2"][0] > 0.95
    assert code["linear"]["all"]["r2"][1] < 0.1 and code["mlp"]["all"]["r2"][1] > 0.9


def test_noise_holds_nothing_however_it_is_read(found):
    for kind in ("linear", "mlp"):
        assert -0.2 < found["first_frame"][kind]["all"]["r2_mean"] < 0.1
        low, high = found["first_frame"][kind]["all"]["r2_mean_interval"]
        assert low <= found["first_frame"][kind]["all"]["r2_mean"] <= high


def test_more_labels_are_worth_more(found):
    # 450 training rows: 1000 labels there are not.
    for sets in found.values():
        for counts in sets.values():
            assert list(counts) == ["10", "100", "all"]
            assert [row["train_rows"] for row in counts.values()] == [10, 100, 450]
            assert len({(row["test_rows"], row["test_episodes"]) for row in counts.values()}) == 1
    few, some, whole = (row["r2_mean"] for row in found["latent_action"]["mlp"].values())
    assert few < some + 0.02 and some < whole + 0.02 and few < whole
    few, some, whole = (row["r2"][0] for row in found["latent_action"]["linear"].values())
    assert few < some + 0.02 and some < whole + 0.02
    json.dumps(found, allow_nan=False)


def test_all_labels_read_linearly_are_the_linear_probe(found):
    z, actions = world()
    alone = linear_probe(one_hot_codes(z, 2), actions, EPISODE, seed=0, resamples=100)
    same = found["latent_action"]["linear"]["all"]
    assert same.keys() == alone.keys() and same["ridge"] == alone["ridge"]
    np.testing.assert_allclose(same["r2"], alone["r2"], rtol=1e-9)
    np.testing.assert_allclose(same["r2_interval"], alone["r2_interval"], rtol=1e-9)


@pytest.mark.slow
def test_numbers_are_those_of_the_seed():
    z, actions = world()
    features = {"z": one_hot_codes(z, 2)}
    options = dict(counts=(20,), resamples=20)
    first = label_efficiency(features, actions, EPISODE, seed=3, **options)
    assert first == label_efficiency(features, actions, EPISODE, seed=3, **options)
    other = label_efficiency(features, actions, EPISODE, seed=4, **options)
    assert first["z"]["mlp"]["20"]["r2"] != other["z"]["mlp"]["20"]["r2"]


@pytest.mark.slow
def test_few_labels_from_an_only_episode_still_choose_a_ridge():
    # Two of three episodes hold a row or two: nearly every draw is of the third.
    rng = np.random.default_rng(0)
    episode = np.concatenate([np.zeros(300), [1, 1], [2, 2]])
    x = rng.normal(size=(304, 3))
    alone = 0
    for seed in range(4):
        found = label_efficiency(
            {"x": x}, x @ rng.normal(size=(3, 1)), episode, seed=seed, counts=(2, 5), resamples=5
        )
        for row in found["x"]["linear"].values():
            assert np.isfinite(row["r2_mean"]) and len(row["ridge"]) == 1
            alone += row["train_episodes"] == 1
        for row in found["x"]["mlp"].values():
            assert row["updates"][0] in schedule(row["train_rows"])
    assert alone > 2


def test_every_label_validates_once_and_with_its_episode():
    episode = np.array([4, 4, 7, 9, 9, 9, 1, 3, 3, 8, 5])
    folds = label_folds(episode, seed=0)
    assert len(folds) == 5
    np.testing.assert_array_equal(np.sum(folds, axis=0), 1)
    for held in folds:
        assert held.any() and not set(episode[held]) & set(episode[~held])
    rows = label_folds(np.zeros(7), seed=0)  # an only episode: row by row
    np.testing.assert_array_equal(np.sum(rows, axis=0), 1)
    (held,) = label_folds(np.repeat(np.arange(20), 15), seed=0)
    assert held.sum() == 75


def test_a_trace_starts_at_the_mean_and_does_not_depend_on_what_is_asked_of_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 2)), rng.normal(size=(90, 1))
    trace = regression_trace(x, y, x, [0, 10, 40], seed=0)
    np.testing.assert_allclose(trace[0], y.mean())
    np.testing.assert_array_equal(trace[:2], regression_trace(x, y, x, [0, 10], seed=0))
    labels = np.repeat([0, 1, 2], [60, 20, 10])
    shares = class_trace(x, labels, x, [0, 10], seed=0)
    np.testing.assert_allclose(shares[0], np.tile([6 / 9, 2 / 9, 1 / 9], (90, 1)))
    np.testing.assert_allclose(shares.sum(2), 1.0)


def test_a_feature_that_only_the_test_knows_does_not_move_the_network():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), rng.normal(size=(60, 2))
    x[:, 1] = 0.0
    moved = x + [0.0, 1e6]
    plain, strange = (regression_trace(x, y, v, [0, 20], seed=0) for v in (x, moved))
    np.testing.assert_array_equal(plain, strange)


@pytest.mark.slow
def test_bad_inputs_are_named():
    z, actions = world()
    with pytest.raises(ValueError, match="at least 2 labels"):
        label_efficiency({"z": z}, actions, EPISODE, seed=0, counts=(1,))
    with pytest.raises(ValueError, match="no feature set"):
        label_efficiency({}, actions, EPISODE, seed=0)
    with pytest.raises(ValueError, match=r"actions \(N, A\)"):
        label_efficiency({"z": z[:-1]}, actions, EPISODE, seed=0)
    with pytest.raises(ValueError, match="3 episodes"):
        label_efficiency({"z": z}, actions, EPISODE % 2, seed=0)
