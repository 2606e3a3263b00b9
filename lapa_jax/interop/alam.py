"""ALAM's latent action tokenizer: a folder with config.yaml and its weights → a quantizer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.storage import given_folder
from lapa_jax.interop import exact, tensor_files
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, linear, unwrapped
from lapa_jax.latent.exact.alam import ALAMConfig

ORIGINAL = "ALAM's latent action tokenizer"
ANCHOR = "action_latent"  # of every one
CONFIG = "config.yaml"
CODEBOOKS = ("vector_quantizer.embedding.weight", "vector_quantizer.codebook.weight")
# Their settings → ours, of the model and of its loss.
_MODEL = {
    "model_dim": "dim",
    "latent_dim": "quant_dim",
    "num_latents": "codebook_size",
    "patch_size": "patch_size",
    "enc_blocks": "encoder_depth",
    "dec_blocks": "decoder_depth",
    "num_heads": "heads",
    "action_num_codes": "code_length",
}
_LOSS = {
    "use_abs_recons_loss": "absolute",
    "commit_loss_w": "quantization_weight",
    "recon_loss_w": "recon_weight",
    "additivity_loss_w": "additivity_weight",
    "cycle_loss_w": "cycle_weight",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `read`.

    image_size: pixels a side
    labels: what latent actions are: codes, or latents, the vectors before them
    """

    image_size: int = 224
    labels: str = dataclasses.field(default="codes", metadata={"choices": ("codes", "latents")})


def read(source: Path, options: Options) -> Imported:
    """`lapa import --format alam`."""
    given_folder(source, f"{ORIGINAL}, a folder with {CONFIG},")
    found = settings_of(source / CONFIG) | {"labels": options.labels}
    return from_tensors(tensor_files.tensors(source), options.image_size, **found).imported()


def settings_of(path: Path) -> dict[str, Any]:
    """The settings that their config tells. Raises ValueError."""
    found = tensor_files.yaml_object(path, f"the settings of {ORIGINAL}")
    # What names a class of theirs is not looked at.
    loss = found.get("loss_config", {})
    if not isinstance(loss, dict):
        raise ValueError(f"{path}: loss_config={loss!r} must be a mapping")
    if missing := sorted(_MODEL.keys() - found.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)}: not the settings of {ORIGINAL}")
    if found.get("in_dim", 3) != 3:
        raise ValueError(f"{path}: in_dim={found['in_dim']!r} must be 3, colours")
    settings = {ours: found[theirs] for theirs, ours in _MODEL.items()}
    return settings | {ours: loss[theirs] for theirs, ours in _LOSS.items() if theirs in loss}


def from_tensors(
    tensors: Mapping[str, Any], image_size: int | tuple[int, int], **settings: Any
) -> exact.Mapped:
    """Of a state dict, with settings as of ALAMConfig. Raises ValueError."""
    tensors = unwrapped(tensors, ANCHOR, ORIGINAL)
    tensors = exact.without(tensors, "loss_fn_lpips.", "which has no gradient there")
    tensors = exact.without(tensors, "physical_latent_action_up.", "which nothing uses")
    codebook = next((name for name in CODEBOOKS if name in tensors), CODEBOOKS[0])
    return exact.mapped(
        "alam",
        image_size,
        tensors,
        lambda config: rules(config, codebook),
        num_frames=3,
        **settings,
    )


def rules(config: ALAMConfig, codebook: str = CODEBOOKS[0]) -> list[Rule]:
    """In the order of their state dict."""
    return [
        Rule(ANCHOR, "queries", "1 1 n p -> n p"),
        *exact.transformer("encoder", "encoder", config.encoder_depth, time=True),
        *linear("to_codebook", "to_latent"),
        Rule(codebook, "codebook/codes"),
        *linear("patch_up", "patch_up"),
        *linear("action_up", "action_up"),
        *exact.transformer("decoder", "decoder", config.decoder_depth, out=True),
    ]
