"""`lapa compile`: what a config's training step needs on a machine that is not there.

Compiles, ahead of time and with no accelerator, the step that `lapa train` runs, for a TPU slice
(libtpu) or for GPU hosts (the CUDA plugin), and reports memory, collectives and a roofline:

    lapa compile --config experiments/quantizer/paper.py --topology v5e-16
    lapa compile --config ... --topology v5p:4x4x4 --num_slices 2 --json
    lapa compile --config ... --topology h100-8 --search

Exits with 1 when the step does not fit, after naming changes that would make it fit. The numbers
are the compiler's: memory is exact, times are bounds (lapa_jax/aot/roofline.py), nothing is run.
"""

import argparse
import collections
import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.aot import hlo, roofline, search
from lapa_jax.aot.search import Layout
from lapa_jax.aot.topology import Topology
from lapa_jax.aot.topology import parse as parse_topology
from lapa_jax.nn.flops import executed
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import MESH_AXES, ShardingError
from lapa_jax.runs import program as programs
from lapa_jax.runs.sources import StandIn

GIB = 2**30


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--topology", required=True, help="v5p-64, v5p:4x4x4, h100-8, h100:1x8, ..."
    )
    parser.add_argument("--num_slices", type=int, default=1, help="slices joined by the network")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument(
        "--search", action="store_true", help="try meshes, remat and microbatches; Pareto list"
    )
    parser.add_argument("--compiles", type=int, default=16, help="at most so many in a search")
    args, config = configs.parse(parser, argv)
    topology = parse_topology(args.topology, args.num_slices)
    result = assess(config, topology)
    sys.stdout.write(report(result) + "\n")
    if args.search:
        found = search.search(assess, config, topology, args.compiles, result)
        result["pareto"] = search.pareto(found)
        sys.stdout.write("\nNone of the others is better in memory and in time:\n\n")
        sys.stdout.write(table(result["pareto"]) + "\n")
    elif not result["fits"]:
        result["would_fit"] = search.changes_that_fit(assess, config, topology)
        sys.stdout.write("\n" + _advice(config, topology, result["would_fit"]) + "\n")
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["fits"] else 1


# --- One layout ---


def assess(config: ConfigDict, topology: Topology) -> dict[str, Any]:
    """Compiles the step of a config; what `--json` prints. Sizes and times are per device.

    Raises ShardingError where the layout is impossible.
    """
    program, chip = build(config, topology), topology.chip
    model_flops = program.work.flops
    layout = Layout.of(config, topology)
    hbm = chip.hbm_gib / chip.devices_per_chip
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
    }
    unknown = dict.fromkeys(("executed_tflops", "collectives", "roofline", "mfu_bound"))
    held = held_bytes(program)
    if held > hbm * GIB:
        logging.info("not compiled: state and batch alone need %.2f GiB a device", held / GIB)
        sizes = {"fits": False, "arguments_gib": held / GIB, "peak_gib": held / GIB}
        return result | sizes | unknown | {"headroom": None, "compile_seconds": 0.0}
    traced = program.step.trace(program.state, program.batch)
    flops = executed(traced.jaxpr.jaxpr)
    start = time.monotonic()
    try:
        compiled = traced.lower().compile(_options(topology))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = needed_gib(str(error))
        sizes = {"fits": False, "arguments_gib": held / GIB, "peak_gib": needed}
        seconds = time.monotonic() - start
        return result | sizes | unknown | {"headroom": None, "compile_seconds": seconds}
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes if chip.is_tpu else _upper_bound(memory)
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
        "fits": peak <= hbm * GIB,
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "peak_gib": peak / GIB,
        "headroom": 1 - peak / GIB / hbm,
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
    stage_class = stages.get(config.stage)
    stage = stage_class(config, stand_in_assets(config))
    return programs.build(config, stage, mesh)


def stand_in_assets(config: ConfigDict) -> dict[str, bytes]:
    """Assets with the shapes of real ones: no data is read."""
    config = config.copy_and_resolve_references()
    if "tokenizer" in config.model:
        config.model.tokenizer = ""
        config.model.text_vocab = min(320, config.model.text_vocab)  # quickly trained
    return stages.get(config.stage).make_assets(config, StandIn())


def _options(topology: Topology) -> dict[str, Any]:
    """Without a card no kernel is tuned, and the untuned tiles of a Triton product do not exist for
    every shape: products of GPUs are the library's."""
    return {} if topology.chip.is_tpu else {"xla_gpu_enable_triton_gemm": False}


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


# --- Text ---

_COLUMNS = (
    "topology",
    "data, fsdp, seq, tensor",
    "preset",
    "remat",
    "micro",
    "args GiB",
    "peak GiB",
    "HBM GiB",
    "free",
    "compute ms",
    "HBM ms",
    "ICI ms",
    "DCN ms",
    "MFU ≤",
    "limit",
)


def report(result: dict[str, Any]) -> str:
    """The result of one layout: a table row and what it does not say."""
    lines = [table([result]), ""]
    size = f"{result['parameters'] / 1e6:.1f} M parameters, batch {result['global_batch']}"
    flops = f"{result['model_tflops']:.4g} model TFLOP a step"
    lines.append(f"{size}, {flops}")
    if result["collectives"] is None:
        needed = f" It needs {result['peak_gib']:.2f} GiB or more." if result["peak_gib"] else ""
        return "\n".join([*lines, f"It does not fit.{needed}"])
    executed = f"{result['executed_tflops']:.4g} TFLOP are executed"
    lines.append(f"{executed}; compiled in {result['compile_seconds']:.0f} s")
    families = [
        f"{name} {entry['count']} ({entry['in_loop']} in loops, {entry['gb']:.3g} GB)"
        for name, entry in result["collectives"].items()
    ]
    lines.append(f"collectives: {', '.join(families) or 'none'}")
    traffic = ", ".join(f"{n} {result[f'{n.lower()}_gb']:.3g} GB" for n in ("HBM", "ICI", "DCN"))
    return "\n".join([*lines, f"traffic of a device and step: {traffic}"])


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table, one row a layout."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    times, peak = result["roofline"], result["peak_gib"]
    memory = [result["arguments_gib"], peak, result["hbm_gib"]]
    free = "does not fit" if not result["fits"] else f"{result['headroom']:.0%}"
    return (
        result["topology"],
        ", ".join(map(str, result["mesh"].values())),
        result["preset"],
        result["remat"],
        str(result["microbatches"]),
        *("?" if x is None else f"{x:.2f}" for x in memory),
        free,
        *(f"{times[f'{n}_ms']:.1f}" if times else "?" for n in ("compute", "hbm", "ici", "dcn")),
        f"{result['mfu_bound']:.0%}" if times else "?",
        times["limit"] if times else "memory",
    )


def _advice(config: ConfigDict, topology: Topology, found: list[dict[str, Any]]) -> str:
    if not found:
        return "No change that was tried fits: take a larger machine, or a smaller global_batch."
    base = Layout.of(config, topology)
    flags = [f"  {Layout.of_result(result).flags(base)}" for result in found]
    return "\n".join(["These changes fit, cheapest first:", "", table(found), "", *flags])
