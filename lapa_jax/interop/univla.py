"""UniVLA's latent action model (lam-stage-2.ckpt, its trainer's) → a quantizer.

The frozen DINOv2 is in the file. Of a first phase the text encoder is left out: such a run labels
nothing.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from lapa_jax.interop import dinov2, exact, tensor_files
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Shapes, linear, unwrapped
from lapa_jax.interop.tensor_files import given_file
from lapa_jax.latent.exact.univla import UniVLAConfig
from lapa_jax.nn.module import flatten

ORIGINAL = "UniVLA's latent action model"
ANCHOR = "action_latent"  # of every one
TASK = "action_latent_controllable"  # of the second phase
REGISTERS = "register_tokens"  # without, its positions are resized in another way
ENCODER, TEXT = "dino_encoder.", "text_encoder."


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `read`.

    image_size: pixels a side
    heads: of an attention
    """

    image_size: int = 224
    heads: int | None = None


def read(source: Path, options: Options) -> Imported:
    """`lapa import --format univla`."""
    tensors = tensor_files.tensors(given_file(source, ORIGINAL))
    return from_tensors(tensors, options.image_size, options.heads).imported()


def from_tensors(
    tensors: Mapping[str, Any], image_size: int | tuple[int, int], heads: int | None = None
) -> exact.Mapped:
    """Of a state dict, also of one within what a trainer wrote. Raises ValueError."""
    tensors = unwrapped(tensors, ANCHOR, ORIGINAL)
    encoder = {
        name.removeprefix(ENCODER): x for name, x in tensors.items() if name.startswith(ENCODER)
    }
    if dinov2.HUB_ANCHOR not in encoder:
        raise ValueError(
            f"tensor {ENCODER + dinov2.HUB_ANCHOR!r} is missing: {ORIGINAL} sees and predicts the "
            "features of its frozen DINOv2, which its trainer writes beside it"
        )
    own = {name: x for name, x in tensors.items() if not name.startswith(ENCODER)}
    own = exact.without(own, TEXT, "which labels nothing here")
    settings = infer(own, heads)
    if settings["phase"] == 1:
        logging.warning(
            "a first phase: without what T5 makes of instructions it labels nothing; the second "
            "phase (lam-stage-2.ckpt) needs none"
        )
    if REGISTERS not in encoder:
        raise ValueError(
            f"tensor {ENCODER + REGISTERS!r} is missing: the DINOv2 of {ORIGINAL} has registers"
        )
    vit, params = dinov2.from_tensors(dinov2.from_hub(encoder))
    frozen = {f"features/{path}": x for path, x in flatten(params).items()}
    return exact.mapped(
        "univla", image_size, own, rules, also=frozen, encoder=vit.architecture(), **settings
    )


def infer(tensors: Mapping[str, Any], heads: int | None) -> dict[str, int]:
    """The settings that the shapes of a state dict tell."""
    shape = Shapes(tensors, ORIGINAL)
    second = TASK in tensors
    dim, width = shape("action_up.weight", None, None)
    blocks = "{part}.transformer_blocks.{{i}}."
    book = "vq_action" if second else "vq"
    settings = {
        "phase": 2 if second else 1,
        "dim": dim,
        "heads": exact.heads_of(dim, heads),
        "encoder_depth": shape.count(blocks.format(part="encoder")),
        "decoder_depth": shape.count(blocks.format(part="decoder")),
        "quant_dim": width,
        "codebook_size": shape(f"{book}.codebook.weight", None, width)[0],
        "code_length": shape(TASK if second else ANCHOR, 1, 1, None, None)[2],
    }
    if second:
        settings["irrelevant_codebook_size"] = shape("vq.codebook.weight", None, width)[0]
        settings["irrelevant_length"] = shape(ANCHOR, 1, 1, None, None)[2]
    else:
        settings["text_dim"] = shape("lang_proj.weight", dim, None)[1]
    return settings


def rules(config: UniVLAConfig) -> list[Rule]:
    """Of all but the frozen encoder."""
    second, queries = config.phase == 2, "1 1 n f -> n f"
    found = [
        Rule(TASK if second else ANCHOR, "queries", queries),
        *exact.transformer("encoder", "encoder", config.encoder_depth, time=True),
        *linear("to_codebook", "to_latent"),
        Rule(f"{'vq_action' if second else 'vq'}.codebook.weight", "codebook/codes"),
        *linear("patch_up", "patch_up"),
        *linear("action_up", "action_up"),
        *exact.transformer("decoder", "decoder", config.decoder_depth, out=True),
    ]
    if not second:
        return found + linear("lang_proj", "language")
    return [
        *found,
        Rule(ANCHOR, "irrelevant/queries", queries),
        *linear("to_codebook_uncontrol", "irrelevant/to_latent"),
        Rule("vq.codebook.weight", "irrelevant/codebook/codes"),
        *linear("action_up_uncontrol", "irrelevant/up"),
    ]
