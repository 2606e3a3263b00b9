"""How latent actions come into a policy: every head of actions by every way."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from data_pipelines.loader.loader import Loader
from experiments import base
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.nn.module import Functional, flatten, unflatten
from lapa_jax.policy.heads.align import AlignHead, Projection
from lapa_jax.runs import start

pytestmark = pytest.mark.usefixtures("quick_compile")
GOLDEN = Path(__file__).parent.parent / "golden/heads/align.npz"
HORIZON = 3
SMALL = {"model.dim": 16, "model.mlp_dim": 16, "model.depth": 2, "model.heads": 2}
SMALL |= {"model.head_dim": 8, "model.text_vocab": 320, "model.front_end.stem_channels": "(8,)"}
SMALL |= {"model.unroll": 1, "global_batch": 4, "config.data.prefetch_batches": 1}
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
    small = [f"--config.{key.removeprefix('config.')}={value}" for key, value in SMALL.items()]
    config = configs.load(spec, small)
    with config.unlocked():
        config.data.image_size = (32, 32)
        name = arguments.get("head", "tokens")
        if name in OF_HEAD:
            config.model.targets.action.update(OF_HEAD[name])
    stage_class = stages.get(config.stage)
    fields = stage_class.fields_of(config)
    loader = Loader(config.data, fields=fields, global_batch=config.global_batch, seed=0)
    columns = loader.batch(0)
    stage = start.stage_for(config, loader.mixture)
    return stage, stage.prepare(columns), columns


def trained(stage, batch, params, steps=3):
    """(parameters, losses, metrics of the last) of some steps on one batch."""

    @jax.jit
    def step(params, variables):
        def loss(params):
            return stage.loss(params, variables, batch, jax.random.key(0))[:2]

        (loss, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda x, g: x - 0.02 * g, params, grads), loss, metrics

    losses = []
    for _ in range(steps):
        params, loss, metrics = step(params, {})
        losses.append(float(loss))
    return params, losses, metrics


@functools.cache
def pretrained(data, label_set):
    """Of a policy of latent actions alone, which `direct` starts from."""
    given = dict(label_set=label_set, views="robot")
    stage, batch, _ = opened(data, "latent_vla", **given)
    params, losses, _ = trained(stage, batch, stage.init(jax.random.key(0))[0])
    assert losses[-1] < losses[0]
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
    given = dict(label_set=label_set, head=head, horizon=HORIZON, known=0.5)
    stage, batch, columns = opened(data, "action_vla", integration=integration, **given)
    spec = {name: (x.shape, x.dtype) for name, x in stage.batch_spec().items()}
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == spec
    params = stage.init(jax.random.key(1))[0]
    if integration == "direct":
        old, new = flatten(pretrained(data, label_set)), flatten(params)
        params = unflatten(new | {path: x for path, x in old.items() if path in new})
    _, losses, metrics = trained(stage, batch, params)
    assert np.isfinite(losses).all() and losses[-1] < losses[0], losses
    assert all(np.isfinite(x).all() for x in metrics.values())
    actions = jax.eval_shape(lambda: stage.act(params, {}, *asked(stage)))
    assert actions.shape == (2, HORIZON, 2)
    if integration == "cotrain":
        assert 0 < columns["action_known"].sum() < len(columns["action_known"])
