"""The census of a compiled program: against what is known of programs compiled for the CPU, and on
the forms that only the TPU and GPU compilers write."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lapa_jax.aot import hlo
from lapa_jax.parallel.mesh import make_mesh

LAYERS, ROWS, WIDTH = 5, 16, 64

# What the TPU compiler writes: no trip count, a counter in steps of two, a collective cut into
# pieces, a sum that keeps its own part, a transfer between slices, arrays on the chip (S(1)).
TPU = Path(__file__).with_name("tpu_forms.hlo").read_text()


@pytest.fixture(scope="module")
def tensor_parallel():
    """Five layers of two products, the second of which is summed over eight devices."""
    mesh = make_mesh(dict(data=1, fsdp=1, seq=1, tensor=8))

    def f(x, up, down):
        def layer(x, weights):
            return jnp.tanh(x @ weights[0]) @ weights[1], None

        return jax.lax.scan(layer, x, (up, down))[0]

    def spec(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

    arguments = (
        spec((ROWS, WIDTH)),
        spec((LAYERS, WIDTH, WIDTH), None, None, "tensor"),
        spec((LAYERS, WIDTH, WIDTH), None, "tensor", None),
    )
    return hlo.Module(jax.jit(f).lower(*arguments).compile().as_text())


def test_a_collective_in_a_loop_counts_as_often_as_it_runs(tensor_parallel):
    (found,) = tensor_parallel.collectives(8)
    assert found.family == found.kind == "all-reduce" and found.in_loop
    assert found.times == LAYERS and found.num_bytes == ROWS * WIDTH * 4
    np.testing.assert_array_equal(found.groups, [range(8)])


def test_a_loop_that_may_end_earlier_counts_as_often_as_it_can_run():
    """The form of the loop that replaces codes: as the TPU compiler writes it, without a count."""
    ends = "ROOT %go = pred[] compare(%k, %three), direction=LT"
    early = "%few = pred[] compare(%k, %three), direction=LT\n  ROOT %go = pred[] and(%more, %few)"
    assert ends in TPU
    text = TPU.replace(ends, "%more = pred[] constant(true)\n  " + early)
    times = [[place.times for _, place in hlo.Module(form).executed()] for form in (TPU, text)]
    assert times[0] == times[1] and max(times[0]) > 1


def test_computations_of_another_core_end_where_they_end():
    text = TPU.replace("\n}\n", '\n}, execution_thread="sparsecore"\n')
    assert text != TPU and hlo.Module(text).computations == hlo.Module(TPU).computations


def test_memory_traffic_of_a_loop(tensor_parallel):
    """Each layer's weights are read once, and only their slice; activations a few times."""
    weights = LAYERS * 2 * WIDTH * WIDTH // 8 * 4
    activations = LAYERS * ROWS * WIDTH * 4
    assert weights < tensor_parallel.hbm_bytes() < 3 * weights + 12 * activations


def test_forms_of_the_tpu_compiler():
    module = hlo.Module(TPU)
    found = {c.kind if c.groups is not None else "between": c for c in module.collectives(8)}
    assert len(found) == len(module.collectives(8)) == 4

    permute = found["collective-permute"]
    assert permute.times == 3 * 4, "three layers, eight shards two at a time"
    assert permute.num_bytes == 4 * 8 * 2 and permute.in_loop

    gather = found["all-gather"]  # once, though cut into two pieces
    assert gather.times == 3 and gather.num_bytes == 4 * (4 * 8 * 2)
    np.testing.assert_array_equal(gather.groups, [[0, 2, 4, 6], [1, 3, 5, 7]])

    scatter = found["reduce-scatter"]
    assert scatter.family == "all-reduce" and not scatter.in_loop and scatter.times == 1
    assert scatter.num_bytes == 64 * 8 * 2
    np.testing.assert_array_equal(scatter.groups, [[0, 2, 4, 6], [1, 3, 5, 7]])

    between = found["between"]
    assert between.family == "send/recv" and between.kind == "all-reduce"
    assert between.times == 3 and between.num_bytes == 4 * 8 * 2

    shard = 4 * 8 * 2
    permutes = 3 * 4 * shard  # read; what arrives stays on the chip
    pieces = 3 * (2 * shard + 4 * shard)  # both read, one result in memory
    counters = 3 * (4 + 1) * 3 * 4  # of the loops: two numbers in, one out
    sliced = 2 * shard  # of a large operand, by a fusion in the fusion
    during = 2 * shard  # with a collective's buffer passing through
    scattered = (64 + 16) * 8 * 2
    assert module.hbm_bytes() == permutes + pieces + sliced + during + scattered + counters


def test_the_workspace_of_a_library_product_is_no_traffic():
    text = """HloModule m

ENTRY %main (a: bf16[64,32], b: bf16[32,16]) -> (bf16[64,16], s8[4194304]) {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  ROOT %c = (bf16[64,16]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"
}
"""
    assert hlo.Module(text).hbm_bytes() == 2 * (64 * 32 + 32 * 16 + 64 * 16)


@pytest.mark.parametrize(
    "attributes, groups",
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={1}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (
            "replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}",
            [[0, 2, 4, 6], [1, 3, 5, 7]],
        ),
        ("replica_groups=mesh['x'=8] {'x':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['x'=8] {'x':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups(attributes, groups):
    np.testing.assert_array_equal(hlo._groups(f", channel_id=1, {attributes}", 8), groups)


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="groups"):
        hlo._groups(", replica_groups=something_new, dimensions={0}", 8)
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.Module("func.func @main() {}")
    with pytest.raises(ValueError, match="loop layers: cannot read its trips"):
        list(hlo.Module(TPU.replace("direction=LT", "direction=NE")).executed())


@pytest.mark.parametrize(
    "shape, size, in_memory",
    [
        ("f32[8,4]{1,0}", 128, 128),
        ("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, pred[7])", 12 + 4 + 7, 7),
        ("token[]", 0, 0),
        ("f8e4m3fn[10]{0}", 10, 10),
        ("s4[3]{0}", 2, 2),
        ("f32[16]{0:S(0)}", 64, 64),
    ],
)
def test_sizes_of_shapes(shape, size, in_memory):
    assert hlo.num_bytes(shape) == size
    assert hlo.num_hbm_bytes(shape) == in_memory


def test_kernels_have_attributes_of_several_lines():
    """A Pallas kernel's text has lines that look like the end of a computation."""
    text = """HloModule step

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %kernel = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={
"xprof_metadata":"{\\"block\\": 384}"
}}, metadata={op_name="jit(step)/pallas_call"}
  ROOT %sum = f32[8]{0} all-reduce(%kernel), replica_groups={{0,1}}, to_apply=%add
}
"""
    module = hlo.Module(text)
    assert list(module.computations["main"]) == ["p", "kernel", "sum"]
    assert [c.family for c in module.collectives(2)] == ["all-reduce"]
