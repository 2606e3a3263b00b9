"""What only a simulator can tell of latent actions.

Transfer: z is read off one scene's motion and decoded from another scene's frame; the simulator
tells what the same actions do there. Leakage: how much of a code comes from motion that no action
made.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.diagnostics.reconstruction import image_errors, reconstruction_report
from lapa_jax.diagnostics.statistics import bootstrap_ratio
from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import collect_expert, render_states
from lapa_jax.runs.loaded import Model

NOISE = 0.3  # of the expert, so that motions differ


def evaluate_transfer(
    run: Model,
    env: Environment,
    *,
    episodes: int,
    seed: int,
    window_seconds: float,
    view: str = "",
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One motion of a window per episode, taken to the scene of the next episode: (report, frames
    by name, (episodes, H, W, 3)).

    Skill (1 − MSE / MSE of a copy, intervals over episodes) of the frame decoded from `z` of the
    other scene, of `own` (the z of the true pair: what the decoder could reach), and of `shuffled`
    (the z of a third scene: what any z gives). `same_code_as_own` is None without codes.
    """
    view = view or env.spec.views[0]
    window = window_steps(window_seconds, env)
    start, end, actions = _motions(env, episodes, seed, window)
    there = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), start)

    def follow(state, actions):
        for t in range(window):
            state = env.step(state, actions[t])
        return state

    moved = jax.jit(jax.vmap(follow))(there, actions)
    size = run.config.data.image_size
    here, later, there, truth = (
        render_states(env, s, size, view) for s in (start, end, there, moved)
    )
    read, decode = jax.jit(run.stage.read), jax.jit(run.stage.decode_latent)
    other = read(run.params, run.variables, here, later)
    own = read(run.params, run.variables, there, truth)
    latent_actions = {
        "z": other.received_BLQ,
        "own": own.received_BLQ,
        "shuffled": jnp.roll(other.received_BLQ, 1, axis=0),
    }
    frames = {"first": here, "later": later, "other scene": there, "simulated": truth}
    frames = {name: np.asarray(x) for name, x in frames.items()}
    report: dict[str, Any] = {"episodes": episodes, "seed": seed, "view": view}
    for name, received in latent_actions.items():
        decoded = np.asarray(decode(run.params, run.variables, there, received))
        errors = image_errors(frames["other scene"], frames["simulated"], decoded)
        found = reconstruction_report(*errors, np.arange(episodes), seed=seed)
        report[name] = {key: found[key] for key in ("skill", "skill_interval", "psnr")}
        frames[f"decoded from {name}"] = np.clip(decoded, 0.0, 1.0)
    same = None if own.z_BL is None else float(np.mean(np.all(other.z_BL == own.z_BL, axis=1)))
    report["same_code_as_own"] = same
    return report, frames


def evaluate_distractors(
    run: Model, env: Environment, *, episodes: int, seed: int, window_seconds: float
) -> dict[str, Any]:
    """Latent actions of the view with moving distractors, of one window per episode.

    `changed_still`: share of codes that the distractors alone change, where nothing else moves;
    `changed_moving`: the same where the robot moves. Each with the share to expect if codes were
    drawn at random from how often they are used (`chance`). Of a continuous latent: the squared
    distance that they move it, over that between windows (`chance` 1). A quantizer of actions has
    0. For environments with a view "distractors" and a clock in their states.
    """
    window = window_steps(window_seconds, env)
    start, end, _ = _motions(env, episodes, seed, window)
    # Distractors move with the clock of the state: the scene stands still, the clock runs.
    later = start.replace(time=end.time)
    size = run.config.data.image_size
    read = jax.jit(run.stage.read)
    report: dict[str, Any] = {"episodes": episodes, "seed": seed}
    for name, last in (("changed_still", later), ("changed_moving", end)):
        plain, distracted = (
            read(
                run.params,
                run.variables,
                *(render_states(env, states, size, view) for states in (start, last)),
            )
            for view in (env.spec.views[0], "distractors")
        )
        if plain.z_BL is None:
            moved = np.square(plain.latent_BLQ - distracted.latent_BLQ).sum((1, 2))
            between = 2.0 * np.var(distracted.latent_BLQ, axis=0, ddof=1).sum()
            changed, chance = moved / between, 1.0
        else:
            changed = np.any(plain.z_BL != distracted.z_BL, axis=1)
            shares = np.unique(distracted.z_BL, axis=0, return_counts=True)[1] / episodes
            chance = float(1.0 - np.square(shares).sum())
        found = bootstrap_ratio(changed, np.ones(episodes), np.arange(episodes), seed=seed)
        report[name] = found.as_dict() | {"chance": chance}
    return report


def window_steps(window_seconds: float, env: Environment) -> int:
    """The window in control steps of the environment."""
    steps = round(window_seconds * env.spec.control_hz)
    if steps < 1:
        raise ValueError(
            f"the window of {window_seconds} s is under one control step of "
            f"{1 / env.spec.control_hz} s"
        )
    return steps


def _motions(env: Environment, episodes: int, seed: int, window: int) -> tuple[Any, Any, jax.Array]:
    """States before and after the first window of each expert episode, and its actions."""
    keys = jax.random.split(jax.random.key(seed), episodes)
    found = collect_expert(env, keys, None, window, NOISE)
    start = jax.tree.map(lambda x: x[:, 0], found.states)
    end = jax.tree.map(lambda x: x[:, window], found.states)
    return start, end, found.actions[:, :window]
