r"""The tabletop's dynamics model: how frames follow, of the frames before and of latent actions.

Shows: frames imagined step by step from one true frame and the quantizer's latent actions, which
stay nearer to the true ones than that frame does (free_skill_k above 0, k steps on).

    lapa data collect --out data/tabletop --episodes 10000 --blocks 4 --views robot
    lapa data index data/tabletop/robot
    lapa train --config experiments/quantizer/tabletop.py:views=robot --workdir runs/quantizer
    lapa label --workdir runs/quantizer --corpus data/tabletop/robot --name laq
    lapa train --config experiments/image_tokenizer/tabletop.py:views=robot \
        --workdir runs/image_tokenizer
    lapa train --config experiments/dynamics/tabletop.py \
        --config.model.weights=runs/image_tokenizer --workdir runs/dynamics

Tokens are drawn many at a time; `form=next_token` draws one after the other.

Cost: 1.5 M parameters beside the tokenizer's; its 6,000 steps took 77 minutes on one core of an AMD
EPYC.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a small one, of few steps. `data`, `views` as for the quantizer; `label_set`: its
    labels, of `code_length` codes below `codebook`, or vectors where that is 0; `form`: how tokens
    are drawn (maskgit, next_token); `tokenizer`: its run, which quick shrinks as well."""
    arg = base.parse_arg(
        arg,
        **dict(data="data/tabletop", views="robot", label_set="laq", codebook=8, code_length=1),
        form="maskgit",
        tokenizer="",
    )
    config = base.stage_defaults("dynamics")
    config.data.corpora = base.views(arg, window_seconds=0.2, label_set=arg.label_set)
    config.compute_dtype, config.global_batch, config.steps = "float32", 32, 6000
    config.microbatches = 4  # eight clips stay nearer to a CPU's cache: docs/performance.md
    config.optimizer.update(peak_lr=2e-3, warmup_steps=200)
    config.evaluation.batches = 2
    config.model = base.dynamics_model(
        form=arg.form,
        latent_codes=arg.codebook,
        latent_length=arg.code_length,
        weights=arg.tokenizer,
    )
    if arg.quick:
        config.compile_effort = "least"
        base.make_tokenizer_quick(config.model.image_tokenizer)
        config.model.update(dim=32, mlp_dim=64, depth=1, draw_depth=1, heads=2, head_dim=16)
        config.steps, config.global_batch, config.data.num_frames = 100, 8, 3
        config.log_every_steps, config.optimizer.warmup_steps = 10, 20
        config.checkpoint.every_steps = 50
    return config
