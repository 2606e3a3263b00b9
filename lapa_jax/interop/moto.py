"""Moto's latent motion tokenizer: a directory with config.yaml and pytorch_model.bin, and beside it
one with the ViT-MAE whose features it reads ↔ a quantizer of architecture "moto".

Axis names of the patterns: as in vision.py; f feed-forward width, l code slots, n positions.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.storage import given_folder
from lapa_jax.interop import exact, tensor_files, vision, vit_mae
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, linear, norm, unwrapped
from lapa_jax.latent.exact.moto import MotoConfig
from lapa_jax.nn.module import flatten

CONFIG = "config.yaml"
ANCHOR = "m_former.embeddings.latent_motion_token"  # of every one
ORIGINAL = "Moto's latent motion tokenizer"
# Parts that are not trained: the encoder comes from elsewhere, the other is only looked at.
_OTHERS = {"image_encoder.": "--encoder is read", "loss_fn_lpips.": "which has no gradient"}
# Ours by theirs, of the transformers of both.
_SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_dim",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `read`.

    encoder: of the ViT-MAE, facebook/vit-mae-large's directory or mae_pretrain_vit_large.pth
    """

    encoder: str = dataclasses.field(metadata={"why": "its weights are not in Moto's file"})


def read(source: Path, options: Options) -> Imported:
    """`lapa import --format moto`."""
    return of_folder(source, options).imported()


