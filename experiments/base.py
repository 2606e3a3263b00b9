"""Defaults of every config key, in one place. An experiment starts from a stage's defaults.

Files beside this one have `get_config(arg)`; `arg` is `key=value,...` with at least `quick`.
"""

import ml_collections
from ml_collections import ConfigDict


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Parses `quick=True,views=robot+human` against typed defaults; an unknown key is an error."""
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise ValueError(f"config argument {key!r} is unknown; known: {sorted(defaults)}")
        kind = type(defaults[key])
        if kind is bool:
            if text not in ("True", "False"):
                raise ValueError(f"config argument {key}={text!r} must be True or False")
            values[key] = text == "True"
        else:
            values[key] = kind(text)
    return ConfigDict(values)


def corpus(path: str, **overrides) -> dict:
    """One corpus of a mixture."""
    return {
        "path": path,  # directory with the TFRecord shards
        "split": "train",
        "sidecar_dir": "",  # where index and label sets lie; empty: beside the shards
        "weight": 1.0,  # share of the mixture, relative to the others
        "fraction": 1.0,  # of its episodes that are drawn from
        "window_seconds": 0.6,  # time between the two frames of a pair
        "fps": 0.0,  # 0.0: from the episodes' metadata
        "image_key": "image",
        "action_key": "action",
        "instruction_key": "language_instruction",
        "label_set": "",  # name of the label set that gives latent actions
    } | overrides


def stage_defaults(stage: str) -> ConfigDict:
    """Everything but the model, which each stage adds."""
    config = ml_collections.ConfigDict()
    config.stage = stage
    config.seed = 0
    config.steps = 1000
    config.global_batch = 64  # examples per optimizer step, over all hosts
    config.microbatches = 1  # gradient accumulation: the batch in this many parts
    config.log_every_steps = 50
    config.init_from = ""  # workdir of the run whose parameters to start from

    config.data = ConfigDict()
    config.data.image_size = (64, 64)  # height, width in pixels
    config.data.num_frames = 2 if stage == "quantizer" else 1
    config.data.sampling = "per_frame"  # or per_video, as the paper's code
    config.data.tail = "drop"  # or clamp, as the paper's code
    config.data.decode = "auto"  # threads (simplejpeg) or tf (tf.data)
    config.data.num_threads = 2
    config.data.prefetch_batches = 4
    config.data.max_bad_fraction = 0.001  # more undecodable examples than this stop the run
    config.data.corpora = ConfigDict()

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.peak_lr = 1e-3
    config.optimizer.end_lr = 0.0
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.pretrained_lr_scale = 1.0  # of what init_from gives; 0.0: frozen
    config.optimizer.ema_decay = 0.0  # 0.0: no moving average of the parameters

    config.mesh = ConfigDict()
    config.mesh.preset = "dp"  # sharding rules, see docs/sharding.md
    config.mesh.data = -1  # -1: all devices that the other axes leave
    config.mesh.fsdp = 1
    config.mesh.seq = 1
    config.mesh.tensor = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500
    config.checkpoint.keep = 2
    return config


def quantizer_model() -> ConfigDict:
    """A small native quantizer for 64 px frames."""
    model = ConfigDict()
    model.patch_size = 8  # pixels
    model.dim = 48
    model.mlp_dim = 96
    model.heads = 3
    model.head_dim = 16
    model.spatial_depth = 1
    model.temporal_depth = 1
    model.decoder_depth = 2
    model.quant_dim = 4
    model.codebook_size = 8
    model.code_length = 1
    model.collapse_fraction = 0.25  # of codebook_size: with less perplexity training warns
    model.predict = "residual"  # or frame, as the paper
    model.legacy = False  # the original implementation's quirks, for its weights
    model.attention = "xla"
    model.remat = "none"
    model.unroll = 0  # layers per scan step; 0: all
    model.normalize_decay = 0.95  # of the latents' mean and variance; 0.0: as they are
    model.objective = objective("pixels")
    model.bottleneck = bottleneck("nsvq")
    return model


def bottleneck(name: str, codebook_size: int = 8) -> ConfigDict:
    """The settings of a bottleneck. `codebook_size` only shapes the levels of "fsq"."""
    codebook = {
        "dead_fraction": 0.125,  # of what the fullest code holds: below it a code is replaced
        "replace_every_steps": 10,
        # Latents kept, from which replacements are drawn. With 16 a code or more, chance calls few
        # codes dead; with many steps' worth, old ones tell little of the codes' use.
        "recent_size": 1024,
        "replace_noise": 0.01,
        "continuous_steps": 0,  # training steps before anything is quantised
        "ramp_steps": 0,  # steps from then until everything is
    }
    entropy = {"temperature": 1.0, "entropy_weight": 0.1, "diversity": 2.0}
    settings = {
        "nsvq": codebook | {"commitment_weight": 0.0},
        "legacy_nsvq": {},
        "vq_commit": codebook | {"commitment_weight": 0.25},
        "vq_ema": codebook | {"commitment_weight": 0.25, "codebook_decay": 0.99},
        "soft_vq": codebook | {"temperature": 0.5, "sharpness_weight": 0.01},
        "fsq": {"levels": fsq_levels(codebook_size)},
        "lfq": entropy | {"commitment_weight": 0.1},
        "gaussian": {"kl_weight": 1e-4},
        "none": {},
    }
    return ConfigDict({"name": name} | settings[name])


def fsq_levels(codebook_size: int) -> tuple[int, ...]:
    """Levels whose product is `codebook_size`: of a power of two, at most eight each and at least
    two dimensions."""
    bits = codebook_size.bit_length() - 1
    if codebook_size != 2**bits or bits < 2:
        return (codebook_size,)
    dimensions = max(2, -(-bits // 3))
    return tuple(2 ** (-(-(bits - i) // dimensions)) for i in range(dimensions))


def objective(name: str, encoder: str = "tabletop") -> ConfigDict:
    """The settings of a quantizer's objective. `encoder`: that of the teacher of "features"."""
    settings = {
        "pixels": {},
        "pixels_no_bottleneck": {},
        "contrastive": {"embed_dim": 64, "temperature": 0.1},
        "features": {
            "weights": "",  # workdir of the teacher: a run of stage teacher
            "teacher": vit(encoder),
        },
    }
    if name not in settings:
        raise ValueError(f"objective={name!r} must be one of {sorted(settings)}")
    return ConfigDict({"name": name} | settings[name])


