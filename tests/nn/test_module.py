"""Modules as pure functions: structure, axes, stacking, remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lapa_jax.nn.layers import GEGLU
from lapa_jax.nn.module import Functional, flatten, unflatten
from lapa_jax.nn.stack import ATTENTION_OUT, REMAT, Stack, check_remat


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.mlp = GEGLU(8, 16, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x):
        return x + checkpoint_name(self.mlp(x), ATTENTION_OUT)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "unroll"),
    [("none", 0), ("dots", 2), *((name, 1) for name in REMAT if name != "none")],
)
def test_remat_and_unroll_change_neither_loss_nor_gradient(remat, unroll):
    params, variables = functional().init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))

    def loss(model, params):
        return jnp.sum(jnp.sin(model.apply(params, variables, "__call__", x)[0]))

    expected, gradient = jax.value_and_grad(lambda p: loss(functional(), p))(params)
    actual, found = jax.value_and_grad(lambda p: loss(functional(remat, unroll), p))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for path, leaf in flatten(found).items():
        np.testing.assert_allclose(leaf, flatten(gradient)[path], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
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


def test_offloading_is_for_tpus():
    check_remat("attention_out_offload", "tpu")
    check_remat("attention_out", "cpu")
    with pytest.raises(ValueError, match="model.remat='attention_out_offload'.*'cuda'"):
        check_remat("attention_out_offload", "cuda")


@pytest.mark.slow
def test_filling_up_a_width_changes_nothing(monkeypatch):
    net = Functional(lambda rngs: GEGLU(8, 27, dtype=jnp.float32, rngs=rngs))
    params, _ = net.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))

    def run(params):
        return jnp.square(net.apply(params, {}, "__call__", x)[0]).sum()

    found = [jax.value_and_grad(run)(params)]
    monkeypatch.setattr("lapa_jax.nn.layers.placement", lambda: ("gpu", 1))
    assert "f32[2,3,2,64]" in str(jax.make_jaxpr(run)(params))
    found.append(jax.value_and_grad(run)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


def test_parts_in_a_list_are_refused():
    """Their numbers would come back from a checkpoint as text."""

    class Two(nnx.Module):
        def __init__(self, rngs):
            self.parts = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])

    with pytest.raises(ValueError, match="params: a part is named 0"):
        Functional(Two)
