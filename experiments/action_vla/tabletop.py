r"""The tabletop's action VLA: fine-tuning on a few labelled robot episodes.

Shows: whether starting from the latent VLA (init_from) beats starting from scratch (init_from
empty) on the same few labelled episodes, everything else equal; docs/evidence.md has answers.

    lapa data collect --out data/labelled --episodes 25 --families reach --blocks 4 \
        --horizon 40 --views robot --seed 1
    lapa data index data/labelled/robot
    lapa train --config experiments/action_vla/tabletop.py:init_from=runs/latent_vla \
        --workdir runs/action_vla
    lapa evaluate --workdir runs/action_vla --families reach --blocks 4 --steps 40

Latent actions come in in four ways (docs/policies.md): `integration=direct` is the above; the
others learn them from a label set of the labelled corpus itself, in one run:

    lapa train --config experiments/action_vla/tabletop.py:integration=condition,label_set=laq \
        --workdir runs/condition

Baselines, by `recipe` (docs/policies.md). `vpt` learns from actions that an inverse dynamics model,
trained on the labelled episodes, says of the others; then it is what the above starts from:

    lapa train --config experiments/action_vla/tabletop.py:recipe=inverse_dynamics \
        --workdir runs/idm
    lapa label --what actions --workdir runs/idm --corpus data/tabletop/human --name idm
    lapa train --config experiments/action_vla/tabletop.py:recipe=vpt,data=data/tabletop/human \
        --workdir runs/vpt

`unipi` acts by frames that are drawn: a latent VLA, its quantizer, whose window is 0.2 seconds, and
an inverse dynamics model of that window:

    lapa train --config experiments/action_vla/tabletop.py:recipe=inverse_dynamics,window=0.2 \
        --workdir runs/idm_window
    lapa evaluate --workdir runs/latent_vla --quantizer runs/quantizer \
        --inverse_dynamics runs/idm_window --families reach --blocks 4 --steps 40

Cost: 0.69 M parameters; 300 steps took 20 seconds on two cores of an AMD EPYC
(docs/performance.md). quick=True runs in about a minute there.
"""

from ml_collections import ConfigDict

from experiments import base

INTEGRATIONS = ("direct", "condition", "align", "cotrain")
RECIPES = ("own", "inverse_dynamics", "vpt", "openvla", "frozen_features")


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`: the labelled corpus. `init_from`: a latent VLA's run.
    `optimizer`: one of base.optimizer. `augment`: one of base.augment. `head`: one of base.head, of
    actions, in chunks of `horizon`. `integration`: one of INTEGRATIONS, all but direct by
    `label_set`, whose z are `code_length` codes below `codebook`, or vectors where that is 0; of
    cotrain, `known` is the share of episodes whose actions are. `recipe`: one of RECIPES; of vpt,
    `action_set` says the actions that are not known; an inverse dynamics model sees what is
    `window` seconds later: 0.1 is a step."""
    arg = base.parse_arg(
        arg,
        data="data/labelled/robot",
        init_from="",
        optimizer="adamw",
        augment="none",
        head="tokens",
        horizon=1,
        integration="direct",
        label_set="laq",
        codebook=8,
        code_length=1,
        known=0.25,
        recipe="own",
        action_set="idm",
        window=0.1,
    )
    base.require("integration", arg.integration, INTEGRATIONS)
    config = base.stage_defaults("action_finetuning")
    config.optimizer = base.optimizer(arg.optimizer)
    config.data.augment = base.augment(arg.augment)
    config.data.corpora["robot"] = base.corpus(arg.data)
    config.init_from = arg.init_from
    config.compute_dtype = "float32"
    config.global_batch = 64
    config.steps = 300
    # A few episodes would overwrite what it knows. Frozen instead, its gradients would not count in
    # clipping either, and none would be computed.
    held = 0.0 if arg.init_from else 1.0
    config.optimizer.groups = base.head_and_rest("action", lr_scale=held)
    config.model = base.policy_model(action_vocab=16)  # few, for few episodes
    config.data.action_horizon = arg.horizon
    if arg.head != "tokens":
        config.model.targets.action = base.head(arg.head)
    else:  # "clusters": one token an action; "bins": one a dimension
        config.model.targets.action.codec = "clusters"
    if arg.integration != "direct":
        config.data.corpora["robot"].label_set = arg.label_set
        config.code_length = arg.code_length
        config.model.targets.latent = _latent_head(arg)
        config.optimizer.groups = base.head_and_rest("(action|latent)", lr_scale=held)
    if arg.integration == "cotrain":
        config.model.cotrain = True
        config.data.corpora["robot"].action_fraction = arg.known
    follow(config, arg)
    if arg.quick:
        base.make_policy_quick(config)
    return config


def follow(config: ConfigDict, arg: ConfigDict) -> None:
    """The baseline that `arg.recipe` names, with `arg.window` and `arg.action_set`."""
    base.require("recipe", arg.recipe, RECIPES)
    corpus = config.data.corpora["robot"]
    if arg.recipe == "inverse_dynamics":
        config.model.inverse_dynamics, config.data.num_frames = True, 2
        config.data.history_seconds = 0.0
        corpus.window_seconds = arg.window
        config.model.targets.action = base.head("chunk")
    elif arg.recipe == "vpt":
        corpus.action_set, corpus.action_fraction = arg.action_set, 0.0
    elif arg.recipe == "openvla":  # 256 even bins a dimension; everything is trained
        config.model.targets.action = base.head("tokens", vocab=256, codec="uniform")
        config.optimizer.groups = base.head_and_rest("action")
    elif arg.recipe == "frozen_features":
        config.optimizer.groups = base.head_and_rest("action", frozen=True)


def _latent_head(arg: ConfigDict) -> ConfigDict:
    if arg.integration == "align":
        return base.head("align", codebook_size=arg.codebook)
    if arg.codebook:
        return base.head("tokens", vocab=arg.codebook, codec="codes")
    return base.head("vectors")
