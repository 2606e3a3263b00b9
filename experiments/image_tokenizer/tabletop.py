r"""The tabletop's image tokenizer: 64 codes of a frame of 64 pixels a side, and the frame again.

Shows: codes that tell more of a frame than the frame before does (skill above 0, against copying
it): what a model of how frames follow needs of its tokens.

    lapa train --config experiments/image_tokenizer/tabletop.py --workdir runs/image_tokenizer
    lapa train --config experiments/dynamics/tabletop.py \
        --config.model.weights=runs/image_tokenizer --workdir runs/dynamics

Cost: 0.27 M parameters; 3,000 steps took four minutes on one core of an AMD EPYC beside other work.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a small one, of few steps. `data`, `views` as for the quantizer."""
    arg = base.parse_arg(arg, data="data/tabletop", views="human+robot")
    config = base.stage_defaults("image_tokenizer")
    config.data.corpora = base.views(arg, window_seconds=0.2)
    config.compute_dtype, config.global_batch, config.steps = "float32", 32, 3000
    config.optimizer.update(peak_lr=1e-3, warmup_steps=100)
    config.model = base.trained_tokenizer()
    if arg.quick:
        config.compile_effort = "least"
        base.make_tokenizer_quick(config.model)
        config.steps, config.global_batch = 200, 16
        config.log_every_steps, config.optimizer.warmup_steps = 10, 20
        config.checkpoint.every_steps = 100
    return config
