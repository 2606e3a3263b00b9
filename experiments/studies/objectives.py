r"""Do objectives of latent actions do what their papers claim? On the tabletop, clean and with
things that move by themselves.

Shows: by arm and setting, what latents tell of the motion (R², linear), whether they add up, act
from another frame (RotVLA's Δ), and draw; and five orderings, paired by seed: triplets over pairs
(two), a few labels over none and features over pixels under distractors, rotations over free ones.

    lapa study studies/objectives --workdir runs/objectives

Cost: the 27 cells that the orderings need, 3 to 8 minutes each on one CPU core; everything=True
makes 60, every arm in every setting (`--size gpu`: that, five seeds of 5,000 episodes; `--size
quick`: one of 100); arms=... takes some of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import build_index
from experiments import base
from experiments.quantizer import tabletop
from experiments.teacher import tabletop as teacher
from lapa_jax import envs
from lapa_jax.diagnostics.statistics import mean_over_seeds
from lapa_jax.envs.collect import collect
from lapa_jax.evidence import measures
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.report.figures import Picture, dot_plots
from lapa_jax.runs.loaded import load
from lapa_jax.studies.record import interval
from lapa_jax.studies.study import Cell, Part, Study, train_part

SCENE = {"name": "tabletop", "families": ("reach",), "blocks": 4, "horizon": 40}
VIEWS = {"clean": "robot", "distractors": "distractors"}
DATA_SEEDS = {"train": 600, "heldout": 601}
SIZES = {
    "quick": {"seeds": 1, "episodes": 100, "pairs": 200},
    "cpu": {},
    "gpu": {"seeds": 5, "episodes": 5000, "pairs": 5000, "everything": True},
}
MEASURES = ("probe_r2", "information_bits", "additivity_error", "delta", "skill", "perplexity")


@dataclasses.dataclass(frozen=True)
class Arm:
    """`known`: share of the episodes whose actions training knows."""

    objective: str = "pixels"
    bottleneck: str = "nsvq"
    num_frames: int = 2
    known: float = 0.0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# The encoder of triplets: what they add is told beside pairs of the same encoder and clips.
ALONE = {"spatial_sees": "frame"}
# The weights of the source are 1: of latents in standard units, beside a loss of some 0.003.
LIGHT = {"additivity": 0.01, "reversal": 0.01}
ARMS = {
    "pixels": Arm(),
    "pairs": Arm(num_frames=3, changes=ALONE),
    "algebraic": Arm("algebraic", num_frames=3),
    "algebraic_0.01": Arm("algebraic", num_frames=3, changes={"objective": LIGHT}),
    "free": Arm(bottleneck="none", changes={"quant_dim": 16}),
    "free_pairs": Arm(bottleneck="none", num_frames=3, changes={"quant_dim": 16} | ALONE),
    "rotation": Arm("rotation", "none", num_frames=3),
    "features": Arm("features"),
    "latent_targets": Arm("latent_targets", "none", num_frames=3),
    "latent_targets_2.5": Arm("latent_targets", "none", num_frames=3, known=0.025),
}
# (name, arm, the arm it is said to beat, setting, measure, whether more is better)
CLAIMS = (
    ("triplets add up", "algebraic", "pairs", "clean", "additivity_error", False),
    ("triplets act anywhere", "algebraic", "pairs", "clean", "delta", True),
    ("light triplets add up", "algebraic_0.01", "pairs", "clean", "additivity_error", False),
    ("light triplets act anywhere", "algebraic_0.01", "pairs", "clean", "delta", True),
    ("2.5 % labels", "latent_targets_2.5", "latent_targets", "distractors", "probe_r2", True),
    ("features", "features", "pixels", "distractors", "probe_r2", True),
    ("rotations", "rotation", "free_pairs", "clean", "probe_r2", True),
)


def get_study(arg: str | None, workdir: Path) -> Study:
    """`arms`, `settings` joined by +. `seeds`: of training. `episodes` to train on; `steps`, 0: as
    the tabletop's quantizer. `pairs`: of held-out episodes that are measured. `everything`: also
    arms in settings that no claim is about."""
    arg = base.parse_study_arg(
        arg,
        SIZES,
        arms="+".join(ARMS),
        settings="+".join(VIEWS),
        seeds=3,
        episodes=2000,
        steps=0,
        pairs=2000,
        everything=False,
    )
    arms, settings = arg.arms.split("+"), arg.settings.split("+")
    for names, known in ((arms, ARMS), (settings, VIEWS)):
        for name in names:
            base.require("arms" if known is ARMS else "settings", name, known)
    env = envs.make(SCENE)
    data = workdir / "data"

    def collected() -> dict[str, Any]:
        wanted = {"train": arg.episodes, "heldout": max(10, arg.episodes // 10)}
        for split, episodes in wanted.items():
            if not (data / split / "robot" / "dataset_info.json").exists():
                views = tuple(VIEWS.values())
                job = dict(views=views, episodes=episodes, size=(64, 64), noise=0.3)
                collect(env, data / split, seed=DATA_SEEDS[split], **job)
            for view in VIEWS.values():
                build_index(data / split / view, progress=False)
        return wanted

    def cell(setting: str, name: str, seed: int) -> Cell:
        view, which = VIEWS[setting], f"{setting}_{name}_{seed}"
        run, taught = workdir / which, workdir / f"teacher_{setting}"

        def measured() -> list[dict[str, Any]]:
            corpus = {"path": str(data / "heldout" / view)}
            found = evaluate_quantizer(load(run), corpus, max_pairs=arg.pairs, deep=True)
            values = {row["measure"]: row["value"] for row in measures.rows(found.report)}
            return [values]

        parts = [Part("collect", collected)]
        if name == "features":
            config = teacher.get_config(f"quick={arg.quick},data={data / 'train'},views={view}")
            parts.append(train_part(f"teacher_{setting}", config, taught))
        config = _config(arg, ARMS[name], data / "train", view, seed, taught)
        parts.append(train_part(f"train_{which}", config, run))
        parts.append(Part(f"measure_{which}", measured))
        return Cell({"setting": setting, "arm": name, "seed": seed}, parts)

    claimed = {(setting, name) for _, *names, setting, _, _ in CLAIMS for name in names}
    order = [(s, a, i) for i in range(arg.seeds) for s in settings for a in arms]
    if not arg.everything:
        order = [one for one in order if one[:2] in claimed]
        if not order:
            raise ValueError(f"arms={arg.arms}: no claim needs them; everything=True takes them")
    return Study(workdir, [cell(*one) for one in order])


def _config(
    arg: ConfigDict, arm: Arm, data: Path, view: str, seed: int, taught: Path
) -> ConfigDict:
    config = tabletop.get_config(
        f"quick={arg.quick},data={data},views={view},objective={arm.objective}"
    )
    config.seed, config.data.num_frames = seed, arm.num_frames
    if arg.steps:
        config.steps = arg.steps
    if arm.bottleneck != "nsvq":
        config.model.bottleneck = base.bottleneck(arm.bottleneck)
    config.model.update(arm.changes)
    if arm.objective == "features":
        config.model.objective.weights = str(taught)
    if arm.known:
        config.model.objective.action_dim = 2
        config.data.corpora[view].action_fraction = arm.known
    return config


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Every arm, and every claim, over seeds: those that both of its arms have."""
    shown = [["setting", "arm", *MEASURES]]
    for setting, arm in dict.fromkeys((r["setting"], r["arm"]) for r in rows):
        found = [_by_seed(rows, setting, arm, measure) for measure in MEASURES]
        cells = ["–" if None in x.values() else _told(list(x.values())) for x in found]
        shown.append([setting, f"`{arm}`", *cells])
    claims = [["claim", "setting", "measure", "difference", "seeds for it"]]
    for name, arm, other, setting, measure, more in CLAIMS:
        one, two = (_by_seed(rows, setting, each, measure) for each in (arm, other))
        both = [(one[seed], two[seed]) for seed in one if seed in two]
        if both and None not in sum(both, ()):
            gap = [a - b for a, b in both]
            count = sum(x > 0 if more else x < 0 for x in gap)
            claims.append([f"{name}: `{arm}` over `{other}`", setting, measure, _told(gap)])
            claims[-1].append(f"{count} of {len(gap)}")
    return {"arms": shown, "claims": claims}


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
    """Every arm by what the claims are about, over seeds."""
    dots = []
    for setting, arm in dict.fromkeys((r["setting"], r["arm"]) for r in rows):
        dot: dict[str, Any] = {"arm": f"{arm}, {setting}"}
        for measure in MEASURES:
            values = list(_by_seed(rows, setting, arm, measure).values())
            if None not in values:
                mean = mean_over_seeds(np.array(values))
                dot[measure] = mean.estimate
                if len(values) > 1:
                    dot |= {f"{measure}_low": mean.low, f"{measure}_high": mean.high}
        dots.append(dot)
    known = {name: name for name in MEASURES if any(name in dot for dot in dots)}
    caption = "Means over seeds, with Student's 95 % intervals where there are several."
    return {caption: dot_plots(dots, "arm", known)} if known else {}


def _told(values: Sequence[float]) -> str:
    return interval(mean_over_seeds(np.array(values)))


def _by_seed(
    rows: Sequence[Mapping[str, Any]], setting: str, arm: str, measure: str
) -> dict[int, float | None]:
    found = [row for row in rows if (row["setting"], row["arm"]) == (setting, arm)]
    return {row["seed"]: row.get(measure) for row in found}
