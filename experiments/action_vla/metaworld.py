r"""Meta-World's action VLA: a policy from demonstrations of scripted experts, by pictures alone.

Shows: what a small policy reaches on ten tasks of a benchmark that people know, from 64 x 64 pixels
and an instruction; docs/benchmarks.md has answers. From a latent VLA's run
(experiments/latent_vla/metaworld.py) with init_from.

    lapa data collect --benchmark metaworld --episodes 500 --noise 0.1 --out data/metaworld
    lapa data index data/metaworld/robot
    lapa train --config experiments/action_vla/metaworld.py --workdir runs/metaworld
    lapa evaluate --benchmark metaworld --workdir runs/metaworld --out results/metaworld

By flow in chunks of 8 actions, of which 4 are taken before it is asked again, seeing the robot's
state, too (docs/policies.md compares heads):

    lapa train --config experiments/action_vla/metaworld.py:head=flow,state=True \
        --workdir runs/metaworld_flow
    lapa evaluate --benchmark metaworld --workdir runs/metaworld_flow \
        --out results/metaworld_flow --execute 4

Baselines, by `recipe`, are those of experiments/action_vla/tabletop.py; an inverse dynamics model
sees what is a tenth of a second later, in one step of which the arm moves by less than a pixel:

    lapa train --config experiments/action_vla/metaworld.py:recipe=inverse_dynamics \
        --workdir runs/idm

Cost: 0.75 M parameters; 3,000 steps took 5 minutes on two cores of an AMD EPYC. quick=True runs
in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.action_vla import tabletop

# name → (name and settings of a head, steps that it predicts)
HEADS = {
    "clusters": ("tokens", dict(vocab=128, codec="clusters"), 1),
    "bins": ("tokens", dict(vocab=128, codec="bins"), 1),
    "fast": ("fast", dict(vocab=256), 8),
    "chunk": ("chunk", {}, 8),
    "flow": ("flow", {}, 8),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`: the labelled corpus. `init_from`: a latent VLA's run.
    `head`: one of HEADS. `state`: the policy sees the robot's. `optimizer`: one of base.optimizer.
    `augment`: one of base.augment. `recipe`, `action_set` and `window` as of the tabletop's."""
    arg = base.parse_arg(
        arg,
        data="data/metaworld/robot",
        init_from="",
        head="clusters",
        state=False,
        optimizer="adamw",
        augment="none",
        recipe="own",
        action_set="idm",
        window=0.1,
    )
    base.require("head", arg.head, HEADS)
    config = base.stage_defaults("action_finetuning")
    config.evaluation.env = base.environment("metaworld")
    config.optimizer = base.optimizer(arg.optimizer)
    config.data.augment = base.augment(arg.augment)
    own = dict(state_key="observation/state") if arg.state else {}
    config.data.corpora["robot"] = base.corpus(arg.data, **own)
    config.init_from = arg.init_from
    config.compute_dtype = "float32"
    config.global_batch = 64
    config.steps = 3000
    config.optimizer.groups = base.head_and_rest("action", state=arg.state)
    name, settings, horizon = HEADS[arg.head]
    config.model = base.policy_model(text_length=24)
    config.model.targets.action = base.head(name, **settings)
    config.model.state.enabled = arg.state
    config.data.action_horizon, config.evaluation.execution_horizon = horizon, max(1, horizon // 2)
    tabletop.follow(config, arg)
    if arg.quick:
        base.make_policy_quick(config)
    return config
