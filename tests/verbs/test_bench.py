"""The benchmark verb runs and counts right; it asserts no time."""

import json

import pytest
from tiny import succeed

from lapa_jax import bench

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_bench_tells_what_it_measured():
    out = succeed(*("bench", "quantizer", "--config", "demo", "--batch", 2, "--steps", 1, "--json"))
    result = json.loads(out)
    (row,) = result["quantizer"]
    assert row["config"] == "demo" and row["batch"] == 2
    assert result["dtype"] == "float32" and result["matmul_peak_tflops"] > 0
    # The figures belong together, whatever they are.
    seconds = row["ms_per_step"] / 1e3
    assert row["pairs_per_second"] == pytest.approx(2 / seconds, rel=0.05)
    flops = row["model_gflop_per_step"] * 1e9
    expected = flops / seconds / (result["matmul_peak_tflops"] * 1e12)
    assert row["fraction_of_matmul_peak"] == pytest.approx(expected, rel=0.1, abs=1e-3)


def test_the_released_shape_has_its_parameters():
    import jax

    from lapa_jax.models.module import Functional
    from lapa_jax.models.quantizer import Quantizer

    config = bench.QUANTIZERS["released"][0]("bfloat16")
    params = Functional(lambda rngs: Quantizer(config, rngs=rngs)).abstract()[0]
    # The original's 343,796,080 less what it never uses: the context norms of self-attention.
    # (Its constant beta buffers are no parameters.)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == 343_796_080 - 24 * 1024
