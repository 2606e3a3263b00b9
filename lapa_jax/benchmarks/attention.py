"""`lapa bench attention`: every implementation that this device has, forward and backward.

Rows are causal, in five segments. `error` compares with plain products in float32: the largest
difference of the output and of the three gradients, over their largest entry.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.benchmarks import measure
from lapa_jax.nn import attention as attentions

SEGMENTS = 5
# Positions of a row, heads, their width, tokens of all examples.
ON_CPU = ((128, 256, 512, 1024), 4, 64, 2048)
ELSEWHERE = ((256, 512, 1024, 2048, 4096), 32, 128, 16_384)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--positions", type=int, action="append", default=[], help="of a row")
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--head_dim", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every length and implementation; one that cannot serve the call is left out."""
    peak = measure.matmul_peak(args.dtype)
    return {"matmul_peak_tflops": round(peak / 1e12, 4), "attention": _compare(args, peak)}


def _compare(args: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    lengths, heads, head_dim, tokens = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    heads, head_dim = args.heads or heads, args.head_dim or head_dim
    found = []
    for length in args.positions or lengths:
        examples = max(1, tokens // length)
        shape = (examples, length, heads, head_dim)
        # q, k, v, and the gradient of the output.
        arrays = [jax.random.normal(jax.random.key(i), shape).astype(args.dtype) for i in range(4)]
        exact = _gradients("xla", head_dim)(*(x.astype(jnp.float32) for x in arrays))
        call = attentions.call_of(*arrays[:3], causal=True, segments=True, bias=False)
        # Scores and weighted sum, forward and both gradients of each; half of them are masked.
        flops = 3 * 2 * 2 * examples * heads * length * length * head_dim / 2
        of_plain = None  # products, which come first
        for name in attentions.IMPLEMENTATIONS:
            if attentions.refusal(name, call):
                continue
            gradients = partial(_gradients(name, head_dim), *arrays)
            seconds = min(measure.seconds(gradients, args.steps))
            of_plain = of_plain or seconds
            found.append(
                {
                    "positions": length,
                    "examples": examples,
                    "heads": f"{heads} x {head_dim}",
                    "implementation": name,
                    "auto": name == attentions.choose(call)[0],
                    "ms": round(1e3 * seconds, 3),
                    "of_xla": round(seconds / of_plain, 3),
                    "fraction_of_matmul_peak": round(flops / seconds / peak, 4),
                    "error": float(f"{_difference(gradients(), exact):.2g}"),
                }
            )
    return found


def _gradients(name: str, head_dim: int) -> Callable[..., tuple[jax.Array, ...]]:
    """(y, dq, dk, dv) of q, k, v and dy."""

    def run(q, k, v, dy):
        edges = np.linspace(0, q.shape[1], SEGMENTS + 1).astype(int)[1:-1]
        ids = 1 + np.searchsorted(edges, np.arange(q.shape[1]), side="right")
        segments = jnp.broadcast_to(jnp.asarray(ids, jnp.int32), q.shape[:2])

        given = dict(causal=True, q_segments_BT=segments, kv_segments_BS=segments)
        given |= dict(scale=head_dim**-0.5, implementation=name)
        attend = partial(attentions.attention, **given)
        y, back = jax.vjp(attend, q, k, v)
        return y, *back(dy)

    return jax.jit(run)


def _difference(found: tuple[jax.Array, ...], exact: tuple[jax.Array, ...]) -> float:
    return max(
        float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
        for a, b in zip(found, exact, strict=True)
    )
