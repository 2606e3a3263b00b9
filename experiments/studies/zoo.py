r"""Does every objective of the zoo keep its codes in use, and what do its latents tell?

Shows: by objective, perplexity of 8 and of 64 codes over seeds beside the aim of docs/measures.md
(half of 8, three tenths of 64), what latents tell of the motion (R², linear; of `pose` of the
camera's), and how much better than a copy of the first frame they draw; docs/zoo.md has the table.

    lapa study studies/zoo --workdir runs/zoo

Cost: 102 runs of the quick form of experiments/quantizer/tabletop.py, 60 steps, half a minute to a
minute each on one CPU core (`--size gpu`: the full form and 2,000 episodes).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.index import build_index, load_index
from data_pipelines.loader import flow, motion
from data_pipelines.rlds import schema
from experiments import base
from experiments.quantizer import tabletop
from experiments.teacher import tabletop as teacher
from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.envs.tabletop.flow import Replay
from lapa_jax.evidence import measures
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.runs.loaded import load
from lapa_jax.studies.study import Cell, Part, Study, train_part

SCENE = {"name": "tabletop", "families": ("reach",), "blocks": 4, "horizon": 40}
DATA_SEEDS = {"train": 610, "heldout": 611}
WINDOW_SECONDS, FLOW_CELL = 0.2, 4
AIMS = {8: 4.0, 64: 19.2}  # of perplexity
CORPORA = {"robot": ("robot",), "moving_camera": ("moving_camera",)} | {
    "robot+camera": ("robot", "camera")
}
SIZES = {
    "quick": {"seeds": 1, "episodes": 60, "pairs": 200},
    "cpu": {},
    "gpu": {"episodes": 2000, "pairs": 5000},
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """objective: as of the config; "": its own name. corpus: one of CORPORA. after: what it starts
    from, "teacher" or an arm of the same codes and seed. codes: whether it has them, or vectors by
    the bottleneck `vectors`, where that is not the objective's own."""

    objective: str = ""
    corpus: str = "robot"
    after: str = ""
    codes: bool = True
    vectors: str = ""
    stage: int = 1


ARMS = {
    "pixels": Arm(),
    "pixels_no_bottleneck": Arm(),
    "vae": Arm(codes=False),
    "contrastive": Arm(),
    "algebraic": Arm(),
    "rotation": Arm(codes=False, vectors="none"),
    "two_stage": Arm(),
    "two_stage, stage 2": Arm("two_stage", after="two_stage", stage=2),
    "features": Arm(after="teacher"),
    "latent_targets": Arm(),
    "motion": Arm(after="teacher"),
    "cross_view": Arm(corpus="robot+camera"),
    "pose": Arm(corpus="moving_camera"),
    "flow": Arm(),
    "factorised": Arm(corpus="robot+camera"),
    "shared_codes": Arm(),
    "bimanual": Arm(),
    "proprio": Arm(),
}


