"""The tabletop's latent VLA: from one image and an instruction to the quantizer's latent action.

Shows: how far a policy learns which block is named, and how to move there, from videos without
actions.

    lapa label --workdir runs/quantizer --corpus data/tabletop/human --name laq
    lapa label --workdir runs/quantizer --corpus data/tabletop/robot --name laq
    lapa train --config experiments/latent_vla/tabletop.py --workdir runs/latent_vla

Cost: 0.69 M parameters; 1,400 steps took 151 seconds on two cores of an AMD EPYC
(docs/performance.md). quick=True runs in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`, `views` as for the quantizer; `label_set`: its labels, of
    `code_length` codes below `codebook`, or vectors where that is 0; `optimizer`: one of
    base.optimizer."""
    arg = base.parse_arg(
        arg,
        data="data/tabletop",
        views="human+robot",
        label_set="laq",
        codebook=8,
        code_length=1,
        optimizer="adamw",
    )
    config = base.stage_defaults("latent_pretraining")
    config.optimizer = base.optimizer(arg.optimizer)
    config.data.corpora = base.views(arg, label_set=arg.label_set)
    config.compute_dtype, config.global_batch, config.steps = "float32", 128, 1400
    config.code_length = arg.code_length
    config.model = base.policy_model(latent_vocab=arg.codebook)
    if not arg.codebook:
        config.model.targets.latent = base.head("vectors")
    if arg.quick:
        base.make_policy_quick(config)
    return config
