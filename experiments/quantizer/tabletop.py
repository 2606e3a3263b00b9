r"""The tabletop's quantizer: latent actions from action-free videos of a human hand and of a robot.

Shows: latent actions learnt without labels. The aim: codes that are all used (perplexity at least
half of the codebook) and predict the later frame better than copying the first (skill above 0.3);
docs/trials.md has what is reached.

    lapa data collect --out data/tabletop --episodes 1000 --families reach --blocks 4 \
        --horizon 40 --views human,robot
    lapa data index data/tabletop/human && lapa data index data/tabletop/robot
    lapa train --config experiments/quantizer/tabletop.py --workdir runs/quantizer

Another objective is an argument, and features need a teacher (experiments/teacher/tabletop.py):

    lapa train --config experiments/quantizer/tabletop.py:objective=features \
        --config.model.objective.weights=runs/teacher --workdir runs/quantizer_features

Several cameras at once need a corpus of all of them (`lapa data collect --together`):

    lapa data collect --out data/tabletop --episodes 1000 --families reach --blocks 4 \
        --horizon 40 --views robot,camera --together
    lapa train --workdir runs/quantizer_views --config \
        experiments/quantizer/tabletop.py:objective=cross_view,views=robot+camera,together=True

Some are added to any other (docs/zoo.md): triplets whose latents add up; words of the instruction,
and then a second codebook:

    lapa train --config experiments/quantizer/tabletop.py:objective=algebraic+pixels \
        --workdir runs/quantizer_algebraic
    lapa train --config experiments/quantizer/tabletop.py:objective=two_stage \
        --workdir runs/quantizer_stage1
    lapa train --config experiments/quantizer/tabletop.py:objective=two_stage \
        --config.model.objective.stage=2 --config.model.objective.weights=runs/quantizer_stage1 \
        --workdir runs/quantizer_stage2

Some read what is made first: the robot's state, with `--state` of `lapa data collect`; how the
camera moves, in the index; the optical flow of each window:

    lapa data collect --out data/state --episodes 1000 --families reach --blocks 4 \
        --horizon 40 --views human,robot --state
    lapa data index data/state/human && lapa data index data/state/robot
    lapa train --config experiments/quantizer/tabletop.py:objective=proprio,data=data/state \
        --workdir runs/quantizer_proprio
    lapa data index data/tabletop/moving_camera --action_key observation/camera_motion
    lapa train --config experiments/quantizer/tabletop.py:objective=pose,views=moving_camera \
        --workdir runs/quantizer_pose
    lapa data flow data/tabletop/robot --window_seconds 0.2 --method tabletop --families reach \
        --blocks 4
    lapa train --config experiments/quantizer/tabletop.py:objective=flow,views=robot \
        --workdir runs/quantizer_flow

Cost: 0.14 M parameters; 900 steps took 122 seconds on two cores of an AMD EPYC
(docs/performance.md). quick=True runs in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`: directory with one corpus a view; `views` joined by +.
    `objective`: what is predicted, as of base.predict. `augment`: one of base.augment.
    `together`: the views are cameras of one corpus, for cross_view and factorised."""
    arg = base.parse_arg(
        arg,
        **dict(data="data/tabletop", views="human+robot", objective="pixels", augment="none"),
        together=False,
    )
    config = base.stage_defaults("quantizer")
    config.data.augment = base.augment(arg.augment)
    if arg.together:
        config.data.corpora = base.views_together(arg, window_seconds=0.2)
    else:
        config.data.corpora = base.views(arg, window_seconds=0.2)
    config.compute_dtype, config.global_batch, config.steps = "float32", 64, 900
    config.optimizer.peak_lr = 8e-3
    config.model = base.quantizer_model()
    config.model.bottleneck.update(continuous_steps=300, ramp_steps=400)
    base.predict(config, arg.objective)
    name, objective = arg.objective.rpartition("+")[2], config.model.objective
    objective = objective.get("of", objective)  # that others are added to
    if "horizon" in objective:  # steps of a window
        objective.horizon = config.data.action_horizon = 2
    for corpus in config.data.corpora.values():
        if name == "proprio":
            corpus.state_key = "observation/state"
            objective.corpora = len(config.data.corpora)
        if name == "pose":
            corpus.action_key = "observation/camera_motion"
    if name == "factorised" and arg.together:
        objective.positives = "views"
    if name == "bimanual":  # the tool's two axes stand for two arms
        objective.update(action_dim=2, left_dims=1)
        config.model.code_length = 2
    if "rotation" in arg.objective:
        config.model.quant_dim = 16  # of 4 x 4
    if arg.quick:
        base.make_quantizer_quick(config)
        config.optimizer.warmup_steps, config.model.patch_size = 10, 16
        if "teacher" in objective:
            base.make_vit_quick(objective.teacher)
    return config
