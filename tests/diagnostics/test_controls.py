import json

import numpy as np
import pytest

from lapa_jax.diagnostics.content import content_report
from lapa_jax.diagnostics.controls import controls_table, fit_motion_codes, random_codes
from lapa_jax.diagnostics.embodiment import code_agreement
from lapa_jax.diagnostics.sample import Sample

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")

EPISODE = np.repeat(np.arange(24), 10)
PLACES = np.array([(0, 0), (0, 8), (8, 0), (8, 8)])


def world(seed=0):
    """A square appears in one of four places over a background of the episode's own."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 100, (24, 16, 16, 3), dtype=np.uint8)[EPISODE]
    last = first.copy()
    motion = rng.integers(0, 4, len(EPISODE))
    for frame, (row, column) in zip(last, PLACES[motion], strict=True):
        frame[row : row + 8, column : column + 8] += 100
    return first, last, motion


def test_motion_codes_are_the_planted_motion():
    first, last, motion = world()
    codes = fit_motion_codes(first, last, EPISODE, 4, seed=0)
    z = codes(first, last)
    assert z.shape == (len(EPISODE), 1)
    pairs = set(zip(z[:, 0].tolist(), motion.tolist(), strict=True))
    assert len(pairs) == 4  # one code per motion, whatever its number
    np.testing.assert_array_equal(z, fit_motion_codes(first, last, EPISODE, 4, seed=0)(first, last))


def test_motion_codes_tell_how_much_from_where():
    first = np.zeros((len(EPISODE), 8, 8, 1), np.uint8)
    strength = np.random.default_rng(0).integers(0, 3, len(EPISODE))
    last = first + (40 * strength.astype(np.uint8))[:, None, None, None]
    z = fit_motion_codes(first, last, EPISODE, 3, seed=0)(first, last)
    assert len(set(zip(z[:, 0].tolist(), strength.tolist(), strict=True))) == 3
    assert len(np.unique(z)) == 3


def test_motion_codes_of_one_view_code_the_other():
    first, last, _ = world()
    codes = fit_motion_codes(first, last, EPISODE, 4, seed=0)
    other = np.full_like(first, 50)
    seen = codes(other, (other + (last - first)).astype(np.uint8))
    agreement = code_agreement(codes(first, last), seen, EPISODE, 4, seed=0)
    assert agreement["agreement"]["estimate"] == 1.0 and agreement["null"]["high"] < 0.5


def test_more_codes_than_differences_leave_codes_unused():
    first, last, _ = world()
    z = fit_motion_codes(first, last, EPISODE, 64, seed=0)(first, last)
    assert set(np.unique(z)) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="one shape"):
        fit_motion_codes(first, last[:-1], EPISODE, 4, seed=0)


def test_random_codes_are_seeded_and_uniform():
    z = random_codes(4000, 3, 8, seed=0)
    assert z.shape == (4000, 3)
    np.testing.assert_allclose(np.bincount(z.reshape(-1)), 1500, atol=150)
    np.testing.assert_array_equal(z, random_codes(4000, 3, 8, seed=0))
    assert (z != random_codes(4000, 3, 8, seed=1)).any()


def test_table_leaves_open_what_it_was_not_given():
    z = random_codes(100, 1, 4, seed=0)
    scene = {"z": {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "chance": 0.1}}
    table = controls_table({"z": z}, 4, efficiency={}, scene=scene | {"latent": scene["z"]})
    assert table["z"]["perplexity"] > 3.8 and table["latent"]["perplexity"] is None
    assert table["z"]["r2_mlp"] is None and table["z"]["scene_accuracy"] == 0.5


@pytest.fixture(scope="module")
def report():
    first, last, motion = world()
    actions = PLACES[motion] / 8.0 + 0.02 * np.random.default_rng(1).normal(size=(len(motion), 2))
    latents = np.repeat(actions, 3, axis=1).reshape(-1, 2, 3)
    return content_report(Sample(first, last, motion[:, None], latents, actions, EPISODE, 4))


def test_controls_stand_beside_the_code(report):
    table = report["controls"]
    assert list(table) == [
        "latent_action",
        "random_codes",
        "motion_kmeans",
        "continuous_latent",
        "first_frame",
    ]
    for name in ("latent_action", "continuous_latent", "motion_kmeans"):
        assert table[name]["r2_linear"] > 0.95 and table[name]["r2_mlp"] > 0.9
    for name in ("random_codes", "first_frame"):
        assert table[name]["r2_linear"] < 0.1 and table[name]["r2_mlp"] < 0.1
    assert table["first_frame"]["scene_accuracy"] > 0.95
    assert table["latent_action"]["scene_accuracy"] < 0.15
    assert table["motion_kmeans"]["perplexity"] > 3.8
    assert table["first_frame"]["perplexity"] is None


def test_report_is_whole_and_plain(report):
    assert set(report) == {
        "code_given_scene",
        "scene_probe",
        "controls",
        "label_efficiency",
        "action_to_code",
    }
    assert "first_frame_and_latent_action" in report["label_efficiency"]
    assert list(report["label_efficiency"]["first_frame"]["mlp"]) == ["10", "100", "all"]
    assert report["action_to_code"]["mlp"]["explained_bits"] > 1.7
    json.dumps(report, allow_nan=False)


def test_videos_without_actions_and_with_one_pair_each_have_a_report():
    first, last, motion = world()
    pairs = np.arange(len(motion))
    latents = last.reshape(len(last), -1)
    report = content_report(Sample(first, last, motion[:, None], latents, None, pairs, 4))
    assert set(report) == {"code_given_scene", "scene_probe", "controls"}
    assert report["scene_probe"] is None
    assert report["code_given_scene"]["later_in_episode"] is None
    assert list(report["controls"]) == ["latent_action", "random_codes", "motion_kmeans"]
    assert report["controls"]["latent_action"]["r2_mlp"] is None
