r"""Which number of a latent action model tells how good a policy it makes, before one is trained?

Shows: for latent action models that differ in what they learn by, in their bottleneck, in how long
and over which window they were trained, every diagnostic of `lapa evaluate` on held-out episodes,
and the closed-loop success of a policy that was pretrained on their labels and fine-tuned on the
same few episodes; the rank correlation of each with success, how well the best one predicts the
success of kinds of models that it was not chosen on; and what every change costs or gains.

    lapa study studies/predictors --workdir runs/predictors

Two settings: videos of hand and robot, and videos in which other things move by themselves. A
second seed, distractors, and what changes the codes, the size of the model or the videos are each
had alone. Cost: 60 models, eight minutes each of one CPU core (`--size quick`: 3 models). With
half of the steps and a fifth of the videos, policies are hardly better than without any
(docs/trials.md).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.index import build_index
from experiments import base
from experiments.quantizer import tabletop as quantizer
from experiments.studies import headline
from experiments.studies.arms import Arm, Tuned, World
from experiments.studies.pipeline import Pipeline
from experiments.teacher import tabletop as teacher
from lapa_jax import envs
from lapa_jax.envs.collect import collect
from lapa_jax.evidence import measures
from lapa_jax.evidence.quantizer import evaluate_quantizer
from lapa_jax.report.figures import Picture
from lapa_jax.runs.loaded import load
from lapa_jax.studies import contrasts, prediction
from lapa_jax.studies.study import Cell, Part, Study

HELDOUT_SEED, LABELS = 730, 50
SETTINGS = {"clean": False, "distractors": True}  # whether videos are of World.other
SIZES = {
    "quick": dict(models="pixels+short+contrastive", settings="clean", seeds=1, videos=24)
    | dict(rollouts=4, pairs=200, quantizer_steps=20, policy_steps=20, finetuning_steps=20),
    "cpu": {},
    "gpu": dict(seeds=4, videos=10_000, quantizer_steps=3000, policy_steps=10_000),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """Of latent action models.

    window: seconds between the frames of a pair. part: of the steps. known: share of the episodes
    whose actions training knows. codes, length: of the codebook, of a latent action. width: of the
    model, as a part of the tabletop's. fraction: of the videos, weights: of corpora, of the policy,
    too.
    """

    objective: str = "pixels"
    bottleneck: str = "nsvq"
    window: float = 0.2
    part: float = 1.0
    known: float = 0.0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    codes: int = 8
    length: int = 1
    width: float = 1.0
    fraction: float = 1.0
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


KINDS = {
    "pixels": Kind(),
    "untrained": Kind(part=0.0),  # but for two steps
    "short": Kind(part=0.1),
    "half": Kind(part=0.4),
    "next_frame": Kind(window=0.1),
    "far": Kind(window=0.6),
    "vq_ema": Kind(bottleneck="vq_ema"),
    "vq_commit": Kind(bottleneck="vq_commit"),
    "fsq": Kind(bottleneck="fsq"),
    "no_bottleneck": Kind("pixels_no_bottleneck"),
    "contrastive": Kind("contrastive"),
    "algebraic": Kind("algebraic"),
    "algebraic_light": Kind("algebraic", changes={"additivity": 0.01, "reversal": 0.01}),
    "features": Kind("features"),
    "latent_targets": Kind("latent_targets"),
    "few_labels": Kind("latent_targets", known=0.025),
}
CLEAN_KINDS = {
    "four_codes": Kind(codes=4),
    "sixteen_codes": Kind(codes=16),
    "many_codes": Kind(codes=64),
    "two_codes_of_four": Kind(codes=4, length=2),
    "two_codes_of_eight": Kind(codes=8, length=2),
    "narrow": Kind(width=0.5),
    "wide": Kind(width=2.0),
    "tenth_of_videos": Kind(fraction=0.1),
    "third_of_videos": Kind(fraction=0.3),
    "mostly_hand": Kind(weights={"human": 4.0}),
    "mostly_robot": Kind(weights={"robot": 4.0}),
    "two_windows": Kind(window=0.4),
}
MODELS = KINDS | CLEAN_KINDS


def get_study(arg: str | None, workdir: Path) -> Study:
    """`models`, `settings` joined by +. `seeds`: of everything but the videos; of CLEAN_KINDS and
    with distractors only the first. `videos`: episodes; `pairs`: of held-out episodes that are
    measured; `rollouts`: start states. `labels`: episodes to fine-tune on. `quantizer_steps`,
    `policy_steps`, `finetuning_steps`."""
    arg = base.parse_study_arg(
        arg,
        SIZES,
        **dict(models="+".join(MODELS), settings="+".join(SETTINGS), seeds=2),
        **dict(videos=10_000, pairs=2000, rollouts=300, labels=LABELS),
        **dict(quantizer_steps=900, policy_steps=1400, finetuning_steps=300),
    )
    models, settings = arg.models.split("+"), arg.settings.split("+")
    for key, names, known in (
        ("models", models, MODELS),
        ("settings", settings, SETTINGS),
    ):
        for name in names:
            base.require(key, name, known)
    pipeline = Pipeline(get_world(arg), workdir)
    cells = []
    for seed in range(arg.seeds):
        for setting in settings:
            for name in models:
                # One change at a time.
                more = seed > 0, setting != "clean", name in CLEAN_KINDS
                if sum(more) > 1:
                    continue
                cells += cells_of(pipeline, name, setting, seed, arg)
    return Study(workdir, cells)


def cells_of(
    pipeline: Pipeline, name: str, setting: str, seed: int, arg: ConfigDict
) -> tuple[Cell, Cell]:
    """The two halves of a model's row, of which each can be done alone."""
    arm = Arm("latent", objective=name, other=SETTINGS[setting])
    made = pipeline.cell(f"{name}_{setting}", arm=arm, seed=seed, labels=arg.labels)
    values = {"model": name, "setting": setting, "seed": seed}
    return _measured(pipeline, arm, values, arg), _succeeded(made, values)


