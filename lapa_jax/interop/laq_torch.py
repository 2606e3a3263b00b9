"""Our quantizer, native or legacy ↔ a directory with its own modeling_laq.py (torch_files/).

Tensors have our names with dots, in PyTorch's shapes. What only training needs (heads of
objectives, teachers, the use of codes) is called training.PATH, as it is; lapa_run.json is the
config of the run.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa_jax.interop import safetensors_files, torch_code
from lapa_jax.interop.mapping import Rule
from lapa_jax.interop.safetensors_files import Tensor
from lapa_jax.latent import Quantizer, QuantizerConfig
from lapa_jax.latent.bottlenecks import BOTTLENECKS, bottleneck_config
from lapa_jax.latent.legacy import CONVOLUTIONS
from lapa_jax.nn.module import Functional, flatten

MODELING = "modeling_laq.py"

_TRAINING = re.compile(r"(objective|health)/|bottleneck/(?!(codebook|into/kernel|out/kernel)$)")
# The end of our path → theirs, and the rearrangement. The first that fits counts.
_LEAVES = [
    (r"(attention|cross)/out/kernel", r"\1.out.weight", "d (k c) -> k c d"),
    (r"q/kernel", "q.weight", "(k c) d -> d k c"),
    (r"kv/kernel", "kv.weight", "(two k c) d -> d two k c"),
    (r"wi/kernel", "wi.weight", "(two f) d -> d two f"),
    (r"position/kernel", "position.weight", "d one t i j -> t i j (d one)"),
    (r"code_projection/kernels/(\d+)", r"code_projection.convolutions.\1.weight",
     "o q i j -> i j q o"),
    (r"code_projection/biases/(\d+)", r"code_projection.convolutions.\1.bias", ""),
    (r"code_projection/out/kernel", "code_projection.out.weight", "q (m d) -> m d q"),
    (r"(\w+)/kernel", r"\1.weight", "o d -> d o"),
    (r"(\w+)/scale", r"\1.weight", ""),
    (r"(\w+)", r"\1", ""),
]  # fmt: skip


def model(config: QuantizerConfig) -> Functional:
    return Functional(lambda rngs: Quantizer(config, rngs=rngs))


def rules(config: QuantizerConfig) -> list[Rule]:
    """Of all parameters and variables."""
    depths = {
        "spatial": config.spatial_depth,
        "temporal": config.temporal_depth,
        "decoder": config.decoder_depth,
    }
    params, variables = model(config).abstract()
    return [_rule(path, depths) for path in (*flatten(params), *flatten(variables))]


def _rule(path: str, depths: Mapping[str, int]) -> Rule:
    if _TRAINING.match(path):
        return Rule(f"training.{path.replace('/', '.')}", path)
    for end, theirs, pattern in _LEAVES:
        match = re.search(rf"(?<![^/])(?:{end})$", path)
        if match:
            before = path[: match.start()].replace("stack/layers/", "layers/{i}/").replace("/", ".")
            layers = depths[path.split("/")[0]] if "stack/layers/" in path else 0
            return Rule(before + match.expand(theirs), path, pattern, layers)
    raise ValueError(f"parameter {path!r} has no form in PyTorch")


def sizes(config: QuantizerConfig) -> dict[str, int]:
    """Of the axes in the rules."""
    return {"k": config.heads, "c": config.head_dim, "two": 2, "one": 1, "m": 3}


def torch_config(config: QuantizerConfig) -> dict[str, Any]:
    """config.json: what modeling_laq.py needs to know."""
    same = (
        "image_size", "patch_size", "dim", "mlp_dim", "heads", "head_dim", "spatial_depth",
        "temporal_depth", "decoder_depth", "quant_dim", "codebook_size", "code_length", "predict",
        "legacy",
    )  # fmt: skip
    settings = dataclasses.asdict(config)
    found = {"model_type": "lapa_quantizer"} | {key: settings[key] for key in same}
    found["normalize"] = config.normalize_decay > 0
    name, bottleneck = bottleneck_config(config.bottleneck)
    found |= BOTTLENECKS[name][1].torch_form(bottleneck, config.codebook_size)
    if config.legacy:
        found["convolutions"] = CONVOLUTIONS[config.code_length][1]
    else:
        found["code_grid"] = config.code_grid
    return found


def write(
    directory: Path,
    config: QuantizerConfig,
    run_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    safetensors_files.write(directory, tensors)
    documents = {"config.json": torch_config(config), torch_code.RUN_CONFIG: run_config}
    torch_code.write(directory, documents, [MODELING])


def load(directory: Path) -> Any:
    """The directory's own model in PyTorch, on the CPU. Runs the modeling_laq.py in it: only for
    what was written here."""
    return torch_code.load(directory, MODELING).load(directory)
