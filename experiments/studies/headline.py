r"""Does pretraining on latent actions of videos help, by how much, and what is it that helps?

Shows: closed-loop success of every arm of experiments/studies/arms.py on the tabletop, by number of
labelled episodes; on what these name and on what only the videos show; in the setting of the
videos, with labels of one family only, and with videos of another embodiment; docs/evidence.md has
what came out.

    lapa study studies/headline --size cpu --workdir runs/headline

What a fine-tuning takes is chosen by the same grid for all main arms, on a seed that is none of
those of record:

    lapa study studies/headline:tune=True --size cpu --workdir runs/headline_tuning

Two processes share the work (`--index 0 --count 2`, `--index 1 --count 2`), and a record goes on
on another day or machine: `--record headline.json`.

`--size cpu` is of the family `reach`, `gpu` of the five pushing families, which policies that are
trained on a CPU have not learnt (docs/trials.md, "Pushing"). Cost: 14 hours of one CPU core
where others had work for it, too, and half an hour for the search.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import base
from experiments.action_vla import tabletop as action_vla
from experiments.latent_vla import tabletop as latent_vla
from experiments.quantizer import tabletop as quantizer
from experiments.studies import arms
from experiments.studies.arms import Tuned
from experiments.studies.pipeline import Pipeline
from lapa_jax.diagnostics.statistics import Interval, hierarchical, wilson_interval
from lapa_jax.studies import contrasts
from lapa_jax.studies.record import percent
from lapa_jax.studies.study import Study

# Fixed before the first run: what is asked, and which number answers it.
PUSHING = (
    "block_to_block",
    "block_to_absolute",
    "block_to_block_relative",
    "block_to_relative",
    "separate_blocks",
)
PRIMARY_LABELS = 50
BUDGETS = (10, 25, 50, 100, 250)
SEEDS = 5
OTHER_SEEDS = 3  # of arms that are not main ones, and of settings beside the videos' own
ROLLOUTS = 300  # of a seed, where there is one family; 100 a family of several
PRIMARY = (("lapa", "scratch"), ("lapa", "vpt"))

# The objective of latents that stay vectors; of experiments/studies/objectives.py the best.
FREE = "free"

# Of the search: a seed that is none of record, and other start states, this many of all families.
TUNING_SEED, TUNING_STARTS, TUNING_ROLLOUTS = 50, 1, 100
GRID = [Tuned(steps, rest) for steps in (300, 1000) for rest in (0.0, 0.1, 1.0)]
# What the search chose: results/headline.search.json.
TUNED = {
    "scratch": Tuned(300, 1.0),
    "lapa": Tuned(1000, 0.0),
    "vpt": Tuned(1000, 0.0),
    "action_vla": Tuned(300, 0.0),
}


# What differs from the defaults of `get_study`.
SIZES = {
    "quick": dict(seeds=1, budgets="8", labels=8, rollouts=2, videos=24, quantizer_steps=20)
    | dict(policy_steps=20, finetuning_steps=20, families="reach+separate_blocks"),
    "cpu": {},
    "gpu": dict(
        families="+".join(PUSHING),
        horizon=120,
        rollouts=100,
        videos=20_000,
        quantizer_steps=5000,
        policy_steps=20_000,
    ),
}


def arguments(arg: str | None) -> ConfigDict:
    """Of `get_study`, with those of its size."""
    return base.parse_study_arg(
        arg,
        SIZES,
        **dict(arms="+".join(arms.ARMS), tune=False, seeds=SEEDS, others=OTHER_SEEDS),
        **dict(budgets="+".join(map(str, BUDGETS)), labels=PRIMARY_LABELS, rollouts=ROLLOUTS),
        **dict(families="reach", blocks=4, horizon=40, videos=5000, noise=0.3),
        **dict(best="free", dim=0, depth=0),
        **dict(quantizer_steps=900, policy_steps=1400, finetuning_steps=0),
    )


def get_study(arg: str | None, workdir: Path) -> Study:
    """`arms` joined by +. `tune`: the search, not the study. `seeds`: of everything but the
    videos; `others`: the first so many of them, for other arms than the main ones and for other
    settings. `budgets`: numbers of labelled episodes, joined by +, of the main arms; `labels`: that
    of all others. `rollouts`: start states of a family. `families` joined by +, `blocks` and
    `horizon`: of the scene. `videos`: episodes a view; `noise`: of the expert in them. `best`: the
    objective of `lapa_best`. `dim`, `depth`: of policies, 0: as the tabletop's.
    `quantizer_steps`; `policy_steps`: of learning from videos; `finetuning_steps`, 0: as TUNED."""
    arg = arguments(arg)
    return of_cells(arg, get_world(arg), workdir, cells_of(arg))


def of_cells(
    arg: ConfigDict,
    world: arms.World,
    workdir: Path,
    cells: Iterable[dict[str, Any]],
    grid: Sequence[Tuned] = GRID,
) -> Study:
    """Of these cells, as of `Pipeline.cell`, or with `arg.tune` of the search over a grid, on other
    start states: those whose arm `arg.arms` names."""
    named = arg.arms.split("+")
    for name in named:
        base.require("arms", name, arms.ARMS)
    if arg.tune:
        each = min(max(1, TUNING_ROLLOUTS // len(world.tasks)), world.rollouts)
        world = dataclasses.replace(world, rollout_seed=TUNING_STARTS, rollouts=each)
        cells = search(arg, grid)
    pipeline = Pipeline(world, workdir)
    return Study(workdir, [pipeline.cell(**one) for one in cells if one["name"] in named])


def cells_of(arg: ConfigDict) -> Iterator[dict[str, Any]]:
    """As of `Pipeline.cell`, in the order in which they are done: whatever is done of it compares
    the same arms fairly."""
    seeds, primary = range(arg.seeds), arg.labels
    others = [name for name in arms.ARMS if name not in arms.MAIN]
    for seed in seeds:
        for name in arms.MAIN:
            yield dict(name=name, seed=seed, labels=primary)
    for seed in seeds[: arg.others]:
        for name in others:
            yield dict(name=name, seed=seed, labels=primary)
    for seed in seeds:
        for labels in _budgets(arg.budgets):
            for name in arms.MAIN if labels != primary else ():
                yield dict(name=name, seed=seed, labels=labels)
    for seed in seeds[: arg.others]:
        for setting in arms.SETTINGS:
            if setting == "cross_task" and "+" not in arg.families:
                continue  # all labels are of the one family
            for name in arms.MAIN:
                cell = dict(name=name, seed=seed, labels=primary, setting=setting)
                if setting != "in_domain":
                    yield cell
                yield cell | {"unseen": True}


def _budgets(text: str) -> list[int]:
    """Numbers of labelled episodes that are joined by +."""
    found = [int(one) if one.isdecimal() else 0 for one in text.split("+")]
    if min(found) < 1:
        raise ValueError(f"config argument budgets={text!r} must be numbers from 1 on, joined by +")
    return found


def search(arg: ConfigDict, grid: Sequence[Tuned]) -> Iterator[dict[str, Any]]:
    """As of `Pipeline.cell`: the main arms with `arg.labels`, at every point of a grid; ValueError
    where their seed is one of the `arg.seeds`."""
    if TUNING_SEED in range(arg.seeds):
        raise ValueError(f"TUNING_SEED={TUNING_SEED} is one of the {arg.seeds} seeds of record")
    for tuned in grid:
        for name in arms.MAIN:
            yield dict(name=name, seed=TUNING_SEED, labels=arg.labels, tuned=tuned)


def get_world(arg: ConfigDict) -> arms.World:
    """The tabletop, seen with a human hand and with the robot."""
    families = tuple(arg.families.split("+"))
    scene = {"name": "tabletop", "families": families, "blocks": arg.blocks}
    scene |= {"horizon": arg.horizon, "combinations": "train"}

    def policy(config: ConfigDict) -> ConfigDict:
        config.model.text_length = 20  # the longest instruction has eighteen
        if arg.dim:
            config.model.update(dim=arg.dim, mlp_dim=3 * arg.dim, heads=arg.dim // 32, head_dim=32)
        if arg.depth:
            config.model.depth = arg.depth
        return config

    def quantizer_of(objective: str) -> ConfigDict:
        named = "pixels" if objective == FREE else objective
        config = quantizer.get_config(f"quick={arg.quick},objective={named}")
        if objective == FREE:
            config.model.bottleneck, config.model.quant_dim = base.bottleneck("none"), 16
        config.steps = arg.quantizer_steps
        return config

    def latents(objective: str = "pixels") -> ConfigDict:
        codes = 0 if objective == FREE else 8
        config = policy(latent_vla.get_config(f"quick={arg.quick},codebook={codes}"))
        config.steps = arg.policy_steps
        return config

    def actions(recipe: str) -> ConfigDict:
        config = policy(action_vla.get_config(f"quick={arg.quick},recipe={recipe}"))
        config.evaluation.env = base.environment(**scene)
        if arg.finetuning_steps:
            config.steps = arg.finetuning_steps
        return config

    tuned: dict[str, Any] = TUNED
    if arg.finetuning_steps:
        tuned = {name: Tuned(arg.finetuning_steps, one.rest) for name, one in TUNED.items()}
    return arms.World(
        scene=scene,
        tasks=families,
        views=("human", "robot"),
        other=("human",),
        robot="robot",
        videos=arg.videos,
        rollouts=arg.rollouts,
        quantizer=quantizer_of,
        latent_vla=latents,
        action_vla=actions,
        tuned=tuned,
        part={"families": families[-1:]} if len(families) > 1 else {},
        shown={"combinations": "all"},
        best=arg.best,
        noise=arg.noise,
        unseen={"combinations": "held_out"},
    )


# --- What came out ---


def tables(rows: contrasts.Rows) -> dict[str, list[list[str]]]:
    """Of the study, or of the search."""
    if any("rest" in row for row in rows):
        return {"search": search_table(rows)}
    inside = contrasts.chosen(rows, {"setting": "in_domain"})
    labels = _primary_labels(inside)
    at = {"labels": labels}
    main = [row for row in inside if row["arm"] in arms.MAIN]
    return {
        "primary": contrasts.primary_table(inside, PRIMARY, at),
        "expected": expected_table(inside, at),
        "main": contrasts.rates_table(main, {}),
        "labels": contrasts.labels_table(main, ("lapa", "vpt", "action_vla"), "scratch", 25, {}),
        "arms": contrasts.arms_table(inside, "scratch", at),
        "controls": controls_table(inside, at),
        "settings": _settings(rows, labels),
        "families": families_table(inside, at),
    }


def _primary_labels(rows: contrasts.Rows) -> int:
    """PRIMARY_LABELS, or of a smaller study the number that it has in their place."""
    known = sorted({row["labels"] for row in rows})
    return PRIMARY_LABELS if PRIMARY_LABELS in known or not known else known[-1]


def controls_table(rows: contrasts.Rows, at: contrasts.Which) -> list[list[str]]:
    """Those with other labels than the quantizer's, beside `lapa`."""
    named = ["lapa", *(name for name, arm in arms.ARMS.items() if arm.control)]
    return contrasts.arms_table([row for row in rows if row["arm"] in named], "lapa", at)


