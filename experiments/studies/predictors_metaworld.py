r"""Does what tells a good latent action model on the tabletop tell it on Meta-World?

Shows: as experiments/studies/predictors.py, on the ten tasks of experiments/studies/metaworld.py:
for latent action models that differ in objective, bottleneck, window, codes, size and training,
every diagnostic of `lapa evaluate` on held-out episodes beside the success of a policy that was
pretrained on their labels, and whose head then learnt the actions; the rank correlation of each,
and what every change costs or gains.

    lapa study studies/predictors_metaworld --workdir runs/predictors_metaworld

Cost: six hours of one CPU core for 18 models, on shared cores (`--size quick`: 3 models).
"""

import dataclasses
from pathlib import Path

from experiments import base
from experiments.quantizer import metaworld as quantizer
from experiments.studies import metaworld, predictors
from experiments.studies.arms import Tuned
from experiments.studies.pipeline import Pipeline
from lapa_jax.studies.study import Study

# As those of the tabletop, at one and a half times its window, with 16 codes where it has 8, as
# experiments/quantizer/metaworld.py.
NAMES = (
    *("pixels", "untrained", "short", "half", "next_frame", "far"),
    *("vq_ema", "vq_commit", "fsq", "no_bottleneck", "contrastive", "algebraic"),
    *("algebraic_light", "latent_targets", "few_labels", "four_codes", "many_codes", "narrow"),
)
MODELS = {
    name: dataclasses.replace(
        kind, window=round(1.5 * kind.window, 2), codes=16 if kind.codes == 8 else kind.codes
    )
    for name, kind in predictors.MODELS.items()
    if name in NAMES
}
# Of all but the head. Where everything learns, the labels alone make a policy nearly as good as any
# (results/metaworld.search.json), so that models would differ by less than their intervals.
REST = 0.0

SIZES = {
    "quick": dict(models="pixels+short+contrastive", videos=20, tasks=2, rollouts=2, labels=10)
    | dict(pairs=200, quantizer_steps=20, policy_steps=20, finetuning_steps=20),
    "cpu": {},
    "gpu": dict(seeds=3, videos=10_000, quantizer_steps=3000, policy_steps=10_000, rollouts=50),
}


def get_study(arg: str | None, workdir: Path) -> Study:
    """`models` joined by +. `seeds`: of everything but the videos. `videos`: episodes; `pairs`: of
    held-out episodes that are measured; `tasks`: how many of the ten policies act in; `rollouts`:
    start states of each. `labels`: episodes to fine-tune on. `quantizer_steps`, `policy_steps`,
    `finetuning_steps`: of the head."""
    arg = base.parse_study_arg(
        arg,
        SIZES,
        **dict(models="+".join(MODELS), seeds=1, videos=2000, pairs=2000, tasks=10, rollouts=20),
        **dict(labels=metaworld.LABELS, quantizer_steps=900, policy_steps=1400),
        **dict(finetuning_steps=500),
    )
    models = arg.models.split("+")
    for name in models:
        base.require("models", name, MODELS)
    said = f"size={arg.size},tasks={arg.tasks},videos={arg.videos},policy_steps={arg.policy_steps}"
    world = metaworld.get_world(metaworld.arguments(said))
    tuned = {"lapa": Tuned(arg.finetuning_steps, REST)}
    world = dataclasses.replace(world, rollouts=arg.rollouts, tuned=tuned)
    world = predictors.with_models(
        world, MODELS, lambda given: quantizer.get_config(f"quick={arg.quick},{given}"), arg
    )
    pipeline, cells = Pipeline(world, workdir), []
    for seed in range(arg.seeds):
        for name in models:
            cells += predictors.cells_of(pipeline, name, "clean", seed, arg)
    return Study(workdir, cells)


tables, figures = predictors.tables, predictors.figures
