import json
import math

import numpy as np
import pytest

from lapa_jax.diagnostics.code_probes import action_to_code, code_report, logistic_candidates
from lapa_jax.diagnostics.probes import split_episodes

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")

EPISODE = np.repeat(np.arange(40), 20)


def sectors(seed=0):
    """Actions in all directions, and the code of eight that tells the direction."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, len(EPISODE))
    actions = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.5, 1, (len(angle), 1))
    return actions, (angle / (2 * np.pi) * 8).astype(int)[:, None]


@pytest.mark.slow
def test_quantised_actions_tell_nearly_all_of_the_code():
    actions, z = sectors()
    report = action_to_code(z, actions, EPISODE, 8, seed=0)
    for found in report.values():
        assert found["marginal_bits"] == pytest.approx(3.0, abs=0.05)
        assert found["explained_bits"] > 2.6 and found["accuracy"] > 0.93
        assert found["explained_bits"] == pytest.approx(found["marginal_bits"] - found["bits"])
        assert found["modal_accuracy"] < 0.25
        for name in ("bits", "explained_bits", "accuracy"):
            low, high = found[f"{name}_interval"]
            assert low <= found[name] <= high
    assert report["mlp"]["test_episodes"] == 10
    json.dumps(report, allow_nan=False)


@pytest.mark.slow
def test_codes_that_are_about_nothing_cost_their_entropy():
    actions, _ = sectors()
    z = np.random.default_rng(1).choice(4, (len(EPISODE), 2), p=[0.7, 0.1, 0.1, 0.1])
    for found in action_to_code(z, actions, EPISODE, 4, seed=0).values():
        assert abs(found["explained_bits"]) < 0.05
        assert found["accuracy"] == pytest.approx(0.7, abs=0.08)
        assert found["modal_accuracy"] == pytest.approx(0.7, abs=0.08)


def test_slots_add_up():
    actions, z = sectors()
    both = np.concatenate([z, np.random.default_rng(1).integers(0, 8, z.shape)], 1)
    found = code_report(actions, both, EPISODE, 8, kind="logistic", seed=0)
    alone = code_report(actions, z, EPISODE, 8, kind="logistic", seed=0)
    one, other = found["slots"]
    assert one == {name: alone[name] for name in one}
    assert found["bits"] == pytest.approx(one["bits"] + other["bits"])
    assert found["accuracy"] == pytest.approx((one["accuracy"] + other["accuracy"]) / 2)
    assert abs(other["explained_bits"]) < 0.1


@pytest.mark.slow
def test_the_network_tells_a_code_that_no_line_divides():
    actions = np.random.default_rng(0).uniform(-1, 1, (len(EPISODE), 2))
    z = (actions[:, :1] * actions[:, 1:] > 0).astype(int)
    report = action_to_code(z, actions, EPISODE, 2, seed=0)
    assert report["logistic"]["explained_bits"] < 0.05
    assert report["mlp"]["explained_bits"] > 0.6


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_a_code_never_seen_costs_what_the_smoothing_says(kind):
    actions, _ = sectors()
    z = np.zeros((len(EPISODE), 1), int)
    plain = code_report(actions, z, EPISODE, 8, kind=kind, seed=0)
    assert plain["bits"] == plain["marginal_bits"] < 0.01
    rows = plain["train_rows"]
    # Every code of the test episodes is new.
    z[split_episodes(EPISODE, test_fraction=0.25, seed=0)] = 5
    found = code_report(actions, z, EPISODE, 8, kind=kind, seed=0)
    assert found["bits"] == pytest.approx(math.log2(8 * (rows + 1)))
    assert found["accuracy"] == 0.0 and found["explained_bits"] == 0.0


def test_smoothed_probabilities_are_of_all_codes():
    actions, z = sectors()
    for found in logistic_candidates(actions, 2 * z[:, 0], actions[:5], codebook_size=20):
        np.testing.assert_allclose(found.sum(1), 1.0)
        np.testing.assert_allclose(found[:, 1::2], 1 / 20 / (len(z) + 1))


def test_later_rows_are_told_by_what_their_episode_did_before():
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(40, 60))[EPISODE]
    z = rng.integers(0, 4, 40)[EPISODE][:, None]  # a code per episode, by no rule
    known = code_report(looks, z, EPISODE, 4, kind="logistic", seed=0, within_episodes=True)
    assert known["bits"] < 0.1 and known["test_episodes"] == 40
    new = code_report(looks, z, EPISODE, 4, kind="logistic", seed=0)
    assert new["explained_bits"] < 0.3 and new["test_episodes"] == 10


@pytest.mark.slow
def test_numbers_are_those_of_the_seed():
    actions, z = sectors()
    first = action_to_code(z, actions, EPISODE, 8, seed=1)
    assert first == action_to_code(z, actions, EPISODE, 8, seed=1)


def test_bad_inputs_are_named():
    actions, z = sectors()
    with pytest.raises(ValueError, match="kind must be one of"):
        code_report(actions, z, EPISODE, 8, kind="forest", seed=0)
    with pytest.raises(ValueError, match=r"z \(N, A\)"):
        code_report(actions[:-1], z, EPISODE, 8, kind="mlp", seed=0)
    with pytest.raises(ValueError, match="codebook_size"):
        code_report(actions, z, EPISODE, 4, kind="mlp", seed=0)
    with pytest.raises(ValueError, match="3 episodes"):
        code_report(actions, z, EPISODE % 2, 8, kind="mlp", seed=0)