def expected_table(rows: contrasts.Rows, at: contrasts.Which) -> list[list[str]]:
    """What the paper leads to expect, and whether it is so: yes and no where the whole interval
    says so."""

    def judged(gap: Interval, least: float) -> str:
        return "yes" if gap.low >= least else "no" if gap.high < least else "open"

    shown = [["expected", "found", "so"]]
    for base_arm, least in (("scratch", 0.2), ("vpt", 0.0)):
        text = f"`lapa` at least {f'{100 * least:.0f} points above ' * bool(least)}`{base_arm}`"
        one, other = {"arm": "lapa", **at}, {"arm": base_arm, **at}
        if not contrasts.seeds_of(rows, one, other):
            shown.append([text, "–", "–"])
            continue
        gap = contrasts.paired(rows, one, other).difference
        shown.append([text, percent(gap, "points"), judged(gap, least)])
    each = [{"arm": arm, **at} for arm in ("lapa", "action_vla", "scratch")]
    for text, beside in (
        ("`lapa` at least three quarters of `action_vla`", 0.0),
        # Of success alone `scratch` may have nearly as much.
        ("`lapa` gains over `scratch` at least three quarters of what `action_vla` gains", 1.0),
    ):
        if not contrasts.seeds_of(rows, *each):
            shown.append([text, "–", "–"])
            continue
        a, b, c = (one.values_STN for one in contrasts.outcomes(rows, *each))
        beyond = hierarchical((a - beside * c) - 0.75 * (b - beside * c), seed=0).difference
        shown.append([text, f"{percent(beyond, 'points')} beyond them", judged(beyond, 0.0)])
    return shown


