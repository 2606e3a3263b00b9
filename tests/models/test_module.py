"""Modules as pure functions: structure, axes, stacking, remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lapa_jax.models.layers import GEGLU
from lapa_jax.models.module import Functional, flatten, unflatten
from lapa_jax.models.stack import Stack


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.mlp = GEGLU(8, 16, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x):
        return x + self.mlp(x)


class Model(nnx.Module):
    def __init__(self, remat, unroll, rngs):
        self.stack = Stack(lambda rngs: Residual(rngs), 3, remat=remat, unroll=unroll, rngs=rngs)

    def __call__(self, x):
        return self.stack(x)[0]


def functional(remat="none", unroll=1):
    return Functional(lambda rngs: Model(remat, unroll, rngs))


def test_axes_fit_parameters_and_stack_leads():
    model = functional()
    params, variables = jax.eval_shape(model.init, jax.random.key(0))
    axes = flatten_axes(model.axes())
    assert variables == {}
    assert {p: len(a) for p, a in axes.items()} == {
        p: len(x.shape) for p, x in flatten(params).items()
    }
    assert axes["stack/layers/mlp/wi/kernel"] == ("layers", "embed", None, "mlp")


def flatten_axes(tree, prefix=""):
    if isinstance(tree, tuple):
        return {prefix[:-1]: tree}
    return {k: v for n, t in tree.items() for k, v in flatten_axes(t, f"{prefix}{n}/").items()}


@pytest.mark.parametrize(("remat", "unroll"), [("full", 1), ("dots", 2), ("none", 0)])
def test_remat_and_unroll_change_no_gradient(remat, unroll):
    params, variables = functional().init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))

    def loss(model, params):
        return jnp.sum(jnp.sin(model.apply(params, variables, "__call__", x)[0]))

    expected = jax.grad(lambda p: loss(functional(), p))(params)
    actual = jax.grad(lambda p: loss(functional(remat, unroll), p))(params)
    for path, leaf in flatten(actual).items():
        np.testing.assert_allclose(leaf, flatten(expected)[path], rtol=1e-4, atol=1e-5)


def test_layers_differ_and_misfits_are_named():
    model = functional()
    params, variables = model.init(jax.random.key(0))
    kernel = params["stack"]["layers"]["mlp"]["wi"]["kernel"]
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1
    flat = flatten(params)
    del flat["stack/layers/mlp/wi/kernel"]
    flat["stack/layers/mlp/wx/kernel"] = kernel
    with pytest.raises(ValueError, match="missing.*wi/kernel.*unknown.*wx/kernel"):
        model.apply(unflatten(flat), variables, "__call__", jnp.zeros((1, 1, 8)))
    with pytest.raises(ValueError, match="no method 'nope'"):
        model.apply(params, variables, "nope")
    with pytest.raises(ValueError, match="model.remat='half'"):
        functional(remat="half")
