"""A verifier of chunks: in a world that it imagines well, one that it takes for still, and on a
corpus; what does not fit is refused."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
import tiny_policy
from tiny import lapa, succeed

from data_pipelines.index import load_index
from data_pipelines.normalise import Normaliser
from lapa_jax.envs.checked import Pushes, checked_loop
from lapa_jax.envs.env import EnvSpec
from lapa_jax.envs.execution import Execution
from lapa_jax.evidence import verified
from lapa_jax.evidence.verified import (
    Verification,
    check_verifier,
    open_calibration,
    open_verifier,
)
from lapa_jax.policy import heads
from lapa_jax.runs import loaded
from lapa_jax.world.imagination import Imagination
from lapa_jax.world.verifier import Verifier, calibrate

WIDE, W, n, STEPS, N = 16, 2, 6, 20, 5


class Ring:
    """A bright column that actions of -1, 0 and 1 move along a ring of columns; a state is its
    place, and no place is the goal."""

    spec = EnvSpec(
        name="ring",
        tasks=("walk",),
        actions=("forward",),
        action_low=(-1.0,),
        action_high=(1.0,),
        action_units=("columns",),
        control_hz=10.0,
        horizon=STEPS,
        views=("front",),
        cameras=("front",),
        state=(),
        image_size=(4, WIDE),
        traceable=False,
    )

    def step(self, state, action):
        return (state + int(np.round(action[0]))) % WIDE

    def success(self, state):
        return False

    def render(self, state, size, view):
        image = np.zeros((4, WIDE, 3), np.uint8)
        image[:, state] = 255
        return image


class Rolls:
    """Imagines that z columns are gone on; `still`: that none ever is."""

    image_size, window_seconds = (4, WIDE), 0.2
    model = SimpleNamespace(workdir="runs/rolls", step=0)

    def __init__(self, still=False):
        self.still = still

    def start(self, frames):
        return frames / np.float32(255.0)

    def step(self, state, z):
        moved = [x if self.still else np.roll(x, k, 1) for x, k in zip(state, z[:, 0], strict=True)]
        return np.stack(moved), np.stack(moved)


class Sums:
    """z is by how many columns a window moves."""

    steps, dim, report = W, 1, {}

    def map(self, actions):
        assert actions.shape[1:] == (W, 1)
        return np.round(actions.sum(1)).astype(np.int32)


class Pixels:
    """Says of a pair its later frame."""

    def read(self, params, variables, first, last):
        last = last / 255.0 if last.dtype == np.uint8 else last
        return SimpleNamespace(latent_BLQ=last.reshape(len(last), 1, -1))


def of_ring(still=False, threshold=0.5):
    reader = SimpleNamespace(stage=Pixels(), params={}, variables={})
    return Verifier(Rolls(still), Sums(), reader, threshold)


def acted(verifier, chunk, pushes=None, **options):
    """What becomes of a policy that always says the same."""
    said = np.broadcast_to(np.float32(chunk)[None, :, None], (N, n, 1))
    act = jax.tree_util.Partial(lambda images, prompts, key: jax.numpy.asarray(said))
    how = dict(steps=STEPS, how=Execution(execute=n), check=verifier and verifier.watch())
    states, key = list(range(N)), jax.random.key(0)
    return checked_loop(Ring(), act, states, None, key, pushes_NTA=pushes, **how, **options)


FORTH = [1, 1, 0, -1, 1, 1]


def test_a_perfect_imagination_never_drops_and_pushes_are_seen_at_the_next_look():
    found = acted(of_ring(), FORTH)
    assert not found.drops.any() and (found.calls == 4).all()  # at 0, 6, 12 and 18
    assert (found.looks == 6).all()  # two a whole chunk, none in what is left of the last
    pushes = np.full((N, STEPS, 1), np.nan, np.float32)
    pushes[1, 0] = -1.0  # in the first window of a chunk
    pushes[2, 3] = 1.0  # in the second
    pushes[3, 5] = -1.0  # in the last, after which it asks anyway
    pushes[4, 1] = FORTH[1]  # by what would have been done
    pushed = acted(of_ring(), FORTH, pushes)
    assert pushed.drops.tolist() == [0, 1, 1, 0, 0]
    # Asked at 2, 8, 14 of the second episode; at 4, 10, 16 of the third.
    assert pushed.calls.tolist() == [4, 4, 4, 4, 4]
    after = np.array([*FORTH[:2], *FORTH, *FORTH, *FORTH])[:STEPS, None]
    after[0] = -1
    np.testing.assert_array_equal(pushed.episodes.actions[1], after)


def test_an_imagination_of_a_still_world_drops_at_once_where_things_move():
    found = acted(of_ring(still=True), FORTH)
    assert (found.calls == STEPS // W).all() and (found.drops == found.looks).all()
    # Where nothing moves it is right.
    rests = acted(of_ring(still=True), [0] * n)
    assert not rests.drops.any() and (rests.calls == 4).all()
    # In the second window they move: dropped there, at the second look.
    later = acted(of_ring(still=True), [0, 0, 1, 1, 0, 0])
    assert (later.calls == 5).all() and (later.drops == 4).all() and (later.looks == 9).all()


def test_a_threshold_of_infinity_is_no_verifier():
    pushes = Pushes(push_rate=0.2).drawn(Ring.spec, 0, N, STEPS)
    blind, none = acted(of_ring(threshold=np.inf), FORTH, pushes), acted(None, FORTH, pushes)
    np.testing.assert_array_equal(blind.episodes.actions, none.episodes.actions)
    assert blind.calls.tolist() == none.calls.tolist() and not blind.drops.any()
    again, seen = acted(of_ring(), FORTH, pushes), acted(of_ring(), FORTH, pushes)
    assert again.drops.sum() > 0  # and the same rows again
    np.testing.assert_array_equal(seen.episodes.actions, again.episodes.actions)
    for name in ("calls", "looks", "drops"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(again, name))


def test_it_must_fit_the_environment_and_how_chunks_are_acted_on():
    spec, how, verifier = Ring.spec, Execution(execute=4), of_ring()
    check_verifier(verifier, spec, how)
    for execute in (2, 5):
        with pytest.raises(ValueError, match=f"--execute {execute}: the verifier looks every 2"):
            check_verifier(verifier, spec, Execution(execute=execute))
    with pytest.raises(ValueError, match="0.2 s ahead, 1 steps of ring"):
        check_verifier(verifier, dataclasses.replace(spec, control_hz=5.0), how)
    two = dataclasses.replace(spec, actions=("x", "y"))
    with pytest.raises(ValueError, match="actions of 1 dimensions, ring takes 2"):
        check_verifier(verifier, two, how)


# --- Of runs and a corpus ---


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(policy of chunks, quantizer, corpus that was learnt from, corpus that was not)."""
    root = tmp_path_factory.mktemp("verifier")
    corpora = [
        tiny.write_corpus(root / name / "robot", episodes=20, seed=seed)
        for seed, name in enumerate(("learnt", "held_out"))
    ]
    given = dict(image_size=(64, 64), corpus=corpora[0], depth=1)
    chunk = heads.head_settings("chunk")
    policy = tiny_policy.policy_config("action", target=chunk, action_horizon=4, **given)
    scene = dict(name="tabletop", families=("reach",), blocks=2, horizon=6)
    policy[1]["action_statistics.json"] = Normaliser.fit(
        np.array([[-0.03, -0.03], [0.03, 0.03]]), "min_max", control_hz=10.0
    ).to_json()
    with policy[0].unlocked():
        policy[0].evaluation.env = scene
    config = tiny_policy.quantizer_config().unlock()
    config.data.image_size, config.model.code_length = (64, 64), 2
    quantizer = tiny_policy.write(root / "quantizer", config.lock(), {})
    found = tiny_policy.write(root / "policy", *policy)
    one = tiny_policy.policy_config("action", **given)
    with one[0].unlocked():
        one[0].evaluation.env = scene
    tiny_policy.write(root / "one", *one)
    return found, quantizer, *corpora


