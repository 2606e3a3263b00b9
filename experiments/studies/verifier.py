r"""Does it pay to let imagination decide how much of a chunk of actions is executed?

Shows: success and calls of one policy that says chunks of 16 actions, for fixed execution horizons
and for verifiers (lapa_jax/world/verifier.py) of several rates of false alarms, with and without
pushes, on the same start states; docs/world.md has what came out. The latent VLA that the policy is
fine-tuned from, and the quantizer that imagines, are those of a finished headline study:

    lapa study studies/verifier:headline=runs/headline --workdir runs/verifier

Cost: 3,000 labelled episodes (half a minute) and one fine-tuning, which took a quarter of an hour
on two CPU cores beside other jobs, then up to half a minute a cell. `--size quick` claims nothing.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import build_index
from experiments import base
from experiments.action_vla import tabletop
from lapa_jax import envs
from lapa_jax.diagnostics.statistics import Interval, hierarchical
from lapa_jax.envs.checked import Check, Pushes
from lapa_jax.envs.collect import collect
from lapa_jax.envs.execution import Execution
from lapa_jax.evidence.policy import evaluate_success
from lapa_jax.evidence.verified import Verification, check_verifier, open_calibration
from lapa_jax.report.figures import Picture, dot_plots
from lapa_jax.runs.loaded import Model, load
from lapa_jax.studies import contrasts
from lapa_jax.studies.record import percent
from lapa_jax.studies.study import Cell, Part, Study, check_seeds, train_part
from lapa_jax.world.verifier import Calibration

SCENE = {"name": "tabletop", "families": ("reach",), "blocks": 4, "horizon": 40}
CHUNK, WINDOW = 16, 2
LENGTHS = (2, 4, 6, 8, 12, 16)
FALSE_ALARMS = (0.01, 0.05, 0.2, 0.4)
TOLD = "told"  # who is told of pushes instead of imagining anything: what could be had
SHORT = 8  # of arms that execute at most so much of a chunk, and may drop that
PUSHES = {"none": Pushes(), "pushes": Pushes(push_rate=0.1, push_steps=4)}
# Of many episodes, from which a policy learns to solve most starts, and of the held-out ones.
DATA_SEED, HELD_OUT_SEED = 502, 601
SIZES = {
    "quick": {"labels": 40, "held_out": 100, "rollouts": 8, "steps": 20},
    "cpu": {},
    "gpu": {"seeds": 5, "rollouts": 1000},
}


def get_study(arg: str | None, workdir: Path) -> Study:
    """`headline`: a finished headline's workdir. `arms` joined by +: fixed execution horizons
    ("fixed_8"), verifiers ("verifier_0.05", by false alarms) and "told", who knows the pushes; of
    at most 8 actions of a chunk "verifier8_0.05" and "told8".
    `labels`: episodes with actions; `held_out`: of calibration. `seeds`: of fine-tuning, `steps` of
    it. `rollouts`: start states. `rest`: learning rate of all but the head, as a part of its."""
    known = [f"fixed_{n}" for n in LENGTHS] + [f"verifier_{a:g}" for a in FALSE_ALARMS] + [TOLD]
    known += [f"verifier{SHORT}_{a:g}" for a in FALSE_ALARMS[:3]] + [f"{TOLD}{SHORT}"]
    arg = base.parse_study_arg(
        arg,
        SIZES,
        headline="runs/headline",
        arms="+".join(known),
        labels=3000,
        held_out=200,
        seeds=1,
        steps=1500,
        rollouts=300,
        rest=0.2,
    )
    arms = arg.arms.split("+")
    for arm in arms:
        base.require("arms", arm, known)
    check_seeds({"labelled episodes": DATA_SEED, "held-out ones": HELD_OUT_SEED})
    env = envs.make(SCENE)
    data = workdir / "data"

    def collected() -> dict[str, int]:
        jobs = {"many": (arg.labels, DATA_SEED, 0.2), "heldout": (arg.held_out, HELD_OUT_SEED, 0.3)}
        for name, (episodes, seed, noise) in jobs.items():
            if not (data / name / "robot" / "dataset_info.json").exists():
                job = dict(episodes=episodes, seed=seed, noise=noise, size=(64, 64))
                collect(env, data / name, views=("robot",), **job)
            build_index(data / name / "robot", progress=False)
        return {"labelled": arg.labels, "held_out": arg.held_out}

    @functools.cache
    def made(run: Path) -> tuple[Model, Calibration]:
        """For all cells of a seed."""
        imagines = str(Path(arg.headline) / "quantizer_s0")
        options = Verification(verifier=imagines, verifier_corpus=str(data / "heldout" / "robot"))
        policy = load(run)
        return policy, open_calibration(policy, options)

    def cell(arm: str, pushed: str, seed: int) -> Cell:
        name = f"chunk{CHUNK}_s{seed}"

        def success() -> list[dict[str, Any]]:
            return [_success(arm, PUSHES[pushed], *made(workdir / name), arg.rollouts)]

        trained = train_part(f"train_{name}", _config(arg, data, seed), workdir / name)
        last = Part(f"success_{arm.replace('.', '-')}_{pushed}_s{seed}", success)
        return Cell(
            {"arm": arm, "pushes": pushed, "seed": seed},
            (Part("collect", collected), trained, last),
        )

    return Study(
        workdir,
        [
            cell(arm, pushed, seed)
            for seed in range(arg.seeds)
            for pushed in PUSHES
            for arm in arms
            if not arm.startswith(TOLD) or PUSHES[pushed].push_rate
        ],
    )


class Told:
    """Drops a chunk at the first look after a push began or went on; it is told of these."""

    every = WINDOW

    def __init__(self, pushes_NTA: np.ndarray):
        self.pushed_NT = ~np.isnan(pushes_NTA).any(-1)
        self.asked_at = np.zeros(len(pushes_NTA), int)

    def asked(self, t: int, images: np.ndarray, chunks: np.ndarray, due: np.ndarray) -> None:
        self.asked_at = np.where(due, t, self.asked_at)

    def drops(self, t: int, images: np.ndarray, looks: np.ndarray) -> np.ndarray:
        since = np.arange(self.pushed_NT.shape[1]) >= self.asked_at[:, None]
        return (looks > 0) & (self.pushed_NT & since)[:, :t].any(1)


def _success(
    arm: str, pushes: Pushes, policy: Model, calibration: Calibration, rollouts: int
) -> dict[str, Any]:
    env, (kind, _, value) = envs.make(SCENE), arm.partition("_")
    most = SHORT if kind.endswith(str(SHORT)) else CHUNK
    how = Execution(execute=int(value) if kind == "fixed" else most)
    check: Check | None = None
    told: dict[str, Any] = {}
    if kind.startswith("verifier"):
        verifier = calibration.at(float(value))
        check_verifier(verifier, env.spec, how)
        check, told = verifier.watch(), {"verifier": dict(verifier.report)}
    elif kind.startswith(TOLD):
        check = Told(pushes.drawn(env.spec, 0, rollouts, env.spec.horizon))
    options = dict(episodes=rollouts, seed=0, how=how, check=check, pushes=pushes)
    found = evaluate_success(policy, env, "reach", **options)
    length = np.asarray(found.rollouts.length).tolist()
    outcomes = {"calls": found.calls.tolist(), "length": length}
    outcomes["outcomes"] = np.asarray(found.rollouts.success).tolist()
    return found.report | told | outcomes


def tables(rows: contrasts.Rows) -> dict[str, list[list[str]]]:
    """By pushes: success and calls of every arm, and beside fixed lengths at equal calls."""
    found = {}
    for pushed in PUSHES:
        here = [row for row in rows if row["pushes"] == pushed]
        header = ["arm", "successes", "calls an episode", "actions a call", "looks that drop"]
        shown = [[*header, f"less `fixed_{CHUNK}`", "less fixed lengths at equal calls"]]
        for arm in dict.fromkeys(row["arm"] for row in here):
            own = contrasts.chosen(here, {"arm": arm})
            counts = ", ".join(str(sum(row["outcomes"])) for row in own)
            calls = np.mean([np.mean(row["calls"]) for row in own])
            acted = sum(sum(row["length"]) for row in own) / sum(sum(row["calls"]) for row in own)
            drops = "" if arm.startswith("fixed") else f"{np.mean([r['dropped'] for r in own]):.1%}"
            beside = [_beside(here, arm, of) for of in (_longest, _equal)]
            cells = f"{counts} of {len(own[0]['outcomes'])}", f"{calls:.2f}", f"{acted:.2f}", drops
            shown.append([f"`{arm}`", *cells, *beside])
        found[pushed] = shown
    return found


def figures(rows: contrasts.Rows) -> dict[str, Picture]:
    """Success and calls of every arm."""
    dots: dict[str, dict[str, Any]] = {}
    for row in rows:
        dot = dots.setdefault(row["arm"], {"arm": row["arm"]})
        own = contrasts.chosen(rows, {"arm": row["arm"], "pushes": row["pushes"]})
        rate = _interval([np.array(one["outcomes"], np.float64) for one in own])
        name = f"success, {row['pushes']}"
        dot |= {name: rate.estimate, f"{name}_low": rate.low, f"{name}_high": rate.high}
        dot[f"calls, {row['pushes']}"] = float(np.mean([np.mean(one["calls"]) for one in own]))
    names = [f"{what}, {p}" for p in PUSHES for what in ("success", "calls")]
    known = {name: name for name in names if any(name in dot for dot in dots.values())}
    caption = "Success with 95 % intervals, and calls of the policy an episode."
    return {caption: dot_plots(list(dots.values()), "arm", known)}


def _beside(rows: contrasts.Rows, arm: str, of: Any) -> str:
    """The success of an arm less that of what `of` says, start by start, of the seeds it has."""
    gaps = []
    for row in contrasts.chosen(rows, {"arm": arm}):
        fixed = [r for r in rows if r["seed"] == row["seed"] and r["arm"].startswith("fixed")]
        other = of(row, fixed)
        if other is None:
            return "" if arm.startswith("fixed") else "–"
        gaps.append(np.array(row["outcomes"], np.float64) - other)
    return percent(_interval(gaps), "points")


def _interval(gaps: Sequence[np.ndarray]) -> Interval:
    return hierarchical(np.array(gaps)[:, None], seed=0).difference


def _longest(row: dict[str, Any], fixed: Sequence[dict[str, Any]]) -> np.ndarray | None:
    found = [one for one in fixed if one["arm"] == f"fixed_{CHUNK}"]
    return np.array(found[0]["outcomes"], np.float64) if found and found[0] != row else None


def _equal(row: dict[str, Any], fixed: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """Of the two fixed lengths whose calls are next to those of the row, so much of each that
    together they call as often; None of a fixed length, and where there are no two."""
    if row in fixed:
        return None
    calls = np.mean(row["calls"])
    less = [one for one in fixed if np.mean(one["calls"]) <= calls]
    more = [one for one in fixed if np.mean(one["calls"]) > calls]
    if not less or not more:
        return None
    low = max(less, key=lambda one: np.mean(one["calls"]))
    high = min(more, key=lambda one: np.mean(one["calls"]))
    share = (calls - np.mean(low["calls"])) / (np.mean(high["calls"]) - np.mean(low["calls"]))
    outcomes = (np.array(one["outcomes"], np.float64) for one in (low, high))
    return sum(x * weight for x, weight in zip(outcomes, (1 - share, share), strict=True))


def _config(arg: ConfigDict, data: Path, seed: int) -> ConfigDict:
    config = tabletop.get_config(
        f"data={data / 'many' / 'robot'},init_from={Path(arg.headline) / 'latent_vla_s0'},"
        f"head=chunk,horizon={CHUNK}"
    )  # as large as the latent VLA, whatever the study's size
    config.seed, config.steps = seed, arg.steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, arg.steps // 2)
    config.optimizer.groups.rest.lr_scale = arg.rest
    return config
