"""The program that training runs, before there is any data or any array.

`lapa train` builds it on the devices that it has and calls it; `lapa compile` builds it on devices
that are only described and compiles it: what is compiled is what runs.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.storage import places
from lapa_jax.machine import chips, xla_flags
from lapa_jax.nn.layers import dtype_of
from lapa_jax.nn.registry import typed_config
from lapa_jax.nn.stack import check_remat
from lapa_jax.parallel import sharding
from lapa_jax.stages import Stage, augmentation
from lapa_jax.training import state as states
from lapa_jax.training.clock import Work
from lapa_jax.training.guard import GuardConfig
from lapa_jax.training.optimizer import Optimizer, make_optimizer
from lapa_jax.training.step import make_train_step

# With either, XLA's programs for GPUs give the same bits each time.
EXACT_FLAGS = (str(xla_flags.EXACT[0]), "--xla_gpu_deterministic_ops=true")


@dataclasses.dataclass(frozen=True)
class Program:
    """One training step of a stage on a mesh."""

    mesh: Mesh
    stage: Stage
    preset: str
    optimizer: Optimizer
    init: Callable[[jax.Array], states.TrainState]  # jitted: key → the state before the first step
    beside: Callable[[jax.Array], states.TrainState]  # the same without all that is of parameters
    step: Callable  # jitted: (state, batch) → (state, metrics); takes over the state's buffers
    leave_out: Callable  # jitted: the state after a step that changes nothing; takes it over
    state: states.TrainState  # abstract arrays that carry their shardings
    batch: dict[str, jax.ShapeDtypeStruct]  # the global batch; as `state`

    work: Work

    def put(self, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the devices: the rows of every process."""
        return sharding.put_batch(rows, self.mesh)

    @property
    def shardings(self) -> states.TrainState:
        return jax.tree.map(lambda x: x.sharding, self.state)


def build(config: ConfigDict, stage: Stage, mesh: Mesh) -> Program:
    """The program of a config.

    Raises ShardingError where the mesh, the preset, the model and the batch do not fit together.
    """
    preset = config.mesh.preset
    check_remat(config.model.remat, mesh.devices.flat[0].platform)
    optimizer = make_optimizer(config.optimizer, config.steps, stage.axes())

    def init(key: jax.Array) -> states.TrainState:
        params, variables = stage.init(key)
        state = states.create(
            params, variables, optimizer, config.seed, ema=config.optimizer.ema_decay > 0
        )
        # No weak types: the step returns none, and would be compiled once more for its own output.
        return jax.tree.map(lambda x: x.astype(x.dtype), state)

    def without(state: states.TrainState) -> states.TrainState:
        return state.replace(params=None, opt_state=None, ema=None)

    too_coarse = sorted(stage.model.held - optimizer.frozen)
    if too_coarse:
        raise ValueError(
            f"optimizer.groups trains {too_coarse[:8]} ({len(too_coarse)} in all), which "
            f"model.base_dtype={config.model.base_dtype!r} holds in too few bits for that: freeze "
            f"them, or set model.base_dtype='param_dtype'"
        )
    abstract = jax.eval_shape(init, jax.random.key(config.seed))
    param_shardings = sharding.tree_shardings(stage.axes(), abstract.params, mesh, preset)
    shardings = states.state_shardings(abstract, param_shardings, mesh)
    step = make_train_step(
        augmentation.training_loss(stage),
        optimizer,
        microbatches=config.microbatches,
        ema_decay=config.optimizer.ema_decay,
        after_update=stage.after_update,
        guard=typed_config(GuardConfig, config.guard, "guard"),
        gather=lambda params: sharding.gather(
            params,
            stage.axes(),
            mesh,
            preset,
            dtype_of(config.compute_dtype),
            apart=config.model.get("unroll") == 0,
        ),
    )
    return Program(
        mesh=mesh,
        stage=stage,
        preset=preset,
        optimizer=optimizer,
        init=jax.jit(init, out_shardings=shardings, compiler_options=_quick(mesh)),
        beside=jax.jit(
            lambda key: without(init(key)),
            out_shardings=without(shardings),
            compiler_options=_quick(mesh),
        ),
        step=jax.jit(
            sharding.with_rules(step, mesh, preset),
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(mesh)),
            compiler_options=_quick(mesh) if config.compile_effort == "least" else {},
        ),
        leave_out=jax.jit(
            lambda state: state.replace(step=state.step + 1),
            donate_argnums=0,
            out_shardings=shardings,
        ),
        work=_work(config, stage, mesh),
        state=states.with_shardings(abstract, shardings),
        batch=sharding.abstract_batch(stage.batch_spec(), mesh),
    )


def _work(config: ConfigDict, stage: Stage, mesh: Mesh) -> Work:
    tokens = stage.batch_spec().get("tokens")
    return Work(
        examples=config.global_batch,
        tokens=math.prod(tokens.shape) if tokens is not None else 0,
        count_flops=lambda: stage.model_flops() * config.global_batch,
        devices=mesh.devices.size,
        peak_flops=chips.peak_flops(mesh.devices.flat[0].device_kind),
    )


def keep_compiled(workdir: str | Path) -> None:
    """Compiled programs stay in WORKDIR/compile_cache, unless JAX_COMPILATION_CACHE_DIR says where:
    a run that is started again starts faster."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update(
            "jax_compilation_cache_dir", str(places.absolute(workdir) / "compile_cache")
        )


def warn_if_inexact(platform: str) -> None:
    """On GPUs, says which flag XLA wants to give the same bits when a run continues."""
    flags = os.environ.get("XLA_FLAGS", "")
    if platform in sharding.GPU and not any(flag in flags for flag in EXACT_FLAGS):
        logging.warning(
            "XLA_FLAGS lacks %s: on GPUs a run that continues may differ in its last bits from one "
            "that was not stopped (docs/checkpoints.md, On GPUs)",
            EXACT_FLAGS[0],
        )


def _quick(mesh: Mesh) -> dict[str, str]:
    """Options for a program that runs a few times: on CPUs its compilation is four times faster
    so."""
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": False}
