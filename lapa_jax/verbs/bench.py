"""`lapa bench`: speed of training, decoding, labelling and serving, beside what the device can do.

    lapa bench quantizer                     # the demo's and the released quantizer
    lapa bench quantizer --config released --batch 4 --dtype bfloat16
    lapa bench policy                        # training of debug and 20m, decoding of debug and demo
    lapa bench policy --size 7b --part decode --dtype bfloat16 --weights int8
    lapa bench policy --size 7b --topology v5e:1x1 --dtype bfloat16 --weights int8
    lapa bench dynamics                      # training of the tabletop's world model, and a frame
    lapa bench attention --dtype bfloat16    # every implementation that runs here
    lapa bench loop                          # the training loop, beside its step alone
    lapa bench label                         # reading, encoding and writing, beside encoding alone
    lapa bench save                          # checkpoints, beside the step that they delay
    lapa bench serve                         # round trips, beside the call alone; many clients
    lapa bench compare --help                # two builds, or the code of others, in turn

The fraction of peak is taken in one process: model FLOP/s of the step over the FLOP/s of the best
of a few large matrix products in the same dtype. Decoding of one row must read every weight of the
backbone and the head for every token: its bound is their bytes over the bandwidth of the memory,
measured in the same process. (Weights that fit in a CPU's cache can beat it.)
"""

import argparse
from typing import Any

import jax

from lapa_jax.benchmarks import (
    attention,
    compare,
    dynamics,
    label,
    loop,
    policy,
    quantizer,
    save,
    serve,
)
from lapa_jax.verbs import flags, text

BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module
    for module in (quantizer, policy, dynamics, attention, loop, label, save, serve, compare)
}


def main(argv: list[str]) -> int:
    parser = flags.parser("lapa bench", __doc__)
    what = parser.add_subparsers(dest="what", required=True)
    for name, module in BENCHMARKS.items():
        one = what.add_parser(name)
        module.add_arguments(one)
        one.add_argument("--json", action="store_true", help="one JSON object instead of tables")
        if module is not compare:
            _add_of_device(one)
    args = parser.parse_args(argv)
    # The sides of a comparison have the device, not this process; compilers need none.
    elsewhere = args.what == "compare" or getattr(args, "topology", None)
    result = {} if elsewhere else _device(args)
    result |= BENCHMARKS[args.what].run(args)
    text.show(result if args.json else _tables(result))
    return 0


def _add_of_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    steps = flags.number(int, "[1, 1e9]")
    parser.add_argument("--steps", type=steps, default=10, help="timed calls of a program")


def _device(args: argparse.Namespace) -> dict[str, Any]:
    kind = jax.devices()[0].device_kind
    return {
        "device": f"{jax.device_count()} x {kind}",
        "jax": jax.__version__,
        "dtype": args.dtype,
    }


def _tables(result: dict[str, Any]) -> str:
    rows_of = {key: value for key, value in result.items() if isinstance(value, list)}
    told = [f"{key} {x}" for key, x in result.items() if not isinstance(x, list | dict)]
    lines = [", ".join(told)]
    for title, rows in rows_of.items():
        lines += ["", title, text.table([rows[0], *(row.values() for row in rows)])]
    return "\n".join(lines)
