"""What a config's training step needs on a machine that is not there: compiled, and read.

Memory is the compiler's and exact; times are bounds (roofline.py). Nothing is run.
"""

import collections
import dataclasses
import math
import re
import time
from collections.abc import Iterable
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from lapa_jax import stages
from lapa_jax.aot import hlo, roofline
from lapa_jax.aot.search import Layout
from lapa_jax.aot.topology import Topology
from lapa_jax.machine.chips import Chip
from lapa_jax.nn.flops import executed
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import MESH_AXES, ShardingError
from lapa_jax.runs import program as programs
from lapa_jax.runs.sources import StandIn

GIB = 2**30


def assess(
    config: ConfigDict, topology: Topology, model_flops: float | None = None
) -> dict[str, Any]:
    """Compiles the step of a config; what `lapa compile --json` prints. Sizes and times are per
    device. `model_flops`: of the step, where they are known; they do not depend on the layout.

    Raises ShardingError where the layout is impossible.
    """
    program, chip = build(config, topology), topology.chip
    layout = Layout.of(config, topology)
    model_flops = model_flops or program.work.flops
    hbm = chip.hbm_gib / chip.devices_per_chip
    held = held_bytes(program) / GIB
    result = {
        "topology": topology.name,
        "chips": topology.num_chips,
        "mesh": dict(zip(MESH_AXES, layout.mesh, strict=True)),
        "preset": layout.preset,
        "remat": layout.remat,
        "microbatches": layout.microbatches,
        "global_batch": config.global_batch,
        "parameters": sum(x.size for x in jax.tree.leaves(program.state.params)),
        "hbm_gib": hbm,
        "model_tflops": model_flops / 1e12,
        # Until it is compiled and fits:
        "fits": False,
        "arguments_gib": held,
        "peak_gib": held,
        "compile_seconds": 0.0,
        **dict.fromkeys(("headroom", "executed_tflops", "collectives", "roofline", "mfu_bound")),
    }
    if held > hbm:
        logging.info("not compiled: state and batch alone need %.2f GiB a device", held)
        return result
    traced = program.step.trace(program.state, program.batch)
    flops = executed(traced.jaxpr.jaxpr)
    start = time.monotonic()
    try:
        compiled = traced.lower().compile(options(chip))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.monotonic() - start
        return result | {"peak_gib": needed_gib(str(error)), "compile_seconds": seconds}
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    peak = (memory.peak_memory_in_bytes if chip.is_tpu else _upper_bound(memory)) / GIB
    module = hlo.Module(compiled.as_text())
    found = module.collectives(topology.num_devices)
    traffic = roofline.traffic(found, program.mesh.devices.flatten(), chip, topology.num_slices)
    hbm_bytes = module.hbm_bytes()
    bounds = roofline.roofline(
        chip,
        topology.num_devices,
        flops=max(flops, model_flops),  # which counts gradients of inputs that nobody asks for
        hbm_bytes=hbm_bytes,
        traffic=traffic,
    )
    return result | {
        "executed_tflops": flops / 1e12,
        "fits": peak <= hbm,
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "peak_gib": peak,
        "headroom": 1 - peak / hbm,
        "collectives": census(found),
        "hbm_gb": hbm_bytes / 1e9,
        "ici_gb": traffic.ici_bytes / 1e9,
        "dcn_gb": traffic.dcn_bytes / 1e9,
        "roofline": {
            **{f"{name}_ms": 1e3 * s for name, s in dataclasses.asdict(bounds).items()},
            "step_ms": 1e3 * bounds.seconds,
            "limit": bounds.limit,
        },
        "mfu_bound": roofline.mfu(chip, topology.num_devices, model_flops, bounds.seconds),
        "compile_seconds": seconds,
    }


def options(chip: Chip) -> dict[str, bool]:
    """Of compilers for a device that is not there. Without a card no kernel is tuned, and the
    untuned tiles of a Triton product do not exist for every shape: products of GPUs are the
    library's."""
    return {} if chip.is_tpu else {"xla_gpu_enable_triton_gemm": False}


def held_bytes(program: programs.Program) -> int:
    """Bytes of the state and the batch on one device: a step needs more."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves((program.state, program.batch))
    )


def build(config: ConfigDict, topology: Topology) -> programs.Program:
    """The program of a config on the devices of a topology."""
    mesh = make_mesh(config.mesh, topology.devices())
    if mesh.shape["data"] % topology.num_islands:
        raise ShardingError(
            f"mesh.data={mesh.shape['data']} is not a multiple of the {topology.num_islands} hosts "
            f"of {topology.name}, and only 'data' may cross hosts of GPUs"
        )
    return programs.build(config, stages.build(config, stand_in_assets(config)), mesh)


def stand_in_assets(config: ConfigDict) -> dict[str, bytes]:
    """Assets with the shapes of real ones: no data is read."""
    config = config.copy_and_resolve_references()
    if "tokenizer" in config.model:
        config.model.tokenizer = ""
        config.model.text_vocab = min(320, config.model.text_vocab)  # quickly trained
    horizon = config.data.get("action_horizon", 1)
    return stages.get(config.stage).make_assets(config, StandIn(horizon))


def _upper_bound(memory: Any) -> int:
    """What a GPU allocates: arguments, new outputs and one block of temporaries."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def needed_gib(message: str) -> float | None:
    """How much memory a compiler's out-of-memory message asks for; None where it does not say."""
    sizes = re.findall(r"(?:Used|required for [\w ]+ \(|needs?) ?([\d.]+)([KMGT])", message)
    power = {"K": -2, "M": -1, "G": 0, "T": 1}
    return max((float(n) * 1024.0 ** power[unit] for n, unit in sizes), default=None)


def census(found: Iterable[hlo.Collective]) -> dict[str, dict[str, float]]:
    """Instructions by family: how many, how many inside the loop over layers, GB handled a step."""
    counts: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"count": 0, "in_loop": 0, "gb": 0.0}
    )
    for collective in found:
        entry = counts[collective.family]
        entry["count"] += 1
        entry["in_loop"] += collective.in_loop
        entry["gb"] += collective.num_bytes * collective.times / 1e9
    return dict(sorted(counts.items()))
