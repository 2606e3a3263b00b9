"""The original implementation's quantizer: its state dict ↔ a legacy quantizer.

Axis names of the patterns: d width, k heads, c head width, f feed-forward width, p pixels of a
patch, q latent width, t i j a kernel's frames, rows and columns.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lapa_jax.interop import laq_torch, tensor_files, torch_code
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import (
    Constant,
    Rule,
    Shapes,
    arrays,
    functional,
    linear,
    norm,
    to_ours,
    to_theirs,
    unwrapped,
)
from lapa_jax.interop.parity import differing
from lapa_jax.interop.staged import staged
from lapa_jax.interop.tensor_files import given_file
from lapa_jax.latent import Quantizer, QuantizerConfig
from lapa_jax.latent.legacy import CONVOLUTIONS
from lapa_jax.nn.module import Tree, flatten
from lapa_jax.runs.loaded import Model
from lapa_jax.settings import stage_settings

ORIGINAL = "a quantizer of the original"
ANCHOR = "to_patch_emb_first_frame.2.weight"  # of every one
_TRANSFORMERS = {
    "enc_spatial_transformer": "spatial",
    "enc_temporal_transformer": "temporal",
    "dec_spatial_transformer": "decoder",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Of `read`.

    image_size: pixels a side
    code_length: codes of a latent action
    """

    image_size: int = dataclasses.field(metadata={"why": "the shapes do not tell it"})
    code_length: int | None = None


def read(source: Path, options: Options) -> Imported:
    """`lapa import --format laq_pt`."""
    tensors = tensor_files.tensors(given_file(source, "the original's quantizer"))
    model, params = from_tensors(tensors, options.image_size, options.code_length)
    config = stage_settings("quantizer")
    config.data.image_size = model.image_size
    config.compute_dtype = model.compute_dtype
    settings = dataclasses.asdict(model)
    for key in ("image_size", "num_frames", "compute_dtype"):  # of the data and of the stage
        del settings[key]
    config.model = ConfigDict(settings)
    return Imported(config.lock(), params)


def write(run: Model, out: Path, options: Any) -> int:
    """`lapa export --format laq_pt`: what is written is imported, and compared with the run."""
    model = laq_torch.native(run)
    torch_code.require_torch(torch_code.CHECKING)
    params = jax.tree.map(np.asarray, run.params)
    tensors = to_tensors(model, params)
    with staged(out, run, None) as (directory, parity):
        path = directory / out.name
        save_file(path, tensors)
        found = tensor_files.tensors(path)
        parity.at_most("tensors_that_differ", differing(found, tensors), 0)
        imported, back = from_tensors(found, model.image_size[0], model.code_length)
        different = differing(flatten(back), flatten(params))
        parity.at_most("parameters_that_differ_when_imported", different, 0)
        # What decides codes and frames, and a state dict may not hold: a normaliser, above all.
        ours, theirs = (laq_torch.torch_config(config) for config in (model, imported))
        different = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        parity.at_most("settings_that_differ_when_imported", len(different), 0)
    return len(tensors)


def rules(config: QuantizerConfig) -> list[Rule | Constant]:
    """In the order of the original's state dict."""
    found: list[Rule | Constant] = []
    for theirs, ours in (("0.0", "first"), ("1.0", "second"), ("2", "third")):
        found += linear(f"spatial_rel_pos_bias.net.{theirs}", f"bias/{ours}")
    found += norm("to_patch_emb_first_frame.1", "patches/norm_in")
    found += linear("to_patch_emb_first_frame.2", "patches/project")
    found += norm("to_patch_emb_first_frame.3", "patches/norm_out")
    transformers = [_transformer(t, o, config) for t, o in _TRANSFORMERS.items()]
    found += transformers[0] + transformers[1]
    found.append(Rule("vq.codebooks", "bottleneck/codebook"))
    found += linear("vq.project_in", "code_projection/project")
    found += linear("vq.project_out", "context")
    for i in range(len(CONVOLUTIONS[config.code_length][1])):
        conv, ours = f"vq.cnn_encoder.{2 * i}", "code_projection"
        found.append(Rule(f"{conv}.weight", f"{ours}/kernels/{i}", "o q i j -> i j q o"))
        found.append(Rule(f"{conv}.bias", f"{ours}/biases/{i}"))
    return found + transformers[2] + linear("to_pixels_first_frame.0", "pixels")


def _transformer(theirs: str, ours: str, config: QuantizerConfig) -> list[Rule | Constant]:
    depth = getattr(config, f"{ours}_depth")
    t, o = f"{theirs}.layers.{{i}}", f"{ours}/stack/layers"
    found: list[Rule | Constant] = [
        Rule(f"{t}.0.dsconv.weight", f"{o}/position/kernel", "d one t i j -> t i j (d one)", depth),
        Rule(f"{t}.0.dsconv.bias", f"{o}/position/bias", layers=depth),
        *_attention(f"{t}.1", f"{o}/attention", depth, config, cross=False),
    ]
    if ours == "decoder":
        found += _attention(f"{t}.2", f"{o}/cross", depth, config, cross=True)
    found += norm(f"{t}.3.0", f"{o}/mlp/norm", depth)
    found += [
        Rule(f"{t}.3.1.weight", f"{o}/mlp/wi/kernel", "(two f) d -> d two f", depth),
        Rule(f"{t}.3.4.weight", f"{o}/mlp/wo/kernel", "d f -> f d", depth),
        Rule(f"{theirs}.norm_out.gamma", f"{ours}/norm/scale"),
        _zeros(f"{theirs}.norm_out.beta", config.dim),
    ]
    return found


