"""The vocabulary of config files: where each stage's defaults come from, and shapes they share.

Files beside this one have `get_config(arg)`; `arg` is `key=value,...` with at least `quick`. Keys
are explained where their defaults are: beside the parts (docs/design.md), and in
lapa_jax/settings.py.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from lapa_jax.latent import architecture as architecture_of
from lapa_jax.latent.bottlenecks import bottleneck_settings as bottleneck
from lapa_jax.latent.objectives import objective_config
from lapa_jax.latent.objectives import objective_settings as objective
from lapa_jax.latent.teacher import MaskedAutoencoderConfig
from lapa_jax.nn.registry import default_settings
from lapa_jax.nn.vit import vit_settings as vit
from lapa_jax.policy.front_end import front_end_settings as front_end
from lapa_jax.policy.heads import head_settings as head
from lapa_jax.policy.image_tokenizer import ImageTokenizerConfig
from lapa_jax.settings import corpus_settings as corpus
from lapa_jax.settings import env_settings as environment
from lapa_jax.settings import stage_settings as stage_defaults
from lapa_jax.stages.augmentation import augment_settings as augment
from lapa_jax.stages.policy import policy_settings as policy_model
from lapa_jax.training.groups import group_settings as group
from lapa_jax.training.optimizer import optimizer_settings as optimizer
from lapa_jax.world.config import DynamicsConfig
from lapa_jax.world.tokenizers import PatchTokenizerConfig

# What a corpus was indexed with: one camera, its actions and its instructions.
AS_INDEXED = dict(image_key="", action_key="", instruction_key="")


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Parses `quick=True,views=robot+human` against typed defaults, of which `quick` is always one;
    an unknown key is an error."""
    return _parse(arg, {"quick": False} | defaults)


def parse_study_arg(
    arg: str | None, sizes: Mapping[str, Mapping[str, Any]], **defaults
) -> ConfigDict:
    """The same for a study, which has `size` (`lapa study --size`) in the place of `quick`: one of
    `sizes`, with the defaults that are others there. What is given has `quick`, for the configs of
    its runs: whether that is its size."""
    known = {"size": "cpu"} | defaults
    size = _parse(arg, known).size
    require("size", size, sizes)
    found = _parse(arg, known | dict(sizes[size]))
    for key, value in found.items():
        least = 1 if key in ("seeds", "labels", "rollouts", "videos") else 0
        if type(value) is int and value < least:
            raise ValueError(f"config argument {key}={value} must be at least {least}")
    found.size, found.quick = size, size == "quick"
    return found


def _parse(arg: str | None, defaults: dict[str, Any]) -> ConfigDict:
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
            try:
                values[key] = kind(text)
            except ValueError:
                wanted = f"must be a number, as {defaults[key]!r}"
                raise ValueError(f"config argument {key}={text!r} {wanted}") from None
    return ConfigDict(values)


def require(name: str, value: str, known: Collection[str]) -> None:
    """Raises ValueError where the value of an argument is not known."""
    if value not in known:
        raise ValueError(f"{name}={value!r} must be one of {sorted(known)}")


def views(arg: ConfigDict, **changes) -> ConfigDict:
    """A corpus for each of the views that `arg.views` joins by "+", below the directory
    `arg.data`."""
    names = arg.views.split("+")
    return ConfigDict({name: corpus(f"{arg.data}/{name}", **changes) for name in names})


def views_together(arg: ConfigDict, **changes) -> ConfigDict:
    """The one corpus of all the views that `arg.views` joins by "+", each of which is a camera."""
    others = tuple(arg.views.split("+")[1:])
    one = corpus(f"{arg.data}/{arg.views}", extra_image_keys=others, **changes)
    return ConfigDict({"together": one})


def constant(config: ConfigDict, learning_rate: float) -> None:
    """Trains without warm-up or decay."""
    config.optimizer.update(schedule="constant", warmup_steps=0)
    config.optimizer.update(peak_lr=learning_rate, end_lr=learning_rate)


def head_and_rest(target: str, *, state: bool = False, **rest) -> ConfigDict:
    """Groups of a policy that starts from another: "head", which is new ("latent" or "action", with
    the factors of LoRA where there are, and with `state` what embeds the robot's), and "rest", with
    these overrides of `group`."""
    new = rf"(embeddings|heads)/{target}/.*|.*/lora_[ab]"
    new += "|embeddings/state/.*" if state else ""
    return ConfigDict({"head": group(new), "rest": group(rf"(?!({new})$).*", **rest)})


def trained_tokenizer() -> ConfigDict:
    """An image tokenizer for 64 px frames that is trained here: 8 x 8 tokens."""
    return default_settings(PatchTokenizerConfig)


def dynamics_model(**changes) -> ConfigDict:
    """A small model of how frames follow, for 64 px frames and that tokenizer."""
    return default_settings(DynamicsConfig, **changes)


def image_tokenizer() -> ConfigDict:
    """The architecture of LWM's VQGAN, for 256 px images: 16 x 16 tokens."""
    return default_settings(ImageTokenizerConfig)


def quantizer_model(architecture: str = "native", **changes) -> ConfigDict:
    """A small native quantizer for 64 px frames; of another architecture ("alam", ...) the model
    that others released, at its size."""
    return default_settings(architecture_of({"architecture": architecture})[0], **changes)