def get_study(arg: str | None, workdir: Path) -> Study:
    """`arms`, `codes` (codebook sizes) joined by +. `seeds`: of training. `episodes` to train on.
    `pairs`: of held-out episodes that are measured."""
    arg = base.parse_study_arg(
        arg, SIZES, arms="+".join(ARMS), codes="8+64", seeds=3, episodes=240, pairs=2000
    )
    arms = arg.arms.split("+")
    for name in arms:
        base.require("arms", name, ARMS)
    quick = arg.size != "gpu"
    data, taught = workdir / "data", workdir / "teacher"

    def collected() -> dict[str, Any]:
        wanted = {"train": arg.episodes, "heldout": max(20, arg.episodes // 4)}
        for split, episodes in wanted.items():
            for corpus, views in CORPORA.items():
                job = dict(views=views, episodes=episodes, noise=0.3, with_state=True, size=64)
                _collect(data / split, corpus, seed=DATA_SEEDS[split], **job)
        _write_flow(data / "train" / "robot")
        return wanted

    def train(name: str, codes: int, seed: int) -> list[Part]:
        """Its run, after those that it needs."""
        arm, which = ARMS[name], _which(name, codes, seed)
        start, before = taught, [Part("collect", collected)]
        if arm.after == "teacher":
            before.append(train_part("teacher", teacher_config(), taught))
        elif arm.after:
            before = train(arm.after, codes, seed)
            start = workdir / _which(arm.after, codes, seed)
        config = _config(name, data / "train", quick, start)
        config.seed, config.model.codebook_size = seed, codes or 8
        return [*before, train_part(f"train_{which}", config, workdir / which)]

    def teacher_config() -> ConfigDict:
        return teacher.get_config(f"quick={quick},data={data / 'train'},views=robot")

    def cell(name: str, codes: int, seed: int) -> Cell:
        which = _which(name, codes, seed)

        def measured() -> list[dict[str, Any]]:
            corpus = {"path": str(data / "heldout" / ARMS[name].corpus)}
            found = evaluate_quantizer(load(workdir / which), corpus, max_pairs=arg.pairs)
            rows = measures.rows(found.report, deep=False)
            return [{row["measure"]: row["value"] for row in rows}]

        parts = [*train(name, codes, seed), Part(f"measure_{which}", measured)]
        return Cell({"objective": name, "codes": codes, "seed": seed}, parts)

    sizes = list(map(int, arg.codes.split("+")))
    return Study(
        workdir,
        [
            cell(name, codes, seed)
            for seed in range(arg.seeds)
            for name in arms
            for codes in (sizes if ARMS[name].codes else (0,))
        ],
    )


def _which(name: str, codes: int, seed: int) -> str:
    return f"{name.replace(', ', '_').replace(' ', '')}_{codes}codes_s{seed}"


def _config(name: str, data: Path, quick: bool, start: Path) -> ConfigDict:
    arm = ARMS[name]
    together = "+" in arm.corpus
    given = f"quick={quick},data={data},views={arm.corpus},together={together}"
    config = tabletop.get_config(f"{given},objective={arm.objective or name}")
    if arm.vectors:
        config.model.bottleneck = base.bottleneck(arm.vectors)
    if arm.stage > 1:
        config.model.objective.stage = arm.stage
    if arm.after:
        config.model.objective.weights = str(start)
    return config


def _collect(out: Path, corpus: str, **job: Any) -> None:
    if not (out / corpus / "dataset_info.json").exists():
        collect(envs.make(SCENE), out, together="+" in corpus, **job)
    camera = {"action_key": schema.CAMERA_MOTION.removeprefix("steps/")}
    build_index(out / corpus, progress=False, **(camera if corpus == "moving_camera" else {}))


def _write_flow(corpus: Path) -> None:
    """What `lapa data flow --method tabletop` writes."""
    index = load_index(corpus)
    with motion.frames_of(index) as reader:
        exact = Replay(envs.make(SCENE), index, lambda rows: reader.read(rows)[0])
        told = dict(window_seconds=WINDOW_SECONDS, cell=FLOW_CELL, method="tabletop")
        flow.write_flow(corpus, exact=exact, progress=False, **told)


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Every objective, from the least to the most over seeds."""
    sizes = [codes for codes in AIMS if any(row["codes"] == codes for row in rows)]
    header = ["objective", *(f"perplexity of {codes}" for codes in sizes), "aim"]
    header += ["R² of the motion", "skill"]
    shown = [header]
    for name in dict.fromkeys(row["objective"] for row in rows):
        own = [row for row in rows if row["objective"] == name]
        used = {codes: [r["perplexity"] for r in own if r["codes"] == codes] for codes in sizes}
        cells = [_range(used[codes], 1) for codes in sizes]
        met = [min(used[codes]) >= AIMS[codes] for codes in sizes if used[codes]]
        told = "–" if not met else "met" if all(met) else "missed"
        fewest = [row for row in own if row["codes"] == min(r["codes"] for r in own)]
        last = (_range([r[key] for r in fewest], 2) for key in ("probe_r2", "skill"))
        shown.append([f"`{name}`" if "," not in name else _stage(name), *cells, told, *last])
    return {"objectives": shown}


def _stage(name: str) -> str:
    objective, _, rest = name.partition(", ")
    return f"`{objective}`, {rest}"


def _range(values: Sequence[float | None], digits: int) -> str:
    if not values or None in values:
        return "–"
    low, high = (f"{x:.{digits}f}".replace("-0.00", "0.00") for x in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
