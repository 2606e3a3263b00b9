r"""A latent VLA of middle size for a lab's data like Bridge: one camera, an instruction, 256 px.

Shows: what a policy of 89 M parameters, trained from scratch on one machine, learns of the latent
actions of a lab's own corpus; the path from RLDS or LeRobot data to a robot is README's "Real robot
data".

    lapa train --config quantizer/videos:data=data/bridge,window=0.6,size=256 \
        --config.model.code_length=4 --workdir runs/bridge_quantizer
    lapa label --workdir runs/bridge_quantizer --corpus data/bridge --name laq
    lapa train --config experiments/latent_vla/bridge.py:data=data/bridge \
        --workdir runs/bridge_latent

The shape is that of a ViT-Base or GPT-2 small; schedule and size are usual ones, and were not
searched.

Cost: 88.7 M parameters. By `lapa compile`, which runs nothing, a step of 256 examples in four
microbatches needs 21.1 GiB of one H100, and 5.8 GiB of each chip of a v5e-4; without microbatches
(--config.microbatches=1) 11.2 GiB of each of eight H100. A whole run is not measured.
quick=True has 60 steps of a model of width 32.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a check on a CPU. `data`: the corpus, of one camera, with pictures of `size` pixels
    a side; `sidecars`: where its index and label set are, if not beside it. `label_set`: of the
    quantizer, whose `code_length` and `codes` it has. `optimizer`: one of base.optimizer."""
    arg = base.parse_arg(
        arg,
        data="data/bridge",
        size=256,
        sidecars="",
        label_set="laq",
        code_length=4,
        codes=8,
        optimizer="adamw",
    )
    config = base.stage_defaults("latent_pretraining")
    config.data.image_size = (arg.size, arg.size)
    config.data.corpora["bridge"] = base.corpus(
        arg.data, sidecar_dir=arg.sidecars, label_set=arg.label_set, **base.AS_INDEXED
    )
    config.steps, config.checkpoint.every_steps = 30_000, 1000
    config.code_length = arg.code_length
    base.middle_policy(config, arg, latent_vocab=arg.codes)
    return config
