"""Mesh sizes, and start-up on one process."""

import jax
import pytest
from jax.sharding import AxisType

from lapa_jax.parallel import distributed
from lapa_jax.parallel.mesh import axis_sizes, make_mesh
from lapa_jax.parallel.sharding import ShardingError


def config(data=1, fsdp=1, seq=1, tensor=1, **more):
    return dict(data=data, fsdp=fsdp, seq=seq, tensor=tensor, **more)


def test_one_size_is_derived_and_axes_are_auto():
    mesh = make_mesh(config(data=2, fsdp=-1, tensor=2, preset="fsdp_tp"))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "seq": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert make_mesh(config(data=-1), jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
    "sizes, words",
    [
        (config(data=3), ["mesh.data=3", "3 devices", "8"]),
        (config(data=-1, tensor=3), ["mesh.tensor=3", "8"]),
        (config(data=-1, fsdp=-1), ["at most one"]),
        (config(data=0), ["mesh.data=0"]),
        (config(data=4), ["4 devices", "8"]),
        (config(pipeline=2), ["pipeline"]),
        ({"data": 8}, ["missing", "tensor"]),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, words):
    with pytest.raises(ShardingError) as error:
        axis_sizes(sizes, 8)
    assert all(word in str(error.value) for word in words), error.value


def test_start_up_on_one_process():
    distributed.initialize()  # starts nothing, also after JAX has been used
    assert jax.process_count() == 1
    with pytest.raises(RuntimeError, match="require_accelerator"):
        distributed.initialize(require_accelerator=True)
    with pytest.raises(ValueError, match="num_processes"):
        distributed.initialize(coordinator_address="localhost:1")


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # a batch script, no job step
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:80"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_cluster_detection(environ, expected):
    assert distributed.in_cluster(environ) is expected