def test_the_threshold_is_a_rate_of_false_alarms(made):
    policy, quantizer, learnt, held_out = made
    policy = loaded.load_policy(policy)
    options = dict(verifier=str(quantizer), verifier_corpus=str(held_out))
    calibration, index = open_calibration(policy, Verification(**options)), load_index(held_out)
    found = {rate: calibration.at(rate) for rate in (0.1, 0.3)}
    for rate, verifier in found.items():
        report = verifier.report
        assert report["windows"] == (index.episode_length - W).sum()
        assert report["episodes"] == 20 and report["window_steps"] == verifier.every == W
        assert report["above"] == pytest.approx(rate, abs=2 / report["windows"])
        assert 0.0 <= report["auc"] <= 1.0
    assert found[0.1].threshold > found[0.3].threshold > 0.0
    again = open_verifier(policy, Verification(false_alarms=0.1, **options))
    assert again.report == found[0.1].report
    with pytest.raises(ValueError, match="--false_alarms 0.001 of .* it takes 5000 windows"):
        calibration.at(0.001)
    with pytest.raises(ValueError, match="must be above 0"):
        calibration.at(0.0)


def test_corpora_that_do_not_calibrate_are_refused(made):
    policy, quantizer, learnt, held_out = made
    policy, run = loaded.load_policy(policy), loaded.load_quantizer(quantizer)
    actions = SimpleNamespace(steps=W, dim=2)

    def refused(index, match):
        with pytest.raises(ValueError, match=match):
            calibrate(Imagination(run), actions, run, index, others=(policy,))

    index = load_index(held_out)
    refused(load_index(learnt), r"no window of 2 steps .* \(20 were drawn\)")
    refused(dataclasses.replace(index, actions=None), "actions of 0 dimensions")
    refused(dataclasses.replace(index, actions=index.actions[:, :1]), "actions of 1 dimensions")
    unknown = np.full_like(index.actions, np.nan)
    refused(dataclasses.replace(index, actions=unknown), "no window of 2 steps")


