"""What the imports of latent action models of others share: the run they become, and the names of
Genie's transformers (latent/exact/blocks.py).

Axis names of the patterns: d width, k heads, c head width, o outputs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from lapa_jax import stages
from lapa_jax.interop.imported import Imported
from lapa_jax.interop.mapping import Rule, Rules, linear, norm, to_ours
from lapa_jax.latent import ARCHITECTURES
from lapa_jax.nn.module import Tree, flatten, unflatten
from lapa_jax.nn.registry import default_settings
from lapa_jax.settings import stage_settings

HEAD_DIM = 64  # of all released ones; the shapes do not tell it


class Mapped(NamedTuple):
    """A model of others: its stage, all parameters, and the variables that the file has."""

    stage: stages.Stage
    params: Tree
    variables: dict[str, Any]  # by our paths

    def imported(self) -> Imported:
        """As a run; what the file lacks of the variables starts anew."""
        config, names = self.stage.config, flatten(self.stage.model.abstract()[1])

        def fresh(key: jax.Array) -> dict[str, jax.Array]:
            variables = flatten(self.stage.init(key)[1])
            return {path: variables[path] for path in names if path not in self.variables}

        found = self.variables | jax.jit(fresh)(jax.random.key(config.seed))
        return Imported(config, self.params, variables=unflatten(found))


def mapped(
    architecture: str,
    image_size: int | tuple[int, int],
    tensors: Mapping[str, Any],
    rules: Callable[[Any], Rules],
    sizes: Callable[[Any], Mapping[str, int]] | None = None,
    *,
    num_frames: int = 2,
    also: Mapping[str, np.ndarray] | None = None,
    **settings: Any,
) -> Mapped:
    """The model with these settings, of all of `tensors` by the `rules` of its config, which may
    name variables (frozen weights) too; `also`: more of those, by our paths. `sizes`: of the axes
    in the rules, of its config; None: those of Genie's. Raises ValueError."""
    config = stage_settings("quantizer")
    square = isinstance(image_size, int)
    config.data.image_size = (image_size,) * 2 if square else tuple(image_size)
    if min(config.data.image_size) < 1:
        raise ValueError(f"--image_size {image_size} must be at least 1")
    config.data.num_frames, config.compute_dtype = num_frames, "float32"
    kind = ARCHITECTURES[architecture][0]
    config.model = default_settings(kind, architecture=architecture, **settings)
    stage = stages.build(config.lock(), {})
    given = list(rules(stage.model_config)), (sizes or genie_sizes)(stage.model_config)
    params, variables = (flatten(tree) for tree in stage.model.abstract())
    ours = {rule.ours for rule in given[0] if isinstance(rule, Rule)}
    frozen = {path: x for path, x in variables.items() if path in ours}
    found = flatten(to_ours(tensors, *given, unflatten(params | frozen)))
    params = unflatten({path: found.pop(path) for path in params})
    return Mapped(stage, params, found | dict(also or {}))


def without(tensors: Mapping[str, Any], prefix: str, why: str) -> dict[str, Any]:
    """The tensors whose names do not begin so; the others are told."""
    kept = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
    if left := len(tensors) - len(kept):
        logging.info("left out: %s* (%d tensors), %s", prefix, left, why)
    return kept


def heads_of(dim: int, given: int | None) -> int:
    """Heads of a width, which the shapes do not tell."""
    if given is None and dim % HEAD_DIM:
        raise ValueError(
            f"a width of {dim} is no multiple of {HEAD_DIM}, the head width of released models: "
            "give --heads"
        )
    return dim // HEAD_DIM if given is None else given


def transformer(
    theirs: str, ours: str, depth: int, *, time: bool = False, out: bool = False
) -> list[Rule]:
    """Of a `blocks.Transformer`."""
    t, o = f"{theirs}.transformer_blocks.{{i}}", f"{ours}/stack/layers"
    found = norm(f"{theirs}.ffn.0", f"{ours}/norm_in")
    found += linear(f"{theirs}.ffn.1", f"{ours}/project")
    found += norm(f"{theirs}.ffn.2", f"{ours}/norm_out")
    parts = ["spatial", "temporal"] if time else ["spatial"]
    for part in parts:
        for name in "qkv":
            weight = f"{t}.{part}_attn.to_{name}.weight", f"{o}/{part}/{name}/kernel"
            found.append(Rule(*weight, "(k c) d -> d k c", depth))
        output = f"{t}.{part}_attn.to_out.0", f"{o}/{part}/out"
        found += linear(*output, "d (k c) -> k c d", layers=depth)
    found += linear(f"{t}.ffn.0", f"{o}/wi", layers=depth)
    found += linear(f"{t}.ffn.3", f"{o}/wo", layers=depth)
    for i, part in enumerate([*parts, "mlp"], start=1):
        found += norm(f"{t}.norm{i}", f"{o}/{part}_norm", depth)
    return found + (linear(f"{theirs}.out", f"{ours}/out") if out else [])


def genie_sizes(config: Any) -> dict[str, int]:
    """Of the axes that the patterns split."""
    return {"k": config.heads, "c": config.dim // config.heads}
