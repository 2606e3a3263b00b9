"""Several processes are one run: the same losses, one stop, and no process left after a loss."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from lapa_jax import config as configs
from lapa_jax import train
from lapa_jax.parallel.mesh import make_mesh
from lapa_jax.runs import start
from lapa_jax.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]

STEPS = 10
HEARTBEAT_SECONDS = 10
LIMIT_SECONDS = 240  # for what must happen: a busy machine is slow
# Float32; sums over processes are added in another order. Relative.
TOLERANCE = 1e-4
# mesh.data=-1 takes the devices that there are, so that a run may continue on others.
CHANGES = {"mesh__preset": "fsdp", "mesh__fsdp": 2}


class Job:
    """`lapa train` in several processes of some devices each."""

    def __init__(self, workdir: Path, arguments: list[str], processes: int, devices: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = ["train", *arguments, "--workdir", str(workdir)]
        arguments += ["--coordinator_address", f"127.0.0.1:{port}"]
        arguments += ["--num_processes", str(processes)]
        arguments += ["--heartbeat_seconds", str(HEARTBEAT_SECONDS)]
        self.workdir = workdir
        self._logs = [workdir.with_name(f"{workdir.name}-{port}-{i}") for i in range(processes)]
        self.processes = []
        for number, log in enumerate(self._logs):
            with log.open("w") as output:
                started = tiny.command([*arguments, "--process_id", str(number)], output, devices)
            self.processes.append(started)

    def output(self, number: int) -> str:
        return self._logs[number].read_text()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not ready():
            ended = [i for i, process in enumerate(self.processes) if process.poll() is not None]
            assert not ended, f"process {ended[0]} ended:\n{self.output(ended[0])}"
            assert time.monotonic() < deadline, self.output(0)
            time.sleep(0.005)

    def wait(self, number: int, limit: float = LIMIT_SECONDS) -> int:
        """The exit code; fails if the process does not end."""
        try:
            return self.processes[number].wait(limit)
        except subprocess.TimeoutExpired:
            pytest.fail(f"process {number} does not end:\n{self.output(number)}")

    def logged(self, step: int) -> Callable[[], bool]:
        return lambda: tiny.logged_step(self.workdir) >= step


@contextlib.contextmanager
def job(workdir: Path, arguments: list[str], processes: int, devices: int = 1) -> Iterator[Job]:
    started = Job(workdir, arguments, processes, devices)
    try:
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.wait()


def train_here(workdir: Path, arguments: list[str], devices: int) -> None:
    """The same run in this process."""
    _, spec, *overrides = arguments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "make_mesh", lambda c: make_mesh(c, jax.devices()[:devices]))
        assert train.train(configs.load(spec, overrides), workdir)


@pytest.fixture(scope="module")
def pretraining(tiny_data):
    return tiny.arguments("latent_pretraining", tiny_data, steps=STEPS, **CHANGES)


@pytest.fixture(scope="module")
def undisturbed(pretraining, tmp_path_factory):
    """The run in one process, on four devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train_here(workdir, pretraining, devices=4)
    return workdir


def assert_same(workdir: Path, other: Path) -> None:
    found, expected = tiny.result(workdir), tiny.result(other)
    assert found["step"] == expected["step"]
    assert found["meta"] == expected["meta"]
    assert found["arrays"].keys() == expected["arrays"].keys()
    assert [row["step"] for row in found["metrics"]] == list(range(1, found["step"] + 1))
    for row, other in zip(found["metrics"], expected["metrics"], strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            np.testing.assert_allclose(
                value, other[name], rtol=TOLERANCE, atol=1e-6, err_msg=f"{name}, {row['step']}"
            )


def test_two_processes_train_as_one(undisturbed, tiny_data, tmp_path):
    """A run that starts from another one's parameters, with new heads and a moving average."""
    changes = {"steps": 3, "init_from": undisturbed, "optimizer__ema_decay": 0.5}
    arguments = tiny.arguments("action_finetuning", tiny_data, **changes, **CHANGES)
    with job(tmp_path / "two", arguments, processes=2, devices=2) as running:
        assert [running.wait(i) for i in range(2)] == [0, 0], running.output(0)
    train_here(tmp_path / "one", arguments, devices=4)
    assert_same(tmp_path / "two", tmp_path / "one")


def test_a_run_survives_a_kill_damage_and_a_stop_on_other_processes(
    undisturbed, pretraining, tmp_path
):
    """2 processes of 2 devices, 4 of 1, and in the end 1 of 8."""
    workdir = tmp_path / "run"
    directory = workdir / "checkpoints"
    with job(workdir, pretraining, processes=2, devices=2) as running:
        running.wait_for(lambda: len(checkpoint.list_steps(directory)) == 2)
        running.processes[1].kill()
        assert running.wait(0, 5 * HEARTBEAT_SECONDS) not in (0, 2, train.EXIT_RESTART)
        # An error of a collective; with newer releases of JAX its heartbeat, which names the lost.
        output = running.output(0)
        assert "process 0 of 2 fails" in output or "are unhealthy" in output

    before, newest = checkpoint.list_steps(directory)[-2:]
    for path in (directory / str(newest) / "params").rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    with job(workdir, pretraining, processes=4) as running:
        running.wait_for(lambda: "continues at step" in running.output(3))
        running.processes[3].terminate()
        codes = [running.wait(i) for i in range(4)]
        assert codes == [train.EXIT_RESTART] * 4, running.output(0)
        for number in range(4):
            assert f"continues at step {before} of {STEPS}" in running.output(number)
            assert "DAMAGED CHECKPOINT" in running.output(number)
    assert (directory / f"{newest}.damaged").is_dir()
    stopped = checkpoint.list_steps(directory)[-1]
    assert before < stopped < STEPS
    told = f"step {stopped} is being saved"
    assert all(told in running.output(number) for number in range(4))

    train_here(workdir, pretraining, devices=8)
    assert_same(workdir, undisturbed)


@pytest.mark.parametrize(
    "lost, number", [(0, signal.SIGKILL), (1, signal.SIGSTOP)], ids=["coordinator", "hang"]
)
def test_no_process_outlives_another_for_long(pretraining, tmp_path, lost, number):
    with job(tmp_path / "run", pretraining, processes=2) as running:
        running.wait_for(running.logged(2))
        running.processes[lost].send_signal(number)
        code = running.wait(1 - lost, 5 * HEARTBEAT_SECONDS)
        assert code not in (0, 2, train.EXIT_RESTART)
        assert "JAX distributed service detected fatal errors" in running.output(1 - lost)
