"""`lapa plan`: what a training will cost, before it starts, and what to look at while it runs.

    lapa plan --config quantizer/paper
    lapa plan --config latent_vla/paper --topology v5p-64 --efficiency 0.5 --price 4.2
    lapa plan --study studies/headline --size cpu --workdir runs/headline

Counted from the config: steps, examples, floating-point operations, memory, disk. On a named
machine hours and money: the bound of `lapa compile` for a step, which no step reaches, over
--efficiency, which is for you to say: what `lapa train` shows of a machine (MFU) over the bound's
own (MFU ≤), 0.5 where nothing is known. Where the corpora are there, how often each is seen.

Of a study its cells and parts, and what is left in hours of one process: by the minutes that parts
of a kind took in --workdir, or where the study's result of record was made.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.loader import DataSettings, open_mixture
from lapa_jax import config as configs
from lapa_jax import settings, stages
from lapa_jax.aot.assess import assess, stand_in_assets
from lapa_jax.aot.topology import parse as parse_topology
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import MESH_AXES
from lapa_jax.runs import program as programs
from lapa_jax.studies import costs
from lapa_jax.training.state import held_bytes, tree_bytes
from lapa_jax.verbs import flags, text
from lapa_jax.verbs.study import SIZES, read_study, size_of

GIB = 2**30


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa plan", __doc__)
    add = parser.add_argument
    add("--study", metavar="FILE[:args]", help="of a study, in the place of --config")
    add("--size", choices=SIZES, help="of the study")
    add("--workdir", help="of the study, where it has begun")
    add("--topology", help="v5p-64, v5p:4x4x4, h100-8, ...: hours there (compiles the step)")
    add("--num_slices", type=flags.number(int, "[1, 1e9]"), default=1, help="of the topology")
    add(
        "--efficiency",
        type=flags.number(float, "(0, 1]"),
        default=0.5,
        help="part of the bound's speed that a step reaches",
    )
    add("--price", type=flags.number(float, "[0, 1e9]"), help="of a chip's hour, or of a study's")
    add("--json", action="store_true", help="one JSON object in the place of the table")
    named = {one.partition("=")[0] for one in argv}
    if "--study" in named:
        if "--config" in named:
            parser.error("--study is in the place of --config: give one of them")
        args = parser.parse_args(argv)
        if args.topology:
            parser.error("--topology is of a --config")
        found = of_study(args)
        _show(found, costs.shown(found), args)
        return 0
    if not named & {"--config", "-h", "--help"}:
        parser.error("give --config FILE, or --study FILE")
    args, config = configs.parse(parser, argv)
    if args.size or args.workdir:
        parser.error("--size and --workdir are of a --study")
    if args.price is not None and not args.topology:
        parser.error("--price is of a chip's hour: give --topology")
    settings.check(config)
    machine = {}
    if args.topology:  # first: JAX looks for compilers once, and for none where it has devices
        result = assess(config, parse_topology(args.topology, args.num_slices))
        if not result["fits"]:
            raise ValueError(
                f"a step does not fit {args.topology}: `lapa compile --search` with the same "
                "arguments looks for changes that do"
            )
        machine = on_machine(config, result, args.efficiency, args.price)
    found = counted(config) | machine
    _show(found, shown(found), args)
    return 0


def _show(found: dict[str, Any], rows: Iterable[list[str]], args: argparse.Namespace) -> None:
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        text.show(text.table(list(rows), left=(0, 1)))


def of_study(args: argparse.Namespace) -> dict[str, Any]:
    """What a study costs, of which nothing is done or written."""
    if args.workdir and not Path(args.workdir).is_dir():
        raise FileNotFoundError(f"no study in {args.workdir}: without --workdir it has not begun")
    spec, size, _ = size_of(args.study, args.size)
    with tempfile.TemporaryDirectory() as empty:
        study = read_study(spec, Path(args.workdir or empty))
        return costs.planned(study, args.study, size, args.price)


def counted(config: ConfigDict) -> dict[str, Any]:
    """What the config alone says, in the units of the names; no data is read, no array made."""
    stage = stages.build(config, stand_in_assets(config))
    one = make_mesh(dict.fromkeys(MESH_AXES, 1), jax.devices()[:1])
    alone = ConfigDict(config.to_dict())
    alone.mesh.update(preset="dp", **dict.fromkeys(MESH_AXES, 1))
    program = programs.build(alone, stage, one)
    state, ema = program.state, program.state.ema is not None
    held = held_bytes(state.params, program.optimizer, ema=ema)
    saved = tree_bytes(state)
    return {
        "stage": config.stage,
        "steps": config.steps,
        "global_batch": config.global_batch,
        "examples": config.steps * config.global_batch,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "total_pflops": program.work.flops * config.steps / 1e15,
        "held_gib": sum(held.values()) / GIB,
        "checkpoint_gib": saved / GIB,
        "disk_gib": saved * (config.checkpoint.keep + 1) / GIB,  # one more while it is written
        "epochs": epochs(config, stage.fields_of(config)),
        "look": [[step, what] for step, what in stage.watch()],
    }


def epochs(config: ConfigDict, fields: tuple[str, ...]) -> dict[str, float] | None:
    """How often every example of each corpus is seen; None where a corpus is not here yet."""
    try:
        mixture = open_mixture(DataSettings.of(config.data), fields)
    except FileNotFoundError:
        return None
    seen = config.steps * config.global_batch
    total = sum(mixture.weights)
    return {
        corpus.name: seen * weight / total / size
        for corpus, weight, size in zip(
            mixture.corpora, mixture.weights, mixture.sizes, strict=True
        )
    }


def on_machine(
    config: ConfigDict, result: dict[str, Any], efficiency: float, price: float | None
) -> dict[str, Any]:
    """Of what `assess` gave."""
    seconds = result["roofline"]["step_ms"] / 1e3 / efficiency
    hours = seconds * config.steps / 3600
    cost = {} if price is None else {"price": hours * result["chips"] * price}
    return {
        "topology": result["topology"],
        "chips": result["chips"],
        "peak_gib": result["peak_gib"],
        "hbm_gib": result["hbm_gib"],
        "limit": result["roofline"]["limit"],
        "mfu_bound": result["mfu_bound"],
        "efficiency": efficiency,
        "step_seconds": seconds,
        "hours": hours,
        "chip_hours": hours * result["chips"],
        **cost,
    }


def shown(found: dict[str, Any]) -> list[list[str]]:
    """Rows of a table."""
    examples = f"{found['examples']:,} ({found['steps']:,} steps of {found['global_batch']:,})"
    rows = [
        ["stage", found["stage"]],
        ["examples", examples],
        ["parameters", f"{found['parameters'] / 1e6:,.2f} M"],
        ["model FLOPs in all", f"{found['total_pflops']:.3g} PFLOP"],
        ["state and gradients", f"{found['held_gib']:.3g} GiB"],
        ["a checkpoint; disk", f"{found['checkpoint_gib']:.3g} GiB; {found['disk_gib']:.3g} GiB"],
    ]
    if found["epochs"] is None:
        rows.append(["epochs", "the corpora of the config are not here"])
    else:
        rows += [[f"epochs of {name}", f"{n:.3g}"] for name, n in found["epochs"].items()]
    if "hours" in found:
        memory = f"{found['peak_gib']:.2f} of {found['hbm_gib']:.2f} GiB a device"
        rows += [
            [f"on {found['topology']}", f"{found['chips']} chips, {memory}"],
            [
                "a step",
                f"{found['step_seconds']:.3g} s, {found['efficiency']:.0%} of the bound's speed "
                f"(limit: {found['limit']}; MFU at most {found['mfu_bound']:.0%})",
            ],
            ["hours", f"{found['hours']:.3g} ({found['chip_hours']:.3g} of a chip)"],
        ]
    if "price" in found:
        rows.append(["price", f"{found['price']:,.2f}"])
    return rows + [[f"look at step {step:,}", what] for step, what in found["look"]]
