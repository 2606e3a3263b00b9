"""What a policy of actions is worth without a robot: its success in what a world model imagines.

From the first frame of each start state the policy acts on imagined frames, a window at a time: its
action is repeated for the steps of a window, of chunks the first steps are taken; an `ActionMap`
says the z of these actions, `Imagination.step` the next frame, and a judge whether the task is
done there (evidence/judges.py, which also says what privileged knowledge that takes). No simulator
is stepped. In truth policies are asked at each step, here once a window.

Whether that is worth anything is a question of many policies: `ranked` sets what was said of each
beside its success in closed loop from the same start states.

Shape suffixes: N start states, K windows, W steps of a window, A numbers of an action, P policies.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.progress import Progress
from lapa_jax.diagnostics.statistics import wilson_interval
from lapa_jax.envs import words
from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import as_chunks, render_states
from lapa_jax.evidence.judges import Judge, windows_of
from lapa_jax.evidence.policy import acting, check_acts
from lapa_jax.report.picture import to_uint8
from lapa_jax.runs.loaded import Model
from lapa_jax.world.action_map import ActionMap
from lapa_jax.world.imagination import Imagination

BATCH = 100  # start states that are imagined side by side


@dataclasses.dataclass(frozen=True)
class ImaginedSuccess:
    """report: as JSON; `by_window` counts episodes by the window in which they were first done.
    windows: int (N,), of each start state that in which the task was first
    done, from 1 on, 0 where it never was."""

    report: dict[str, Any]
    windows: np.ndarray

    @property
    def outcomes(self) -> np.ndarray:
        """bool (N,): done at any time."""
        return self.windows > 0


def evaluate_imagined(
    policy: Model,
    imagination: Imagination,
    actions: ActionMap,
    judge: Judge,
    family: str,
    *,
    episodes: int,
    seed: int,
    view: str = "",
    phrasings: str = "train",
) -> ImaginedSuccess:
    """Success of a policy in what is imagined from the fixed start states of (seed, family) of the
    judge's environment, for its horizon, with a Wilson interval; the likeliest actions. Options as
    of `evidence.policy.evaluate_success`, whose start states and instructions these are, so that
    outcomes are paired. Raises ValueError as that, for a policy that sees the robot's state or
    images of another size, for chunks shorter than a window, and as `judges.windows_of`."""
    env, stage = judge.env, policy.stage
    if episodes < 1:
        raise ValueError(f"{episodes=} must be at least 1")
    check_policy(policy, imagination, actions, env)
    windows = windows_of(env, imagination, actions)
    view = view or env.spec.views[0]
    states = env.evaluation_states(seed, family, episodes)
    told = stage.prompts(words.of_all(env, phrasings, states, family, seed))
    act, key = jax.jit(acting(stage)), jax.random.key(seed)
    found = []
    with Progress("imagine", episodes * windows, unit="frame") as bar:
        bar.waits()
        for first in range(0, episodes, BATCH):
            # One shape, one program: the last batch is filled up.
            rows = np.resize(np.arange(first, min(first + BATCH, episodes)), BATCH)
            here, prompts = jax.tree.map(lambda x, rows=rows: x[rows], (states, told))
            frame = np.asarray(render_states(env, here, imagination.image_size, view))
            state, done = imagination.start(frame), np.zeros(BATCH, np.int64)
            for k in range(windows):
                asked = jax.random.fold_in(key, k * actions.steps)
                said = act(policy.params, policy.variables, frame, prompts, asked)
                z = actions.map(of_window(np.asarray(said), actions.steps))
                state, frame = imagination.step(state, z)
                frame = to_uint8(frame)  # as policies see frames
                done = np.where((done == 0) & judge.judged(here, frame), k + 1, done)
                bar.update(min(BATCH, episodes - first))
            found.append(done[: min(BATCH, episodes - first)])
    done = np.concatenate(found)
    successes = int((done > 0).sum())
    report = {
        "family": family,
        "successes": successes,
        "episodes": episodes,
        "windows": windows,
        "by_window": np.bincount(done, minlength=windows + 1)[1:].tolist(),
        "steps_of_window": actions.steps,
        "seed": seed,
        **wilson_interval(successes, episodes).as_dict(),
    }
    return ImaginedSuccess(report, done)


def of_window(said: np.ndarray, steps: int) -> np.ndarray:
    """Actions float32 (B, W, A) of the W steps of a window: one, (B, A) or (B, 1, A), is repeated,
    of a chunk (B, n, A) the first W are taken."""
    chunks = np.asarray(as_chunks(said))
    if chunks.shape[1] == 1:
        return np.repeat(chunks, steps, axis=1)
    return chunks[:, :steps]


def check_policy(
    policy: Model, imagination: Imagination, actions: ActionMap, env: Environment
) -> None:
    """Raises ValueError as `evaluate_imagined`."""
    check_acts(policy, env)
    stage = policy.stage
    if stage.state is not None:
        raise ValueError(
            f"{policy.workdir} sees the robot's state (model.state), which imagined frames do not "
            "have"
        )
    size = tuple(policy.config.data.image_size)
    if size != imagination.image_size:
        raise ValueError(
            f"{policy.workdir} sees images of {size}, {imagination.model.workdir} imagines "
            f"{imagination.image_size} (data.image_size)"
        )
    horizon = stage.head.horizon
    if 1 < horizon < actions.steps:
        raise ValueError(
            f"{policy.workdir} says {horizon} actions at once (data.action_horizon), a window has "
            f"{actions.steps}: 1, or at least as many as a window"
        )


def agreement(said: np.ndarray, real: np.ndarray) -> Mapping[str, float | None]:
    """Of outcomes bool (N,) from the same start states: `accuracy`, the share that is the same,
    `chance`, that of independent outcomes of these rates, and `phi`, their correlation, None where
    one of them never changes."""
    said, real = np.asarray(said), np.asarray(real)
    if said.dtype != bool or real.dtype != bool or said.shape != real.shape or said.ndim != 1:
        raise ValueError(
            "outcomes must be two bool arrays of one length, got "
            f"{said.dtype} {said.shape} and {real.dtype} {real.shape}"
        )
    a, b = said.mean(), real.mean()
    spread = np.sqrt(a * (1 - a) * b * (1 - b))
    return {
        "accuracy": float((said == real).mean()),
        "chance": float(a * b + (1 - a) * (1 - b)),
        "phi": float(((said & real).mean() - a * b) / spread) if spread else None,
    }
