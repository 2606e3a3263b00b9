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
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax import program as programs
from lapa_jax import stages
from lapa_jax.aot import hlo, roofline
from lapa_jax.aot.topology import Topology
from lapa_jax.aot.topology import parse as parse_topology
from lapa_jax.models.stack import REMAT
from lapa_jax.parallel.mesh import axis_sizes, make_mesh
from lapa_jax.parallel.sharding import MESH_AXES, ShardingError

GIB = 2**30
ACTION_DIM = 7  # of the stand-in actions
# From the least that is recomputed to the most.
REMAT_ORDER = [name for name in ("none", "dots", "dots_no_batch", "full") if name in REMAT]


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
        result["pareto"] = pareto(search(config, topology, args.compiles, [result]))
        sys.stdout.write("\nNone of the others is better in memory and in time:\n\n")
        sys.stdout.write(table(result["pareto"]) + "\n")
    elif not result["fits"]:
        result["would_fit"] = changes_that_fit(config, topology)
        sys.stdout.write("\n" + _advice(config, topology, result["would_fit"]) + "\n")
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["fits"] else 1


# --- One layout ---


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a search may change of a config; nothing of it changes what is learnt."""

    mesh: tuple[int, ...]  # sizes of MESH_AXES
    preset: str
    remat: str
    microbatches: int

    @classmethod
    def of(cls, config: ConfigDict, topology: Topology) -> "Layout":
        sizes = axis_sizes(config.mesh, topology.num_devices)
        return cls(sizes, config.mesh.preset, config.model.remat, config.microbatches)

    def apply(self, config: ConfigDict) -> ConfigDict:
        config = _copy(config)
        config.mesh.update(dict(zip(MESH_AXES, self.mesh, strict=True)), preset=self.preset)
        config.model.remat, config.microbatches = self.remat, self.microbatches
        return config

    def flags(self, base: "Layout") -> str:
        """The overrides that turn `base` into this."""
        values = {f"mesh.{axis}": size for axis, size in zip(MESH_AXES, self.mesh, strict=True)}
        values |= {"mesh.preset": self.preset, "model.remat": self.remat}
        values["microbatches"] = self.microbatches
        old = base.flags(base).split() if base is not self else []
        flags = [f"--config.{key}={value}" for key, value in values.items()]
        return " ".join(flag for flag in flags if flag not in old)


def assess(config: ConfigDict, topology: Topology) -> dict[str, Any]:
    """Compiles the step of a config; what `--json` prints. Sizes and times are per device.

    Raises ShardingError where the layout is impossible.
    """
    program, chip = build(config, topology), topology.chip
    traced = program.step.trace(program.state, program.batch)
    flops = roofline.executed_flops(traced.jaxpr.jaxpr)
    model_flops = program.stage.model_flops() * config.global_batch
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
        "executed_tflops": flops / 1e12,
    }
    start = time.monotonic()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        result |= {"fits": False, "peak_gib": needed_gib(str(error))}
        nothing = ("arguments_gib", "headroom", "collectives", "roofline", "mfu_bound")
        return result | dict.fromkeys(nothing) | {"compile_seconds": time.monotonic() - start}
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes if chip.is_tpu else _upper_bound(memory)
    module = hlo.Module(compiled.as_text())
    found = module.collectives(topology.num_devices)
    traffic = roofline.traffic(found, program.mesh.devices.flatten(), chip, topology.num_slices)
    hbm_bytes = module.hbm_bytes()
    bounds = roofline.roofline(
        chip, topology.num_devices, flops=flops, hbm_bytes=hbm_bytes, traffic=traffic
    )
    return result | {
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


def build(config: ConfigDict, topology: Topology) -> programs.Program:
    """The program of a config on the devices of a topology."""
    mesh = make_mesh(config.mesh, topology.devices())
    hosts = 1 if topology.chip.is_tpu else topology.shape[0] * topology.num_slices
    if mesh.shape["data"] % hosts:
        raise ShardingError(
            f"mesh.data={mesh.shape['data']} is not a multiple of the {hosts} hosts of "
            f"{topology.name}, and only 'data' may cross hosts of GPUs"
        )
    stage_class = stages.get(config.stage)
    stage = stage_class(config, stand_in_assets(config))
    return programs.build(config, stage, mesh)


def stand_in_assets(config: ConfigDict) -> dict[str, bytes]:
    """Assets with the shapes of real ones: no data is read."""
    config = _copy(config)
    if "tokenizer" in config.model:
        config.model.tokenizer = ""
        config.model.text_vocab = min(320, config.model.text_vocab)  # quickly trained
    return stages.get(config.stage).make_assets(
        config,
        inherited={},
        instructions=[f"push block {i} to the wall" for i in range(20)],
        action_edges=lambda bins: [np.linspace(-1.0, 1.0, bins + 1)] * ACTION_DIM,
        action_clusters=lambda count: (
            np.linspace(-1.0, 1.0, count)[:, None].repeat(ACTION_DIM, axis=1),
            np.ones(ACTION_DIM),
        ),
    )


def _copy(config: ConfigDict) -> ConfigDict:
    return configs.from_dict(configs.to_dict(config))


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


# --- Other layouts ---


def changes_that_fit(
    config: ConfigDict, topology: Topology, wanted: int = 3, compiles: int = 10
) -> list[dict[str, Any]]:
    """The first `wanted` of the changes, cheapest first, that fit; at most so many compiles."""
    found = []
    for layout in _tried(config, topology, _smaller(config, topology), compiles):
        if layout["fits"]:
            found.append(layout)
            if len(found) == wanted:
                break
    return sorted(found, key=_step_ms)


def search(
    config: ConfigDict, topology: Topology, compiles: int, known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Meshes first, as the config recomputes and accumulates; then both, on the two best meshes."""
    base = Layout.of(config, topology)
    meshes = [
        dataclasses.replace(base, mesh=mesh, preset=preset)
        for mesh, preset in _meshes(config, topology)
    ]
    known = [*known, *_tried(config, topology, meshes, compiles // 2, known)]
    best = sorted(known, key=lambda r: (not r["fits"], _step_ms(r)))[:2]
    variants = [
        Layout(tuple(r["mesh"].values()), r["preset"], remat, microbatches)
        for microbatches in (1, 2, 4)
        for remat in REMAT_ORDER
        for r in best
    ]
    left = compiles + 1 - len(known)
    return [*known, *_tried(config, topology, variants, left, known)]


def pareto(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that fit and that none beats in memory and time, fastest first."""
    fitting = sorted((r for r in results if r["fits"]), key=lambda r: (_step_ms(r), r["peak_gib"]))
    front: list[dict[str, Any]] = []
    for result in fitting:
        if not front or result["peak_gib"] < front[-1]["peak_gib"]:
            front.append(result)
    return front


def _step_ms(result: dict[str, Any]) -> float:
    return result["roofline"]["step_ms"] if result["roofline"] else float("inf")


def _tried(
    config: ConfigDict,
    topology: Topology,
    layouts: Iterable[Layout],
    compiles: int,
    known: Iterable[dict[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Assessments of the layouts that are possible, each once, at most `compiles`."""
    done = {_layout(result) for result in known}
    for layout in layouts:
        if compiles <= 0:
            return
        if layout in done:
            continue
        done.add(layout)
        changed = layout.apply(config)
        try:
            result = assess(changed, topology)
        except ShardingError as error:
            logging.info("%s: %s", layout, error)
            continue
        compiles -= 1
        logging.info("%s", _row(result))
        yield result


def _layout(result: dict[str, Any]) -> Layout:
    return Layout(
        tuple(result["mesh"].values()), result["preset"], result["remat"], result["microbatches"]
    )


def _smaller(config: ConfigDict, topology: Topology) -> Iterator[Layout]:
    """Layouts that need less memory than the config's: one change, then two at once."""
    base = Layout.of(config, topology)
    more_remat = (
        REMAT_ORDER[REMAT_ORDER.index(base.remat) + 1 :] if base.remat in REMAT_ORDER else []
    )
    meshes = [
        dataclasses.replace(base, mesh=mesh, preset=preset)
        for mesh, preset in _meshes(config, topology)
        if mesh[0] < base.mesh[0] or mesh[3] > base.mesh[3]
    ]
    yield from (dataclasses.replace(base, remat=remat) for remat in more_remat)
    yield from (dataclasses.replace(base, microbatches=base.microbatches * k) for k in (2, 4))
    yield from meshes[:2]
    for layout in [base, *meshes]:
        for k in (1, 2, 4, 8):
            changed = dataclasses.replace(layout, microbatches=base.microbatches * k)
            yield dataclasses.replace(changed, remat=more_remat[-1] if more_remat else base.remat)


def _meshes(config: ConfigDict, topology: Topology) -> list[tuple[tuple[int, ...], str]]:
    """(sizes, preset) of the meshes worth a try: little data parallelism (the state is split
    further), tensor parallelism up to 16, the sequence split as the config has it."""
    seq = axis_sizes(config.mesh, topology.num_devices)[2]
    hosts = 1 if topology.chip.is_tpu else topology.shape[0]
    slices = topology.num_slices * hosts
    found = []
    for tensor in (1, 2, 4, 8, 16):
        for data in (slices, 2 * slices, 4 * slices):
            fsdp, rest = divmod(topology.num_devices, data * seq * tensor)
            rows = data * fsdp
            if rest or not fsdp or config.global_batch % (rows * config.microbatches):
                continue
            preset = "fsdp" + ("_tp" if tensor > 1 else "") + ("_sp" if seq > 1 else "")
            found.append(((data, fsdp, seq, tensor), preset))
    return sorted(found, key=lambda mesh: (mesh[0][0], mesh[0][3]))


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
    executed = f"{result['executed_tflops']:.4g} with what is recomputed"
    lines.append(f"{size}, {flops}, {executed}; compiled in {result['compile_seconds']:.0f} s")
    if result["collectives"] is None:
        needed = f" It needs {result['peak_gib']:.2f} GiB." if result["peak_gib"] else ""
        return "\n".join([*lines, f"The compiler ran out of memory.{needed}"])
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
    flags = [f"  {_layout(result).flags(base)}" for result in found]
    return "\n".join(["These changes fit, cheapest first:", "", table(found), "", *flags])


if __name__ == "__main__":
    from lapa_jax.cli import run

    sys.exit(run("lapa_jax.compile", sys.argv[1:]))
