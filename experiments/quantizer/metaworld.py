r"""Meta-World's quantizer: latent actions from pictures of ten tasks, without labels.

Shows: what codes tell of the motion of an arm in three dimensions and of its gripper where
scripted experts act; docs/trials.md has what is reached, and what was tried.

    lapa data collect --benchmark metaworld --episodes 2000 --noise 0.3 --out data/metaworld
    lapa data index data/metaworld/robot
    lapa train --config experiments/quantizer/metaworld.py --workdir runs/quantizer \
        --config.data.corpora.robot.fraction=0.9
    lapa evaluate --workdir runs/quantizer --holdout

Cost: 0.14 M parameters; as experiments/quantizer/tabletop.py, 900 steps in about two minutes on two
cores of an AMD EPYC. quick=True runs in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.quantizer import tabletop

CONTROL_HZ = 40  # of demonstrations whose actions are held for two steps of the benchmark


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`, `data`, `views` and `objective` as of the tabletop's. `window`: seconds of a pair.
    `codebook`, `code_length`: of its latent actions."""
    arg = base.parse_arg(
        arg,
        **dict(data="data/metaworld", views="robot", objective="pixels"),
        **dict(window=0.3, codebook=16, code_length=1),
    )
    config = tabletop.get_config(
        f"quick={arg.quick},data={arg.data},views={arg.views},objective={arg.objective}"
    )
    for corpus in config.data.corpora.values():
        corpus.window_seconds = arg.window
    if config.data.action_horizon > 1:  # an objective that knows the steps of a window
        config.data.action_horizon = round(CONTROL_HZ * arg.window)
        config.model.objective.horizon = config.data.action_horizon
    config.model.update(codebook_size=arg.codebook, code_length=arg.code_length)
    config.evaluation.env = base.environment("metaworld")  # of `lapa rollout --execute`
    return config