@pytest.mark.slow
def test_the_verb_tells_calls_and_refuses_what_does_not_fit(made, tmp_path):
    policy, quantizer, learnt, held_out = made
    flags = ("--episodes", 4, "--max_examples", 8)
    verifier = ("--verifier", quantizer, "--verifier_corpus", held_out, "--false_alarms", 0.2)

    def rows(*more):
        return json.loads(succeed("evaluate", "--workdir", policy, *flags, *more))

    bare = rows("--execute", 4)["success"]["reach"]
    assert bare["calls_per_episode"] == 2.0 and bare["executed_length"] == 3.0  # of 6 steps
    pushed = ("--push_rate", 0.3, "--push_steps", 2)
    report = rows("--execute", 4, *verifier, *pushed)
    found, told = report["success"]["reach"], report["verifier"]
    assert found["push_rate"] == 0.3 and told["false_alarms"] == 0.2 and told["threshold"] > 0
    assert found["dropped"] == found["drops"] / found["looks"]
    again = rows("--execute", 4, *verifier, *pushed)
    assert again == report  # same seeds, same rows
    one = policy.parent / "one"
    for where, more, match in (
        (policy, ("--execute", 4, *verifier[:2]), "act together"),
        (policy, ("--execute", 3, *verifier), "--execute 3: the verifier looks every 2 steps"),
        (policy, ("--execute", 4, *verifier, "--delay", 0, "--episodes", 0), "no closed loop"),
        (policy, ("--execute", 2, "--delay", 2, *pushed), "delay=2: chunks that may end early"),
        (policy, (*verifier[:2], *verifier[2:4], "--false_alarms", 1.0), "false_alarms"),
        (policy, ("--execute", 4, "--verifier", policy, *verifier[2:]), "frames are imagined by"),
        (one, verifier, "says one action at a time"),
        (quantizer, verifier, "--verifier is of policies"),
    ):
        code, _, err = lapa("evaluate", "--workdir", where, *flags, *more)
        assert code == 2 and match in err, (match, err)


def test_a_dynamics_run_asks_for_its_quantizer_by_the_flag_of_the_verb(made, monkeypatch):
    policy = loaded.load_policy(made[0])
    size = tuple(policy.config.data.image_size)
    world = SimpleNamespace(image_size=size, model=SimpleNamespace(workdir="world"))
    monkeypatch.setattr(verified, "open_imagination", lambda workdir: world)
    options = Verification(verifier="world", verifier_corpus=str(made[3]))
    with pytest.raises(ValueError, match="of its label set with --verifier_quantizer"):
        open_verifier(policy, options)


def test_images_of_another_size_are_refused(made, tmp_path):
    policy, _, _, held_out = made
    small = tiny_policy.write(tmp_path / "small", tiny_policy.quantizer_config(), {})
    options = Verification(verifier=str(small), verifier_corpus=str(held_out))
    with pytest.raises(ValueError, match=r"it imagines frames of \(32, 48\)"):
        open_verifier(loaded.load_policy(policy), options)
