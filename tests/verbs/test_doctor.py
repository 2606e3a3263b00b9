"""`lapa doctor` on this machine, and on machines that are not as they should be."""

import importlib.metadata
import json
import sys

import jax
import pytest
import tiny

from lapa_jax.machine import devices, host
from launch import supervise

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(host, "DISK_BYTES", 2**23)


@pytest.fixture
def ask(tmp_path):
    """Runs it over an empty directory: (exit code, finding by name)."""

    def run(*arguments: str) -> tuple[int, dict[str, dict]]:
        code, out, err = tiny.lapa("doctor", "--json", "--dir", tmp_path, *arguments)
        assert not list(tmp_path.iterdir()), "it leaves nothing"
        found = json.loads(out)
        assert found["ready"] == (code == 0), err
        return code, {finding["name"]: finding for finding in found["findings"]}

    return run


def problem(answer: tuple[int, dict[str, dict]], name: str) -> str:
    """What was found and what to do, of the one problem there is."""
    code, findings = answer
    assert code == 1
    assert [n for n, f in findings.items() if f["state"] == "problem"] == [name]
    assert findings[name]["do"]
    return f"{findings[name]['found']} -> {findings[name]['do']}"


@pytest.mark.slow
def test_this_machine_is_ready(ask):
    code, findings = ask("--expect", "cpu", "--devices", "8")
    assert code == 0
    assert findings["devices"]["figures"] == {"platform": "cpu", "count": 8, "processes": 1}
    assert findings["disk"]["figures"]["write_bytes_per_second"] > 0
    rates = findings["collectives"]["figures"]
    assert set(rates) == {"all_reduce_1_mib", "all_reduce_16_mib"} and min(rates.values()) > 0
    assert len(findings["arithmetic"]["figures"]["tflops"]) == 8
    assert findings["compile cache"]["state"] == "ok"


def test_a_silent_fallback_to_the_cpu_is_a_problem(ask, monkeypatch):
    assert "expected a TPU, JAX uses the CPU" in problem(ask("--expect", "tpu"), "devices")
    monkeypatch.setattr(devices, "hardware", lambda: ("gpu", 8))
    told = problem(ask(), "devices")
    assert "expected a GPU" in told and "JAX_PLATFORMS=cpu" in told and "nvidia-smi" in told


@pytest.mark.slow
def test_a_missing_device_is_a_problem(ask):
    assert "expected 9" in problem(ask("--expect", "cpu", "--devices", "9"), "devices")


def test_a_jax_that_does_not_start_is_a_problem(ask, monkeypatch):
    def fail(**_):
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(devices.distributed, "initialize", fail)
    told = problem(ask("--expect", "gpu"), "devices")
    assert "JAX does not start with JAX_PLATFORMS=cpu: Unable" in told


@pytest.mark.slow
def test_a_device_that_computes_otherwise_is_found(ask, monkeypatch):
    put = jax.device_put
    bad = jax.local_devices()[3]
    monkeypatch.setattr(jax, "device_put", lambda x, to: put(x * 1.001 if to == bad else x, to))
    assert "devices [3] give other products" in problem(ask("--expect", "cpu"), "arithmetic")


@pytest.mark.slow
def test_a_wrong_sum_over_the_links_is_found(ask, monkeypatch):
    psum = jax.lax.psum
    monkeypatch.setattr(jax.lax, "psum", lambda x, axis: psum(x, axis) + 1)
    assert "wrong sum" in problem(ask("--expect", "cpu"), "collectives")


@pytest.mark.slow
def test_packages_that_do_not_fit_are_named(ask, monkeypatch):
    wanted = ["jax>=99", "no-such-package", "numpy>=2", "torch==1; extra == 'torch'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    told = problem(ask("--expect", "cpu"), "packages")
    assert f"jax {jax.__version__} is not >=99; no-such-package is missing (" in told


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_a_problem(tmp_path):
    code, out, _ = tiny.lapa("doctor", "--expect", "cpu", "--dir", tmp_path / "none")
    assert code == 1
    assert "PROBLEM  disk" in out and "-> make --dir a directory" in out
    assert out.rstrip().splitlines()[-1].startswith("1 problems, ")


@pytest.mark.slow
def test_buckets_are_written_to_as_checkpoints_are(ask, tmp_path_factory):
    bucket = tmp_path_factory.mktemp("bucket")
    code, findings = ask("--expect", "cpu", "--bucket", f"file://{bucket}")
    assert code == 0 and "1 MiB written and read" in findings["bucket"]["found"]
    assert not [p for p in bucket.rglob("*") if p.is_file()], "it leaves nothing"
    told = problem(ask("--expect", "cpu", "--bucket", "gs://x/y"), "bucket")
    assert "Invalid GCS bucket name" in told and "gcloud auth" in told


@pytest.mark.slow
def test_a_compile_cache_that_cannot_be_written_is_a_problem(ask, tmp_path_factory):
    file = tmp_path_factory.mktemp("cache") / "file"
    file.touch()
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(file / "below"))
    try:
        assert "JAX_COMPILATION_CACHE_DIR" in problem(ask("--expect", "cpu"), "compile cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


TWO = """
import json, os, sys
from pathlib import Path
import jax
from lapa_jax.machine import devices
from lapa_jax.parallel import distributed
me = os.environ["JAX_PROCESS_ID"]
distributed.initialize(
    coordinator_address=os.environ["JAX_COORDINATOR_ADDRESS"],
    num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
    process_id=int(me),
)
found = [devices._arithmetic(), devices._collectives(jax.devices())]
found += devices._clocks()
(Path(sys.argv[2]) / f"{me}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_links_and_clocks_of_two_supervised_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo")
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))
    command = [sys.executable, "-c", TWO, "--workdir", str(tmp_path)]
    assert supervise.main(["--processes", "2", "--max_failures", "1", "--", *command]) == 0
    for process in "01":
        found = {f[0]: f for f in json.loads((tmp_path / f"{process}.json").read_text())}
        assert {f[1] for f in found.values()} == {"ok"}
        assert found["collectives"][2].startswith("all-reduce over 4: ")
        assert found["clocks"][4]["seconds"] < 2
