"""Whether a task is done, told from frames: imagined ones have no simulator that could be asked.

A small network reads where the effector is off one frame; the rest is privileged knowledge of the
evaluator: the state that the episode starts from, in which the effector is put where it was read,
is asked for success by the simulator's own rule. That suits tasks that are done by where the
effector is, with a target that stays where it starts: `reach` of the tabletop, whose block is
reached before it is pushed. The policy knows nothing of this.

A judge is taught by true frames and by frames that were imagined along the same episodes, from
their first frame and their true actions, at the places where the simulator knows the effector to
be: of true frames alone it does not learn to read blurred ones. Episodes are the expert's, half
with the little noise of videos, half with so much that they wander. How well it reads, on other
episodes, is in its report: without that a success that it tells means nothing.

Shape suffixes: N episodes, K windows, B frames, H, W image rows and columns.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.progress import Progress
from lapa_jax.envs.env import Environment
from lapa_jax.envs.rollout import collect_expert, render_states
from lapa_jax.report.picture import to_uint8
from lapa_jax.world.action_map import ActionMap
from lapa_jax.world.imagination import Imagination

NOISES = (0.3, 2.0)  # of the expert, as a part of the action range; they take turns
KERNELS = ((5, 3, 16), (5, 16, 32), (3, 32, 32), (3, 32, 1))  # side, channels in and out
STRIDES = (2, 2, 1, 1)
STEPS, BATCH, LEARNING_RATE = 800, 64, 3e-3


@dataclasses.dataclass(frozen=True)
class Judge:
    """weights: of the network. report: how well it tells on episodes that it did not learn from:
    of `true` frames and of `imagined` ones the mean error of the place, metres, and the share of
    frames whose success it tells rightly, of imagined ones by window; and of whole episodes, done
    or not by their end, `accuracy`, and the shares that are done truly and by what it says."""

    env: Environment
    weights: dict[str, np.ndarray]
    report: dict[str, Any]

    def places(self, frames_BHWC: np.ndarray) -> np.ndarray:
        """Where the effector is, float32 (B, 2), metres, in frames uint8."""
        return np.asarray(_places(self.weights, frames_BHWC))

    def judged(self, states: Any, frames_BHWC: np.ndarray) -> np.ndarray:
        """bool (B,): whether the tasks of these states, a batch, are done in these frames."""
        return np.asarray(_done(self.env, states, self.places(frames_BHWC)))

    def save(self, path: Path) -> None:
        """Weights as an .npz file; the report is with whoever trained it."""
        with open(path, "wb") as file:
            np.savez(file, **self.weights)

    @classmethod
    def load(cls, env: Environment, path: Path) -> "Judge":
        """Of `save`, without a report."""
        check_env(env)
        with np.load(path, allow_pickle=False) as found:
            return cls(env, {name: found[name] for name in found.files}, {})


def check_env(env: Environment) -> None:
    """Raises ValueError for an environment whose success is not told by where the effector is."""
    if env.spec.name != "tabletop" or env.spec.tasks != ("reach",):
        raise ValueError(
            f"evaluation.env {env.spec.name} with tasks {', '.join(env.spec.tasks)}: success is "
            "read off a frame for the tabletop with families=('reach',) alone"
        )


def train_judge(
    env: Environment,
    imagination: Imagination,
    actions: ActionMap,
    *,
    view: str = "",
    episodes: int = 300,
    seed: int = 0,
    steps: int = STEPS,
) -> Judge:
    """A judge of what this imagination draws, of `view` (default: the first), taught by so many
    episodes and tested on half as many more. Start states are of `env.training_keys(seed)`: never
    those of an evaluation. Raises ValueError as `check_env`, and for fewer than two episodes or no
    step."""
    check_env(env)
    if episodes < 2 or steps < 1:
        raise ValueError(f"{episodes=} must be at least 2, and {steps=} at least 1")
    windows_of(env, imagination, actions)
    view = view or env.spec.views[0]
    true, drawn, states = _episodes(env, imagination, actions, view, episodes * 3 // 2, seed)
    frames = np.concatenate([true[:, 1:], drawn], axis=1)
    places_NK = np.asarray(states.effector)[:, 1:]
    places_NK = np.concatenate([places_NK, places_NK], axis=1)
    # Noises take turns over episodes, so both are in either part.
    x, y = (a[:episodes].reshape(-1, *a.shape[2:]) for a in (frames, places_NK))
    weights = _trained(x, y, steps=steps, seed=seed)
    judge = Judge(env, weights, {})
    held = jax.tree.map(lambda a: a[episodes:], states)
    return dataclasses.replace(
        judge, report=_tested(judge, true[episodes:], drawn[episodes:], held)
    )


def windows_of(env: Environment, imagination: Imagination, actions: ActionMap) -> int:
    """K: how many windows an episode of the environment has at most. Raises ValueError where the
    three do not go together."""
    spec, where = env.spec, imagination.model.workdir
    if actions.dim != spec.action_dim:
        raise ValueError(
            f"actions of {spec.name} have {spec.action_dim} dimensions, the map to z of {where} "
            f"takes {actions.dim}: fit it on a corpus of this environment"
        )
    steps = imagination.window_seconds * spec.control_hz
    if abs(steps - actions.steps) > 1e-6:
        raise ValueError(
            f"a window of {where} is {imagination.window_seconds:g} s, {steps:g} steps of "
            f"{spec.name} at {spec.control_hz:g} Hz; the map to z takes {actions.steps}"
        )
    if actions.shape != imagination.shape:
        raise ValueError(
            f"the map gives z of shape {list(actions.shape)}, {where} takes "
            f"{list(imagination.shape)}"
        )
    if spec.horizon % actions.steps:
        raise ValueError(
            f"the horizon of {spec.name}, {spec.horizon} steps, is no number of windows of "
            f"{actions.steps} steps: choose another evaluation.env.horizon"
        )
    return spec.horizon // actions.steps


def _episodes(
    env: Environment,
    imagination: Imagination,
    actions: ActionMap,
    view: str,
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """(true frames (N, K + 1, H, W, 3), imagined ones (N, K, H, W, 3), the states (N, K + 1) a
    window apart) of so many episodes."""
    keys, size, steps = env.training_keys(seed, count), imagination.image_size, actions.steps
    kinds = [
        collect_expert(env, keys[first::2], None, env.spec.horizon, noise)
        for first, noise in enumerate(NOISES)
    ]
    order = np.argsort(np.concatenate([np.arange(i, count, 2) for i in range(2)]))
    whole = jax.tree.map(lambda *x: np.concatenate(x)[order], *kinds)
    states = jax.tree.map(lambda x: x[:, ::steps], whole.states)
    K, true, drawn = env.spec.horizon // steps, [], []
    z = np.stack(
        [actions.map(whole.actions[:, k * steps : (k + 1) * steps]) for k in range(K)], axis=1
    )
    with Progress("imagine for the judge", K, unit="window") as bar:
        bar.waits()
        for k in range(K + 1):
            here = jax.tree.map(lambda x, k=k: x[:, k], states)
            true.append(np.asarray(render_states(env, here, size, view)))
        state = imagination.start(true[0])
        for k in range(K):
            state, frame = imagination.step(state, z[:, k])
            drawn.append(to_uint8(frame))
            bar.update()
    return np.stack(true, axis=1), np.stack(drawn, axis=1), states


def _tested(judge: Judge, true: np.ndarray, drawn: np.ndarray, states: Any) -> dict[str, Any]:
    truth = np.stack(
        [np.asarray(_done(judge.env, _at(states, k), None)) for k in range(true.shape[1])], 1
    )
    start, report = _at(states, 0), {"episodes": len(true), "done": float(truth.any(1).mean())}
    for name, frames in (("true", true[:, 1:]), ("imagined", drawn)):
        errors, told = [], []
        for k in range(frames.shape[1]):
            place = judge.places(frames[:, k])
            errors.append(np.linalg.norm(place - np.asarray(_at(states, k + 1).effector), axis=1))
            told.append(np.asarray(_done(judge.env, start, place)))
        told_NK, right = np.stack(told, 1), np.stack(told, 1) == truth[:, 1:]
        own = {"error": np.mean(errors, axis=1), "frame_accuracy": right.mean(0)}
        if name == "true":
            own = {key: value.mean() for key, value in own.items()}
        report[name] = {key: np.asarray(value).tolist() for key, value in own.items()} | {
            "accuracy": float((told_NK.any(1) == truth.any(1)).mean()),
            "done": float(told_NK.any(1).mean()),
        }
    return report


def _at(states: Any, k: int) -> Any:
    return jax.tree.map(lambda x: x[:, k], states)


def _done(env: Environment, states: Any, places_B2: np.ndarray | None) -> jax.Array:
    """Success of a batch of states, with the effector at these places."""
    if places_B2 is not None:
        states = states.replace(effector=jnp.asarray(places_B2))
    return jax.vmap(env.success)(states)


# --- The network ---


@jax.jit
def _places(weights: dict[str, jax.Array], frames_BHWC: jax.Array) -> jax.Array:
    """Where convolutions look the most (a soft maximum over cells), in metres."""
    x = frames_BHWC.astype(jnp.float32) / 255.0 - 0.5
    for n, stride in enumerate(STRIDES):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x if n == 0 else jax.nn.relu(x),
            weights[f"kernel_{n}"],
            (stride, stride),
            "SAME",
            dimension_numbers=dims,
        )
        x = x + weights[f"bias_{n}"]
    B, H, W, _ = x.shape
    shares_BHW = jax.nn.softmax(x.reshape(B, -1)).reshape(B, H, W)
    across = jnp.sum(shares_BHW * jnp.linspace(-1.0, 1.0, W), (1, 2))
    down = jnp.sum(shares_BHW * jnp.linspace(-1.0, 1.0, H)[:, None], (1, 2))
    return jnp.stack([across, down], axis=1) @ weights["scale"] + weights["offset"]


def _trained(x: np.ndarray, y: np.ndarray, *, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Weights by the mean absolute error of frames uint8 (N, H, W, 3) and places (N, 2)."""
    rng = np.random.default_rng(seed)
    weights = {"scale": np.diag([0.3, -0.3]).astype(np.float32), "offset": y.mean(0)}
    for n, (side, inner, outer) in enumerate(KERNELS):
        spread = np.sqrt(2.0 / (side * side * inner))
        shape = (side, side, inner, outer)
        weights[f"kernel_{n}"] = rng.normal(0.0, spread, shape).astype(np.float32)
        weights[f"bias_{n}"] = np.zeros(outer, np.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    state = optimizer.init(weights)

    @jax.jit
    def step(weights, state, x, y):
        def loss(weights):
            return jnp.abs(_places(weights, x) - y).mean()

        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    with Progress("train the judge", steps, unit="step") as bar:
        bar.waits()
        for _ in range(steps):
            rows = rng.integers(0, len(x), BATCH)
            weights, state = step(weights, state, x[rows], y[rows])
            bar.update()
    return jax.tree.map(np.asarray, weights)
