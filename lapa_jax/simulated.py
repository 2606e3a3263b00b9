"""What only a simulator can tell of latent actions: the tabletop's.

Transfer: z is read off one scene's motion and decoded from another scene's frame; the simulator
tells what the same actions do there. Leakage: how much of a code comes from motion that no action
made.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax import pairs, runs
from lapa_jax.diagnostics.reconstruction import image_errors, reconstruction_report
from lapa_jax.diagnostics.statistics import bootstrap_ratio
from lapa_jax.envs.rollout import collect_expert
from lapa_jax.envs.tabletop import Tabletop

NOISE = 0.3  # of the expert, so that motions differ


def _window(run: runs.Run, env: Tabletop) -> int:
    """The quantizer's window in control steps of the environment."""
    pairs.require_quantizer(run)
    steps = round(pairs.trained_window(run.config) * env.spec.control_hz)
    if steps < 1:
        raise ValueError(f"the window is under one control step of {1 / env.spec.control_hz} s")
    return steps


def evaluate_transfer(
    run: runs.Run, env: Tabletop, *, episodes: int, seed: int, view: str = "robot"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One motion per episode, taken to the scene of the next episode: (report, frames by name,
    (episodes, H, W, 3)).

    Skill (1 − MSE / MSE of a copy, intervals over episodes) of the frame decoded from `z` of the
    other scene, of `own` (the z of the true pair: what the decoder could reach), and of `shuffled`
    (the z of a third scene: what any z gives).
    """
    window = _window(run, env)
    start, end, actions = _motions(env, episodes, seed, window)
    there = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), start)

    def follow(state, actions):
        for t in range(window):
            state = env.step(state, actions[t])
        return state

    moved = jax.jit(jax.vmap(follow))(there, actions)
    render = _renderer(run, env)
    here, later, there, truth = (render(s, view) for s in (start, end, there, moved))
    quantize, decode = jax.jit(run.stage.quantize), jax.jit(run.stage.decode)
    z = quantize(run.params, run.variables, here, later)
    codes = {
        "z": z,
        "own": quantize(run.params, run.variables, there, truth),
        "shuffled": jnp.roll(z, 1, axis=0),
    }
    frames = {"first": here, "later": later, "other scene": there, "simulated": truth}
    frames = {name: np.asarray(x) for name, x in frames.items()}
    report: dict[str, Any] = {"episodes": episodes, "seed": seed, "view": view}
    for name, code in codes.items():
        decoded = np.asarray(decode(run.params, run.variables, there, code))
        errors = image_errors(frames["other scene"], frames["simulated"], decoded)
        found = reconstruction_report(*errors, np.arange(episodes), seed=seed)
        report[name] = {key: found[key] for key in ("skill", "skill_interval", "psnr")}
        frames[f"decoded from {name}"] = np.clip(decoded, 0.0, 1.0)
    report["same_code_as_own"] = float(np.mean(np.all(codes["z"] == codes["own"], axis=1)))
    return report, frames


def evaluate_distractors(
    run: runs.Run, env: Tabletop, *, episodes: int, seed: int
) -> dict[str, Any]:
    """Codes of the view with moving distractors, of one window per episode.

    `changed_still`: share of codes that the distractors alone change, where nothing else moves;
    `changed_moving`: the same where the robot moves. Each with the share to expect if codes were
    drawn at random from how often they are used (`chance`). A quantizer of actions has 0.
    """
    window = _window(run, env)
    start, end, _ = _motions(env, episodes, seed, window)
    # Distractors move with the clock of the state: the scene stands still, the clock runs.
    later = start.replace(time=end.time)
    render = _renderer(run, env)
    quantize = jax.jit(run.stage.quantize)
    report: dict[str, Any] = {"episodes": episodes, "seed": seed}
    for name, last in (("changed_still", later), ("changed_moving", end)):
        plain, distracted = (
            np.asarray(quantize(run.params, run.variables, render(start, view), render(last, view)))
            for view in ("robot", "distractors")
        )
        changed = (plain != distracted).any(axis=1)
        found = bootstrap_ratio(
            changed, np.ones(episodes), np.arange(episodes), seed=seed
        ).as_dict()
        shares = np.unique(distracted, axis=0, return_counts=True)[1] / episodes
        report[name] = found | {"chance": float(1.0 - np.square(shares).sum())}
    return report


def _renderer(run: runs.Run, env: Tabletop) -> Any:
    size = run.config.data.image_size[0]
    draw = jax.vmap(env.render, in_axes=(0, None, None))
    return jax.jit(lambda states, view: draw(states, size, view), static_argnums=1)


def _motions(env: Tabletop, episodes: int, seed: int, window: int) -> tuple[Any, Any, jax.Array]:
    """States before and after the first window of each expert episode, and its actions."""
    keys = jax.random.split(jax.random.key(seed), episodes)
    found = collect_expert(env, keys, None, window, NOISE)
    start = jax.tree.map(lambda x: x[:, 0], found.states)
    end = jax.tree.map(lambda x: x[:, window], found.states)
    return start, end, found.actions[:, :window]
