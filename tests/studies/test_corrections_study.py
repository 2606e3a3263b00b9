"""The scripted corrector of imagined games, and the study of what it is worth."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.studies import corrections
from lapa_jax import envs
from lapa_jax.studies import corrector

ANGLES = 2 * np.pi * np.arange(8) / 8
ACTIONS = 0.05 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
STEPS, WINDOW, GAMES = 10, 2, 6


class Counting:
    """An imagination whose frames tell how many steps they are after the first one, and of what."""

    shape, codes, image_size = (1,), 8, (16, 16)
    model = SimpleNamespace(workdir="run")

    def start(self, frames):
        return np.zeros(len(frames), int)

    def step(self, state, z):
        frames = np.full((len(z), *self.image_size, 3), 0.0)
        frames[..., 0], frames[..., 1] = (state[0] + 1) / 255, z[:, :, None] / 255
        return state + 1, frames


@pytest.fixture(scope="module")
def scene():
    env = envs.make({"name": "tabletop", "families": ("reach",), "blocks": 2, "horizon": 40})
    states = jax.vmap(env.reset)(env.training_keys(5, GAMES))
    return env, states, env.instructions(states)


def played(scene, corrects, **changes):
    given = dict(steps=STEPS, window=WINDOW, corrects=corrects) | changes

    def say(frames, texts):
        assert len(frames) == len(texts) == GAMES
        return np.zeros((len(frames), 1), np.int32)

    return corrector.shadow(Counting(), say, *scene, ACTIONS, **given)


@pytest.fixture(scope="module")
def corrected_games(scene):
    return played(scene, True)


def test_the_right_code_is_what_the_expert_does(scene, corrected_games):
    env, states, _ = scene
    for n in range(GAMES):
        state, total = jax.tree.map(lambda x, n=n: x[n], states), 0.0
        for _ in range(WINDOW):
            action = np.asarray(env.expert(state))
            state, total = env.step(state, action), total + action
        distance = np.linalg.norm(ACTIONS - total, axis=1)
        assert corrected_games.right_NK[n, 0] == distance.argmin()


def test_a_corrector_ends_games_that_a_policy_does_not(scene, corrected_games):
    np.testing.assert_array_equal(corrected_games.chosen_NK, corrected_games.right_NK)
    assert (corrected_games.length_N < STEPS).all() and corrected_games.length_N.all()
    alone = played(scene, False)
    assert not alone.chosen_NK.any() and (alone.length_N == STEPS).sum() >= GAMES // 2
    np.testing.assert_array_equal(alone.right_NK[:, 0], corrected_games.right_NK[:, 0])
    np.testing.assert_array_equal(alone.true_NKHWC[:, 0], corrected_games.true_NKHWC[:, 0])
    moved = [(a != b).any() for a, b in zip(*alone.true_NKHWC[0, :2], strict=True)]
    assert any(moved)  # the simulator followed


def test_games_hold_what_was_imagined_until_the_end(corrected_games):
    found = corrected_games.games({"seed": 5})
    assert len(found) == GAMES and found[3].told == {"seed": 5, "game": 3}
    for game, length in zip(found, corrected_games.length_N, strict=True):
        assert len(game.z_KL) == length and len(game.frames_KHWC) == length + 1
        assert game.frames_KHWC[1:, 0, 0, 0].tolist() == list(range(1, length + 1))
        np.testing.assert_array_equal(game.frames_KHWC[1:, 0, 0, 1], game.z_KL[:, 0])
        np.testing.assert_array_equal(game.by_person_K, game.z_KL[:, 0] != 0)


def test_angles_between_codes():
    found = corrector.degrees(ACTIONS, np.array([0, 0, 1, 7]), np.array([0, 4, 7, 1]))
    np.testing.assert_allclose(found, [0, 180, 90, 90], atol=1e-6)


def test_z_of_another_kind_is_refused(scene):
    env, states, texts = scene
    given = (env, states, texts)
    more = dict(steps=1, window=1, corrects=True)
    with pytest.raises(ValueError, match="z of one code, with an action for each, and 7 have one"):
        corrector.shadow(Counting(), None, *given, ACTIONS[:7], **more)
    with pytest.raises(ValueError, match="a code has no pair in the corpus"):
        corrector.shadow(Counting(), None, *given, np.full((8, 2), np.nan), **more)


# --- The study ---


def test_arms_go_on_from_one_latent_vla_and_are_fine_tuned_alike(tmp_path):
    study = corrections.get_study("size=quick", tmp_path)  # all its configs are checked
    parts = {cell.values["arm"]: {p.name: p for p in cell.parts} for cell in study.cells}
    assert list(parts) == list(corrections.ARMS)
    before = {*parts["before"]}
    assert "latent_vla_s0" in before and "latent_vla_videos_s0" not in before
    configs = {}
    for arm in ("videos", "own", "corrected"):
        assert ("games_s0" in parts[arm]) == (arm != "videos")
        configs[arm] = parts[arm][f"latent_vla_{arm}_s0"].decides().to_dict()
        assert configs[arm]["init_from"] == str(tmp_path / "latent_vla_s0")
        tuned = parts[arm][f"policy_latent_vla_{arm}_s0_of_s0_n8"].decides()
        assert tuned.init_from == str(tmp_path / f"latent_vla_{arm}_s0")
    games = [configs[arm]["data"]["corpora"].pop("corrections") for arm in ("own", "corrected")]
    assert configs["videos"] == configs["own"] == configs["corrected"]
    paths = [one.pop("path") for one in games]
    assert games[0] == games[1] and len(set(paths)) == 2
    assert all(path.endswith("/corrections") for path in paths)


def test_tables_of_what_came_out():
    rows = []
    for arm, good in (("before", 1), ("videos", 1), ("own", 0), ("corrected", 2)):
        for seed in (0, 1):
            outcomes = [i < good for i in range(4)]
            row = {"arm": arm, "seed": seed, "family": "reach", "outcomes": outcomes}
            rows.append(row | {"setting": "actions"})
            told = {"agrees_imagined": 0.5 + seed / 10, "degrees_imagined": 20.0 + seed}
            told |= {"agrees_true": 0.75, "degrees_true": 10.0}
            rows.append(row | {"setting": "codes"} | told)
    found = corrections.tables(rows)
    header, before, videos, own, corrected, *codes = found["success"]
    assert corrected[3].startswith("50.0 % (") and corrected[4].startswith("25.0 points (")
    assert videos[4:] == ["", ""] and own[4].startswith("-25.0 points (") and len(codes) == 4
    assert found["said"][1][1:3] == ["55.0 % (50.0 to 60.0)", "20.5° (20.0 to 21.0)"]
    assert corrections.tables(rows[:1])["success"][2][2:] == ["0", "–", "–", "–"]
    assert corrections.tables(rows[:1])["success"][1][4] == "–"
