"""Is a latent action an action? z is read off one scene's motion and decoded from another scene's
frame; the tabletop's simulator tells what the same actions do there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax import pairs, runs
from lapa_jax.diagnostics.reconstruction import image_errors, reconstruction_report
from lapa_jax.envs.rollout import collect_expert
from lapa_jax.envs.tabletop import Tabletop


def evaluate_transfer(
    run: runs.Run,
    env: Tabletop,
    *,
    episodes: int,
    seed: int,
    view: str = "robot",
    window_steps: int | None = None,
    noise: float = 0.3,
) -> dict[str, Any]:
    """One motion per episode, taken to the scene of the next episode.

    Skill (1 − MSE / MSE of a copy, intervals over episodes) of the frame decoded from `z` of the
    other scene, of `own` (the z of the true pair: what the decoder could reach), and of `shuffled`
    (the z of a third scene: what any z gives).
    """
    pairs.require_quantizer(run)
    if window_steps is None:
        windows = {c.window_seconds for c in run.config.data.corpora.values()}
        if len(windows) != 1:
            raise ValueError(f"the quantizer's windows are {sorted(windows)}: give window_steps")
        window_steps = round(windows.pop() * env.spec.control_hz)
    if window_steps < 1:
        raise ValueError(f"window_steps={window_steps} must be at least 1")
    start, end, actions = _motions(env, episodes, seed, window_steps, noise)
    there = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), start)

    def follow(state, actions):
        for t in range(window_steps):
            state = env.step(state, actions[t])
        return state

    moved = jax.jit(jax.vmap(follow))(there, actions)
    size = run.config.data.image_size[0]
    render = jax.jit(jax.vmap(lambda state: env.render(state, size, view)))
    here, later, there, truth = (render(s) for s in (start, end, there, moved))
    quantize, decode = jax.jit(run.stage.quantize), jax.jit(run.stage.decode)
    z = quantize(run.params, run.variables, here, later)
    codes = {
        "z": z,
        "own": quantize(run.params, run.variables, there, truth),
        "shuffled": jnp.roll(z, 1, axis=0),
    }
    report: dict[str, Any] = {"episodes": episodes, "seed": seed, "view": view}
    for name, code in codes.items():
        decoded = np.asarray(decode(run.params, run.variables, there, code))
        errors = image_errors(np.asarray(there), np.asarray(truth), decoded)
        found = reconstruction_report(*errors, np.arange(episodes), seed=seed)
        report[name] = {key: found[key] for key in ("skill", "skill_interval", "psnr")}
    report["same_code_as_own"] = float(np.mean(np.all(codes["z"] == codes["own"], axis=1)))
    return report


def _motions(
    env: Tabletop, episodes: int, seed: int, window_steps: int, noise: float
) -> tuple[Any, Any, jax.Array]:
    """States before and after the first window of each expert episode, and its actions."""
    keys = jax.random.split(jax.random.key(seed), episodes)
    found = collect_expert(env, keys, None, window_steps, noise)
    start = jax.tree.map(lambda x: x[:, 0], found.states)
    end = jax.tree.map(lambda x: x[:, window_steps], found.states)
    return start, end, found.actions[:, :window_steps]