def _attention(
    t: str, o: str, depth: int, config: QuantizerConfig, *, cross: bool
) -> list[Rule | Constant]:
    if cross:
        null = Rule(f"{t}.null_kv", f"{o}/null_kv", "k (n two) c -> two n k c", depth)
        context = Rule(f"{t}.context_norm.gamma", f"{o}/context_norm/scale", layers=depth)
    else:
        # Tensors that the original has and never uses, whatever they hold.
        shape = (config.heads, 0, config.head_dim)
        null = Constant(f"{t}.null_kv", np.zeros(shape, np.float32), depth, any_value=True)
        ones = np.ones(config.dim, np.float32)
        context = Constant(f"{t}.context_norm.gamma", ones, depth, any_value=True)
    return [
        null,
        Rule(f"{t}.q_scale", f"{o}/q_scale", layers=depth),
        Rule(f"{t}.k_scale", f"{o}/k_scale", layers=depth),
        Rule(f"{t}.norm.gamma", f"{o}/norm/scale", layers=depth),
        _zeros(f"{t}.norm.beta", config.dim, depth),
        context,
        _zeros(f"{t}.context_norm.beta", config.dim, depth),
        Rule(f"{t}.to_q.weight", f"{o}/q/kernel", "(k c) d -> d k c", depth),
        Rule(f"{t}.to_kv.weight", f"{o}/kv/kernel", "(two k c) d -> d two k c", depth),
        Rule(f"{t}.to_out.weight", f"{o}/out/kernel", "d (k c) -> k c d", depth),
    ]


def _zeros(theirs: str, width: int, layers: int = 0) -> Constant:
    return Constant(theirs, np.zeros(width, np.float32), layers)


def from_tensors(
    tensors: Mapping[str, np.ndarray], image_size: int, code_length: int | None = None
) -> tuple[QuantizerConfig, Tree]:
    """Config and parameters of a state dict, also of one within what a trainer wrote.

    `image_size` in pixels; `code_length` only where the shapes leave it open. Raises ValueError.
    """
    tensors = unwrapped(tensors, ANCHOR, ORIGINAL)
    config = infer_config(tensors, image_size, code_length)
    expected = functional(Quantizer, config).abstract()[0]
    return config, to_ours(tensors, rules(config), laq_torch.sizes(config), expected)


def to_tensors(config: QuantizerConfig, params: Tree) -> dict[str, np.ndarray]:
    """The state dict of a legacy quantizer, in the original's order."""
    if not config.legacy:
        raise ValueError(
            "the original's state dict holds legacy quantizers only: this one has model.legacy="
            "False"
        )
    tensors = arrays(to_theirs(params, rules(config), laq_torch.sizes(config)))
    return {name: tensors[name] for name in _order(list(tensors))}


def infer_config(
    tensors: Mapping[str, np.ndarray], image_size: int, code_length: int | None
) -> QuantizerConfig:
    """The config that the shapes of a state dict tell."""
    shape = Shapes(tensors, ORIGINAL)
    dim, pixels = shape(ANCHOR, None, None)
    patch_size = math.isqrt(pixels // 3)
    if 3 * patch_size**2 != pixels:
        raise ValueError(f"tensor {ANCHOR!r} takes {pixels} values, which are no square RGB patch")
    codebook_size, quant_dim = shape("vq.codebooks", None, None)
    first = "enc_spatial_transformer.layers.0"
    heads, _, head_dim = shape(f"{first}.1.null_kv", None, None, None)
    depths = {f"{o}_depth": shape.count(f"{t}.layers.{{i}}.") for t, o in _TRANSFORMERS.items()}
    return QuantizerConfig(
        image_size=(image_size, image_size),
        num_frames=2,
        patch_size=patch_size,
        dim=dim,
        mlp_dim=shape(f"{first}.3.4.weight", None, None)[1],
        heads=heads,
        head_dim=head_dim,
        **depths,
        quant_dim=quant_dim,
        codebook_size=codebook_size,
        code_length=_code_length(tensors, image_size // patch_size, code_length),
        collapse_fraction=0.25,
        normalize_decay=0.0,
        bottleneck={"name": "legacy_nsvq"},
        objective={"name": "pixels"},
        predict="frame",
        legacy=True,
        compute_dtype="float32",
        attention="xla",
        remat="none",
        unroll=1,
    )


def _code_length(tensors: Mapping[str, np.ndarray], side: int, given: int | None) -> int:
    """The code length whose convolutions and patch grid these are."""
    sizes = []
    for i in range(2):
        weight = tensors.get(f"vq.cnn_encoder.{2 * i}.weight")
        sizes += [] if weight is None else [tuple(weight.shape[2:])]
    fitting = [
        length
        for length, (grid, layers) in CONVOLUTIONS.items()
        if grid == side and [size for size, _, _ in layers] == sizes
    ]
    if given is not None:
        fitting = [length for length in fitting if length == given]
    if len(fitting) != 1:
        raise ValueError(
            f"convolutions of sizes {sizes} over a {side}x{side} patch grid fit no code_length"
            f"{'' if given is None else f'={given}'}: check --image_size and --code_length"
        )
    return fitting[0]


def _order(names: list[str]) -> list[str]:
    """Layer by layer, where the rules go tensor by tensor through the layers of a transformer."""

    def layer(name: str) -> int:
        match = re.search(r"_transformer\.layers\.(\d+)\.", name)
        return int(match[1]) if match else -1

    runs = itertools.groupby(names, key=lambda name: layer(name) >= 0)
    return [name for _, together in runs for name in sorted(together, key=layer)]


def save_file(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    import torch

    torch.save({name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}, path)
