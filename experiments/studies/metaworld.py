r"""Does pretraining on latent actions of videos help on a benchmark that people know?

Shows: closed-loop success of six arms on ten tasks of Meta-World, from pictures, with few
labelled episodes; that of some of the same policies without words and with those of another task;
and of policies whose labelled episodes are of half of the tasks. docs/evidence.md has what came
out.

    lapa study studies/metaworld --size cpu --workdir runs/metaworld

What a fine-tuning takes is chosen by the same grid for all main arms, on a seed that is none of
those of record and ten other start states a task:

    lapa study studies/metaworld:tune=True --size cpu --workdir runs/metaworld_tuning

Two processes share the work, and the memory of ten simulators each (1 GB):

    lapa study studies/metaworld --size cpu --workdir runs/metaworld --index 0 --count 2 &
    lapa study studies/metaworld --size cpu --workdir runs/metaworld --index 1 --count 2

Cost: 36 cells in three hours of one CPU core, and the 15 of half of the tasks in five more where
others had work for it, too; the search took 40 minutes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import base
from experiments.action_vla import metaworld as action_vla
from experiments.latent_vla import metaworld as latent_vla
from experiments.quantizer import metaworld as quantizer
from experiments.studies import arms, headline
from experiments.studies.arms import Tuned
from lapa_jax import envs
from lapa_jax.envs import words
from lapa_jax.envs.metaworld import language
from lapa_jax.studies import contrasts
from lapa_jax.studies.record import percent
from lapa_jax.studies.study import Study

# Fixed before the first run: what is asked, and which number answers it.
LABELS = 50  # episodes with actions, five of each task
SEEDS = 3
ROLLOUTS = 50  # of a task and seed
ARMS = ("scratch", "lapa", "vpt", "action_vla", "kmeans_latents", "shuffled_latents")
PRIMARY = (("lapa", "scratch"), ("lapa", "vpt"))
TOLD = ("scratch", "lapa", "action_vla")  # arms that also act without words, and with others
LABELLED = "mw5"  # the suite of the labelled episodes across tasks
ACROSS = (*arms.MAIN, "frozen_features")  # arms that act in tasks that no label is of
NAMED = tuple(dict.fromkeys((*ARMS, *ACROSS)))

INVERSE_STEPS = 1000  # of training an inverse dynamics model
GRID = [Tuned(1000, rest) for rest in (0.0, 0.1, 1.0)]  # of the search

# What the search chose: results/metaworld.search.json.
TUNED = {
    "scratch": Tuned(1000, 1.0),
    "lapa": Tuned(1000, 0.1),
    "vpt": Tuned(1000, 0.0),
    "action_vla": Tuned(1000, 0.0),
}

# What differs from the defaults of `get_study`.
SIZES = {
    "quick": dict(seeds=1, labels=10, rollouts=1, videos=20, tasks=2, quantizer_steps=20)
    | dict(policy_steps=20, finetuning_steps=20),
    "cpu": {},
    "gpu": dict(videos=10_000, quantizer_steps=5000, policy_steps=20_000),
}


def arguments(arg: str | None) -> ConfigDict:
    """Of `get_study`, with those of its size."""
    return base.parse_study_arg(
        arg,
        SIZES,
        **dict(arms="+".join(NAMED), tune=False, seeds=SEEDS, rollouts=ROLLOUTS),
        **dict(labels=LABELS, videos=2000, tasks=10),
        **dict(quantizer_steps=900, policy_steps=1400, finetuning_steps=0),
    )


def get_study(arg: str | None, workdir: Path) -> Study:
    """`arms` joined by +. `tune`: the search, not the study. `seeds`: of everything but the
    videos. `labels`: labelled episodes of all tasks together. `rollouts`: start states of a task.
    `videos`: episodes. `tasks`: how many of the ten, the first ones, policies act in.
    `quantizer_steps`; `policy_steps`: of learning from videos; `finetuning_steps`, 0: as TUNED."""
    arg = arguments(arg)
    cells = _cells(arg.arms.split("+"), arg)
    return headline.of_cells(arg, get_world(arg), workdir, cells, GRID)


def _cells(named: Sequence[str], arg: ConfigDict) -> Iterator[dict[str, Any]]:
    """As of `Pipeline.cell`: whatever is done of it compares the same arms fairly."""
    for seed in range(arg.seeds):
        for name in named:
            if name in ARMS or name not in ACROSS:  # others act across tasks alone
                yield dict(name=name, seed=seed, labels=arg.labels)
    for seed in range(arg.seeds):
        for phrasings in (words.NONE, words.SHUFFLED):
            for name in TOLD:
                yield dict(name=name, seed=seed, labels=arg.labels, phrasings=phrasings)
    for seed in range(arg.seeds):
        for name in ACROSS:
            yield dict(name=name, seed=seed, labels=arg.labels, setting="cross_task")


def get_world(arg: ConfigDict) -> arms.World:
    """The ten tasks, seen with the robot."""
    scene = {"name": "metaworld", "suite": "mw10"}

    def quantizer_of(objective: str) -> ConfigDict:
        config = quantizer.get_config(f"quick={arg.quick},objective={objective}")
        config.steps = arg.quantizer_steps
        return config

    def latents(objective: str = "pixels") -> ConfigDict:
        del objective  # all have the same codes
        config = latent_vla.get_config(f"quick={arg.quick}")
        config.steps = arg.policy_steps
        return config

    def actions(recipe: str) -> ConfigDict:
        config = action_vla.get_config(f"quick={arg.quick},recipe={recipe}")
        config.steps = arg.finetuning_steps or INVERSE_STEPS
        config.evaluation.env = base.environment(**scene)
        return config

    tuned: Mapping[str, Any] = TUNED
    if arg.finetuning_steps:
        tuned = {name: Tuned(arg.finetuning_steps, one.rest) for name, one in TUNED.items()}
    return arms.World(
        scene=scene,
        tasks=envs.make(scene).spec.tasks[: arg.tasks],
        views=("robot",),
        robot="robot",
        part={"suite": LABELLED},
        videos=arg.videos,
        rollouts=arg.rollouts,
        quantizer=quantizer_of,
        latent_vla=latents,
        action_vla=actions,
        tuned=tuned,
    )


def tables(rows: contrasts.Rows) -> dict[str, list[list[str]]]:
    """Of the study, or of the search: arms beside scratch, controls beside lapa, the primary
    contrasts, what was expected, tasks, words; across tasks those with labels, and the others."""
    if any("rest" in row for row in rows):
        return {"search": headline.search_table(rows)}
    own = contrasts.chosen(rows, {"setting": "in_domain"})
    across = contrasts.chosen(rows, {"setting": "cross_task"})
    known = language.SUITES[LABELLED]
    labelled, others = (
        [row for row in across if (row["family"] in known) == of_them] for of_them in (True, False)
    )
    return {
        "arms": contrasts.arms_table(own, "scratch", {}),
        "controls": headline.controls_table(own, {}),
        "primary": contrasts.primary_table(own, PRIMARY, {}),
        "expected": headline.expected_table(own, {}),
        "tasks": headline.families_table(own, {}),
        "words": _words(rows),
        "labelled_tasks": contrasts.arms_table(labelled, "scratch", {}),
        "other_tasks": contrasts.arms_table(others, "scratch", {}),
        "across": headline.families_table(across, {}),
    }


def _words(rows: contrasts.Rows) -> list[list[str]]:
    """What some policies do with their words, without, and with those of another task."""
    columns = {"": "own words", words.NONE: "no words", words.SHUFFLED: "another task's"}
    shown = [["arm", *columns.values()]]
    for name in TOLD:
        cells = []
        for which in columns:
            setting = f"in_domain{arms.WORDS}{which}" if which else "in_domain"
            one = {"arm": name, "setting": setting}
            found = contrasts.seeds_of(rows, one)
            cells.append(percent(contrasts.rate(rows, one)) if found else "–")
        shown.append([f"`{name}`", *cells])
    return shown
