r"""Does pretraining on latent actions of videos help, by how much, and what is it that helps?

Shows: closed-loop success of every arm of experiments/studies/arms.py on the five pushing families
of the tabletop, by number of labelled episodes; in the setting of the videos, with labels of one
family only, and with videos of another embodiment; docs/evidence.md has what came out.

    lapa study studies/headline --size cpu --workdir runs/headline

What a fine-tuning takes was chosen by the same grid for all main arms, on a seed that is none of
those of record:

    lapa study studies/headline:tune=True --size cpu --workdir runs/headline_tuning

Cost: `lapa study` says what is to be done; size=cpu is meant for 6 hours of two CPU cores.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import base
from experiments.action_vla import tabletop as action_vla
from experiments.latent_vla import tabletop as latent_vla
from experiments.quantizer import tabletop as quantizer
from experiments.studies import arms
from experiments.studies.arms import Tuned
from lapa_jax.studies.study import Cell, Study

# Fixed before the first run: what is asked, and which number answers it.
FAMILIES = (
    "block_to_block",
    "block_to_absolute",
    "block_to_block_relative",
    "block_to_relative",
    "separate_blocks",
)
PRIMARY_LABELS = 50
BUDGETS = (10, 25, 50, 100, 250)
SEEDS = 5
ROLLOUTS = 100  # of a family and seed
PRIMARY = (("lapa", "scratch"), ("lapa", "vpt"))

# Of the search: a seed that is none of record, and other start states.
TUNING_SEED, TUNING_ROLLOUTS = 50, 1
GRID = [Tuned(steps, rest) for steps in (300, 1000) for rest in (0.0, 0.1, 1.0)]
TUNED = {
    "scratch": Tuned(300, 1.0),
    "lapa": Tuned(300, 0.0),
    "vpt": Tuned(300, 0.0),
    "action_vla": Tuned(300, 0.0),
}


# What differs from the defaults of `get_study`.
SIZES = {
    "quick": dict(
        seeds=1, budgets="8", labels=8, rollouts=2, videos=24, horizon=40, quantizer_steps=20
    )
    | dict(policy_steps=20, finetuning_steps=20),
    "cpu": {},
    "gpu": dict(videos=20_000, quantizer_steps=5000, policy_steps=20_000),
}


def arguments(arg: str | None) -> ConfigDict:
    """Of `get_study`, with those of its arg."""
    return base.parse_study_arg(
        arg,
        SIZES,
        **dict(arms="+".join(arms.ARMS), tune=False, seeds=SEEDS, rollouts=ROLLOUTS),
        **dict(budgets="+".join(map(str, BUDGETS)), labels=PRIMARY_LABELS),
        **dict(videos=5000, blocks=4, horizon=120),
        **dict(quantizer_steps=900, policy_steps=1400, finetuning_steps=0),
    )


def get_study(arg: str | None, workdir: Path) -> Study:
    """`arms` joined by +. `tune`: the search, not the study. `seeds`: of everything but the
    videos. `budgets`: numbers of labelled episodes, joined by +, of the main arms; `labels`: that
    of all others. `rollouts`: start states of a family. `videos`: episodes a view. `blocks` and
    `horizon`: of a scene. `quantizer_steps`; `policy_steps`: of learning from videos;
    `finetuning_steps`, 0: as TUNED."""
    arg = arguments(arg)
    named = arg.arms.split("+")
    for name in named:
        base.require("arms", name, arms.ARMS)
    world = get_world(arg)
    if arg.tune:
        world = dataclasses.replace(world, rollout_seed=TUNING_ROLLOUTS)
    pipeline = arms.Pipeline(world, workdir)
    cells = _search(pipeline, arg) if arg.tune else _cells(pipeline, arg)
    return Study(workdir, [cell for cell in cells if cell.values["arm"] in named])


def _cells(pipeline: arms.Pipeline, arg: ConfigDict) -> Iterator[Cell]:
    """In the order in which they are done: whatever is done of it compares the same arms fairly."""
    seeds, primary = range(arg.seeds), arg.labels
    others = [name for name in arms.ARMS if name not in arms.MAIN]
    for seed in seeds:
        for name in arms.MAIN:
            yield pipeline.cell(name, seed=seed, labels=primary)
    for seed in seeds:
        for labels in map(int, arg.budgets.split("+")):
            for name in arms.MAIN if labels != primary else ():
                yield pipeline.cell(name, seed=seed, labels=labels)
    for seed in seeds:
        for name in others:
            yield pipeline.cell(name, seed=seed, labels=primary)
        for setting in arms.SETTINGS:
            for name in arms.MAIN:
                kind = dict(seed=seed, labels=primary, setting=setting)
                if setting != "in_domain":
                    yield pipeline.cell(name, **kind)
                yield pipeline.cell(name, **kind, unseen=True)


def _search(pipeline: arms.Pipeline, arg: ConfigDict) -> Iterator[Cell]:
    if TUNING_SEED in range(arg.seeds):
        raise ValueError(f"TUNING_SEED={TUNING_SEED} is one of the {arg.seeds} seeds of record")
    for tuned in GRID:
        for name in arms.MAIN:
            yield pipeline.cell(name, seed=TUNING_SEED, labels=arg.labels, tuned=tuned)


def get_world(arg: ConfigDict) -> arms.World:
    """The five pushing families, seen with a human hand and with the robot."""
    scene = {"name": "tabletop", "families": FAMILIES, "blocks": arg.blocks}
    scene |= {"horizon": arg.horizon, "combinations": "train"}

    def policy(config: ConfigDict) -> ConfigDict:
        config.model.text_length = 20  # the longest instruction has eighteen
        return config

    def quantizer_of(objective: str) -> ConfigDict:
        config = quantizer.get_config(f"quick={arg.quick},objective={objective}")
        config.steps = arg.quantizer_steps
        return config

    def latents() -> ConfigDict:
        config = policy(latent_vla.get_config(f"quick={arg.quick}"))
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
        tasks=FAMILIES,
        views=("human", "robot"),
        other=("human",),
        robot="robot",
        videos=arg.videos,
        rollouts=arg.rollouts,
        quantizer=quantizer_of,
        latent_vla=latents,
        action_vla=actions,
        tuned=tuned,
        part={"families": ("separate_blocks",)},
        unseen={"combinations": "held_out"},
    )
