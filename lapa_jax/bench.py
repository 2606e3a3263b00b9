"""`lapa bench`: speed of training, decoding, labelling and serving, beside what the device can do.

    lapa bench quantizer                     # the demo's and the released quantizer
    lapa bench quantizer --config released --batch 4 --dtype bfloat16
    lapa bench policy                        # training of debug and 20m, decoding of debug and demo
    lapa bench policy --size 7b --part decode --dtype bfloat16
    lapa bench attention --dtype bfloat16    # every implementation that runs here
    lapa bench loop                          # the training loop, beside its step alone
    lapa bench label                         # reading, encoding and writing, beside encoding alone
    lapa bench serve                         # round trips, beside the call alone; many clients

The fraction of peak is taken in one process: model FLOP/s of the step over the FLOP/s of the best
of a few large matrix products in the same dtype. Decoding of one row must read every weight of the
backbone and the head for every token: its bound is their bytes over the bandwidth of the memory,
measured in the same process. (Weights that fit in a CPU's cache can beat it.)
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import jax

from lapa_jax import (
    bench_attention,
    bench_label,
    bench_loop,
    bench_policy,
    bench_quantizer,
    bench_serve,
    measure,
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lapa bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True)
    for name, (module, _) in BENCHMARKS.items():
        one = what.add_parser(name)
        module.add_arguments(one)
        one.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
        one.add_argument("--steps", type=int, default=10, help="timed calls of a program")
        one.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    args = parser.parse_args(argv)
    device = jax.devices()[0]
    result = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "jax": jax.__version__,
        "dtype": args.dtype,
    }
    result |= BENCHMARKS[args.what][1](args)
    sys.stdout.write((json.dumps(result, indent=1) if args.json else _tables(result)) + "\n")
    return 0


def _quantizer(args: argparse.Namespace) -> dict[str, Any]:
    peak = measure.matmul_peak(args.dtype)
    rows = bench_quantizer.train(args, peak)
    return {"matmul_peak_tflops": round(peak / 1e12, 4), "quantizer": rows}


def _policy(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if args.part != "decode":
        peak = measure.matmul_peak(args.dtype)
        result |= {"matmul_peak_tflops": round(peak / 1e12, 4)}
        result["train"] = bench_policy.train(args, peak)
    if args.part != "train":
        bandwidth = measure.memory_bandwidth()
        result |= {"memory_gb_per_second": round(bandwidth / 1e9, 2)}
        result["decode"] = bench_policy.decode(args, bandwidth)
    return result


def _attention(args: argparse.Namespace) -> dict[str, Any]:
    peak = measure.matmul_peak(args.dtype)
    rows = bench_attention.compare(args, peak)
    return {"matmul_peak_tflops": round(peak / 1e12, 4), "attention": rows}


def _loop(args: argparse.Namespace) -> dict[str, Any]:
    return {"loop": bench_loop.overhead(args)}


def _label(args: argparse.Namespace) -> dict[str, Any]:
    return {"label": bench_label.throughput(args)}


def _serve(args: argparse.Namespace) -> dict[str, Any]:
    return {"serve": bench_serve.latency_and_throughput(args)}


BENCHMARKS: dict[str, tuple[Any, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "quantizer": (bench_quantizer, _quantizer),
    "policy": (bench_policy, _policy),
    "attention": (bench_attention, _attention),
    "loop": (bench_loop, _loop),
    "label": (bench_label, _label),
    "serve": (bench_serve, _serve),
}


def _tables(result: dict[str, Any]) -> str:
    rows_of = {key: value for key, value in result.items() if isinstance(value, list)}
    lines = [", ".join(f"{key} {value}" for key, value in result.items() if key not in rows_of)]
    for title, rows in rows_of.items():
        lines += ["", title, " | ".join(rows[0])]
        lines += [" | ".join(str(value) for value in row.values()) for row in rows]
    return "\n".join(lines)