def _succeeded(made: Cell, values: dict[str, Any]) -> Cell:
    *before, last = made.parts
    own = dataclasses.replace(last, name="_".join(("success", *map(str, values.values()))))
    return Cell(values | {"what": "success"}, (*before, own))


def _measured(pipeline: Pipeline, arm: Arm, values: dict[str, Any], arg: ConfigDict) -> Cell:
    world, heldout = pipeline.world, pipeline.workdir / "heldout"
    views = world.other if arm.other else world.views
    run = pipeline.quantizer(arm, views, values["seed"])

    def collected() -> None:
        """Clips that no training saw, by the robot and by what else is measured."""
        for view in dict.fromkeys((world.robot, *world.other)):
            if not (heldout / view / "dataset_info.json").exists():
                job = dict(views=(view,), episodes=max(20, arg.videos // 10), noise=world.noise)
                collect(envs.make(world.scene), heldout, seed=HELDOUT_SEED, size=64, **job)
            build_index(heldout / view, progress=False)

    def measured() -> list[dict[str, Any]]:
        corpus = {"path": str(heldout / (views[0] if arm.other else world.robot))}
        loaded = load(pipeline.workdir / run.name)
        found = evaluate_quantizer(loaded, corpus, max_pairs=arg.pairs, deep=True)
        return [{row["measure"]: row["value"] for row in measures.rows(found.report)}]

    parts = [*run.parts, Part("heldout", collected)]
    parts.append(Part("_".join(("measures", *map(str, values.values()))), measured))
    return Cell(values | {"what": "measures"}, parts)


def get_world(arg: ConfigDict) -> World:
    """The headline's, of the one family that policies of this size learn, with these models."""
    said = f"size={arg.size},families=reach,horizon=40,videos={arg.videos}"
    world = headline.get_world(headline.arguments(f"{said},policy_steps={arg.policy_steps}"))
    world = dataclasses.replace(
        world,
        teacher=lambda: teacher.get_config(f"quick={arg.quick}"),
        views=("human", "robot"),
        other=("distractors",),
        rollouts=arg.rollouts,
        tuned={"lapa": Tuned(arg.finetuning_steps, 0.0)},
    )
    return with_models(
        world, MODELS, lambda objective: quantizer.get_config(f"quick={arg.quick},{objective}"), arg
    )


def with_models(
    world: World,
    models: Mapping[str, Kind],
    quantizer_of: Callable[[str], ConfigDict],
    arg: ConfigDict,
) -> World:
    """A world whose objectives are these kinds of models, its quantizers made of configs by
    `objective=NAME`."""

    def model(name: str) -> ConfigDict:
        kind = models[name]
        config = quantizer_of(f"objective={kind.objective}")
        config.steps = max(2, round(kind.part * arg.quantizer_steps))
        warmed = max(1, round(config.optimizer.warmup_steps * config.steps / arg.quantizer_steps))
        config.optimizer.warmup_steps = min(warmed, config.steps - 1)
        if kind.bottleneck != "nsvq":
            config.model.bottleneck = base.bottleneck(kind.bottleneck)
            if "levels" in config.model.bottleneck:
                config.model.bottleneck.levels = (4, kind.codes // 4)
        elif "continuous_steps" in config.model.bottleneck:  # a third, and less than half
            ramps = dict(continuous_steps=config.steps // 3, ramp_steps=config.steps * 4 // 9)
            config.model.bottleneck.update(ramps)
        config.model.objective.update(kind.changes)
        model = config.model
        model.update(codebook_size=kind.codes, code_length=kind.length)
        model.update({key: round(kind.width * model[key]) for key in ("dim", "mlp_dim", "heads")})
        for corpus in config.data.corpora.values():
            corpus.window_seconds = kind.window
            if kind.known:
                corpus.action_fraction = kind.known
        if kind.known:
            model.objective.action_dim = envs.make(world.scene).spec.action_dim
        return of_videos(config, kind)

    def policy(name: str = "pixels") -> ConfigDict:
        kind = models[name]
        config = world.latent_vla()
        config.model.targets.latent.vocab, config.code_length = kind.codes, kind.length
        return of_videos(config, kind)

    def of_videos(config: ConfigDict, kind: Kind) -> ConfigDict:
        for name, corpus in config.data.corpora.items():
            corpus.fraction, corpus.weight = kind.fraction, kind.weights.get(name, 1.0)
        return config

    return dataclasses.replace(world, quantizer=model, latent_vla=policy)


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """The answer, every model, and in each setting what other models lose or gain on `pixels`."""
    models = prediction.joined(rows)
    arms = [row | {"arm": row["model"]} for row in rows if row["what"] == "success"]
    beside = {}
    for setting in SETTINGS:
        own = contrasts.chosen(arms, {"setting": setting})
        if any(row["arm"] == "pixels" for row in own):
            beside[f"beside_{setting}"] = contrasts.arms_table(own, "pixels", {})
    return beside | {
        "correlation": prediction.correlation_table(models),
        "left_out": prediction.left_out_table(models),
        "models": prediction.models_table(models),
    }


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
    return prediction.pictures(prediction.joined(rows))
