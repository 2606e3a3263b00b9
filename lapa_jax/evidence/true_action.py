"""What the decoder could do if the latent were the true action: an upper bound for its skill.

The trained decoder stays as it is. A small map from the true action to its latent is fitted by the
gradient of the pixels, on some episodes, and measured on others.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lapa_jax.diagnostics.probes import fit_ridge, split_episodes
from lapa_jax.diagnostics.reconstruction import decoder_errors, reconstruction_report
from lapa_jax.diagnostics.sample import Sample

HIDDEN, STEPS, BATCH, LEARNING_RATE = 64, 400, 64, 3e-3


def decoder_given_true_action(sample: Sample, *, seed: int = 0) -> dict[str, Any]:
    """The `reconstruction_report` of pairs whose actions are known; the map starts from the latents
    as the encoder gives them."""
    first, last, actions, latents = sample.first, sample.last, sample.actions, sample.latents
    episode = sample.episode
    test = split_episodes(episode, seed=seed)
    train = np.flatnonzero(~test)
    scale = actions[train].std(axis=0)
    inputs = (actions - actions[train].mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    shape = latents.shape[1:]
    linear = fit_ridge(inputs[train], latents[train].reshape(len(train), -1), ridges=(1e-3,))[0]
    start = linear(inputs).astype(np.float32)
    inputs = inputs.astype(np.float32)

    def predict(weights, x, start):
        hidden = jnp.tanh(x @ weights["into"] + weights["bias"])
        z = (start + hidden @ weights["out"]).reshape(-1, *shape)
        return z

    goal = sample.target or jax.tree_util.Partial(lambda x: x.astype(jnp.float32) / 255.0)

    @jax.jit
    def step(weights, state, decode, goal, first, last, x, start):
        def loss(weights):
            drawn = decode(first, predict(weights, x, start))
            return jnp.mean(jnp.square(drawn - goal(last)))

        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    rng = np.random.default_rng(seed)
    weights = {
        "into": rng.normal(size=(inputs.shape[1], HIDDEN)).astype(np.float32),
        "bias": rng.normal(size=HIDDEN).astype(np.float32),
        "out": np.zeros((HIDDEN, start.shape[1]), np.float32),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))
    state = optimizer.init(weights)
    for _ in range(STEPS):
        rows = rng.choice(train, BATCH)
        batch = (first[rows], last[rows], inputs[rows], start[rows])
        weights, state = step(weights, state, sample.decode, goal, *batch)

    fitted = np.asarray(predict(weights, inputs[test], start[test]))
    first, last = first[test], last[test]
    errors = decoder_errors(sample, first, fitted, first, last)
    return reconstruction_report(*errors, episode[test], seed=seed)
