"""Meta-World's latent VLA: from one image and an instruction to the quantizer's latent action.

Shows: how far a policy learns ten tasks from videos without actions; what it is worth is what
experiments/action_vla/metaworld.py reaches from it (init_from) with few labelled episodes.

    lapa label --workdir runs/quantizer --corpus data/metaworld/robot --name laq
    lapa train --config experiments/latent_vla/metaworld.py --workdir runs/latent_vla

Cost: 0.7 M parameters; as experiments/latent_vla/tabletop.py, 1,400 steps in about three minutes on
two cores of an AMD EPYC. quick=True runs in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.latent_vla import tabletop


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`, `views` as for the quantizer; `label_set`: its labels, of
    `code_length` codes below `codebook`, or vectors where that is 0; `optimizer`: one of
    base.optimizer."""
    arg = base.parse_arg(
        arg,
        **dict(data="data/metaworld", views="robot", label_set="laq"),
        **dict(codebook=16, code_length=1, optimizer="adamw"),
    )
    given = ",".join(f"{name}={value}" for name, value in arg.items())
    config = tabletop.get_config(given)
    config.model.text_length = 24
    return config
