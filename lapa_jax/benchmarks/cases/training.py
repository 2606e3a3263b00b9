"""A training step of a shipped config, on one batch that stays on the device. Work: its examples,
of a quantizer the pairs of its clips.

    --option config=quantizer.tabletop
    --option config=quantizer.paper:legacy=True --option global_batch=4
    --option config=latent_vla.tabletop --first microbatches=8
    --option config=dynamics.tabletop --option model.dim=512

Further options are keys of the config.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lapa_jax import stages
from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh

try:
    from lapa_jax.aot.assess import stand_in_assets
    from lapa_jax.config import shipped
    from lapa_jax.runs import program as programs

    shipped()  # so that an installation finds `experiments`, too
except ImportError:  # 12b9842 and before
    programs = importlib.import_module("lapa_jax.program")
    stand_in_assets = importlib.import_module("lapa_jax.compile").stand_in_assets


def prepare(config: str = "quantizer.tabletop", **keys: Any) -> Callable[[], Any]:
    name, _, arg = config.partition(":")
    given = importlib.import_module(f"experiments.{name}").get_config(arg or None)
    given.update_from_flattened_dict(keys)
    stage = stages.build(given, stand_in_assets(given))
    mesh = make_mesh(given.mesh, jax.devices()[:1])
    program = programs.build(given, stage, mesh)
    batch = sharding.put_batch(stage.prepare(_columns(given, stage)), mesh)
    state = program.init(jax.random.key(given.seed))

    def step() -> None:
        nonlocal state
        state, metrics = program.step(state, batch)
        jax.block_until_ready((state, metrics))

    step.work = given.global_batch * max(1, given.data.num_frames - 1)
    return step


def _columns(config: Any, stage: stages.Stage) -> dict[str, Any]:
    """Of the loader: noise, and actions of the tabletop."""
    number, rng = config.global_batch, np.random.default_rng(0)
    shape = (number, config.data.num_frames, *config.data.image_size, 3)
    columns: dict[str, Any] = {"frames": rng.integers(0, 256, shape, np.uint8)}
    if "instruction" in stage.fields_of(config):
        columns["instruction"] = [f"push block {i % 20} to the wall" for i in range(number)]
    if "latent_action" in stage.fields_of(config):
        columns["latent_action"] = rng.integers(0, 8, (number, config.code_length), np.int32)
    if "latent_action_of_pairs" in stage.fields_of(config):
        shape = (number, config.data.num_frames - 1, config.model.latent_length)
        columns["latent_action_of_pairs"] = rng.integers(0, 8, shape, np.int32)
    if "action" in stage.fields_of(config):
        columns["action"] = rng.uniform(-1, 1, (number, 2)).astype(np.float32)
    return columns
