"""Our quantizer, native or legacy ↔ a directory with its own modeling_laq.py (torch_files/).

Tensors have our names with dots, in PyTorch's shapes. What only training needs (heads of
objectives, teachers, the use of codes) is called training.PATH, as it is; lapa_run.json is the
config of the run.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lapa_jax import stages
from lapa_jax.interop import safetensors_files, tensor_files, torch_code
from lapa_jax.interop.cards import model_card
from lapa_jax.interop.imported import Imported, exported, run_config
from lapa_jax.interop.mapping import Rule, functional, to_theirs
from lapa_jax.interop.parity import LIMIT, Parity, clearly_different, difference, real_examples
from lapa_jax.interop.staged import Options, exported_config, plain_stage, staged, take_over
from lapa_jax.latent import Quantizer, QuantizerConfig
from lapa_jax.latent.bottlenecks import bottleneck_config
from lapa_jax.latent.legacy import CONVOLUTIONS
from lapa_jax.latent.objectives import objective_config
from lapa_jax.latent.objectives.mixed import Mixed
from lapa_jax.latent.objectives.rotation import Rotation
from lapa_jax.nn.module import flatten
from lapa_jax.runs.loaded import LoadedQuantizer, Model, require
from lapa_jax.stages.quantizer import QuantizerStage

PAIRS = 4  # random ones, and as many real ones, are compared
MODELING = "modeling_laq.py"
USAGE = """With PyTorch, NumPy and safetensors; DIR is this directory:

```python
import sys; sys.path.append("DIR")
from modeling_laq import load

quantizer = load("DIR")
z = quantizer.encode(first, last)      # frames (B, H, W, 3), uint8 or float in [0, 1]
frames = quantizer.decode(first, z)
```

`lapa import --format laq_torch --source DIR --out RUN` makes it a run again; DIR may be hf://ORG/NAME."""

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


def read(source: Path, options: object) -> Imported:
    """`lapa import --format laq_torch`."""
    stage = stages.build(run_config(source / torch_code.RUN_CONFIG), {})
    model = stage.model_config
    return exported(stage, tensor_files.tensors(source), rules(model), sizes(model))


def write(run: Model, out: Path, options: Options) -> int:
    """`lapa export --format laq_torch`. Takes the model over (`take_over`)."""
    model = native(run)
    torch_code.require_torch(torch_code.CHECKING)
    config, dtype = exported_config(run, options.precision)
    tensors = to_theirs(run.params, rules(model), sizes(model), run.variables, dtype)
    count = len(tensors)
    card = functools.partial(model_card, run, config, dtype, USAGE)
    with staged(out, run, card) as (directory, parity):
        safetensors_files.write(directory, tensors)
        documents = {"config.json": torch_config(model), torch_code.RUN_CONFIG: config}
        torch_code.write(directory, documents, [MODELING])
        del tensors
        references = take_over(
            run, dtype, lambda compute: Reference(run, plain_stage(run, config, compute))
        )
        check(parity, load(directory), *references)
    return count


def native(run: Model) -> QuantizerConfig:
    """The config of a quantizer of ours. Raises ValueError for other runs."""
    model = require(run, LoadedQuantizer).stage.model_config
    if not isinstance(model, QuantizerConfig):
        raise ValueError(
            f"{run.workdir} has model.architecture={model.architecture!r}: this format is for "
            "'native' alone. lapa export --format safetensors writes any run"
        )
    objective, settings = objective_config(model.objective)
    if not objective.reads_patches(settings):
        raise ValueError(
            f"{run.workdir} has model.objective.name={model.objective['name']!r}, whose latents "
            "are read off an encoder of its own: this format has none. lapa export --format "
            "safetensors writes any run"
        )
    return model


def rules(config: QuantizerConfig) -> list[Rule]:
    """Of all parameters and variables."""
    params, variables = functional(Quantizer, config).abstract()
    return [_rule(path, config) for path in (*flatten(params), *flatten(variables))]


