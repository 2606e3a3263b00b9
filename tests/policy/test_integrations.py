"""How latent actions come into a policy: every head of actions by every way."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_policy

import lapa_jax
from data_pipelines.index import load_index
from data_pipelines.index.labels import ACTIONS, LabelSet
from data_pipelines.loader.loader import Loader
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.nn.module import Functional, flatten, unflatten
from lapa_jax.policy.heads.align import AlignHead, Projection
from lapa_jax.runs import label, start
from lapa_jax.runs.sources import OfCorpora

pytestmark = pytest.mark.usefixtures("quick_compile")
GOLDEN = Path(__file__).parent.parent / "golden/heads/align.npz"
HORIZON = 3
SMALL = {"model.dim": 16, "model.mlp_dim": 16, "model.depth": 1, "model.heads": 2}
SMALL |= {"model.head_dim": 8, "model.text_vocab": 320, "model.front_end.stem_channels": "(8,)"}
SMALL |= {"model.examples_per_row": 2, "global_batch": 4}
OF_HEAD = {"flow": {"dim": 8, "mlp_dim": 8, "steps": 2}, "fast": {"scale": 2.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integrations") / "robot"
    tiny.write_corpus(folder, size=32)
    tiny.write_labels(folder, "codes", code_length=2)
    tiny.write_labels(folder, "vectors", code_length=2, width=3)
    return folder


def opened(data, experiment, *, label_set, **arguments):
    """(stage, its batch, the loader's)."""
    given = dict(quick=True, label_set=label_set, codebook=8 if label_set == "codes" else 0)
    given |= dict(code_length=2, data=data if experiment == "action_vla" else data.parent)
    text = ",".join(f"{key}={value}" for key, value in (given | arguments).items())
    spec = str(tiny.ROOT / f"experiments/{experiment}/tabletop.py:{text}")
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    config = configs.load(spec, small)
    with config.unlocked():
        config.data.image_size = (32, 32)
        name = arguments.get("head", "tokens")
        if name in OF_HEAD:
            config.model.targets.action.update(OF_HEAD[name])
        if arguments.get("integration") == "align":
            config.model.targets.latent.update(layer=1, dim=8)
    stage_class = stages.get(config.stage)
    fields = stage_class.fields_of(config)
    loader = Loader(config.data, fields=fields, global_batch=config.global_batch, seed=0)
    columns = loader.batch(0)
    stage = start.stage_for(config, loader.mixture)
    return stage, stage.prepare(columns), columns


def loud(stage):
    """Parameters for it, made without a program."""
    rng = np.random.default_rng(0)
    shapes = flatten(stage.model.abstract()[0])
    made = {path: 0.3 * rng.normal(size=x.shape) for path, x in shapes.items()}
    return unflatten({path: jnp.asarray(x, jnp.float32) for path, x in made.items()})


def training(stage):
    """(parameters, batch) → (parameters after a step, loss, metrics)."""

    @jax.jit
    def step(params, batch):
        def loss(params):
            return stage.loss(params, {}, batch, jax.random.key(0))[:2]

        (loss, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda x, g: x - 0.01 * g, params, grads), loss, metrics

    return step


def trained(step, params, batch):
    """(parameters, losses) of some steps on one batch."""
    losses = []
    for _ in range(3):
        params, loss, metrics = step(params, batch)
        losses.append(float(loss))
        assert all(np.isfinite(x).all() for x in metrics.values())
    assert np.isfinite(losses).all() and losses[-1] < losses[0], losses
    return params, losses


@functools.cache
def pretrained(data, label_set):
    """Of a policy of latent actions alone, which `direct` starts from."""
    given = dict(label_set=label_set, views="robot")
    stage, batch, _ = opened(data, "latent_vla", **given)
    params, _ = trained(training(stage), loud(stage), batch)
    z = jax.eval_shape(lambda: stage.predict(params, {}, *asked(stage)).values)
    assert z.shape == ((2, 2) if label_set == "codes" else (2, 2, 3))
    return params


def asked(stage):
    return stage.prompts(["move the red square"] * 2), jnp.zeros((2, 1, 32, 32, 3), jnp.uint8)


@pytest.mark.parametrize("integration", ["direct", "condition", "align", "cotrain"])
@pytest.mark.parametrize("head", ["tokens", "fast", "chunk", "flow"])
def test_every_head_by_every_way(head, integration, data):
    # Codes and vectors by turns, so that each head and each way has both.
    turn = ["tokens", "fast", "chunk", "flow"].index(head)
    turn += ["direct", "condition", "align", "cotrain"].index(integration)
    label_set = ("codes", "vectors")[turn % 2]
    horizon = 1 if (head, integration) == ("tokens", "cotrain") else HORIZON
    given = dict(label_set=label_set, head=head, horizon=horizon, known=0.5)
    stage, batch, columns = opened(data, "action_vla", integration=integration, **given)
    spec = {name: (x.shape, x.dtype) for name, x in stage.batch_spec().items()}
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == spec
    params, step = loud(stage), training(stage)
    if integration == "direct":
        old, new = flatten(pretrained(data, label_set)), flatten(params)
        params = unflatten(new | {path: x for path, x in old.items() if path in new})
    _, losses = trained(step, params, batch)
    if integration in ("condition", "align"):
        actions = jax.eval_shape(lambda: stage.act(params, {}, *asked(stage)))
        assert actions.shape == (2, HORIZON, 2)
    if integration == "cotrain":  # actions that are not known do not count
        unknown = ~columns["action_known"]
        assert unknown.any() and not unknown.all()
        columns["action"][unknown] = 50.0
        assert float(step(params, stage.prepare(columns))[1]) == losses[0]


def test_actions_follow_the_vectors_that_were_said(data):
    given = dict(label_set="vectors", head="chunk", horizon=HORIZON)
    stage, batch, columns = opened(data, "action_vla", integration="condition", **given)
    params, of_z = loud(stage), stage.heads[0]
    texts, frames = list(columns["instruction"]), columns["frames"]

    @jax.jit
    def answers(prompts):
        z = of_z.decode(stage.model, params, {}, prompts, frames)
        return z.values, stage.act(params, {}, prompts, frames)

    @jax.jit
    def outputs(batch):
        rows = (batch[name] for name in ("tokens", "modality", "segments", "images"))
        slots = {name: batch[f"{name}_slots"] for name in ("latent", "action")}
        fed = {"latent": batch["latent_targets"]}
        return stage.model.apply(params, {}, "outputs", *rows, slots=slots, fed=fed)[0]

    z, actions = answers(stage.prompts(texts))
    assert z.shape == (4, 2, 3)
    said = stage.prepare(columns | {"latent_action": np.asarray(z), "action": np.asarray(actions)})
    found = outputs(said)
    for name in ("latent", "action"):
        np.testing.assert_allclose(found[name], said[f"{name}_targets"], atol=2e-5)
    assert np.abs(outputs(batch)["action"] - found["action"]).max() > 1e-3  # other z


def test_an_inverse_dynamics_model_says_actions_that_policies_learn(data, tmp_path):
    given = dict(label_set="codes", recipe="inverse_dynamics")
    stage, batch, columns = opened(data, "action_vla", **given)
    assert "instruction" not in columns and batch["images"].shape == (2, 4, 32, 32, 3)
    tiny_policy.write(tmp_path / "idm", stage.config.lock(), stage.assets)
    run = lapa_jax.load_policy(tmp_path / "idm")
    with pytest.raises(ValueError, match="inverse_dynamics=True: it says what was done between"):
        run.predict_action(np.zeros((2, 32, 32, 3), np.uint8), "")
    corpus = dict(path=str(data), split="train", sidecar_dir="", image_key="image", fps=0.0)
    counts = label.label_actions(run, "idm", corpus)
    said = LabelSet.open(data, "idm", load_index(data, split="train"), ACTIONS)
    episodes = len(said.valid) - counts["labelled"]  # of each all but the last step
    assert counts["labelled"] == said.valid.sum() and episodes == 10
    stage, batch, columns = opened(data, "action_vla", label_set="codes", recipe="vpt", horizon=2)
    config = stage.config
    for fraction in (0.0, 0.5):
        with config.unlocked():
            config.data.corpora.robot.action_fraction = fraction
        loader = Loader(config.data, fields=stage.fields_of(config), global_batch=64, seed=0)
        (corpus,), found = loader.mixture.corpora, loader.batch(0)
        assert corpus.actions.known.mean() == fraction
        rows = loader.plan(0).rows[:, 0]
        by_model = corpus.actions.by_model[corpus.index.episode_of_rows(rows)]
        true = corpus.index.actions[rows]
        expected = np.where(by_model[:, None], said.labels(rows)[:, 0], true)
        np.testing.assert_array_equal(found["action"][:, 0], expected)
        assert by_model.any() and (fraction == 0.0) == by_model.all()
    known = loader.mixture.corpora[0].actions.steps.sum()
    assert len(OfCorpora(loader.mixture, {}).actions()) == known == counts["labelled"]


def test_pulling_is_as_published():
    golden = np.load(GOLDEN)
    at = "align/cosine/params/"
    given = {name.removeprefix(at): golden[name] for name in golden.files if name.startswith(at)}
    network = Functional(lambda rngs: Projection(16, 12, 6, dtype=jnp.float32, rngs=rngs))
    params = {"norm": {"scale": given["norm.weight"], "bias": given["norm.bias"]}}
    for ours, theirs in (("into", "fc1"), ("out", "fc2")):
        kernel, bias = given[f"{theirs}.weight"].T, given[f"{theirs}.bias"]
        params[ours] = {"kernel": kernel, "bias": bias}
    head = object.__new__(AlignHead)
    targets = {"targets": golden["align/cosine/latent"].mean(axis=2)}

    @jax.jit
    @jax.value_and_grad
    def loss(hidden):
        return head.loss(network.apply(params, {}, "__call__", hidden)[0], targets)[0]

    found, grads = loss(golden["align/cosine/llm"])
    np.testing.assert_allclose(found, golden["align/cosine/loss"], atol=5e-6)
    np.testing.assert_allclose(grads, golden["align/cosine/grad_llm"], atol=5e-6)
