r"""Which head of actions is best on the tabletop: one latent VLA, the same labels, other heads.

Shows: closed-loop success of every head beside one-step clusters, on the same start states;
docs/evidence.md has what came out. The latent VLA is that of a finished demo:

    lapa demo --workdir runs/demo
    lapa study experiments/studies/heads.py:demo=runs/demo --workdir runs/heads

Cost: six heads of three seeds, about two minutes a cell on two CPU cores (`--size gpu`: five seeds
of 1,000 start states; `--size quick`: one of 20).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import build_index
from experiments import base
from experiments.action_vla import tabletop
from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.evidence.policy import evaluate_success
from lapa_jax.runs.loaded import load
from lapa_jax.studies import contrasts
from lapa_jax.studies.record import percent
from lapa_jax.studies.study import Cell, Part, Study, train_part

SCENE = {"name": "tabletop", "families": ("reach",), "blocks": 4, "horizon": 40}
DATA_SEED = 500  # the demo's videos and labels have seeds below
SIZES = {
    "quick": {"seeds": 1, "labels": 20, "rollouts": 20},
    "cpu": {},
    "gpu": {"seeds": 5, "rollouts": 1000},
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A head, in chunks of `horizon` actions, of which `execute` are acted on."""

    head: str
    horizon: int = 1
    recipe: str = "own"


ARMS = {
    "clusters": Arm("tokens"),
    "uniform": Arm("tokens", recipe="openvla"),
    "uniform_chunk": Arm("tokens", 4, recipe="openvla"),
    "fast": Arm("fast", 4),
    "chunk": Arm("chunk", 4),
    "flow": Arm("flow", 4),
}


def get_study(arg: str | None, workdir: Path) -> Study:
    """`demo`: a finished demo's workdir. `heads` joined by +. `labels`: episodes with actions.
    `seeds`: of fine-tuning. `steps` of it. `rollouts`: start states. `rest`: learning rate of all
    but the head, as a part of the head's."""
    arg = base.parse_study_arg(
        arg,
        SIZES,
        demo="runs/demo",
        heads="+".join(ARMS),
        labels=250,
        seeds=3,
        steps=1000,
        rollouts=300,
        rest=0.1,
    )
    heads = arg.heads.split("+")
    for head in heads:
        base.require("heads", head, ARMS)
    env = envs.make(SCENE)
    data = workdir / "data"

    def collected() -> dict[str, Any]:
        if not (Path(arg.demo) / "latent_vla").is_dir():  # before the episodes
            raise FileNotFoundError(
                f"demo={arg.demo} has no latent_vla: `lapa demo --workdir {arg.demo}` makes it"
            )
        if not (data / "robot" / "dataset_info.json").exists():
            collect(env, data, views=("robot",), episodes=arg.labels, seed=DATA_SEED, size=(64, 64))
        build_index(data / "robot", progress=False)
        return {"episodes": arg.labels}

    def cell(name: str, seed: int) -> Cell:
        run = workdir / f"{name}_{seed}"

        def success() -> list[dict[str, Any]]:
            found = evaluate_success(load(run), env, "reach", episodes=arg.rollouts, seed=0)
            return [found.report | {"outcomes": np.asarray(found.rollouts.success).tolist()}]

        trained = train_part(f"train_{name}_{seed}", _config(arg, ARMS[name], data, seed), run)
        parts = (Part("collect", collected), trained, Part(f"success_{name}_{seed}", success))
        return Cell({"arm": name, "seed": seed}, parts)

    return Study(workdir, [cell(name, seed) for seed in range(arg.seeds) for name in heads])


def tables(rows: contrasts.Rows) -> dict[str, list[list[str]]]:
    """Every head over its seeds, and beside clusters on the same start states."""
    shown = [["head", "chunk", "successes, by seed", "rate", "less that of `clusters`"]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        (found,) = contrasts.outcomes(rows, {"arm": arm})
        counts = ", ".join(f"{int(count)}" for count in found.values_STN.sum((1, 2)))
        both = {"arm": arm}, {"arm": "clusters"}
        gap = "–"
        if arm == "clusters":
            gap = ""
        elif contrasts.seeds_of(rows, *both):
            gap = percent(contrasts.paired(rows, *both).difference, "points")
        counts = f"{counts} of {found.values_STN.shape[2]}"
        rate = percent(contrasts.rate(rows, {"arm": arm}))
        shown.append([f"`{arm}`", str(ARMS[arm].horizon), counts, rate, gap])
    return {"success": shown}


def _config(arg: ConfigDict, arm: Arm, data: Path, seed: int) -> ConfigDict:
    config = tabletop.get_config(
        f"quick={arg.quick},data={data / 'robot'},init_from={Path(arg.demo) / 'latent_vla'},"
        f"head={arm.head},horizon={arm.horizon},recipe={arm.recipe}"
    )
    config.seed = seed
    if not arg.quick:
        config.steps = arg.steps
    config.optimizer.groups.rest.lr_scale = arg.rest
    return config