def _rule(path: str, config: QuantizerConfig) -> Rule:
    if _TRAINING.match(path):
        return Rule(f"training.{path.replace('/', '.')}", path)
    for end, theirs, pattern in _LEAVES:
        match = re.search(rf"(?<![^/])(?:{end})$", path)
        if match:
            before = path[: match.start()].replace("stack/layers/", "layers/{i}/").replace("/", ".")
            part = path.split("/")[0]
            layers = getattr(config, f"{part}_depth") if "stack/layers/" in path else 0
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
        "legacy", "spatial_sees",
    )  # fmt: skip
    settings = dataclasses.asdict(config)
    found = {"model_type": "lapa_quantizer"} | {key: settings[key] for key in same}
    found["normalize"] = config.normalize_decay > 0
    bottleneck, chosen = bottleneck_config(config.bottleneck)
    found["bottleneck"] = bottleneck.form
    objective, settings = objective_config(config.objective)
    if issubclass(objective, Mixed):  # which say nothing of what the decoder receives
        objective, settings = settings.of
    found["rotation"] = settings.projection if objective is Rotation else ""
    if levels := bottleneck.grid(chosen, config.codebook_size):
        found["levels"] = list(levels)
    if config.legacy:
        found["convolutions"] = CONVOLUTIONS[config.code_length][1]
    else:
        found["code_grid"] = config.code_grid
    return found


def load(directory: Path) -> Any:
    """The directory's own model in PyTorch, on the CPU. Runs the modeling_laq.py in it: only for
    what was written here."""
    return torch_code.load(directory, MODELING).load(directory)


class Reference:
    """Frame pairs, and what our quantizer makes of them, in a compute dtype."""

    def __init__(self, run: Model, stage: QuantizerStage):
        self.config: QuantizerConfig = stage.model_config
        rng, shape = np.random.default_rng(0), (PAIRS, 2, *self.config.image_size, 3)
        frames = rng.integers(0, 256, shape, dtype=np.uint8)
        real, self.real_inputs = real_examples(run.config.data, ("frames",), PAIRS)
        if real is not None:
            frames = np.concatenate([frames, real["frames"][:, :2]])
        self.first, self.last = frames[:, 0], frames[:, 1]
        weights = (run.params, run.variables)
        with jax.default_matmul_precision("highest"):
            found = jax.jit(stage.read)(*weights, self.first, self.last)
            self.latent, received = (np.asarray(x) for x in found[1:])
            self.z = self.latent if found.z_BL is None else np.asarray(found.z_BL)
            frames = jax.jit(stage.decode_latent)(*weights, self.first, received)
            self.decoded = {"frames": (self.z, np.asarray(frames))}
            if self.config.has_codes:
                # Codes in a row, whatever the frames give.
                z = np.arange(self.z.size).reshape(self.z.shape) % self.config.codebook_size
                frames = jax.jit(stage.decode)(*weights, self.first, z)
                self.decoded["frames_of_given_codes"] = (z, np.asarray(frames))
                found, _ = stage.model.apply(*weights, "nearness", self.latent)
                self.place, self.points = (np.asarray(x) for x in found)


def check(parity: Parity, model: Any, exact: Reference, rough: Reference | None) -> None:
    """In float32 codes (or latents) and frames must agree; how often codes in bfloat16 do is
    told."""
    apart = difference(model.latent(exact.first, exact.last).numpy(), exact.latent)
    parity.stated |= {"random_inputs": PAIRS, "real_inputs": exact.real_inputs}
    if not exact.config.has_codes:
        parity.at_most("latents", apart, LIMIT)
    else:
        z = model.encode(exact.first, exact.last).numpy()
        different = clearly_different(z, exact.z, exact.place, exact.points)
        parity.at_most("codes_that_differ", different, 0)
        parity.stated |= {"latents": apart, "equal_codes": float((z == exact.z).mean())}
        if rough is not None:
            parity.stated["codes_equal_to_those_in_bfloat16"] = float((z == rough.z).mean())
    for name, (z, ours) in exact.decoded.items():
        found = model.decode(exact.first, z).numpy()
        parity.at_most(name, difference(found, ours, at_least=1.0), LIMIT)
