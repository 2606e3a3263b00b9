"""Rule table: specs, errors, constraints, batches."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lapa_jax.parallel import sharding
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.parallel.sharding import ShardingError


def mesh_of(data=1, fsdp=1, seq=1, tensor=1):
    devices = jax.devices()[: data * fsdp * seq * tensor]
    return make_mesh(dict(data=data, fsdp=fsdp, seq=seq, tensor=tensor), devices)


AXES = {
    "embed": ("vocab", "embed"),
    "blocks": {"up": ("layers", "embed", "mlp"), "square": ("embed", "embed"), "bias": (None,)},
}
SHAPES = {
    "embed": jnp.zeros((16, 8)),
    "blocks": {"up": jnp.zeros((3, 8, 12)), "square": jnp.zeros((8, 8)), "bias": jnp.zeros(5)},
}


@pytest.mark.parametrize(
    "preset, sizes, expected",
    [
        ("dp", dict(data=8), [P(None, None, None), P(None, None), P(None, None)]),
        ("fsdp", dict(fsdp=4), [P(None, "fsdp", None), P(None, "fsdp"), P("fsdp", None)]),
        (
            "fsdp_tp",
            dict(fsdp=2, tensor=4),
            [P(None, "fsdp", "tensor"), P("tensor", "fsdp"), P("fsdp", None)],
        ),
        (
            "fsdp_sp",
            dict(fsdp=2, seq=4),
            [P(None, ("fsdp", "seq"), None), P(None, ("fsdp", "seq")), P(("fsdp", "seq"), None)],
        ),
    ],
)
def test_parameter_specs(preset, sizes, expected):
    found = sharding.tree_shardings(AXES, SHAPES, mesh_of(**sizes), preset)
    specs = [found["blocks"]["up"].spec, found["embed"].spec, found["blocks"]["square"].spec]
    assert specs == expected
    assert found["blocks"]["bias"].spec == P(None)


def test_errors_name_parameter_dimension_and_axis():
    mesh = mesh_of(fsdp=2, tensor=4)

    def fail(axes, shape, *words, mesh=mesh, preset="fsdp_tp"):
        with pytest.raises(ShardingError) as error:
            sharding.tree_shardings({"a": {"w": axes}}, {"a": {"w": shape}}, mesh, preset)
        assert all(word in str(error.value) for word in words), error.value

    fail(("embed", "mlp"), jnp.zeros((4, 6)), "['a']['w']", "dimension 1", "mesh.tensor=4", "6")
    fail(("embed", "wide"), jnp.zeros((4, 8)), "['a']['w']", "dimension 1", "'wide'")
    fail(("embed",), jnp.zeros((4, 8)), "['a']['w']", "rank 2")
    fail(("embed", "mlp"), jnp.zeros((4, 8)), "mesh.tensor=4", "'fsdp'", preset="fsdp")
    fail(("embed", "mlp"), jnp.zeros((4, 8)), "'zero3'", "fsdp_tp", preset="zero3")
    with pytest.raises(ShardingError, match="without axes.*'b'"):
        sharding.tree_shardings({}, {"b": jnp.zeros(2)}, mesh, "fsdp_tp")
    with pytest.raises(ShardingError, match="without a parameter.*'b'"):
        sharding.tree_shardings({"b": (None,)}, {}, mesh, "fsdp_tp")


def test_zero_gathers_a_matrix_once_and_scatters_its_gradient_as_it_is_stored():
    """... in the dtype of the products; vectors keep theirs, and other presets gather nothing."""
    mesh = mesh_of(data=2, fsdp=4)
    axes = {"w": ("embed", "mlp"), "scale": ("embed",)}
    params = {"w": jnp.linspace(-1, 1, 96).reshape(8, 12), "scale": jnp.linspace(1, 2, 8)}
    stored = sharding.tree_shardings(axes, params, mesh, "zero")
    x = jax.device_put(jnp.linspace(0, 1, 64).reshape(8, 8), sharding.batch_sharding(mesh))

    def loss(params, dtype):
        used = sharding.gather(params, axes, mesh, "zero", dtype)
        assert (used["w"].dtype, used["scale"].dtype) == (dtype, jnp.float32)
        h = (x * used["scale"]).astype(dtype)
        return jnp.square(jnp.tanh(h @ used["w"]) @ used["w"].T).sum().astype(jnp.float32)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    found = gradient(jax.device_put(params, stored), jnp.float32)
    assert all(v.sharding.is_equivalent_to(stored[k], v.ndim) for k, v in found.items())
    for name, expected in jax.grad(loss)(params, jnp.float32).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-4)
    program = gradient.lower(jax.device_put(params, stored), jnp.float32).compile().as_text()
    assert len(re.findall(r"= f32\[8,12\]\S* all-gather\(", program)) == 1
    assert sharding.gather(params, axes, mesh, "fsdp", jnp.bfloat16) is params
    narrow = gradient(jax.device_put(params, stored), jnp.bfloat16)
    assert {v.dtype for v in narrow.values()} == {jnp.dtype("float32")}


def test_layers_that_run_apart_are_gathered_apart():
    mesh = mesh_of(data=2, fsdp=4)
    axes = {"stack": ("layers", "embed", "mlp")}
    params = {"stack": jnp.linspace(-1, 1, 3 * 64).reshape(3, 8, 8)}
    stored = jax.device_put(params, sharding.tree_shardings(axes, params, mesh, "zero"))
    x = jax.device_put(jnp.linspace(0, 1, 64).reshape(8, 8), sharding.batch_sharding(mesh))

    def loss(params, apart):
        used = sharding.gather(params, axes, mesh, "zero", jnp.float32, apart=apart)["stack"]
        h = x
        for layer in range(3):
            h = jnp.tanh(h @ used[layer])
        return jnp.square(h).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    whole, apart = (gradient(stored, apart)["stack"] for apart in (False, True))
    np.testing.assert_allclose(apart, whole, rtol=1e-5, atol=1e-6)
    assert apart.sharding.is_equivalent_to(stored["stack"].sharding, 3)
    program = gradient.lower(stored, True).compile().as_text()
    assert not re.findall(r"= f32\[3,8,8\]\S* (all-gather|concatenate)\(", program)


def test_constrain_is_a_no_op_without_rules_and_splits_with_them():
    x = jnp.arange(4 * 6 * 8.0).reshape(4, 6, 8)
    assert sharding.constrain(x, "anything") is x
    mesh = mesh_of(data=2, fsdp=2, seq=2)

    def double(x):
        return sharding.constrain(x * 2, "batch", "length", "embed")

    y = jax.jit(sharding.with_rules(double, mesh, "fsdp_sp"))(x)
    assert y.sharding.spec == P(("data", "fsdp"), "seq")
    np.testing.assert_array_equal(y, x * 2)
    # The same function, traced before without rules, is not reused with them.
    assert jax.jit(double)(x).sharding.num_devices == 1
    assert sharding.current_rules() is None
    with sharding.use_mesh_rules(mesh, "fsdp_sp"):
        assert sharding.current_rules() == (mesh, "fsdp_sp")
        with pytest.raises(ShardingError, match="length.*mesh.seq=2"):
            sharding.constrain(x[:, :5], "batch", "length", "embed")
        with pytest.raises(ShardingError, match="rank 3"):
            sharding.constrain(x, "batch", "length")


def test_put_batch_keeps_values_and_refuses_what_would_be_cast():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    assert sharding.loader_shard(mesh) == (0, 1)
    host = {"frames": np.arange(8 * 3, dtype=np.uint8).reshape(8, 3), "z": np.arange(8, dtype="i4")}
    batch = sharding.put_batch(host, mesh)
    for key, value in host.items():
        np.testing.assert_array_equal(batch[key], value)
        assert batch[key].dtype == value.dtype
        assert batch[key].addressable_shards[0].data.shape[0] == 2
    for bad in (np.arange(8), np.zeros(8), np.array(["a"] * 8, object)):
        with pytest.raises(ShardingError, match="batch\\['x'\\] has dtype"):
            sharding.put_batch({"x": bad}, mesh)
    with pytest.raises(ShardingError, match="multiple of 4"):
        sharding.put_batch({"x": np.zeros((6, 2), np.float32)}, mesh)


def test_processes_that_hold_the_same_rows_share_a_group():
    def groups(shape, devices_per_process):
        count = int(np.prod(shape))
        return sharding.row_groups((np.arange(count) // devices_per_process).reshape(shape))

    assert groups((4, 2, 1, 1), 4) == {0: (0, 2), 1: (1, 2)}
    # tensor spans two processes: 0 and 1 hold the same rows.
    assert groups((1, 2, 1, 4), 2) == {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}
    assert groups((1, 1, 1, 8), 4) == {0: (0, 1), 1: (0, 1)}
    with pytest.raises(ShardingError, match="contiguous"):
        sharding.row_groups(np.array([0, 1, 0, 1]).reshape(4, 1, 1, 1))