def predict(config: ConfigDict, name: str, encoder: str = "tabletop") -> None:
    """Sets the objective of that name, and what goes with it. "vae" is AdaWorld's: pixels, and a
    continuous bottleneck whose prior takes the normaliser's place. Clips are of as many frames as
    the objective pairs; of more than two, the spatial layers see one frame at a time, which the
    pairs then share."""
    *added, last = name.split("+")
    if last == "vae":
        last, model = "pixels", config.model
        model.bottleneck, model.normalize_decay = bottleneck("gaussian"), 0.0
        # There it weighs the sum over a latent's dimensions, here their mean.
        model.bottleneck.kl_weight = 2e-4 * model.code_length * model.quant_dim
    config.model.objective = objective("+".join([*added, last]), encoder)
    needed = objective_config(config.model.objective.to_dict())[0].num_frames
    if needed > 2:
        config.data.num_frames, config.model.spatial_sees = needed, "frame"


def legacy_quantizer_model() -> ConfigDict:
    """The released quantizer, with the original implementation's quirks (344 M parameters, for 256
    px frames)."""
    return quantizer_model(
        **dict(legacy=True, predict="frame", patch_size=32, normalize_decay=0.0, unroll=1),
        **dict(dim=1024, mlp_dim=2730, heads=16, head_dim=64),
        **dict(spatial_depth=8, temporal_depth=8, decoder_depth=8),
        **dict(quant_dim=32, codebook_size=8, code_length=4),
        bottleneck=bottleneck("legacy_nsvq"),
    )


def make_quantizer_quick(config: ConfigDict) -> None:
    """Shrinks a quantizer experiment to a minute on a CPU."""
    config.compile_effort = "least"
    config.steps, config.log_every_steps, config.checkpoint.every_steps = 60, 10, 30
    config.model.update(dim=32, mlp_dim=64, heads=2, head_dim=16)
    if not config.model.legacy:
        if "continuous_steps" in config.model.bottleneck:
            config.model.bottleneck.update(continuous_steps=10, ramp_steps=20)
        if config.model.normalize_decay:
            config.model.normalize_decay = 0.5  # at this rate evaluation lags behind training else


def teacher_model(encoder: str = "tabletop") -> ConfigDict:
    """A masked autoencoder around an image encoder."""
    return default_settings(MaskedAutoencoderConfig, **vit(encoder))


def make_vit_quick(model: ConfigDict) -> None:
    """Shrinks the tabletop's encoder, of a teacher as of an objective."""
    model.update(dim=32, mlp_dim=64, depth=2, heads=2, head_dim=16)


def make_tokenizer_quick(model: ConfigDict) -> None:
    """Shrinks an image tokenizer, of a run as of a model that has its tokens."""
    model.update(dim=32, mlp_dim=64, depth=1, decoder_depth=1, heads=2, head_dim=16)


def lwm_policy_model(**vocabularies: int) -> ConfigDict:
    """LWM-Chat-1M's LLaMA of 7 B parameters, which LAPA starts from, with the original's rows."""
    return policy_model(
        **dict(legacy=True, text_length=128, sequence_length=384),
        **dict(text_vocab=32_000, image_vocab=8448),  # 8192 codes, marks, and some unused
        **dict(dim=4096, depth=32, heads=32, head_dim=128, mlp_dim=11_008),
        **dict(rope_theta=5e7, init_std=0.02, remat="full", unroll=1),
        front_end=front_end("cached_tokens"),
        **vocabularies,
    )


def middle_policy(config: ConfigDict, arg: ConfigDict, **vocabularies: int) -> None:
    """A policy of some 90 M parameters from scratch, with 16 x 16 image tokens for 256 px frames,
    and how it is trained; `arg.optimizer` and `arg.quick` as in every file."""
    config.compute_dtype, config.global_batch, config.microbatches = "bfloat16", 256, 4
    config.data.unusable_episodes = "leave_out"  # a few people write more than text_length
    config.optimizer = optimizer(arg.optimizer)
    config.optimizer.update(peak_lr=0.3 * config.optimizer.peak_lr, warmup_steps=1000)
    config.optimizer.weight_decay = 0.05
    config.model = policy_model(
        **dict(dim=768, depth=12, heads=12, head_dim=64, mlp_dim=2048, init_std=0.02),
        **dict(text_vocab=2048, text_length=64, unroll=1),
        **vocabularies,
    )
    if arg.quick:
        make_policy_quick(config)
        config.compute_dtype, config.microbatches = "float32", 1


def make_policy_quick(config: ConfigDict) -> None:
    """Shrinks a policy experiment to a minute on a CPU."""
    config.compile_effort = "least"
    config.steps, config.log_every_steps, config.checkpoint.every_steps = 60, 10, 30
    config.global_batch, config.optimizer.warmup_steps = 16, 10
    config.model.update(dim=32, mlp_dim=64, depth=2, heads=2, head_dim=16)


def make_lwm_policy_quick(config: ConfigDict) -> None:
    """The same for `lwm_policy_model`, whose vocabularies stay."""
    make_policy_quick(config)
    config.optimizer.schedule, config.optimizer.peak_lr = "warmup_constant", 1e-3
    config.compute_dtype, config.init_from, config.microbatches = "float32", "", 1
