r"""An action VLA of middle size for a lab's data like Bridge: actions of 7 dimensions, one camera.

Shows: whether starting from the latent VLA (init_from) beats starting from scratch (init_from
empty) on a lab's own labelled episodes. Every action is as many tokens as it has dimensions, of 256
bins each, fitted to the corpus; pictures are augmented as the original does for its real robot.

    lapa train --config experiments/action_vla/bridge.py:data=data/bridge \
        --config.init_from=runs/bridge_latent --workdir runs/bridge_action
    lapa evaluate --workdir runs/bridge_action --corpus data/bridge_heldout
    lapa serve --workdir runs/bridge_action

Cost: 89.1 M parameters; memory as experiments/latent_vla/bridge.py says. A whole run is not
measured. quick=True has 60 steps of a model of width 32.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a check on a CPU. `data`: the labelled corpus, of one camera, with pictures of
    `size` pixels a side; `sidecars`: where its index is, if not beside it. `init_from`: a latent
    VLA's run. `optimizer`: one of base.optimizer. `augment`: one of base.augment."""
    arg = base.parse_arg(
        arg,
        data="data/bridge",
        size=256,
        sidecars="",
        init_from="",
        optimizer="adamw",
        augment="crop_and_colour",
    )
    config = base.stage_defaults("action_finetuning")
    config.data.image_size = (arg.size, arg.size)
    config.data.augment = base.augment(arg.augment)
    config.data.corpora["bridge"] = base.corpus(
        arg.data, sidecar_dir=arg.sidecars, **base.AS_INDEXED
    )
    config.init_from = arg.init_from
    config.steps, config.checkpoint.every_steps = 10_000, 500
    base.middle_policy(config, arg, action_vocab=256)
    config.optimizer.groups = base.head_and_rest("action")
    return config
