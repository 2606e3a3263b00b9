"""A small model with stacked layers, a codebook statistic and randomness, for training tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import base
from lapa_jax.parallel.sharding import constrain, put_batch, tree_shardings, with_rules
from lapa_jax.training.optimizer import make_optimizer
from lapa_jax.training.state import create, state_shardings
from lapa_jax.training.step import make_train_step

OPTIMIZER = base.optimizer("adamw").to_dict() | dict(
    peak_lr=1e-2, warmup_steps=2, weight_decay=0.1, ema_decay=0.9
)
WIDTH, HIDDEN, LENGTH, LAYERS, VOCAB = 16, 32, 8, 2, 24
AXES = {
    "embed": ("vocab", "embed"),
    "blocks": {
        "up": ("layers", "embed", "mlp"),
        "down": ("layers", "mlp", "embed"),
        "scale": ("layers", "embed"),
    },
}


# Compiling is nearly all of the time of these tests.
FAST_COMPILE = {"xla_backend_optimization_level": "0"}


def init_params(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "embed": normal(VOCAB, WIDTH),
        "blocks": {
            "up": 0.2 * normal(LAYERS, WIDTH, HIDDEN),
            "down": 0.2 * normal(LAYERS, HIDDEN, WIDTH),
            "scale": jnp.ones((LAYERS, WIDTH)),
        },
    }


def make_loss(noise=0.0):
    def loss_fn(params, variables, batch, rng):
        x = constrain(params["embed"][batch["tokens"]], "batch", "length", "embed")
        if noise:
            x = x + noise * jax.random.normal(rng, x.shape)

        def block(x, layer):
            hidden = constrain(x * layer["scale"] @ layer["up"], "batch", "length", "mlp")
            return constrain(x + jnp.tanh(hidden) @ layer["down"], "batch", "length", "embed"), None

        x, _ = jax.lax.scan(block, x, params["blocks"])
        logits = constrain(x @ params["embed"].T, "batch", "length", "vocab")
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1
        )
        counts = jnp.zeros(VOCAB, jnp.int32).at[batch["tokens"]].add(1)
        variables = {"usage": variables["usage"] + counts}
        return -picked.mean(), {"spread": x.std(axis=-1).mean()}, variables

    return loss_fn


def host_batch(step, rows=16):
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, VOCAB, (rows, LENGTH + 1), dtype=np.int32)
    return {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy()}


@functools.cache
def compiled(mesh, preset, microbatches, noise, name):
    """(shardings, step); shared by the tests that train the same thing."""
    optimizer = make(name)
    abstract = jax.eval_shape(lambda: initial(name))
    params = tree_shardings(AXES, abstract.params, mesh, preset)
    shardings = state_shardings(abstract, params, mesh)
    step = make_train_step(make_loss(noise), optimizer, microbatches=microbatches, ema_decay=0.9)
    step = jax.jit(
        with_rules(step, mesh, preset),
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=FAST_COMPILE,
    )
    return shardings, step


def make(name="adamw", **changes):
    """The optimizer of this name for the toy model; "NAME/MOMENTS" holds moments so."""
    name, _, moments = name.partition("/")
    if moments:
        changes["moments"] = moments
    shared = {key: OPTIMIZER[key] for key in ("warmup_steps", "weight_decay", "ema_decay")}
    settings = OPTIMIZER if name == "adamw" else base.optimizer(name).to_dict() | shared
    if name == "adafactor":
        settings["min_factored_size"] = WIDTH
    return make_optimizer(settings | changes, 20, AXES)


def initial(name="adamw"):
    """The same state for every mesh."""
    variables = {"usage": jnp.zeros(VOCAB, jnp.int32)}
    return create(init_params(), variables, make(name), seed=7, ema=True)


def build(mesh, preset, *, microbatches=1, noise=0.1, name="adamw"):
    """(state, step) on this mesh; step(state, k) trains on batch k."""
    shardings, step = compiled(mesh, preset, microbatches, noise, name)
    state = jax.device_put(initial(name), shardings)
    return state, lambda state, k: step(state, put_batch(host_batch(k), mesh))
