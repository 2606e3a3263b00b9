"""The original implementation's quantizer: its state dict ↔ a legacy quantizer.

Axis names of the patterns: d width, k heads, c head width, f feed-forward width, p pixels of a
patch, q latent width, t i j a kernel's frames, rows and columns.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lapa_jax.interop.mapping import Constant, Rule, to_ours, to_theirs
from lapa_jax.latent import Quantizer, QuantizerConfig
from lapa_jax.latent.legacy import CONVOLUTIONS
from lapa_jax.nn.module import Functional, Tree

_TRANSFORMERS = {
    "enc_spatial_transformer": "spatial",
    "enc_temporal_transformer": "temporal",
    "dec_spatial_transformer": "decoder",
}


def rules(config: QuantizerConfig) -> list[Rule | Constant]:
    """In the order of the original's state dict."""
    depths = {
        "spatial": config.spatial_depth,
        "temporal": config.temporal_depth,
        "decoder": config.decoder_depth,
    }
    found: list[Rule | Constant] = []
    for theirs, ours in (("0.0", "first"), ("1.0", "second"), ("2", "third")):
        found += _linear(f"spatial_rel_pos_bias.net.{theirs}", f"bias/{ours}")
    found += _norm("to_patch_emb_first_frame.1", "patches/norm_in")
    found += _linear("to_patch_emb_first_frame.2", "patches/project")
    found += _norm("to_patch_emb_first_frame.3", "patches/norm_out")
    transformers = [_transformer(t, o, depths[o], config) for t, o in _TRANSFORMERS.items()]
    found += transformers[0] + transformers[1]
    found.append(Rule("vq.codebooks", "bottleneck/codebook"))
    found += _linear("vq.project_in", "code_projection/project")
    found += _linear("vq.project_out", "context")
    for i in range(len(CONVOLUTIONS[config.code_length][1])):
        conv, ours = f"vq.cnn_encoder.{2 * i}", "code_projection"
        found.append(Rule(f"{conv}.weight", f"{ours}/kernels/{i}", "o q i j -> i j q o"))
        found.append(Rule(f"{conv}.bias", f"{ours}/biases/{i}"))
    return found + transformers[2] + _linear("to_pixels_first_frame.0", "pixels")


def _linear(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}/kernel", "o d -> d o"),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    ]


def _norm(theirs: str, ours: str, layers: int = 0) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}/scale", layers=layers),
        Rule(f"{theirs}.bias", f"{ours}/bias", layers=layers),
    ]


def _transformer(
    theirs: str, ours: str, depth: int, config: QuantizerConfig
) -> list[Rule | Constant]:
    t, o = f"{theirs}.layers.{{i}}", f"{ours}/stack/layers"
    found: list[Rule | Constant] = [
        Rule(f"{t}.0.dsconv.weight", f"{o}/position/kernel", "d one t i j -> t i j (d one)", depth),
        Rule(f"{t}.0.dsconv.bias", f"{o}/position/bias", layers=depth),
        *_attention(f"{t}.1", f"{o}/attention", depth, config, cross=False),
    ]
    if ours == "decoder":
        found += _attention(f"{t}.2", f"{o}/cross", depth, config, cross=True)
    found += _norm(f"{t}.3.0", f"{o}/mlp/norm", depth)
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
        null = Constant(f"{t}.null_kv", np.zeros(shape, np.float32), lambda x: True, depth)
        ones = np.ones(config.dim, np.float32)
        context = Constant(f"{t}.context_norm.gamma", ones, lambda x: True, depth)
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
    return Constant(theirs, np.zeros(width, np.float32), lambda x: not x.any(), layers)


def _sizes(config: QuantizerConfig) -> dict[str, int]:
    return {"k": config.heads, "c": config.head_dim, "two": 2, "one": 1}


def read(
    tensors: Mapping[str, np.ndarray], image_size: int, code_length: int | None = None
) -> tuple[QuantizerConfig, Tree]:
    """Config and parameters of a state dict (also with a `module.` prefix).

    `image_size` in pixels; `code_length` only where the shapes leave it open. Raises ValueError.
    """
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    config = infer_config(tensors, image_size, code_length)
    expected = Functional(lambda rngs: Quantizer(config, rngs=rngs)).abstract()[0]
    return config, to_ours(tensors, rules(config), _sizes(config), expected)


def write(config: QuantizerConfig, params: Tree) -> dict[str, np.ndarray]:
    """The state dict of a legacy quantizer, in the original's order."""
    if not config.legacy:
        raise ValueError(
            "the original's state dict holds legacy quantizers only: this one has model.legacy="
            "False"
        )
    tensors = to_theirs(params, rules(config), _sizes(config))
    return {name: tensors[name] for name in _order(list(tensors))}


def infer_config(
    tensors: Mapping[str, np.ndarray], image_size: int, code_length: int | None
) -> QuantizerConfig:
    """The config that the shapes of a state dict tell."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"tensor {name!r} is missing: not a quantizer of the original")
        if len(tensors[name].shape) != dimensions:
            raise ValueError(
                f"tensor {name!r} of shape {tensors[name].shape} should have {dimensions} "
                "dimensions"
            )
        return tuple(tensors[name].shape)

    dim, pixels = shape("to_patch_emb_first_frame.2.weight", 2)
    patch_size = math.isqrt(pixels // 3)
    if 3 * patch_size**2 != pixels:
        raise ValueError(
            f"tensor 'to_patch_emb_first_frame.2.weight' takes {pixels} values, which are no "
            "square RGB patch"
        )
    codebook_size, quant_dim = shape("vq.codebooks", 2)
    first = "enc_spatial_transformer.layers.0"
    heads, _, head_dim = shape(f"{first}.1.null_kv", 3)
    depth = {ours: _depth(tensors, theirs) for theirs, ours in _TRANSFORMERS.items()}
    return QuantizerConfig(
        image_size=(image_size, image_size),
        num_frames=2,
        patch_size=patch_size,
        dim=dim,
        mlp_dim=shape(f"{first}.3.4.weight", 2)[1],
        heads=heads,
        head_dim=head_dim,
        spatial_depth=depth["spatial"],
        temporal_depth=depth["temporal"],
        decoder_depth=depth["decoder"],
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


def _depth(tensors: Mapping[str, np.ndarray], transformer: str) -> int:
    pattern = re.compile(rf"{transformer}\.layers\.(\d+)\.")
    layers = {int(m[1]) for name in tensors if (m := pattern.match(name))}
    if layers != set(range(len(layers))) or not layers:
        raise ValueError(f"layers of {transformer!r} are {sorted(layers)}: not 0, 1, ...")
    return len(layers)


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
    """Layer by layer, where the rules go tensor by tensor through the layers."""
    ordered: list[str] = []
    block: dict[int, list[str]] = {}

    def flush() -> None:
        ordered.extend(name for layer in sorted(block) for name in block[layer])
        block.clear()

    for name in names:
        match = re.search(r"_transformer\.layers\.(\d+)\.", name)
        if match:
            block.setdefault(int(match[1]), []).append(name)
        else:
            flush()
            ordered.append(name)
    flush()
    return ordered


def load_file(path: str | Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a torch file; nothing in it is executed."""
    import torch

    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, Mapping) or not all(torch.is_tensor(x) for x in loaded.values()):
        raise ValueError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {name: tensor.detach().numpy() for name, tensor in loaded.items()}


def save_file(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    import torch

    torch.save({name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}, path)
