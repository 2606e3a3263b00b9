"""The 7B latent VLA by its shapes: LLaMA-7B, 256 image tokens, 4 latent actions, 384 positions."""

from ml_collections import ConfigDict

from experiments import base, hardware


def get_config(arg: str | None = None) -> ConfigDict:
    arg = base.parse_arg(arg, hardware="")
    config = base.stage_defaults("latent_pretraining")
    config.data.image_size = (256, 256)
    config.data.corpora["corpus"] = base.corpus("data/corpus", label_set="laq")
    config.compute_dtype = "bfloat16"
    config.global_batch = 256
    config.code_length = 4
    config.model = base.policy_model(latent_vocab=8)
    config.model.text_vocab, config.model.image_vocab = 32_000, 8448
    config.model.text_length = 125
    config.model.dim, config.model.depth, config.model.mlp_dim = 4096, 32, 11008
    config.model.heads, config.model.head_dim = 32, 128
    config.model.remat, config.model.unroll = "full", 1
    hardware.use(config, hardware.POLICY_7B, arg.hardware)
    return config
