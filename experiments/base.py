"""Defaults of every config key, in one place. An experiment starts from a stage's defaults.

Files beside this one have `get_config(arg)`; `arg` is `key=value,...` with at least `quick`.
"""

import ml_collections
from ml_collections import ConfigDict

POLICIES = ("latent_pretraining", "action_finetuning")


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
        "min_episode_steps": 0,  # shorter episodes are not drawn from
        "require_instruction": False,  # of episodes drawn from, where training does not need it
        "window_seconds": 0.6,  # time between the two frames of a pair
        "fps": 0.0,  # 0.0: from the episodes' metadata
        # Of the index; image_key "": the only one there is, the others "": those it was built with.
        "image_key": "image",
        "extra_image_keys": (),  # further cameras of each example, after image_key
        "action_key": "action",
        "instruction_key": "language_instruction",
        "label_set": "",  # name of the label set that gives latent actions
        "image_token_set": "",  # name of the set that gives image tokens, of each camera
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
    # Time between the frames of an example, which end at the current one. 0.0: they begin there,
    # window_seconds of their corpus apart.
    config.data.history_seconds = 0.5 if stage in POLICIES else 0.0
    config.data.chain_pairs = 1  # pairs of one episode side by side in the batch, sharing frames
    config.data.sampling = "per_frame"  # or per_video, as the paper's code
    # Of frames a window apart, the mean difference in 0..255 below which neither pair nor label is
    # drawn. Above 0.0 it needs `lapa data motion`.
    config.data.min_pair_difference = 0.0
    config.data.tail = "drop"  # frames beyond the episode; or clamp, as the paper's code
    # Or windowed: whole blocks, for object stores. The three keys below are for that alone.
    config.data.access = "random"
    config.data.block_mib = 64.0  # MiB of consecutive episodes that are read at once
    config.data.window_blocks = 2  # whose samples are permuted together
    config.data.lanes = 8  # that read for themselves: a multiple of the hosts
    config.data.decode = "auto"  # threads (simplejpeg) or tf (tf.data)
    config.data.num_threads = 2
    config.data.prefetch_batches = 4
    config.data.max_bad_fraction = 0.001  # more undecodable examples than this stop the run
    config.data.augment = augment("none")  # of images in training
    config.data.corpora = ConfigDict()

    config.optimizer = optimizer("adamw")

    config.mesh = ConfigDict()
    config.mesh.preset = "dp"  # sharding rules, see docs/sharding.md
    config.mesh.data = -1  # -1: all devices that the other axes leave
    config.mesh.fsdp = 1
    config.mesh.seq = 1
    config.mesh.tensor = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500
    # Also when so long has passed since the last one; looked at when metrics are logged. 0.0: not.
    config.checkpoint.every_minutes = 0.0
    config.checkpoint.keep = 2  # the newest
    config.checkpoint.keep_every_steps = 0  # besides, those of steps that this divides; 0: none
    # Besides, the one with the best value of a metric of evaluation.jsonl, as "mse"; "": none.
    config.checkpoint.best_metric = ""
    config.checkpoint.best_is = "lowest"  # or highest

    config.guard = ConfigDict()
    # What happens to a step that is not finite or a spike: stop, skip or rollback.
    config.guard.action = "stop"
    config.guard.spike_sigmas = 0.0  # of the loss above its mean; 0.0: no loss is a spike
    config.guard.memory_steps = 100  # of mean and deviation; before so many steps none is a spike
    config.guard.max_events = 20  # steps skipped or rolled back; one more stops the run

    config.evaluation = ConfigDict()
    config.evaluation.every_steps = 0  # 0: no evaluation during training
    config.evaluation.batches = 8  # of global_batch examples, the same ones each time
    # Directories, read as the first corpus of training is; empty: the corpora of training.
    config.evaluation.corpora = ()
    config.evaluation.split = "train"  # of these directories
    # Of an action VLA in closed loop, per family of the tabletop's tasks; 0: none. One process.
    config.evaluation.episodes = 0
    config.evaluation.families = ("reach",)
    config.evaluation.blocks = 4

    config.logging = ConfigDict()  # besides metrics.jsonl
    config.logging.tensorboard = True
    config.logging.wandb_project = ""  # of Weights & Biases; empty: not there
    return config


def augment(name: str) -> ConfigDict:
    """The settings of an augmentation. Those of "crop_and_colour" are of the original's fine-tuning
    on a real robot, in units of its own: 5 of 180 in hue, 20 of 255 in saturation and value."""
    settings = {
        "none": {},
        "crop_and_colour": {
            "crop_area": 0.9,  # of the image's
            "brightness": 0.2,  # most that is added to values in [0, 1]
            "contrast": 0.2,  # most that their factor differs from one
            "hue_degrees": 10.0,  # most that each of these is shifted
            "saturation": 20 / 255,
            "value": 20 / 255,
            "colour_fraction": 0.5,  # of the examples, for the former two and the latter three
        },
    }
    if name not in settings:
        raise ValueError(f"augment={name!r} must be one of {sorted(settings)}")
    return ConfigDict({"name": name} | settings[name])


