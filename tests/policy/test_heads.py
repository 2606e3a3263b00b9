"""Heads of other kinds than tokens: a file and a line in `HEADS`. Several in one policy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from tiny_policy import BINS, tokenizer

import lapa_jax
from data_pipelines.normalise import Normaliser
from experiments import base
from lapa_jax import stages
from lapa_jax.aot.assess import stand_in_assets
from lapa_jax.envs.execution import Execution
from lapa_jax.nn.module import flatten
from lapa_jax.policy import heads
from lapa_jax.policy.expert import Fed
from lapa_jax.policy.heads.tokens import CODEC
from lapa_jax.serving import describe
from lapa_jax.serving.adapters import LeRobotPolicy
from lapa_jax.serving.limits import Limits
from lapa_jax.serving.messages import Reader
from lapa_jax.stages.policy import TOKENIZER
from lapa_jax.train import train

pytestmark = pytest.mark.usefixtures("quick_compile")
HORIZON = 3
STATISTICS = Normaliser.fit(np.array([[0.0, 1.0], [1.0, 3.0]]), "min_max").to_json()


FLOW = dict(dim=16, mlp_dim=24, steps=3)  # a small one


def config_of(name: str, data, settings=None, **changes) -> ConfigDict:
    config = tiny.config("action_finetuning", data, **changes)
    settings = settings or (FLOW if name == "flow" else {})
    with config.unlocked():
        config.data.action_horizon = HORIZON
        config.model.targets = ConfigDict({"action": base.head(name, **settings)})
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chunk", "flow"])
def test_it_trains_acts_and_is_described(name, tiny_data, tmp_path):
    changes = dict(steps=2, model__examples_per_row=2, global_batch=16)
    if name == "chunk":
        config = config_of(name, tiny_data, **changes)
    else:  # latents flow beside the actions, which half of the episodes lack
        tiny.write_labels(tiny.write_corpus(tmp_path / "robot"), code_length=2, width=4)
        config = config_of(name, tmp_path, FLOW | {"latent_weight": 0.5}, **changes)
        with config.unlocked():
            config.code_length = 2
            config.data.corpora.robot.update(label_set=tiny.LABEL_SET, action_fraction=0.5)
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
    with pytest.raises(ValueError, match=f"the head '{name}' has no tokens to sample"):
        policy.predict(images, texts, temperature=1.0, seed=0)
    if name == "flow":  # an answer is a function of the observation and the seed
        drawn = [policy.predict(images, texts, seed=seed).values for seed in (0, 1)]
        np.testing.assert_array_equal(drawn[0], actions)
        assert np.abs(drawn[1] - drawn[0]).max() > 1e-3
    # Its actions are played one after the other.
    asked = LeRobotPolicy(policy, how=Execution(execute=HORIZON))
    observation = {"observation.images.front": images[0], "task": texts[0]}
    played = [asked.select_action(observation) for _ in range(HORIZON)]
    np.testing.assert_allclose(played, actions[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_compile_builds(tiny_data):
    for name in ("chunk", "flow"):
        config = config_of(name, tiny_data, model__lora_rank=2, model__base_dtype="int8")
        stage = stages.build(config, stand_in_assets(config))
        assert stage.batch_spec()["action_targets"].shape == (8, HORIZON, 7)
        assert stage.model_flops() > 0
        # What is new is neither held in fewer bits nor frozen with the backbone.
        groups = base.head_and_rest("action", frozen=True)
        params = set(flatten(stage.model.abstract()[0]))
        trains = {path for path in params if re.fullmatch(groups.head.pattern, path)}
        assert {p for p in params if "action" in p or "lora_" in p} == trains
        assert stage.model.held and not stage.model.held & trains


def stage_of(name: str, tiny_data, **changes):
    assets = {TOKENIZER: tokenizer()}
    assets |= {f"{m}_statistics.json": STATISTICS for m in ("latent", "action")}
    config = config_of(name, tiny_data, **changes)
    with config.unlocked():
        config.code_length = 2
    return stages.build(config, assets)


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
    loss = jax.jit(lambda targets: stage.loss(params, variables, targets, jax.random.key(0))[:2])
    mean, metrics = loss(batch)
    mask = batch["action_mask"]
    error = np.abs(outputs(batch["tokens"]) - batch["action_targets"])[mask]
    assert metrics["loss_weight"] == 2 * HORIZON - 1 == len(error)
    np.testing.assert_allclose(mean, error.mean(), rtol=1e-5)
    other = np.where(mask[..., None], batch["action_targets"], 9.0)
    assert float(mean) == float(loss(batch | {"action_targets": other})[0])


def flow_stage(tiny_data, unroll=1, **settings):
    given = dict(settings=FLOW | settings, model__examples_per_row=2, global_batch=2)
    given["model__unroll"] = unroll
    return stage_of("flow", tiny_data, **given)


def columns_of_two(**columns):
    rng = np.random.default_rng(0)
    return {
        "frames": rng.integers(0, 256, (2, 1, 64, 64, 3), np.uint8),
        "instruction": np.array(["push the red block", "move"], object),
        "action": rng.normal(size=(2, HORIZON, 2)).astype(np.float32),
        "action_mask": np.ones((2, HORIZON), bool),
    } | columns


OTHER = dict(form="head", depth=1, conditioning="adaptive", convention="noise_is_zero")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, OTHER], ids=["expert", "head"])
def test_what_flows_sees_in_training_what_it_sees_when_it_acts(changes, tiny_data):
    stage, acting = (flow_stage(tiny_data, unroll, **changes) for unroll in (1, 0))
    params, variables = stage.init(jax.random.key(0))
    rng = np.random.default_rng(0)  # gates are 0 at first
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), params)
    columns, (head,) = columns_of_two(), stage.heads
    batch = stage.prepare(columns)
    given = {name: (x.shape, x.dtype) for name, x in batch.items()}
    assert given == {name: (x.shape, x.dtype) for name, x in stage.batch_spec().items()}
    targets = {name: batch[f"action_{name}"] for name in head.spec()}
    prompts = stage.prompts(list(columns["instruction"]))

    @jax.jit
    def velocities(time, values):
        def call(model, method, rows, images, *given, **named):
            rows = [rows[name] for name in ("tokens", "modality", "segments")]
            given = (params, variables, method, *rows, images, *given)
            return model.apply(*given, **named)[0]

        fed = Fed(time, {"action": values})
        named = dict(slots={"action": None}, fed={"action": fed})
        packed = call(stage.model, "outputs", batch, batch["images"], **named)["action"]["action"]
        context = call(acting.model, "context", prompts, columns["frames"], "action")
        apart = Fed(time.reshape(2, 1), {"action": values.reshape(2, HORIZON, 2)})
        given = (params, variables, "beside_it", apart, context, "action")
        return packed, stage.model.apply(*given)[0]["action"]

    fed = head.draw(targets, jax.random.key(1))["fed"]
    packed, apart = velocities(fed.time_Bk, fed.values["action"])
    np.testing.assert_allclose(packed.reshape(apart.shape), apart, atol=2e-5)
    assert np.abs(apart[0] - apart[1]).max() > 1e-3
    # An action that is not known neither counts nor is it seen.
    loss = jax.jit(lambda batch: stage.loss(params, variables, batch, jax.random.key(0))[0])
    mask = np.array([[True, True, False] + [True] * HORIZON])
    batch |= {"action_mask": mask}
    changed = np.where(mask[..., None], batch["action_targets"], 9.0)
    assert float(loss(batch)) == float(loss(batch | {"action_targets": changed}))


@pytest.mark.slow
def test_zero_gates_let_through_what_they_are_said_to(tiny_data):
    stage = flow_stage(tiny_data, conditioning="adaptive", latent_weight=0.5)
    params, variables = stage.init(jax.random.key(0))
    latents = np.random.default_rng(1).normal(size=(2, 2, 2)).astype(np.float32)
    unknown = np.array([[False] * HORIZON, [True] * HORIZON])
    columns = columns_of_two(latent_action=latents, action_mask=unknown)
    batch = stage.prepare(columns)

    @jax.jit
    def grads(batch):
        def loss(params):
            return stage.loss(params, variables, batch, jax.random.key(0))[:2]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, metrics), found = grads(batch)
    moved = {path for path, x in flatten(found).items() if np.abs(x).max() > 0}
    gates = {f"layers/layers/{name}_norm/change" for name in ("attention", "mlp")}
    maps = {f"{way}/{stream}" for way in ("into", "out") for stream in ("action", "latent")}
    names = {f"heads/action/{name}" for name in gates | maps | {"norm/change"}}
    assert moved == {f"{name}/{what}" for name in names for what in ("kernel", "bias")}
    expected = 0.5 * metrics["latent_velocity_error"] + metrics["velocity_error"]
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    # Of an example without actions the latents alone are learned.
    other = stage.prepare(columns | {"action": columns["action"] + [[[5.0]], [[0.0]]]})
    np.testing.assert_array_equal(grads(other)[0][1]["velocity_error"], metrics["velocity_error"])


def test_both_conventions_pass_the_same_points(tiny_data):
    class Field:
        """Of a module that is told the time of noise as 1, or as 0, and gives what leads there."""

        def __init__(self, sign):
            self.sign = sign

        def apply(self, params, variables, method, *given):
            if method == "context":
                return None, None
            fed = given[0]
            time = fed.time_Bk if self.sign > 0 else 1.0 - fed.time_Bk
            values = fed.values["action"]
            return {"action": self.sign * (values * time[..., None] + 0.3)}, None

    prompts = dict.fromkeys(("tokens", "modality", "segments"), jnp.zeros((2, 4), jnp.int32))
    values = []
    for sign, convention in ((1.0, "noise_is_one"), (-1.0, "noise_is_zero")):
        (head,) = flow_stage(tiny_data, convention=convention).heads
        values.append(head.decode(Field(sign), {}, {}, prompts, None, key=jax.random.key(3)).values)
    np.testing.assert_allclose(*values, atol=1e-6)
    np.testing.assert_array_equal(values[0][0], values[0][1])


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
    with pytest.raises(ValueError, match="model.legacy=True: the original's rows end with marks"):
        stage_of("flow", tiny_data, model__legacy=True)
    for settings, message in (
        (dict(depth=1), "depth=1: an expert has the layers of the backbone, model.depth=2"),
        (dict(dim=15), "dim=15 must be even"),
    ):
        with pytest.raises(ValueError, match=message):
            stage_of("flow", tiny_data, settings=FLOW | settings)
    (head,) = stage_of("chunk", tiny_data).heads
    action = np.zeros((2, HORIZON, 2), np.float32)
    for wrong, message in (
        (action[:, :2], r"action of shape \[2, 2\]: data.action_horizon is 3"),
        (action[..., :1], r"action of shape \[3, 1\]: .* statistics are of 2 numbers"),
        (action * np.nan, "action: value nan of dimension 0 is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            head.rows({"action": wrong, "action_mask": np.ones(wrong.shape[:2], bool)})
    with config.unlocked():
        config.model.targets = ConfigDict()
    stage = stages.build(config, {TOKENIZER: tokenizer()})
    with pytest.raises(ValueError, match="model.targets names no head"):
        stage.head.describe()
