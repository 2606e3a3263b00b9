"""Policies that see the robot's state: in training, in answers, in rollouts and behind a server."""

import copy
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import tiny
from tiny_policy import make_policy, tokenizer

import lapa_jax
from data_pipelines.index import load_index
from data_pipelines.normalise import Normaliser
from lapa_jax import envs, stages
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.evidence.policy import evaluate_success
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.policy.layout import LegacyLayout
from lapa_jax.policy.state import STATISTICS, StateConfig, StateInput
from lapa_jax.serving import describe, reading
from lapa_jax.serving.adapters import LeRobotPolicy
from lapa_jax.serving.limits import Limits, Refused
from lapa_jax.serving.messages import Reader
from lapa_jax.stages.policy import TOKENIZER
from lapa_jax.train import train

pytestmark = pytest.mark.usefixtures("quick_compile")
OWN = np.random.default_rng(0).uniform(-2, 2, (50, 2)).astype(np.float32)
KEYS = {"state_key": "observation/state"}


def config_of(data: Path, state: dict, **changes):
    config = tiny.config("action_finetuning", data, **changes)
    with config.unlocked():
        (corpus,) = config.data.corpora.values()
        corpus.update(KEYS)
        config.model.state.update(enabled=True, **state)
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    tiny.write_corpus(folder / "robot", states=True)
    return folder


@pytest.fixture(scope="module")
def run(quick_compile, tmp_path_factory):
    statistics = Normaliser.fit(OWN, names=("x", "y"), units=("m", "m"))
    return make_policy(tmp_path_factory.mktemp("seeing") / "run", "action", state=statistics)


@pytest.fixture(scope="module")
def policy(run):
    return lapa_jax.load_policy(run)


@pytest.mark.slow
def test_it_trains_with_noise_and_dropout(data, tmp_path):
    config = config_of(
        data, dict(noise_std=0.1, dropout=0.3), steps=2, model__examples_per_row=2, global_batch=16
    )
    assert train(config, tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["state_out_of_range"] < 0.2 for line in lines if "loss" in line)
    statistics = Normaliser.from_json((tmp_path / "run/assets" / STATISTICS).read_bytes())
    assert statistics.dim == 3 and statistics.forms[2] == "constant"
    assert statistics.source == load_index(data / "robot").hash
    assert statistics.control_hz == tiny.FPS


def stage_of(data: Path, state: dict, **changes):
    statistics = Normaliser.fit(OWN)
    assets = {TOKENIZER: tokenizer(), STATISTICS: statistics.to_json()}
    bins = b'{"kind": "bins", "edges": [[-1, 0, 1], [-1, 0, 1]]}'
    return stages.build(config_of(data, state, **changes), assets | {CODEC: bins})


def columns(states: np.ndarray) -> dict:
    rng = np.random.default_rng(1)
    return {
        "frames": rng.integers(0, 256, (2, 1, 64, 64, 3), np.uint8),
        "instruction": np.array(["push", "move the red block"], object),
        "action": rng.normal(size=(2, 2)).astype(np.float32),
        "state": states,
    }


@pytest.mark.slow
def test_each_example_sees_its_own_state_alone_and_in_training_none_that_is_hidden(data):
    state = dict(dropout=1.0, noise_std=1.0)
    stage = stage_of(data, state, model__examples_per_row=2, global_batch=2)
    params, variables = jax.jit(stage.init)(jax.random.key(0))

    @jax.jit
    def asked(batch):
        fed = {"state": batch["state"]}
        rows = (batch[name] for name in ("tokens", "modality", "segments", "images"))
        slots = {"action": batch["action_slots"]}
        found, _ = stage.model.apply(params, variables, "outputs", *rows, slots=slots, fed=fed)
        loss = stage.loss(params, variables, batch, jax.random.key(1))[0]
        metrics = stage.eval_metrics(params, variables, batch)
        return found["action"].reshape(2, 2, -1), loss, metrics

    def ask(*states):
        batch = stage.prepare(columns(np.stack(states)))
        assert {name: x.shape for name, x in batch.items()} == {
            name: x.shape for name, x in stage.batch_spec().items()
        }
        return batch, *jax.device_get(asked(batch))

    batch, one, loss, metrics = ask(OWN[0], OWN[1])
    _, two, other_loss, other = ask(OWN[0], OWN[2])
    changed = np.abs(one - two).max(axis=(1, 2))
    first = stage.state.rows(OWN[:1])["state"][0]
    mine = int(np.abs(batch["state"][0] - first).sum(axis=1).argmin())  # packing's order
    assert changed[mine] == 0 and changed[1 - mine] > 1e-5
    assert loss == other_loss and metrics["loss"] != other["loss"]
    *_, far = ask([9.0, 0.0], [9.0, 0.0])
    assert far["state_out_of_range"] == 0.5
    fed = stage.state.trained_on(jnp.asarray(batch["state"]), jax.random.key(0))
    assert fed.shape == (1, 2, 3) and not np.asarray(fed).any()
    # Of a corpus without states there is none, which is no number of any.
    batch, *_, none = ask([9.0, 0.0], np.full(2, np.nan, np.float32))
    assert sorted(batch["state"][0, :, 2]) == [0, 1] and np.isfinite(none["loss"])
    assert not batch["state"][0, batch["state"][0, :, 2] == 0].any()
    assert none["state_out_of_range"] == 0.5
    with pytest.raises(ValueError, match="number 1 of the robot's state is nan"):
        stage.prepare(columns(OWN[:2] * np.float32([1, np.nan])))


