"""What training tells about the use of codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lapa_jax.diagnostics.codebook import codebook_report
from lapa_jax.latent.health import MOST_ROWS, CodeHealth, joint_entropy_bits
from lapa_jax.nn.module import Functional


class Watch(nnx.Module):
    def __init__(self, length, size):
        self.health = CodeHealth(length, size, collapse_fraction=0.25)

    def __call__(self, codes, *, train):
        return self.health(codes, train=train)


def watch(length, size):
    """(step(variables, codes, train) -> (metrics, variables), first variables)."""
    model = Functional(lambda rngs: Watch(length, size))
    params, variables = model.init(jax.random.key(0))

    def step(variables, codes, train=True):
        return model.apply(params, variables, "__call__", codes, train=train)

    return jax.jit(step, static_argnums=2), variables


@pytest.mark.slow
@pytest.mark.parametrize("length, size", [(1, 8), (3, 5), (20, 4)])
def test_a_batch_is_told_as_the_diagnostics_tell_it(length, size):
    codes = np.random.default_rng(0).integers(0, size, (96, length)) // 2
    step, variables = watch(length, size)
    metrics, _ = step(variables, jnp.asarray(codes))
    report = codebook_report(codes, size)
    assert metrics["perplexity"] == pytest.approx(report["mean_perplexity"], rel=1e-5)
    worst = min(report["slot_perplexity"])
    assert metrics["perplexity_worst_slot"] == pytest.approx(worst, rel=1e-5)
    bits = metrics["joint_entropy_bits"]
    assert bits == pytest.approx(report["joint_entropy_bits"], abs=1e-5)
    slots = [metrics[k] for k in sorted(metrics) if k.startswith("perplexity_slot_")]
    assert len(slots) == (length if 1 < length <= 16 else 0)
    np.testing.assert_allclose(slots, report["slot_perplexity"][: len(slots)], rtol=1e-5)


@pytest.mark.slow
def test_many_rows_are_sampled_for_the_joint_entropy():
    codes = jnp.arange(3 * MOST_ROWS)[:, None]
    assert joint_entropy_bits(codes) == pytest.approx(np.log2(MOST_ROWS))


@pytest.mark.slow
def test_collapse_is_told_when_it_lasts_and_ends_when_codes_come_back():
    step, variables = watch(1, 8)
    dead, alive = jnp.zeros((64, 1), jnp.int32), jnp.arange(64)[:, None] % 8
    told = []
    for codes in [dead] * 100 + [alive] * 100:
        metrics, variables = step(variables, codes)
        told.append(float(metrics["collapsed"]))
    collapsed = np.array(told)
    assert collapsed[0] == 0 and collapsed[99] == 1 and collapsed[199] == 0
    assert (np.diff(collapsed) != 0).sum() == 2, "it must not flicker"


def test_evaluation_does_not_count():
    step, variables = watch(1, 8)
    _, kept = step(variables, jnp.zeros((4, 1), jnp.int32), False)
    jax.tree.map(np.testing.assert_array_equal, kept, variables)