def vit(name: str) -> ConfigDict:
    """The architecture of an image encoder: a small one for 64 px frames, or DINOv2's, which have
    registers=0 or 4."""
    model = ConfigDict()
    model.grid = (8, 8) if name == "tabletop" else (37, 37)  # of the learned positions
    model.patch_size = 8 if name == "tabletop" else 14  # pixels
    sizes = {  # dim, depth, heads
        "tabletop": (64, 4, 4),
        "dinov2_small": (384, 12, 6),
        "dinov2_base": (768, 12, 12),
        "dinov2_large": (1024, 24, 16),
        "dinov2_giant": (1536, 40, 24),
    }
    if name not in sizes:
        raise ValueError(f"encoder={name!r} must be one of {sorted(sizes)}")
    model.dim, model.depth, model.heads = sizes[name]
    model.head_dim = model.dim // model.heads
    model.swiglu = name == "dinov2_giant"
    model.mlp_dim = 4096 if model.swiglu else 4 * model.dim
    model.registers = 0  # tokens beside those of patches
    return model


def teacher_model(encoder: str = "tabletop") -> ConfigDict:
    """A masked autoencoder around an image encoder."""
    model = vit(encoder)
    model.mask_fraction = 0.75  # of the patches
    model.decoder_dim = 32
    model.decoder_depth = 2  # 0: an encoder alone, as imported ones are
    model.decoder_heads = 2
    model.remat = "none"
    model.unroll = 0  # layers per scan step; 0: all
    return model


def make_vit_quick(model: ConfigDict) -> None:
    """Shrinks the tabletop's encoder, of a teacher as of an objective."""
    model.dim, model.mlp_dim, model.depth = 32, 64, 2
    model.heads, model.head_dim = 2, 16


def legacy_quantizer_model() -> ConfigDict:
    """The released quantizer, with the original implementation's quirks (344 M parameters, for 256
    px frames)."""
    model = quantizer_model()
    model.legacy, model.predict, model.patch_size = True, "frame", 32
    model.dim, model.mlp_dim, model.heads, model.head_dim = 1024, 2730, 16, 64
    model.spatial_depth = model.temporal_depth = model.decoder_depth = 8
    model.quant_dim, model.codebook_size, model.code_length = 32, 8, 4
    model.unroll, model.normalize_decay = 1, 0.0
    model.bottleneck = bottleneck("legacy_nsvq")
    return model


def policy_model(*, latent_vocab: int = 0, action_vocab: int = 0) -> ConfigDict:
    """A small native policy for 64 px images. A vocabulary of 0 leaves the modality out."""
    model = ConfigDict()
    model.tokenizer = ""  # a SentencePiece .model; empty: trained on the corpora's instructions
    model.text_vocab = 384
    model.image_vocab = 0
    model.latent_vocab = latent_vocab  # the quantizer's codebook_size
    model.action_vocab = action_vocab  # most bins of an action dimension
    model.text_length = 20  # slots, the begin token included
    model.dim = 128
    model.depth = 3
    model.heads = 4
    model.head_dim = 32
    model.mlp_dim = 256
    model.rope_theta = 10_000.0
    model.norm_eps = 1e-6
    model.init_std = 0.06
    model.attention = "xla"
    model.remat = "none"
    model.unroll = 0  # layers per scan step; 0: all
    model.front_end = ConfigDict()
    model.front_end.name = "patches"
    model.front_end.patch_size = 16  # pixels on a side that one token stands for
    model.front_end.stem_channels = ()  # of stride-2 convolutions before the patches; slow on CPU
    return model


def make_policy_quick(config: ConfigDict) -> None:
    """Shrinks a policy experiment to a minute on a CPU."""
    config.steps, config.global_batch = 60, 16
    config.log_every_steps, config.optimizer.warmup_steps = 10, 10
    config.checkpoint.every_steps = 30
    config.model.dim, config.model.mlp_dim, config.model.depth = 32, 64, 2
    config.model.heads, config.model.head_dim = 2, 16
