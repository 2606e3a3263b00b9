"""Heads of other kinds than tokens: a file and a line in `HEADS`. Several in one policy."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict
from tiny_policy import BINS, tokenizer

import lapa_jax
from data_pipelines.normalise import Normaliser
from lapa_jax import stages
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.interop import hf
from lapa_jax.nn.layers import Dense
from lapa_jax.policy import heads
from lapa_jax.policy.heads.base import Decoded
from lapa_jax.policy.heads.chunk import ChunkConfig, ChunkHead
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.policy.modality import FILL
from lapa_jax.serving import describe
from lapa_jax.serving.adapters import LeRobotPolicy
from lapa_jax.serving.limits import Limits
from lapa_jax.serving.messages import Reader
from lapa_jax.stages.policy import TOKENIZER
from lapa_jax.train import train

pytestmark = pytest.mark.usefixtures("quick_compile")
HORIZON = 3
STATISTICS = Normaliser.fit(np.array([[0.0, 1.0], [1.0, 3.0]]), "min_max").to_json()


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ChunkConfig):
    steps: int = 4


class Flow(ChunkHead):
    """A chunk by the way from noise to them, in some steps; its slots are fed where it is on it."""

    def rows(self, batch):
        ids, targets = super().rows(batch)
        return np.full_like(ids, FILL), targets

    def embedding(self, model, rngs):
        return Fed(self.num_outputs + 1, model.dim, rngs=rngs)

    def draw(self, targets, rng):
        noise, time = (
            draw(key, targets["mask"].shape + (n,))
            for draw, key, n in zip(
                (jax.random.normal, jax.random.uniform),
                jax.random.split(rng),
                (self.num_outputs, 1),
                strict=True,
            )
        )
        on_it = time * targets["targets"] + (1 - time) * noise
        way = targets["targets"] - noise
        return {"fed": jnp.concatenate([on_it, time], axis=-1), "targets": way}

    def decode(self, model, params, variables, prompts, images):
        def call(method, *given):
            return model.apply(params, variables, method, *given)[0]

        rows = (prompts[name] for name in ("tokens", "modality", "segments"))
        _, cache = call("prefill", *rows, images, self.modality, self.num_slots + 1)
        B, T = prompts["tokens"].shape
        x = jnp.zeros((B, self.num_slots, self.num_outputs))
        for i in range(self.settings.steps):
            time = jnp.full((*x.shape[:2], 1), i / self.settings.steps)
            fed = jnp.concatenate([x, time], axis=-1)
            x = x + call("step", fed, T, cache, self.modality)[0] / self.settings.steps
        return Decoded(self.vectors.restored(x))


class Fed(nnx.Module):
    def __init__(self, inputs, dim, *, rngs):
        self.dim = dim
        self.project = Dense((inputs,), (dim,), (None, "embed"), dtype=jnp.float32, rngs=rngs)

    def __call__(self, given):
        if jnp.issubdtype(given.dtype, jnp.integer):  # ids, which are FILL or others' tokens
            return jnp.zeros((*given.shape, self.dim))
        return self.project(given)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(heads.HEADS, "flow", (FlowConfig, Flow))


def config_of(name: str, data, **changes) -> ConfigDict:
    config = tiny.config("action_finetuning", data, **changes)
    with config.unlocked():
        config.data.action_horizon = HORIZON
        config.model.targets = ConfigDict({"action": heads.head_settings(name)})
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chunk", "flow"])
def test_it_trains_acts_and_is_described(name, tiny_data, tmp_path):
    config = config_of(name, tiny_data, steps=2, model__examples_per_row=2, global_batch=16)
    assert train(config, tmp_path / "run")
    policy = lapa_jax.load_policy(tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    texts = ["move the red square to place 1", "push"]
    actions = np.asarray(policy.predict_action(images, texts))
    assert actions.shape == (2, HORIZON, 2) and np.isfinite(actions).all()
    assert np.abs(actions[0] - actions[1]).max() > 1e-6
    one = policy.predict(images[1], texts[1])
    np.testing.assert_allclose(one.values, actions[1], rtol=1e-4, atol=1e-6)
    assert one.probabilities is None
    stage = policy.stage
    acted = stage.act(policy.params, policy.variables, stage.prompts(texts), images[:, None])
    np.testing.assert_allclose(acted, actions, rtol=1e-4, atol=1e-6)
    reader = Reader(tuple(policy.image_size), 1, 1, (), "crop", Limits())
    told = describe.metadata(policy, reader, action_names=("x", "y"))
    assert told["chunk"] == HORIZON and told["policy"] == "action"
    assert told["action"].items() >= {"dim": 2, "names": ["x", "y"], "units": None}.items()
    # Its actions are played one after the other.
    asked = LeRobotPolicy(policy)
    observation = {"observation.images.front": images[0], "task": texts[0]}
    played = [asked.select_action(observation) for _ in range(HORIZON)]
    np.testing.assert_allclose(played, actions[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_compile_builds(tiny_data):
    config = config_of("chunk", tiny_data)
    stage = stages.build(config, stand_in_assets(config))
    assert stage.batch_spec()["action_targets"].shape == (8, HORIZON, 7)
    assert stage.model_flops() > 0


def stage_of(name: str, tiny_data, **changes):
    assets = {TOKENIZER: tokenizer(), "action_statistics.json": STATISTICS}
    return stages.build(config_of(name, tiny_data, **changes), assets)


@pytest.mark.slow
def test_slots_of_a_block_see_each_other_and_no_other_example(tiny_data):
    stage = stage_of("chunk", tiny_data, model__examples_per_row=2, global_batch=2)
    params, variables = stage.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = stage.prepare(
        {
            "frames": rng.integers(0, 256, (2, 1, 64, 64, 3), np.uint8),
            "instruction": np.array(["push", "pull"], object),
            "action": rng.normal(size=(2, HORIZON, 2)).astype(np.float32),
            "action_mask": np.array([[True, True, False], [True, True, True]]),
        }
    )
    given = {name: (x.shape, x.dtype) for name, x in batch.items()}
    assert given == {name: (x.shape, x.dtype) for name, x in stage.batch_spec().items()}
    slots = batch["action_slots"]

    @jax.jit
    def outputs(tokens):
        rows = (tokens, batch["modality"], batch["segments"], batch["images"])
        found = stage.model.apply(params, variables, "outputs", *rows, slots={"action": slots})
        return found[0]["action"]

    last = batch["tokens"].copy()
    last[0, slots[0, HORIZON - 1]] = 0
    changed = np.abs(outputs(last) - outputs(batch["tokens"])).max(axis=-1) > 1e-6
    assert changed.tolist() == [[True] * HORIZON + [False] * HORIZON]
    # An action that is not known does not count.
    loss = jax.jit(lambda targets: stage.loss(params, variables, targets, jax.random.key(0))[0])
    other = batch["action_targets"].copy()
    (hidden,) = np.flatnonzero(~batch["action_mask"][0])
    other[0, hidden] += 9.0
    assert float(loss(batch)) == float(loss(batch | {"action_targets": other}))


@pytest.mark.slow
def test_steps_from_a_cache_are_those_of_one_pass(tiny_data):
    stage = stage_of("flow", tiny_data)
    params, variables = stage.init(jax.random.key(0))
    rng, n = np.random.default_rng(0), HORIZON
    images = rng.integers(0, 256, (2, 1, 64, 64, 3), np.uint8)
    prompts = stage.prompts(["push the red block", "move"])
    fed = rng.normal(size=(2, n, 3)).astype(np.float32)

    def call(method, *given, **named):
        return stage.model.apply(params, variables, method, *given, **named)[0]

    rows = [prompts[name] for name in ("tokens", "modality", "segments")]
    T = rows[0].shape[1]
    _, cache = call("prefill", *rows, images, "action", n + 1)
    found, _ = call("step", jnp.asarray(fed), T, cache, "action")
    more = [np.full((2, n), value, np.int32) for value in (FILL, 3, 1)]
    whole = [np.concatenate(pair, axis=1) for pair in zip(rows, more, strict=True)]
    slots = {"action": np.tile(np.arange(T, T + n), (2, 1))}
    expected = call("outputs", *whole, images, slots=slots, fed={"action": fed})["action"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_two_heads_train_together_and_speak_in_turn(tiny_data):
    config = tiny.config("action_finetuning", tiny_data, global_batch=2)
    with config.unlocked():
        targets = heads.token_settings(latent=8, action=8)
        targets.latent.loss_weight, targets.action.loss_weight = 0.25, 2.0
        config.model.targets, config.code_length = targets, 2
        config.data.action_horizon = 2
    stage_class = stages.get(config.stage)
    assert stage_class.fields_of(config)[2:] == ("latent_action", "action", "action_mask")
    stage = stages.build(config, {TOKENIZER: tokenizer(), CODEC: BINS.to_json()})
    params, variables = stage.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 1, 64, 64, 3), np.uint8)
    columns = {
        "frames": frames,
        "instruction": np.array(["push", "pull"], object),
        "latent_action": np.array([[1, 2], [3, 4]], np.int32),
        "action": np.array([[[0.3, 0], [-0.9, 1]], [[-0.5, 1], [-0.5, 1]]], np.float32),
        "action_mask": np.array([[True, True], [True, False]]),
    }
    batch = stage.prepare(columns)
    given = {name: (x.shape, x.dtype) for name, x in batch.items()}
    assert given == {name: (x.shape, x.dtype) for name, x in stage.batch_spec().items()}
    loss, metrics, _ = stage.loss(params, variables, batch, jax.random.key(0))
    expected = 0.25 * metrics["latent_loss"] + 2.0 * metrics["action_loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert {"latent_token_accuracy", "action_token_accuracy"} <= metrics.keys()
    # The action follows the latent action, which is in its row.
    ids = BINS.encode(columns["action"]).reshape(2, -1)  # of one action after the other
    tokens, slots = batch["tokens"], batch["action_slots"]
    assert [tokens[r, slots[r]].tolist() for r in (0, 1)] == [
        [z, *row[:-1]] for z, row in zip((2, 4), ids.tolist(), strict=True)
    ]
    # Tokens of an action that is not known do not count.
    assert batch["action_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    other = batch | {"action_targets": np.where(batch["action_mask"], batch["action_targets"], 0)}
    assert stage.loss(params, variables, other, jax.random.key(0))[0] == loss
    with pytest.raises(ValueError, match="of tokens, of which one is trained"):
        hf.rules(stage)
    prompts = stage.prompts(list(columns["instruction"]))
    said = stage.predict(params, variables, prompts, frames)
    assert said.values.shape == (2, 2, 2) and stage.head.modality == "action"
    z = stage.heads[0].decode(stage.model, params, variables, prompts, frames).ids
    follows = np.concatenate([prompts["tokens"], z, said.ids[:, :-1]], axis=1)
    rows = follows, np.pad(prompts["modality"], ((0, 0), (0, 5))), np.ones_like(follows)
    rows[1][:, -5:] = [[2, 2, 3, 3, 3]]
    rows[2][:, : prompts["segments"].shape[1]] = prompts["segments"]
    at = {"action": np.tile(follows.shape[1] - 4 + np.arange(4), (2, 1))}
    logits = stage.model.apply(params, variables, "outputs", *rows, frames, slots=at)[0]["action"]
    for i, size in enumerate([*BINS.sizes, *BINS.sizes]):
        np.testing.assert_allclose(said.logits[:, i, :size], logits[:, i, :size], atol=1e-4)


def test_what_cannot_be_is_named(tiny_data):
    config = tiny.config("action_finetuning", tiny_data)
    with config.unlocked():
        config.model.targets.action = heads.head_settings("chunk")
        config.model.targets.action.name = "chunks"
    with pytest.raises(ValueError, match="model.targets.action.name='chunks' must be one of"):
        stages.get(config.stage).fields_of(config)
    with config.unlocked():
        config.model.targets = ConfigDict({"force": {}})
    with pytest.raises(ValueError, match=r"model.targets has \['force'\]: known are"):
        stages.get(config.stage).fields_of(config)
    with config.unlocked():
        config.model.targets = heads.token_settings(latent=8)
    with pytest.raises(ValueError, match="config.code_length is missing"):
        stages.build(config, {TOKENIZER: tokenizer()})
    with config.unlocked():
        config.model.targets.latent.codec = "bins"
    with pytest.raises(ValueError, match="targets.latent.codec='bins' is of actions"):
        stages.build(config, {TOKENIZER: tokenizer()})
    with config.unlocked():
        config.model.targets = heads.token_settings(action=8)
        config.model.targets.latent = heads.head_settings("chunk")
        config.code_length = 2
    assets = {TOKENIZER: tokenizer(), "latent_statistics.json": STATISTICS, CODEC: BINS.to_json()}
    with pytest.raises(ValueError, match="targets.latent has no tokens that action, which comes"):
        stages.build(config, assets)
    with config.unlocked():
        config.model.targets = ConfigDict()
    stage = stages.build(config, {TOKENIZER: tokenizer()})
    with pytest.raises(ValueError, match="model.targets names no head"):
        stage.head.describe()
