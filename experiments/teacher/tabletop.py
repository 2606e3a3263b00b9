r"""A teacher for the tabletop's quantizer: an image encoder that learns from the frames alone.

Shows: a small masked autoencoder whose features tell more of the hidden patches than their mean
colour (drawing_skill above 0), for quantizers that predict features instead of pixels.

    lapa train --config experiments/teacher/tabletop.py --workdir runs/teacher
    lapa train --config experiments/quantizer/tabletop.py:objective=features \
        --config.model.objective.weights=runs/teacher --workdir runs/quantizer_features

Cost: seven to fourteen minutes on one CPU core (156 to 334 images a second, the core shared);
quick=True takes one.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`, `views` as for the quantizer."""
    arg = base.parse_arg(arg, data="data/tabletop", views="human+robot")
    config = base.stage_defaults("teacher")
    config.data.corpora = base.views(arg)
    config.compute_dtype, config.global_batch, config.steps = "float32", 128, 1000
    config.optimizer.update(peak_lr=1e-3, weight_decay=0.05)
    config.model = base.teacher_model()
    if arg.quick:
        config.compile_effort = "least"
        base.make_vit_quick(config.model)
        config.model.decoder_depth = 1
        config.steps, config.global_batch = 200, 32
        config.log_every_steps, config.optimizer.warmup_steps = 10, 20
        config.checkpoint.every_steps = 100
    return config