def optimizer(name: str) -> ConfigDict:
    """The settings of an optimizer."""
    settings = {
        "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
        # No first moment, and the second one factored where both dimensions are large enough.
        "adafactor": {
            "decay_exponent": 0.8,  # of the second moment: 1 - step^-0.8 ...
            "max_decay": 0.999,  # ... up to this
            "min_factored_size": 128,
            "eps": 1e-30,
        },
        "lion": {"b1": 0.9, "b2": 0.99},
        # b1, b2 and eps are of the AdamW that trains what is no matrix.
        "muon": {
            "momentum": 0.95,
            "newton_schulz_steps": 5,
            "update_rms": 0.2,  # AdamW's, so that its peak_lr and weight_decay carry over
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-8,
        },
    }
    if name not in settings:
        raise ValueError(f"optimizer={name!r} must be one of {sorted(settings)}")
    config = ConfigDict()
    config.name = name
    config.schedule = "warmup_cosine"
    config.peak_lr = 1e-4 if name == "lion" else 1e-3  # every update of lion has an RMS of 1
    config.end_lr = 0.0
    config.warmup_steps = 100
    config.weight_decay = 0.0
    config.clip_norm = 1.0
    config.update(settings[name])
    config.ema_decay = 0.0  # 0.0: no moving average of the parameters
    config.groups = ConfigDict({"all": group(".*")})
    return config


def group(pattern: str, **overrides) -> dict:
    """The parameters whose whole path ("backbone/layers/mlp/up/kernel") matches a regular
    expression. Each must match the pattern of exactly one group."""
    return {
        "pattern": pattern,
        "lr_scale": 1.0,  # of the learning rate
        "decay_scale": 1.0,  # of weight_decay
        "frozen": False,  # no gradient, no moments, no moving average
    } | overrides


def head_and_rest(head: str, **rest) -> ConfigDict:
    """Groups of a policy that starts from another: "head", which is new ("latent" or "action", with
    the factors of LoRA where there are), and "rest", with these overrides of `group`."""
    new = rf"(embeddings|heads)/{head}/.*|.*/lora_[ab]"
    return ConfigDict({"head": group(new), "rest": group(rf"(?!({new})$).*", **rest)})


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
    model.attention = "auto"  # or xla, cudnn, splash, ring: see docs/sharding.md
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
    model.text_length = 20  # tokens of an instruction at most, the begin mark included
    model.examples_per_row = 1  # more: packing
    model.sequence_length = 0  # tokens of a row; 0: what the longest examples need
    model.legacy = False  # the original's prompt, rows, losses and rotary angles, for its weights
    model.dim = 128
    model.depth = 3
    model.heads = 4
    model.head_dim = 32
    model.mlp_dim = 256
    model.rope_theta = 10_000.0
    model.norm_eps = 1e-6
    model.init_std = 0.06
    model.param_dtype = "float32"
    model.lora_rank = 0  # of the factors beside the kernels of lora_pattern; 0: no LoRA
    model.lora_alpha = 16.0  # they count alpha / rank
    model.lora_pattern = "attention/(q|k|v|out)|mlp/(gate|up|down)"  # paths inside of a layer
    model.attention = "auto"  # or xla, cudnn, splash, ring: see docs/sharding.md
    model.remat = "none"
    model.unroll = 0  # layers per scan step; 0: all
    model.front_end = front_end("patches")
    return model


def lwm_policy_model(*, latent_vocab: int = 0, action_vocab: int = 0) -> ConfigDict:
    """LWM-Chat-1M's LLaMA of 7 B parameters, which LAPA starts from, with the original's rows."""
    model = policy_model(latent_vocab=latent_vocab, action_vocab=action_vocab)
    model.legacy = True
    model.text_vocab, model.image_vocab = 32_000, 8448  # 8192 codes, marks, and some unused
    model.text_length, model.sequence_length = 128, 384
    model.dim, model.depth, model.heads, model.head_dim = 4096, 32, 32, 128
    model.mlp_dim, model.rope_theta, model.init_std = 11_008, 5e7, 0.02
    model.remat, model.unroll = "full", 1
    model.front_end = front_end("cached_tokens")
    return model


def front_end(name: str) -> ConfigDict:
    """The settings of a policy's image front-end."""
    settings = {
        "patches": {
            "patch_size": 16,  # pixels on a side that one token stands for
            "stem_channels": (),  # of stride-2 convolutions before the patches; slow on CPU
        },
        "vqgan": {
            "weights": "",  # workdir of the image tokenizer: a run that lapa import made
            "tokenizer": image_tokenizer(),
        },
        "cached_tokens": {"num_tokens": 256},  # of an image, in the image token sets
    }
    if name not in settings:
        raise ValueError(f"front_end={name!r} must be one of {sorted(settings)}")
    return ConfigDict({"name": name} | settings[name])


def image_tokenizer() -> ConfigDict:
    """The architecture of LWM's VQGAN, for 256 px images: 16 x 16 tokens."""
    model = ConfigDict()
    model.dim = 128
    model.multipliers = (1, 2, 2, 4, 6)  # of dim, in each level; all but the last halve the sides
    model.blocks = 2  # of a level
    model.latent_dim, model.code_dim = 64, 64
    model.codebook_size = 8192
    return model


def make_policy_quick(config: ConfigDict) -> None:
    """Shrinks a policy experiment to a minute on a CPU."""
    config.steps, config.global_batch = 60, 16
    config.log_every_steps, config.optimizer.warmup_steps = 10, 10
    config.checkpoint.every_steps = 30
    config.model.dim, config.model.mlp_dim, config.model.depth = 32, 64, 2
    config.model.heads, config.model.head_dim = 2, 16


def make_lwm_policy_quick(config: ConfigDict) -> None:
    """The same for `lwm_policy_model`, whose vocabularies stay."""
    make_policy_quick(config)
    config.optimizer.schedule, config.optimizer.peak_lr = "warmup_constant", 1e-3
    config.compute_dtype, config.init_from, config.microbatches = "float32", "", 1
