"""Whether imagined videos can be executed: actions are read off them, and a simulator takes these
from the true start state.

The idea is RoboWM-Bench's (arXiv:2604.19092), here for latent actions and any environment with an
expert. Every row acts from the same start states, so that rows are compared in pairs. An action is
read off each window of two frames and held for its control steps, in every row alike: what that
costs is in the ceiling, `true_frames`. Nobody looks at the world but `closed_loop`.

Shape suffixes: N start states, B of them side by side, K windows, H, W image rows and columns, A
dimensions of an action, L codes or vectors of a z.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.progress import Progress
from lapa_jax import envs
from lapa_jax.diagnostics import rollouts as measures
from lapa_jax.diagnostics.reconstruction import image_errors
from lapa_jax.diagnostics.statistics import paired_difference_of_proportions, wilson_interval
from lapa_jax.envs.env import Environment, clip, usable
from lapa_jax.envs.execution import check_rate
from lapa_jax.envs.side_by_side import SideBySide, Starts, starts_of
from lapa_jax.evidence import rollouts
from lapa_jax.evidence.action_readers import ActionReader, Reads, reader_of
from lapa_jax.evidence.rollout_sources import BATCH
from lapa_jax.evidence.simulated import window_steps
from lapa_jax.report.picture import to_uint8
from lapa_jax.runs.examples import trained_window
from lapa_jax.runs.loaded import LoadedPolicy, LoadedQuantizer, Model
from lapa_jax.world.imagination import Imagination, check_policy

STARTS = 100
# Of the expert's video, as long as it is; and, by a policy, for all windows there are.
BY_VIDEO = {
    "expert": "the expert, which decides at every control step",
    "true_frames": "actions read off the expert's true frames: the ceiling of the reading",
    "imagined": "actions read off what is imagined from the first frame alone, by z of the "
    "expert's video",
    "other_z": "the same by z of the next start's video: what moving about gives",
    "first_frame": "the action read off the first frame repeated: the floor",
}
BY_POLICY = {
    "imagined_policy": "actions read off what is imagined by z that the policy says of each "
    "imagined frame",
    "closed_loop": "the same policy, imagination and reading, from the true frame of each window",
    "first_frame_throughout": "`first_frame`, for as long as the policy acts: the floor",
}
ROWS = BY_VIDEO | BY_POLICY
WATCHED = ("imagined", "imagined_policy", "closed_loop")  # of which pictures are taken
DIFFERENCES = (
    ("true_frames", "expert"),
    ("imagined", "true_frames"),
    ("imagined", "other_z"),
    ("imagined", "first_frame"),
    ("imagined_policy", "closed_loop"),
    ("imagined_policy", "first_frame_throughout"),
    ("closed_loop", "first_frame_throughout"),
)
# (frames uint8 (B, H, W, 3), instructions) → z (B, L) or (B, L, width)
Says = Callable[[np.ndarray, Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Executed:
    """A row. whole: windows whose every control step was taken. actions: of each window, of the
    expert their mean over it. beyond: the share of control steps whose action was beyond the bounds
    and was clipped to them. seen: the first frame, and what was there after each window; of an
    episode that is over, its end. plan: the imagined frames."""

    success_N: np.ndarray  # bool
    whole_NK: np.ndarray  # bool
    actions_NKA: np.ndarray  # float32
    beyond: float = 0.0
    seen_NKHWC: np.ndarray | None = None  # uint8, (N, K + 1, H, W, 3)
    plan_NKHWC: np.ndarray | None = None  # uint8


@dataclasses.dataclass(frozen=True)
class Executability:
    """true: the expert's video, uint8 (N, K + 1, H, W, 3), which ends after `windows` (N,) int.
    report: what was measured, as `rollout.json` has it."""

    starts: Starts
    true_NKHWC: np.ndarray
    windows_N: np.ndarray
    rows: dict[str, Executed]
    report: dict[str, Any]


def executability(
    imagination: Imagination,
    inverse: LoadedPolicy | LoadedQuantizer,
    *,
    labelled: Mapping[str, Any] | None = None,
    starts: int = STARTS,
    quantizer: LoadedQuantizer | None = None,
    policy: LoadedPolicy | None = None,
    steps: int | None = None,
    window_seconds: float = 0.0,
    view: str = "",
    seed: int = 0,
) -> Executability:
    """What comes of imagined videos in the environment of the run that reads actions
    (`evaluation.env`), from the first `starts` fixed start states of its tasks and `seed`.

    inverse: a run with model.inverse_dynamics, or a quantizer, whose latents are read linearly.
    labelled: of a quantizer, the episodes with actions that this is fitted on (keys as under
    data.corpora). quantizer: reads z for a dynamics run. policy: a latent VLA, for the rows that
    ask one. steps: windows of an episode at most (default: as many as its horizon holds).
    window_seconds: that of z, where the run does not tell it. view: the camera (default: the
    environment's first).

    Raises ValueError for runs that do not fit each other or the environment, for fewer than two
    starts, and for an environment without an expert; RuntimeError for one that cannot run here.
    """
    if starts < 2:
        raise ValueError(f"--execute {starts}: must be at least 2 start states, to compare them")
    says_z = rollouts.reader_of(imagination, quantizer)
    window = window_seconds or imagination.window_seconds or trained_window(says_z.config)
    windows = {window}
    if policy is not None:
        check_policy(imagination, policy)
        sets = policy.provenance.get("label_sets", {}).values()
        windows |= {labels["window_seconds"] for labels in sets}
    reader = reader_of(inverse, labelled, imagination.image_size, windows, seed)
    env = _environment(inverse, reader)
    view = view or env.spec.cameras[0]
    if view not in env.spec.views:
        raise ValueError(f"--view {view}: {env.spec.name} has {', '.join(env.spec.views)}")
    per_window = window_steps(window, env)
    most = env.spec.horizon // per_window
    if not 1 <= (steps or most) <= most:
        raise ValueError(
            f"--steps {steps or 1}: an episode of {env.spec.name} is {env.spec.horizon} control "
            f"steps (evaluation.env.horizon), {most} windows of {per_window}"
        )
    begun = starts_of(env, starts, seed)
    if policy is not None:  # before minutes of work: instructions that it cannot be told
        policy.stage.prompts(begun.instructions)
    reads, how = reader.open()
    found = measure(
        imagination,
        rollouts.z_reader(says_z),
        reads,
        begun,
        says=policy.predict_latent if policy is not None else None,
        windows=steps or most,
        per_window=per_window,
        view=view,
        size=imagination.image_size,
    )
    runs = {"inverse_dynamics": inverse, "policy": policy, "quantizer": quantizer}
    told = {
        name: {"workdir": str(run.workdir), "step": run.step, "params_hash": run.params_hash}
        for name, run in runs.items()
        if run is not None
    }
    report = {
        **told,
        "reader": how,
        "env": inverse.config.evaluation.env.to_dict(),
        "seed": seed,
        "view": view,
        "window_seconds": window,
        "control_hz": env.spec.control_hz,
        **found.report,
    }
    return dataclasses.replace(found, report=report)


def _environment(inverse: Model, reader: ActionReader) -> Environment:
    """Of the run that reads actions; raises ValueError where it does not fit."""
    where = f"--inverse_dynamics {inverse.workdir}"
    try:
        env = envs.make({**inverse.config.evaluation.env})
    except ValueError as error:
        raise ValueError(f"{where}: its environment is not to be had: {error}") from error
    spec, dim = usable(env).spec, reader.dim
    if env.expert is None:
        raise ValueError(f"{where}: {spec.name} has no expert, whose videos are imagined")
    if dim != spec.action_dim:
        raise ValueError(
            f"{where}: its actions have {dim} dimensions, those of {spec.name} "
            f"(evaluation.env) {spec.action_dim}"
        )
    check_rate(reader.control_hz, spec.control_hz, where, spec.name)
    return env


def measure(
    imagination: Imagination,
    z_of: Callable[[np.ndarray], np.ndarray],
    reads: Reads,
    starts: Starts,
    *,
    says: Says | None = None,
    windows: int,
    per_window: int,
    view: str,
    size: tuple[int, int],
) -> Executability:
    """As `executability`, of parts that are functions: `z_of` as of `rollouts.z_reader`. An episode
    has at most so many `windows`, each of `per_window` control steps."""
    texts, view_and_size = np.array(starts.instructions), {"view": view, "size": size}
    N, world = len(starts), SideBySide(starts, **view_and_size)
    with Progress("film the expert", windows, unit="window") as bar:
        bar.waits()
        true, until, expert = _film(world, windows, per_window, bar)
    first, plans = true[:, 0], {"true_frames": true[:, 1:]}

    def imagines(first: np.ndarray, z: np.ndarray) -> np.ndarray:
        return to_uint8(rollouts.imagine(imagination, first, z))

    def imagines_said(first: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return rollouts.imagine_said(imagination, says, first, texts.tolist(), windows)[1]

    with Progress("imagine", (3 if says else 2) * N, unit="video") as bar:
        bar.waits()
        z = _batched(z_of, true)
        plans["imagined"] = _batched(imagines, first, z, bar=bar)
        plans["other_z"] = _batched(imagines, first, np.roll(z, -1, axis=0), bar=bar)
        if says:
            plans["imagined_policy"] = _batched(imagines_said, first, texts, bar=bar)

    def looks(now: np.ndarray, texts: np.ndarray) -> np.ndarray:
        _, later = imagination.step(imagination.start(now), says(now, texts.tolist()))
        return reads(now, to_uint8(np.asarray(later)))

    # What says the actions of window k, where `now` are the frames of its start.
    held = _batched(reads, first, first)
    acts = {name: _read_off(reads, first, plan) for name, plan in plans.items()}
    acts["first_frame"] = acts["first_frame_throughout"] = lambda k, now: held
    acts["closed_loop"] = lambda k, now: _batched(looks, now, texts)
    rows = {"expert": expert}
    names = [name for name in (ROWS if says else BY_VIDEO) if name != "expert"]
    with Progress("execute", len(names) * windows, unit="window") as bar:
        for name in names:
            found = _execute(
                SideBySide(starts, **view_and_size),
                acts[name],
                until if name in BY_VIDEO else np.full(N, windows),
                windows,
                per_window,
                watched=name in WATCHED,
                bar=bar,
            )
            rows[name] = dataclasses.replace(found, plan_NKHWC=plans.get(name))
    report = {"windows": windows, "steps_per_window": per_window, **_report(starts, rows, until)}
    return Executability(starts, true, until, rows, report)


def _film(
    world: SideBySide, windows: int, per_window: int, bar: Progress
) -> tuple[np.ndarray, np.ndarray, Executed]:
    """(the expert's video uint8 (N, K + 1, H, W, 3), of how many windows it is (N,), its row)."""
    every = np.ones(len(world.success), bool)
    taken, frames, actions = np.zeros(len(every), int), [world.look()], []
    for _ in range(windows):
        steps = []
        for _ in range(per_window):
            steps.append(world.expert())
            taken += world.step(steps[-1], every)
        actions.append(np.mean(steps, axis=0))
        frames.append(world.look())
        bar.update()
    whole = np.arange(1, windows + 1) * per_window <= taken[:, None]
    row = Executed(world.success, whole, np.stack(actions, axis=1))
    return np.stack(frames, axis=1), -(-taken // per_window), row


def _read_off(reads: Reads, first_NHWC: np.ndarray, plan_NKHWC: np.ndarray) -> Callable:
    """Of a plan, which is not changed by what is seen."""

    def act(k: int, now_NHWC: np.ndarray | None) -> np.ndarray:
        return _batched(reads, plan_NKHWC[:, k - 1] if k else first_NHWC, plan_NKHWC[:, k])

    return act


def _execute(
    world: SideBySide,
    act: Callable[[int, np.ndarray | None], np.ndarray],
    last_N: np.ndarray,
    windows: int,
    per_window: int,
    *,
    watched: bool,
    bar: Progress,
) -> Executed:
    """A row: episode i acts for `last_N[i]` windows, or until its success."""
    N, seen = len(last_N), [world.look()] if watched else []
    whole, beyond, taken = np.zeros((N, windows), bool), 0, 0
    actions = np.zeros((N, windows, world.env.spec.action_dim), np.float32)
    for k in range(windows):
        going = k < last_N
        if (going & ~world.success).any():
            actions[:, k] = act(k, seen[-1] if watched else None)
            if not np.isfinite(actions[:, k]).all():
                raise ValueError(
                    f"window {k + 1}: the actions that are read off its frames are not finite"
                )
            action, out = clip(world.env.spec, actions[:, k])
            for _ in range(per_window):
                moved = world.step(action, going)
                beyond, taken = beyond + int(out[moved].sum()), taken + int(moved.sum())
            whole[:, k] = moved
        if watched:
            seen.append(world.look())
        bar.update()
    frames = np.stack(seen, axis=1) if watched else None
    return Executed(world.success, whole, actions, beyond / max(1, taken), frames)


def _batched(function: Callable, *arrays: np.ndarray, bar: Progress | None = None) -> np.ndarray:
    """A function of BATCH examples, compiled once, of any number of them."""
    N, found = len(arrays[0]), []
    size = min(BATCH, N)
    for start in range(0, N, size):
        given = [x[start : start + size] for x in arrays]
        count = len(given[0])
        padded = [np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)]) for x in given]
        found.append(np.asarray(function(*padded))[:count])
        if bar is not None:
            bar.update(count)
    return np.concatenate(found)


