"""`lapa compile`: what a config's training step needs on a machine that is not there.

Compiles, ahead of time and with no accelerator, the step that `lapa train` runs, for a TPU slice
(libtpu) or for GPU hosts (the CUDA plugin), and reports memory, collectives and a roofline:

    lapa compile --config quantizer/paper --topology v5e-16
    lapa compile --config ... --topology v5p:4x4x4 --num_slices 2 --json
    lapa compile --config ... --topology h100-8 --search

Exits with 1 when the step does not fit, after naming changes that would make it fit. The numbers
are the compiler's: memory is exact, times are bounds (lapa_jax/aot/roofline.py), nothing is run.
"""

import functools
import json
import sys
from typing import Any

from ml_collections import ConfigDict

from lapa_jax import config as configs
from lapa_jax import settings
from lapa_jax.aot import search
from lapa_jax.aot.assess import assess
from lapa_jax.aot.search import Layout
from lapa_jax.aot.topology import Topology
from lapa_jax.aot.topology import parse as parse_topology
from lapa_jax.verbs import flags


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa compile", __doc__)
    add = parser.add_argument
    add("--topology", required=True, help="v5p-64, v5p:4x4x4, h100-8, h100:1x8, ...")
    add(
        "--num_slices",
        type=flags.number(int, "[1, 1e9]"),
        default=1,
        help="slices joined by the network",
    )
    add("--json", action="store_true", help="one JSON object as the last line")
    add("--search", action="store_true", help="try meshes, remat and microbatches; Pareto list")
    add(
        "--compiles",
        type=flags.number(int, "[1, 1e9]"),
        default=16,
        help="at most so many in a search",
    )
    args, config = configs.parse(parser, argv)
    settings.check(config)
    topology = parse_topology(args.topology, args.num_slices)
    result = assess(config, topology)
    again = functools.partial(assess, model_flops=result["model_tflops"] * 1e12)
    sys.stdout.write(report(result) + "\n")
    if args.search:
        found = search.search(again, config, topology, args.compiles, result)
        result["pareto"] = search.pareto(found)
        sys.stdout.write("\nNone of the others is better in memory and in time:\n\n")
        sys.stdout.write(table(result["pareto"]) + "\n")
    elif not result["fits"]:
        result["would_fit"] = search.changes_that_fit(again, config, topology)
        sys.stdout.write("\n" + _advice(config, topology, result["would_fit"]) + "\n")
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["fits"] else 1


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
    columns = "topology | data, fsdp, seq, tensor | preset | remat | micro | args GiB | peak GiB"
    columns += " | HBM GiB | free | compute ms | HBM ms | ICI ms | DCN ms | MFU ≤ | limit"
    cells = (columns.split(" | "), ["---"] * (1 + columns.count("|")), *map(_row, results))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


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
