r"""Meta-World's action VLA: a policy from demonstrations of scripted experts, by pictures alone.

Shows: what a small policy reaches on ten tasks of a benchmark that people know, from 64 x 64 pixels
and an instruction; docs/benchmarks.md has answers. From a latent VLA's run with init_from.

    lapa data collect --benchmark metaworld --episodes 500 --noise 0.1 --out data/metaworld
    lapa data index data/metaworld/robot
    lapa train --config experiments/action_vla/metaworld.py --workdir runs/metaworld
    lapa evaluate --benchmark metaworld --workdir runs/metaworld --out results/metaworld

Cost: 0.75 M parameters; 3,000 steps took 5 minutes on two cores of an AMD EPYC. quick=True runs
in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`: the labelled corpus. `init_from`: a latent VLA's run.
    `optimizer`: one of base.optimizer. `augment`: one of base.augment."""
    arg = base.parse_arg(
        arg, data="data/metaworld/robot", init_from="", optimizer="adamw", augment="none"
    )
    config = base.stage_defaults("action_finetuning")
    config.evaluation.env = base.environment("metaworld")
    config.optimizer = base.optimizer(arg.optimizer)
    config.data.augment = base.augment(arg.augment)
    config.data.corpora["robot"] = base.corpus(arg.data)
    config.init_from = arg.init_from
    config.compute_dtype = "float32"
    config.global_batch = 64
    config.steps = 3000
    config.optimizer.groups = base.head_and_rest("action")
    config.model = base.policy_model(action_vocab=128, text_length=24)
    config.model.targets.action.codec = "clusters"
    if arg.quick:
        base.make_policy_quick(config)
    return config