def _report(starts: Starts, rows: dict[str, Executed], until_N: np.ndarray) -> dict[str, Any]:
    told: dict[str, Any] = {}
    true = rows["expert"]
    for name, row in rows.items():
        successes, n = int(row.success_N.sum()), len(row.success_N)
        told[name] = {"what": ROWS[name], "n": n, "successes": successes}
        told[name] |= wilson_interval(successes, n).as_dict() | {"beyond_bounds": row.beyond}
        if name in BY_VIDEO and row is not true:  # as long as it goes on
            known = true.whole_NK & row.whole_NK
            told[name] |= measures.action_r2(true.actions_NKA, row.actions_NKA, known)
    differences = [
        {"of": a, "minus": b}
        | paired_difference_of_proportions(rows[a].success_N, rows[b].success_N).as_dict()
        for a, b in DIFFERENCES
        if a in rows and b in rows
    ]
    outcomes = [
        {
            "task": task,
            "number": number,
            "instruction": text,
            "windows_of_video": int(until_N[i]),
            "success": {name: bool(row.success_N[i]) for name, row in rows.items()},
        }
        for i, (task, number, text) in enumerate(
            zip(starts.tasks, starts.numbers, starts.instructions, strict=True)
        )
    ]
    pictures = {
        name: measures.executed_by_step(*_errors(row), row.whole_NK)
        for name, row in rows.items()
        if row.seen_NKHWC is not None and row.plan_NKHWC is not None
    }
    return {"rows": told, "differences": differences, "by_step": pictures, "outcomes": outcomes}


def _errors(row: Executed) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared errors float64 (N, K) against what was there: of the imagined frames, and of the
    first frame."""
    seen = row.seen_NKHWC
    found = [
        image_errors(seen[:, 0], seen[:, k + 1], row.plan_NKHWC[:, k])
        for k in range(row.whole_NK.shape[1])
    ]
    error, copy = (np.stack(x, axis=1) for x in zip(*found, strict=True))
    return error, copy