def of_folder(source: Path, options: Options) -> exact.Mapped:
    """Of its folder, as it is given away. Raises ValueError."""
    given_folder(source, f"{ORIGINAL}, a folder with {CONFIG} and its weights,")
    path = source / CONFIG
    whole = tensor_files.yaml_object(path, f"the config of {ORIGINAL}")
    side, settings = infer(whole, path)
    encoder, weights = vit_mae.of_source(Path(options.encoder))
    if encoder.grid != (side // encoder.patch_size,) * 2:
        raise ValueError(
            f"--encoder {options.encoder} is for images of {encoder.grid[0] * encoder.patch_size} "
            f"pixels a side, decoder.config.image_size of {path} is {side}"
        )
    settings["encoder"] = encoder.architecture()
    model = MotoConfig(image_size=(side, side), num_frames=2, compute_dtype="float32", **settings)
    former = part(whole, "m_former.config", path)
    for key, there in (("input_hidden_size", encoder.dim), ("num_patches", model.tokens())):
        if (wanted := former.get(key, there)) != there:
            raise ValueError(
                f"--encoder {options.encoder} gives {model.tokens()} tokens of width "
                f"{encoder.dim}, m_former.config.{key} of {path} is {wanted!r}: "
                "another encoder is meant"
            )
    tensors = unwrapped(tensor_files.tensors(source), ANCHOR, ORIGINAL)
    for prefix, why in _OTHERS.items():
        tensors = exact.without(tensors, prefix, why)
    frozen = {f"encoder/{path}": x for path, x in flatten(weights).items()}
    return exact.mapped("moto", side, tensors, rules, sizes, also=frozen, **settings)


def infer(whole: Mapping[str, Any], path: Path) -> tuple[int, dict[str, Any]]:
    """(pixels a side, settings) of its config.yaml. Two of its parts have a key `legacy`: the
    quantizer's says on which distance `beta` is, that of the m_former whether both frames are of
    one type."""
    vision.expect(whole, path, use_abs_recons_loss=False)
    former, decoder = (part(whole, f"{name}.config", path) for name in ("m_former", "decoder"))
    quantizer = part(whole, "vector_quantizer", path)
    vision.expect(quantizer, path, remap=None, sane_index_shape=True)
    if decoder.get("query_fusion_mode") == "concat":
        raise ValueError(f"{path}: query_fusion_mode='concat' is not read here")
    vision.expect(decoder, path, use_mask_token=False, is_io_hidden_states=False, num_channels=3)
    vision.expect(whole, path, codebook_dim=quantizer.get("e_dim"))
    settings: dict[str, Any] = {}
    for found, ours in ((former, ""), (decoder, "decoder_")):
        vision.expect(found, path, hidden_act="gelu", qkv_bias=True)
        for theirs, name in _SIZES.items():
            settings[ours + name] = vision.number(found, theirs, int, path)
    eps = {vision.number(x, "layer_norm_eps", float, path, 1e-12) for x in (former, decoder)}
    if len(eps) > 1:
        raise ValueError(f"{path}: m_former and decoder have two layer_norm_eps, {sorted(eps)}")
    beta = vision.number(quantizer, "beta", float, path, 0.25)
    weight = vision.weight(whole, "commit_loss_w", path, 1.0)
    first = vision.number(quantizer, "legacy", bool, path, True)
    settings |= {
        "norm_eps": eps.pop(),
        "code_length": vision.number(former, "query_num", int, path),
        "codebook_size": vision.number(quantizer, "n_e", int, path),
        "quant_dim": vision.number(quantizer, "e_dim", int, path),
        "decoder_patch_size": vision.number(decoder, "patch_size", int, path),
        "second_type": not vision.number(former, "legacy", bool, path, True),
        "recon_weight": vision.weight(whole, "recon_loss_w", path, 1.0),
        "codebook_weight": weight * (beta if first else 1.0),
        "commitment_weight": weight * (1.0 if first else beta),
    }
    vision.expect(decoder, path, query_num=settings["code_length"])
    vision.expect(decoder, path, encoder_stride=settings["decoder_patch_size"])
    return vision.number(decoder, "image_size", int, path), settings


def part(whole: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The mapping under a dotted name."""
    found: Any = whole
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}: {name}={found!r} must be a mapping: not the config of {ORIGINAL}"
        )
    return found


def rules(config: MotoConfig) -> list[Rule]:
    """In the order of its state dict."""
    m, d = "m_former.embeddings", "decoder.transformer.embeddings"
    return [
        Rule(f"{m}.latent_motion_token", "former/queries", "1 l d -> l d"),
        Rule(f"{m}.sep_token", "former/separator", "1 one d -> one d"),
        Rule(f"{m}.position_embeddings", "former/positions", "1 n d -> n d"),
        Rule(f"{m}.token_type_embeddings", "former/types"),
        *linear(f"{m}.projection", "former/project"),
        *vision.layers("m_former.encoder.layer", "former/blocks", config.depth),
        *norm("m_former.layernorm", "former/norm"),
        Rule("vector_quantizer.embedding.weight", "codebook/codes"),
        *linear("vq_down_resampler.0", "down/into"),
        *linear("vq_down_resampler.2", "down/out"),
        *linear("vq_up_resampler.0", "up/into"),
        *linear("vq_up_resampler.2", "up/out"),
        Rule(f"{d}.position_embeddings", "decoder/positions", "1 n d -> n d"),
        *linear(f"{d}.patch_embeddings.projection", "decoder/patches", vision.PATCHES),
        *linear(f"{d}.query_pooling_layer", "decoder/pool", "e (l d) -> l d e"),
        *vision.layers(
            "decoder.transformer.encoder.layer", "decoder/blocks", config.decoder_depth, "decoder_"
        ),
        *norm("decoder.transformer.layernorm", "decoder/norm"),
        *linear("decoder.decoder.0", "decoder/pixels", "o d 1 1 -> d o"),
    ]


def sizes(config: MotoConfig) -> dict[str, int]:
    """Of the axes that the patterns split: heads of both transformers."""
    patch = config.decoder_patch_size
    return {
        "k": config.heads,
        "c": config.dim // config.heads,
        "decoder_k": config.decoder_heads,
        "decoder_c": config.decoder_dim // config.decoder_heads,
        **{"rgb": 3, "i": patch, "j": patch, "l": config.code_length},
    }
