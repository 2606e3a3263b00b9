"""Floating-point operations, counted in traced programs: those of products and convolutions, a
multiply-add is two. Loops count as often as they run, over all devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def counted(function: Callable[..., Any], *arguments: Any) -> float:
    """Of a call with these arguments, arrays or shapes; nothing is computed."""
    return executed(jax.make_jaxpr(function)(*arguments).jaxpr)


def executed(jaxpr: core.Jaxpr) -> float:
    """Of a traced program; what it recomputes counts again, of branches the dearest."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contract, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = math.prod(shape[d] for d in contract)
            total += 2.0 * size * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = params["dimension_numbers"].rhs_spec[0]
            size = math.prod(kernel) // kernel[features]
            total += 2.0 * size * math.prod(equation.outvars[0].aval.shape)
        else:
            inner = [executed(j) for j in _jaxprs(params)]
            if name == "scan":
                times = params["length"]
            elif name == "shard_map":
                times = params["mesh"].size
            elif name == "pallas_call":
                times = math.prod(params["grid_mapping"].grid)
            else:
                times = 1
            total += times * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr))
    ):
        if isinstance(value, core.ClosedJaxpr):
            value = value.jaxpr
        if isinstance(value, core.Jaxpr):
            found.append(value)
    return found