@pytest.mark.slow
def test_answers_are_of_the_state_that_is_given(policy):
    images, texts = np.zeros((2, 32, 48, 3), np.uint8), ["push", "move it"]
    both = policy.predict(images, texts, state=OWN[:2])
    one = policy.predict(images[1], texts[1], state=OWN[1])
    np.testing.assert_allclose(one.probabilities, both.probabilities[1], atol=1e-5)
    swapped = policy.predict(images, texts, state=OWN[1::-1])
    assert np.abs(swapped.probabilities - both.probabilities).max() > 1e-4
    asked = LeRobotPolicy(policy)
    seen = {"observation.images.a": images[0], "task": "push", "observation.state": OWN[0]}
    np.testing.assert_allclose(asked.select_action(seen), both.values[0], rtol=1e-5)
    for wrong, why in (
        (None, "sees the robot's state: it must be given"),
        (OWN[:2, :1], "states of shape .2, 1.*was trained with states of 2 numbers"),
        (OWN[:1], "1 states for 2"),
        (OWN[:2] * np.float32([1, np.nan]), "number 1 of the robot's state is nan"),
        (OWN[:2] * 1j, "state has dtype complex.*, not of real numbers"),
        (np.array([["1", "2"]] * 2), "state has dtype <U1, not of real numbers"),
        (np.zeros((2, 0)), "states of shape .2, 0."),
    ):
        with pytest.raises(ValueError, match=why):
            policy.predict(images, texts, state=wrong)
    for text in (None, 3, b"push", ["push", None]):
        with pytest.raises(ValueError, match="the instruction is .*, not a text or a list of"):
            policy.predict(images, text, state=OWN[:2])
    with pytest.raises(KeyError, match="state: the policy needs one of"):
        asked.select_action({"observation.images.a": images[0], "task": "push"})


@pytest.mark.slow
def test_it_acts_in_an_environment_whose_state_it_knows(policy):
    env = envs.make({"name": "tabletop", "horizon": 2})
    assert evaluate_success(policy, env, "reach", episodes=2, seed=0).report["episodes"] == 2
    knows_more = StateInput(StateConfig(), Normaliser.fit(np.ones((3, 5))).to_json())
    wide = dataclasses.replace(policy, stage=copy.copy(policy.stage))
    wide.stage.state = knows_more
    with pytest.raises(ValueError, match="trained with states of 5 numbers, tabletop has 2"):
        evaluate_success(wide, env, "reach", episodes=2, seed=0)


def test_a_server_says_what_state_it_needs_and_refuses_others(policy):
    limits = Limits()
    reader = Reader((32, 48), 1, 1, (), "crop", limits, state_dim=2)
    told = describe.metadata(policy, reader)["observation"]["state"]
    assert told["names"][0] == "observation/state" and told["dim"] == 2
    assert told["dimensions"] == ["x", "y"] and told["units"] == ["m", "m"]
    assert "observation/state" in describe.needed(reader)

    def read(own, key="observation/state", reader=reader):
        image = packed(np.zeros((32, 48, 3), np.uint8))
        sent = {"observation/image": image, "prompt": "push", key: own}
        # as it comes from the process that reads it
        return reading._observation(reading._pack(reader.from_msgpack(msgpack.packb(sent)))).state

    def packed(x):
        return {
            b"__ndarray__": True,
            b"data": x.tobytes(),
            b"dtype": x.dtype.str,
            b"shape": x.shape,
        }

    np.testing.assert_array_equal(read(packed(OWN[0].astype(np.float64))), OWN[0])
    np.testing.assert_array_equal(read([1, 0.5], "state"), [1, 0.5])
    named = Reader((32, 48), 1, 1, (), "crop", limits, state_dim=2, state_key="proprio")
    np.testing.assert_array_equal(read([1, 0.5], "proprio", named), [1, 0.5])
    for own, why in (
        ([1.0], r"state has shape \[1\]: the policy was trained with 2"),
        (packed(OWN[:2]), r"state has shape \[2, 2\]"),
        (packed(np.array([True, False])), "dtype bool, not numbers"),
        ([1.0, float("nan")], "number 1 of the state is not finite"),
        ([2**63, 1e300], "number 1 of the state is not finite"),
        (["1", "2"], "state holds a str, not numbers only"),
        (None, "state is a NoneType"),
    ):
        with pytest.raises(Refused, match=why):
            read(own)
    with pytest.raises(Refused, match="state: the policy needs one of .*keys sent are"):
        read([1.0, 2.0], "robot")
    with pytest.raises(ValueError, match="--state_key x: the policy was trained without"):
        Reader((32, 48), 1, 1, (), "crop", limits, state_key="x")


def test_where_there_is_no_place_for_a_state(policy, data):
    with pytest.raises(ValueError, match="the original's rows have no state"):
        sizes = dict(text_length=9, num_images=1, tokens_per_image=1, image_vocab=9000)
        LegacyLayout(policy.stage.tokenizer, slots=[], sees_state=True, **sizes)
    config = config_of(data, {})
    stage = stages.build(config, stand_in_assets(config))
    assert stage.batch_spec()["state"].shape == (8, 1, 8)
    with pytest.raises(ValueError, match="7 numbers .data.corpora"):
        stage.check(columns(OWN[:2]) | {"action": np.zeros((2, 7), np.float32)})
