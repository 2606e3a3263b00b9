r"""The paper's action VLA: the pretrained policy learns a robot's actions from few episodes.

Shows: the published fine-tuning for SIMPLER, for the real robot and for Language Table. Everything
is trained; the head of latent actions gives way to a new one of actions, a token a dimension.

    lapa label --what image_tokens --workdir runs/vqgan --corpus data/simpler --name vqgan
    lapa train --config experiments/action_vla/paper.py:task=simpler,data=data/simpler \
        --config.init_from=runs/lapa_openx --workdir runs/lapa_simpler

The images of the real robot are augmented, so that their tokens are computed while training, by the
run of an image tokenizer (`vqgan`):

    lapa train --config experiments/action_vla/paper.py:task=real,data=data/robot,vqgan=runs/vqgan \
        --config.init_from=runs/lapa_openx --workdir runs/lapa_real

On one GPU the head and LoRA train beside a frozen base, which `base` holds in bfloat16 or int8
(docs/training.md, Memory):

    lapa train --config experiments/action_vla/paper.py:lora=16,base=int8,data=data/simpler \
        --config.global_batch=8 --config.init_from=runs/lapa_openx --workdir runs/lapa_lora

Known (the original's scripts): AdamW at a constant 2e-5, batch 128; 500 steps and an action
vocabulary of 245 for SIMPLER, 2,000 and 256 for the real robot, whose images are augmented: crops
of 0.9 of the area, then brightness, contrast, hue, saturation and value, as data.augment says. Its
crops lie at whole pixels and each of its steps rounds to 8 bits, ours only the last. Bins
are equally full; frequent values have their own, 0 and 1 of a gripper those from -0.5 to 0.5 to
1.5, as there. Not known: the steps on Language Table; here as for SIMPLER. The authors' advice is
to stop at 95 % accuracy on the training actions (the metric token_accuracy).

Cost: the authors name four 80 GB A100. Not measured here. quick=True has 60 steps of a model of
width 32; of task=real it leaves the tokenizer as it is, which is slow on a CPU.
"""

from ml_collections import ConfigDict

from experiments import base, hardware

# name → (steps, action vocabulary)
TASKS = {"simpler": (500, 245), "real": (2000, 256), "language_table": (500, 256)}


def get_config(arg: str | None = None) -> ConfigDict:
    """`task`: one of TASKS. `data`: its labelled corpus (256 px), with `image_token_set` unless
    the task is real; that needs `vqgan`, the run of an image tokenizer. `lora`: rank of the
    factors that train with the head, 0: everything trains; `base`: model.base_dtype of the rest.
    `hardware`: a rule of hardware.POLICY_7B. `optimizer`: one of base.optimizer."""
    arg = base.parse_arg(
        arg,
        task="simpler",
        data="data/simpler",
        image_token_set="vqgan",
        vqgan="",
        init_from="",
        lora=0,
        base="param_dtype",
        hardware="",
        optimizer="adamw",
    )
    base.require("task", arg.task, TASKS)
    config = base.stage_defaults("action_finetuning")
    config.data.image_size = (256, 256)
    augmented = arg.task == "real"
    config.data.corpora[arg.task] = base.corpus(
        arg.data, image_token_set="" if augmented else arg.image_token_set
    )
    config.init_from = arg.init_from
    config.compute_dtype = "bfloat16"
    config.global_batch = 128
    config.steps, vocabulary = TASKS[arg.task]
    config.checkpoint.every_steps = 100
    config.optimizer = base.optimizer(arg.optimizer)
    base.constant(config, 2e-5)
    config.model = base.lwm_policy_model(action_vocab=vocabulary)
    if augmented:
        config.data.augment = base.augment("crop_and_colour")
        config.model.front_end = base.front_end("vqgan")
        config.model.front_end.weights = arg.vqgan
    if arg.lora:
        config.model.update(lora_rank=arg.lora, base_dtype=arg.base)
        config.optimizer.groups = base.head_and_rest("action", frozen=True)
    elif arg.base != "param_dtype":
        raise ValueError(f"config argument base={arg.base!r} is for lora=RANK")
    hardware.use(config, hardware.POLICY_7B, arg.hardware)
    if arg.quick:
        base.make_lwm_policy_quick(config)
    return config