def _settings(rows: contrasts.Rows, labels: int) -> list[list[str]]:
    """The main arms in every setting, on what labels name and on what only the videos show."""
    told = {"": "named", arms.UNSEEN: "only shown"}
    header = [
        f"{setting.replace('_', '-')}, {said}"
        for setting in arms.SETTINGS
        for said in told.values()
    ]
    shown = [["arm", *header]]
    for name in arms.MAIN:
        cells = []
        for setting in arms.SETTINGS:
            for end in told:
                one = {"arm": name, "setting": setting + end, "labels": labels}
                found = contrasts.seeds_of(rows, one)
                cells.append(percent(contrasts.rate(rows, one)) if found else "–")
        shown.append([f"`{name}`", *cells])
    return shown


def families_table(rows: contrasts.Rows, at: contrasts.Which) -> list[list[str]]:
    """Every arm by family: successes of all seeds together, with Wilson's interval."""
    rows = contrasts.chosen(rows, at)
    families = list(dict.fromkeys(row["family"] for row in rows))
    shown = [["arm", *(family.replace("_", " ") for family in families)]]
    for name in dict.fromkeys(row["arm"] for row in rows):
        cells = []
        for family in families:
            found = contrasts.chosen(rows, {"arm": name, "family": family})
            count, of = (sum(row[key] for row in found) for key in ("successes", "episodes"))
            cells.append(percent(wilson_interval(count, of)) if of else "–")
        shown.append([f"`{name}`", *cells])
    return shown


def search_table(rows: contrasts.Rows) -> list[list[str]]:
    """Successes of every point of the grid, the best of an arm in bold; of equal ones the first."""
    grid = [Tuned(*point) for point in sorted({(row["steps"], row["rest"]) for row in rows})]
    shown = [["arm", *(f"{one.steps:,} steps, rest at {one.rest:g}" for one in grid)]]
    for name in dict.fromkeys(row["arm"] for row in rows):
        cells, counts = [], []
        for one in grid:
            which = {"arm": name, "steps": one.steps, "rest": one.rest}
            found = contrasts.chosen(rows, which)
            count, of = (sum(row[key] for row in found) for key in ("successes", "episodes"))
            counts.append(count if found else -1)
            cells.append(f"{count} of {of}" if found else "–")
        best = counts.index(max(counts))
        cells[best] = f"**{cells[best]}**"
        shown.append([f"`{name}`", *cells])
    return shown
