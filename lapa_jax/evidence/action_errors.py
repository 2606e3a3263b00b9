"""How far a policy's actions are from those of episodes, in the units of the data.

Beside what needs no policy: the mean action, and the action before repeated. And beside what its
tokens could say at best: the true actions through them and back.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.loader import DataSettings, Loader
from data_pipelines.loader.loader import Plan
from data_pipelines.normalise import Normaliser
from data_pipelines.progress import Progress
from lapa_jax.diagnostics.statistics import bootstrap_ratio
from lapa_jax.runs.examples import drawn_in_training
from lapa_jax.runs.loaded import Model

POLICY, MEAN, BEFORE, TOKENS = "policy", "mean_action", "action_before", "tokens"
SHOWN = (0.1, 0.5, 0.9)  # places in the order by their error of the chunks that are shown


def evaluate_actions(
    run: Model,
    corpora: Mapping[str, Mapping[str, Any]],
    *,
    max_examples: int,
    held_out: bool = False,
) -> dict[str, dict[str, Any]]:
    """Of each corpus: examples, episodes, and for the policy, the baselines and the tokens `l1` and
    `mse` per dimension, over the steps of a chunk that are in the episode; of the policy also
    `l1_interval` (95 %, by resampling episodes), `r2` (1 - MSE / MSE of the mean action, None of a
    dimension that does not change), and of chunks `l1_by_step` and `mse_by_step`.
    `decoded` is the share of answers that are finite: the others are in no error. Of policies that
    keep the statistics of their training `out_of_range` has the share of numbers per dimension that
    are beyond them, of the true actions and of the policy's. `chunks` has some to look at.
    `seen_in_training` is the share of the examples whose episodes the training could draw from;
    `held_out` leaves these out.

    Examples are drawn once, from all with a known action. The mean action is that of these
    examples; where an episode begins, and no action was before, it stands for it, too.
    """
    predict = jax.jit(run.stage.predict)
    found = {}
    for name, corpus in corpora.items():
        *arrays, seen = _answers(run, predict, corpus, max_examples, held_out)
        found[name] = action_errors(run, *arrays) | {"seen_in_training": float(seen.mean())}
    return found


def _answers(
    run: Model, predict: Any, corpus: Mapping[str, Any], max_examples: int, held_out: bool
) -> tuple[np.ndarray, ...]:
    """Of n examples and chunks of h steps the policy's actions and the true ones (n, h, A), which
    of them are in the episode (n, h), the actions before (n, A), NaN where there is none, the
    numbers of their episodes (n,), and whether the training could draw from them (n,)."""
    stage, config = run.stage, run.config
    every = {**corpus, "fraction": 1.0, "action_fraction": 1.0, "action_set": ""}
    data = DataSettings.of(config.data).on({"corpus": every}).draw_any()
    images, *others = stage.fields_of(config)
    seen = [name for name in ("instruction", "state") if name in others]
    fields, size = (images, *seen, "action", "action_mask"), min(config.global_batch, max_examples)
    found = []
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(
            Loader(data, fields=fields, global_batch=size, seed=config.seed)
        )
        of = loader.mixture.corpora[0]
        drawn = drawn_in_training(config, of.index)
        batches = _batches(loader, drawn if held_out else None, max_examples)
        bar = stack.enter_context(Progress("actions", len(batches), unit="batch"))
        bar.waits()
        for positions in batches:
            plan = Plan(loader, positions[np.minimum(np.arange(size), len(positions) - 1)])
            plan.fill(0, plan.size)
            batch = plan.finish()
            ids = None if stage.from_pixels else batch["image_tokens"]
            prompts = stage.prompts(batch.get("instruction", [""] * size), ids, batch.get("state"))
            frames = batch["frames"] if stage.from_pixels else None
            said = jax.device_get(predict(run.params, run.variables, prompts, frames).values)
            rows = plan.rows[:, of.frames.current]
            episode = of.index.episode_of_rows(rows)
            before = of.index.actions[np.maximum(rows - 1, 0)].astype(np.float32)
            before[rows == of.index.episode_start[episode]] = np.nan
            mask = batch["action_mask"]
            shape = (size, mask.shape[1], -1)
            true = batch["action"].reshape(shape)
            if said.size != true.size:
                raise ValueError(
                    f"the actions of {of.index.directory} have {true.shape[-1]} dimensions, in "
                    f"chunks of {mask.shape[1]}; what the policy says is {list(said.shape[1:])}: "
                    "evaluate it on data like those of its training"
                )
            kept = np.arange(size) < len(positions)
            kept &= not held_out or ~drawn[episode]  # where a bad image was replaced
            arrays = (said.reshape(shape), true, mask, before, episode, drawn[episode])
            found.append([x[kept] for x in arrays])
            bar.update()
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))


def _batches(loader: Loader, left_out: np.ndarray | None, most: int) -> list[np.ndarray]:
    """Positions of the first epoch, in batches of at most `loader.global_batch`, without those of
    the episodes that are left out, bool (episodes,). Raises ValueError where nothing is left."""
    of, number = loader.mixture.corpora[0], loader.mixture.sizes[0]
    chosen = np.empty(0, np.int64)
    for step in range(-(-number // loader.global_batch)):
        plan = loader.plan(step)
        kept = plan.positions < number
        if left_out is not None:
            kept &= ~left_out[of.index.episode_of_rows(plan.rows[:, of.frames.current])]
        chosen = np.concatenate([chosen, plan.positions[kept]])[:most]
        if len(chosen) == most:
            break
    if not len(chosen):
        raise ValueError(
            f"no episode of {of.index.directory} was held out of the training: train with a "
            "smaller data.corpora.<name>.fraction, or evaluate another corpus"
        )
    return np.split(chosen, range(loader.global_batch, len(chosen), loader.global_batch))


def action_errors(
    run: Model,
    said: np.ndarray,
    true: np.ndarray,
    mask: np.ndarray,
    before: np.ndarray,
    episode: np.ndarray,
) -> dict[str, Any]:
    """As of `evaluate_actions`, of one corpus."""
    said, true = said.astype(np.float64), true.astype(np.float64)
    decoded = np.isfinite(said).all(axis=(1, 2))
    share = float(decoded.mean())
    if not share:
        raise ValueError(
            f"of {len(said)} answers of the policy none is finite: its tokens say no actions, or "
            "its parameters are damaged"
        )
    given = (said, true, mask, before, episode)
    said, true, mask, before, episode = (x[decoded] for x in given)
    horizon = true.shape[1]
    mean = true[mask].mean(axis=0)
    guesses = {
        POLICY: said,
        MEAN: np.broadcast_to(mean, true.shape),
        BEFORE: np.broadcast_to(np.where(np.isnan(before), mean, before)[:, None], true.shape),
    }
    nearest = run.stage.head.nearest(true.astype(np.float32))
    if nearest is not None:
        guesses[TOKENS] = nearest
    report: dict[str, Any] = {
        "examples": len(true),
        "episodes": len(np.unique(episode)),
        "steps": horizon,
        "decoded": share,
    }
    statistics = run.stage.head.statistics
    if statistics is not None:
        report["names"] = _names(statistics)
        report["out_of_range"] = {
            name: statistics.out_of_range(x, where=mask).tolist()
            for name, x in (("true", true), (POLICY, said))
        }
    for name, guess in guesses.items():
        off = np.where(mask[..., None], guess - true, 0.0)
        report[name] = _sizes(off, mask) | _by_step(off, mask)
    off = np.where(mask[..., None], np.abs(said - true), 0.0).sum(axis=1)
    known = mask.sum(axis=1).astype(np.float64)
    intervals = [bootstrap_ratio(one, known, episode, seed=0) for one in off.T]
    chance = np.array(report[MEAN]["mse"])
    ours = np.array(report[POLICY]["mse"])
    changes = (true[mask] != true[mask][0]).any(axis=0)
    report[POLICY] |= {
        "l1_interval": [[one.low, one.high] for one in intervals],
        "r2": [
            float(1 - mse / by_chance) if changing else None
            for mse, by_chance, changing in zip(ours, chance, changes, strict=True)
        ],
    }
    if horizon > 1:
        report["chunks"] = _to_look_at(said, true, mask, episode)
    return report


def _names(statistics: Normaliser) -> list[str]:
    """Of the dimensions, with their units, as far as they are known."""
    names = statistics.names or [f"dimension {i}" for i in range(statistics.dim)]
    units = statistics.units or [""] * statistics.dim
    return [f"{n} ({u})" if u else n for n, u in zip(names, units, strict=True)]


def _to_look_at(
    said: np.ndarray, true: np.ndarray, mask: np.ndarray, episode: np.ndarray
) -> list[dict[str, Any]]:
    """Whole chunks, at `SHOWN` of the order by their error, in which a dimension counts by how much
    the true actions spread in it."""
    spread = np.maximum(true[mask].std(axis=0), np.finfo(np.float32).tiny)
    lengths = mask.sum(axis=1)
    longest = np.flatnonzero(lengths == lengths.max())
    changes = spread > np.finfo(np.float32).tiny
    changes |= not changes.any()
    off = (np.abs(said - true) / spread)[longest][:, :, changes].mean(axis=(1, 2))
    order = longest[np.argsort(off, kind="stable")]
    found = []
    for share in SHOWN:
        i = order[round(share * (len(order) - 1))]
        known = mask[i]
        found.append(
            {
                "title": f"better than {100 - 100 * share:.0f} % of the chunks",
                "episode": int(episode[i]),
                "true": true[i][known].tolist(),
                "predicted": said[i][known].tolist(),
            }
        )
    return found


def _sizes(off: np.ndarray, mask: np.ndarray) -> dict[str, list[float]]:
    """Of errors (n, h, A) that are 0 where `mask` is False."""
    number = mask.sum()
    return {
        "l1": (np.abs(off).sum(axis=(0, 1)) / number).tolist(),
        "mse": (np.square(off).sum(axis=(0, 1)) / number).tolist(),
    }


def _by_step(off: np.ndarray, mask: np.ndarray) -> dict[str, list[list[float] | None]]:
    """Of chunks: a list per step, or None where no example is so far from the end."""
    if off.shape[1] == 1:
        return {}
    steps = [
        _sizes(off[:, i : i + 1], mask[:, i : i + 1]) if mask[:, i].any() else {}
        for i in range(off.shape[1])
    ]
    return {f"{name}_by_step": [step.get(name) for step in steps] for name in ("l1", "mse")}


def table(report: Mapping[str, Any]) -> list[list[Any]]:
    """A head and a row for each dimension, then for each step of a chunk the mean over them."""
    others = [name for name in (MEAN, BEFORE, TOKENS) if name in report]
    head = ["dimension", "L1", "MSE", "R²", *(f"L1, {NAMES[name]}" for name in others)]
    ours = report[POLICY]
    names = report.get("names") or [str(i) for i in range(len(ours["l1"]))]
    rows = [
        [names[i], l1, mse, r2, *(report[name]["l1"][i] for name in others)]
        for i, (l1, mse, r2) in enumerate(zip(ours["l1"], ours["mse"], ours["r2"], strict=True))
    ]
    if beyond := report.get("out_of_range"):
        head += ["true out of range", "policy's"]
        rows = [[*row, *x] for row, *x in zip(rows, beyond["true"], beyond[POLICY], strict=True)]
    return [head, *rows]


def steps_table(report: Mapping[str, Any]) -> list[list[Any]]:
    """Of chunks: a head and a row for each step, of L1 per dimension; else nothing."""
    by_step = report[POLICY].get("l1_by_step")
    if not by_step:
        return []
    dimensions = len(report[POLICY]["l1"])
    head = ["step", *(report.get("names") or [f"dimension {i}" for i in range(dimensions)])]
    return [head, *([str(i), *(one or [None] * dimensions)] for i, one in enumerate(by_step))]


NAMES = {MEAN: "mean action", BEFORE: "action before", TOKENS: "tokens at best"}
