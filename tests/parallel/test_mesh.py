"""Mesh sizes, and start-up."""

import argparse
import json
import os
import subprocess
import sys

import jax
import pytest
import tiny
from jax.sharding import AxisType

from lapa_jax.parallel import distributed
from lapa_jax.parallel.mesh import axis_sizes, make_mesh
from lapa_jax.parallel.sharding import ShardingError
from lapa_jax.runs import start


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


def test_processes_that_differ_are_refused_on_each_of_them(monkeypatch):
    def told(*others):
        texts = [json.dumps(other) for other in others]
        monkeypatch.setattr(distributed, "exchange", lambda text: [*texts, text])

    mine = {"optimizer.peak_lr": 0.1, "seed": 1, "data.path": ["a"]}
    distributed.agree("command", mine)
    told(mine, mine)
    distributed.agree("command", mine)
    told(mine | {"seed": True}, mine | {"more": 3})
    with pytest.raises(ValueError, match="must have the same command") as error:
        distributed.agree("command", mine)
    assert str(error.value).splitlines()[1:] == [
        "  more: None on process 0, 3 on process 1",
        "  seed: True on process 0, 1 on process 1",
        "  seed: True on process 0, 1 on process 2",
    ]


def test_a_process_that_does_not_see_the_directory_of_the_first_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "SEE_SECONDS", 1)
    start._check_shared(tmp_path)  # the first
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    with pytest.raises(FileNotFoundError, match="--workdir must be on a file system that all"):
        start._check_shared(tmp_path)
    (tmp_path / "run.lock").touch()
    start._check_shared(tmp_path)


def test_start_up_on_one_process():
    distributed.initialize()  # starts nothing, also after JAX has been used
    assert jax.process_count() == 1
    with pytest.raises(ValueError, match="num_processes"):
        distributed.initialize(coordinator_address="localhost:1")
    with pytest.raises(ValueError, match="process_id=3: give all three"):
        distributed.initialize(process_id=3)


def test_the_cpu_is_not_taken_for_a_gpu(monkeypatch):
    for asked in ("cuda,cpu", "cuda"):
        monkeypatch.setenv("JAX_PLATFORMS", asked)
        with pytest.raises(RuntimeError, match=f"JAX_PLATFORMS={asked}, but JAX has no plugin"):
            distributed.initialize()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu,cuda")
    distributed.initialize()


def test_addresses_come_from_flags_or_from_the_environment(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: asked.append(settings))
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    flags = "--coordinator_address a:1 --num_processes 2 --process_id 1 --heartbeat_seconds 5"
    for name, value in zip(distributed.VARIABLES, ("b:2", "3", "2"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.initialize_from(parser.parse_args(flags.split()))
    distributed.initialize_from(parser.parse_args([]))
    distributed.initialize_from(parser.parse_args(["--num_processes", "1"]))  # connects nothing
    monkeypatch.delenv("JAX_NUM_PROCESSES")  # jax is left to find what is missing
    distributed.initialize_from(parser.parse_args([]))
    assert [tuple(settings.values()) for settings in asked] == [
        ("a:1", 2, 1, 5, 360),
        ("b:2", 3, 2, 60, 360),
        (None, None, None, 60, 360),
    ]


@pytest.mark.slow
def test_a_process_whose_others_never_come_says_so_and_ends():
    """As in a shell of Slurm, where task 0 has the terminal and the others have ended."""
    code = "from lapa_jax.parallel import distributed as d; d.CONNECT_SECONDS = 1; d.initialize()"
    slurm = {"JOB_ID": "1", "STEP_ID": "0", "NTASKS": "8", "PROCID": "0", "LOCALID": "0"}
    slurm |= {"STEP_NODELIST": "localhost", "JOB_NODELIST": "localhost", "STEP_NUM_NODES": "1"}
    slurm = {f"SLURM_{name}": value for name, value in slurm.items()}
    done = subprocess.run(
        [sys.executable, "-c", f"from absl import logging; logging.set_verbosity(0); {code}"],
        env={**os.environ, **slurm, "PYTHONPATH": str(tiny.ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == distributed.EXIT_ALONE
    first, last = done.stderr.strip().splitlines()
    assert "SLURM_NTASKS=8" in first and "--num_processes 1 " in first
    assert "after 1 s the other processes have not come (SLURM_NTASKS=8" in last


def test_what_fails_on_one_process_fails_on_all(monkeypatch):
    """As three processes see it that say the same but for the last."""
    assert distributed.together(lambda: 7) == 7
    with pytest.raises(KeyError):  # its own error, as it is
        distributed.together(lambda: {}["missing"])
    monkeypatch.setattr(distributed, "exchange", lambda text: [text, text, "OSError: no disk"])
    with pytest.raises(distributed.OtherProcessError, match="^process 2: OSError: no disk$"):
        distributed.together(lambda: 7)
    with pytest.raises(KeyError):
        distributed.on_first(lambda: {}["missing"])


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "1"}, True),  # a shell
        ({"SLURM_NTASKS": "4"}, False),  # a batch script, no job step
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:80"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_cluster_detection(environ, expected):
    sign = distributed.cluster_sign(environ)
    assert (sign is not None) is expected
    assert sign is None or sign in {f"{name}={value}" for name, value in environ.items()}
