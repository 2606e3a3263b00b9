r"""The tabletop's action VLA: fine-tuning on a few labelled robot episodes.

Shows: whether starting from the latent VLA (init_from) beats starting from scratch (init_from
empty) on the same few labelled episodes, everything else equal; docs/evidence.md has answers.

    lapa data collect --out data/labelled --episodes 25 --families reach --blocks 4 \
        --horizon 40 --views robot --seed 1
    lapa data index data/labelled/robot
    lapa train --config experiments/action_vla/tabletop.py:init_from=runs/latent_vla \
        --workdir runs/action_vla
    lapa evaluate --workdir runs/action_vla --families reach --blocks 4 --steps 40

Cost: 0.69 M parameters; 300 steps took 20 seconds on two cores of an AMD EPYC
(docs/performance.md). quick=True runs in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`: the labelled corpus. `init_from`: a latent VLA's run.
    `optimizer`: one of base.optimizer. `augment`: one of base.augment."""
    arg = base.parse_arg(
        arg, data="data/labelled/robot", init_from="", optimizer="adamw", augment="none"
    )
    config = base.stage_defaults("action_finetuning")
    config.optimizer = base.optimizer(arg.optimizer)
    config.data.augment = base.augment(arg.augment)
    config.data.corpora["robot"] = base.corpus(arg.data)
    config.init_from = arg.init_from
    config.compute_dtype = "float32"
    config.global_batch = 64
    config.steps = 300
    # A few episodes would overwrite what it knows. Frozen instead, its gradients would not count in
    # clipping either, and none would be computed.
    held = 0.0 if arg.init_from else 1.0
    config.optimizer.groups = base.head_and_rest("action", lr_scale=held)
    config.model = base.policy_model(action_vocab=16)  # few, for few episodes
    config.model.targets.action.codec = "clusters"  # one token an action; "bins": one a dimension
    if arg.quick:
        base.make_policy_quick(config)
    return config
