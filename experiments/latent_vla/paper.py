r"""The paper's latent VLA: LWM's 7 B LLaMA learns the latent actions of Open X, Bridge or
Something-Something V2.

Shows: the published pretraining. It starts from LWM-Chat-1M's weights, sees images as LWM's tokens
and writes the original's rows (`legacy`); legacy=False lays out the shorter native rows.

    lapa import --format lapa_stream --source LWM-Chat-1M-Jax/params --size 7b \
        --tokenizer LWM-Chat-1M-Jax/tokenizer.model --out runs/lwm
    lapa import --format vqgan_pickle --source LWM-Chat-1M-Jax/vqgan --out runs/vqgan
    lapa label --what image_tokens --workdir runs/vqgan --corpus data/bridge --name vqgan
    lapa label --workdir runs/laq_bridge --corpus data/bridge --name laq
    lapa train --config experiments/latent_vla/paper.py:corpus=bridge,data=data/bridge \
        --config.init_from=runs/lwm --workdir runs/lapa_bridge
    lapa compile --config experiments/latent_vla/paper.py:hardware=v5p-64,batch=256 \
        --topology v5p-64

Known (the original's scripts): AdamW (0.9, 0.95), a constant 2e-5 without warm-up or decay, clip
1.0, 70,000 steps on Open X, rows of 384 tokens, 8 codes, 4 a pair. In conflict: the paper's
appendix gives a batch of 128, the code's instructions one of 256; here 128
(batch=256 for the other). Not known: the steps on Bridge and Something-Something V2
alone; here as on Open X.

Cost: the authors report 34 hours on 8 H100 for Open X. Not measured here; docs/sharding.md has what
compilers say of memory and time. quick=True has 60 steps of a model of width 32.
"""

from ml_collections import ConfigDict

from experiments import base, hardware

# name → window of its latent actions in seconds
CORPORA = {"openx": 0.6, "bridge": 0.6, "ssv2": 2.5}


def get_config(arg: str | None = None) -> ConfigDict:
    """`corpus`: one of CORPORA. `data`: its shards (256 px); `label_set`, `image_token_set`: of
    them. `front_end`: cached_tokens, or vqgan, which needs no image_token_set. `hardware`: a rule
    of hardware.POLICY_7B. `optimizer`: one of base.optimizer."""
    arg = base.parse_arg(
        arg,
        corpus="bridge",
        data="data/bridge",
        label_set="laq",
        image_token_set="vqgan",
        front_end="cached_tokens",
        legacy=True,
        batch=128,
        hardware="",
        optimizer="adamw",
    )
    base.require("corpus", arg.corpus, CORPORA)
    config = base.stage_defaults("latent_pretraining")
    cached = arg.front_end == "cached_tokens"
    config.data.image_size = (256, 256)
    config.data.corpora[arg.corpus] = base.corpus(
        arg.data,
        window_seconds=CORPORA[arg.corpus],
        label_set=arg.label_set,
        image_token_set=arg.image_token_set if cached else "",
    )
    config.compute_dtype = "bfloat16"
    config.global_batch, config.steps = arg.batch, 70_000
    config.checkpoint.every_steps = 1000
    config.code_length = 4
    config.optimizer = base.optimizer(arg.optimizer)
    base.constant(config, 2e-5)
    config.model = base.lwm_policy_model(latent_vocab=8)
    config.model.front_end = base.front_end(arg.front_end)
    if not arg.legacy:
        config.model.update(legacy=False, text_length=64, sequence_length=0)
    hardware.use(config, hardware.POLICY_7B, arg.hardware)
    if arg.quick:
        base.make_lwm_policy_quick(config)
    return config
