"""The benchmark verb runs and counts right; it asserts no time."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from tiny import lapa, succeed

from lapa_jax.benchmarks import compare, loop, policy, quantizer, side
from lapa_jax.machine.memory import peak_resident_bytes

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_dynamics_model_beside_the_peak():
    given = "--form maskgit --batch 4 --steps 1 --json"
    result = json.loads(succeed("bench", "dynamics", *given.split()))
    (row,) = result["dynamics"]
    seconds = row["ms_per_step"] / 1e3
    assert row["tokens_per_second"] == pytest.approx(4 * 4 * 64 / seconds, rel=0.01)
    fraction = row["model_gflop_per_step"] * 1e9 / seconds / result["matmul_peak_tflops"] / 1e12
    assert row["fraction_of_matmul_peak"] == pytest.approx(fraction, rel=0.1, abs=1e-3)
    assert row["ms_per_imagined_frame"] > 0


@pytest.mark.slow
def test_policies_beside_the_peak_and_the_bandwidth():
    given = "--size demo --batch 4 --microbatches 2 --tokens 2 --steps 1 --json"
    result = json.loads(succeed("bench", "policy", *given.split()))
    (train,), (decode,) = result["train"], result["decode"]
    assert (train["rows"], train["microbatches"]) == (4, 2)
    seconds = train["ms_per_step"] / 1e3
    assert train["tokens_per_second"] == pytest.approx(4 * policy.ROW / seconds, rel=0.01)
    fraction = train["model_gflop_per_step"] * 1e9 / seconds / result["matmul_peak_tflops"] / 1e12
    assert train["fraction_of_matmul_peak"] == pytest.approx(fraction, rel=0.1, abs=1e-3)
    # What a token must read: every weight but the tables and the other heads, float32.
    dim, vocabularies = 128, 384 + 1024 + 8
    rest = (2 * vocabularies - 8) * dim
    read = 4 * (decode["parameters"] - rest)
    assert decode["weight_mib"] == pytest.approx(read / 2**20, rel=0.01, abs=0.01)
    bound = decode["weight_mib"] * 2**20 / result["memory_gb_per_second"] / 1e6
    assert decode["bound_ms_per_token"] == pytest.approx(bound, rel=0.1, abs=2e-3)
    assert decode["prefill_ms"] > 0 and decode["prompt_tokens"] == 284


@pytest.mark.slow
def test_attentions_agree_with_plain_products():
    given = "--positions 128 --heads 2 --head_dim 16 --steps 1 --json"
    rows = json.loads(succeed("bench", "attention", *given.split()))["attention"]
    assert {row["implementation"]: row["auto"] for row in rows} == {"xla": True, "ring": False}
    assert all(row["error"] < 1e-5 and row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_the_loop_beside_its_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS", 3)
    given = f"--steps 1 --batch 8 --workdir {tmp_path} --json"
    (row,) = json.loads(succeed("bench", "loop", *given.split()))["loop"]
    alone, looped = row["step_alone_ms"], row["in_the_loop_ms"]
    assert row["steps"] == 9 and row["overhead"] == pytest.approx(looped / alone - 1, abs=0.01)


@pytest.mark.slow
def test_the_released_shape_has_its_parameters():
    import jax

    from lapa_jax import stages

    stage = stages.build(quantizer.quantizer_config("released", "bfloat16"), {})
    params = stage.model.abstract()[0]
    # The original's 343,796,080 less what it never uses: the context norms of self-attention.
    # (Its constant beta buffers are no parameters.)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == 343_796_080 - 24 * 1024


@pytest.mark.slow
def test_labelling_beside_the_forward_pass(tmp_path):
    given = "--batch 8 --steps 2 --json"
    out = succeed("bench", "label", "--workdir", tmp_path / "bench", *given.split())
    (row,) = json.loads(out)["label"]
    assert row["pairs"] == 2 * row["batch"] and row["batch"] % 8 == 0
    assert row["forward_pairs_per_second"] > 0 and row["fraction_of_forward"] > 0
    assert not list((tmp_path / "bench").rglob("labels"))


@pytest.mark.slow
def test_serving_beside_the_call():
    out = succeed("bench", "serve", "--clients", 4, "--steps", 1, "--json")
    (row,) = json.loads(out)["serve"]
    assert row["added_ms_p50"] == pytest.approx(
        row["round_trip_ms_p50"] - row["call_ms_p50"], abs=2e-3
    )
    gain = row["clients_per_second"] / row["one_client_per_second"]
    assert row["gain"] == pytest.approx(gain, abs=2e-3)
    assert 1 < row["mean_batch"] <= 4
    assert row["server_cpu_ms"] > 0 and row["clients_cpu_ms"] > 0


@pytest.mark.slow
def test_a_save_beside_a_step_and_the_bytes_of_the_state(tmp_path):
    given = f"--size demo --batch 4 --microbatches 2 --steps 1 --workdir {tmp_path} --json"
    (row,) = json.loads(succeed("bench", "save", *given.split()))["save"]
    # Parameters and two moments in float32, besides counters.
    assert row["state_mib"] == pytest.approx(12 * row["parameters"] / 2**20, abs=0.1)
    assert row["stall"] == pytest.approx(row["call_ms"] / row["step_ms"], rel=0.01)
    assert 0 < row["call_ms"] < row["call_and_write_ms"]
    assert not list(tmp_path.iterdir())


BUSY = """
import pathlib, which

def prepare(log, work, loops):
    def step():
        with pathlib.Path(log).open("a") as file:
            file.write(which.NAME)
        print("not a reply", sum(range(loops)))
        if loops < 0:
            raise ValueError("cannot")
    step.work = work
    return step
"""


@pytest.fixture
def sides(tmp_path):
    """Flags of two sides whose folders have a module `which` each, and the file they write to."""
    (tmp_path / "case.py").write_text(BUSY)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "which.py").write_text(f"NAME = {name!r}")
    cases = [x for name in "ab" for x in ("--case", f"{tmp_path}/case.py@{tmp_path}/{name}")]
    log = tmp_path / "log"
    return ["bench", "compare", *cases, "--option", f"log={log}", "--option", "loops=1000"], log


def test_two_sides_take_turns(sides, tmp_path):
    flags, log = sides
    of_each = ["--first", "work=3", "--second", "work=0.5"]
    given = [*flags, *of_each, "--rounds", 3, "--warmup", 2, "--out", tmp_path / "found.json"]
    result = json.loads(succeed(*given, "--json"))
    assert result == json.loads((tmp_path / "found.json").read_text())
    assert log.read_text() == "abab" + "ab" + "ba" + "ab"
    assert result["first"]["options"] == {"log": str(log), "loops": 1000, "work": 3}
    assert result["second"]["folder"] == f"{tmp_path}/b" and result["second"]["code"] is None
    assert result["machine"]["cores"] and "T" in result["date"]
    (cpu, wall), rounds = result["ratios"], result["rounds"]
    for kind, row in {"cpu": cpu, "wall": wall}.items():
        ratios = [x[f"first_{kind}"] / 3 / (x[f"second_{kind}"] / 0.5) for x in rounds]
        assert sorted(ratios) == pytest.approx([row["min"], row["median"], row["max"]], rel=1e-3)
        assert row["min"] <= row["low_95"] <= row["median"] <= row["high_95"] <= row["max"]
    first, _ = result["sides"]
    assert first["work_per_cpu_second"] == pytest.approx(3 / first["cpu_median"], rel=1e-3)


def test_a_side_that_fails_is_named(sides):
    code, _, err = lapa(*sides[0], "--option", "work=1", "--second", "loops=-1", "--rounds", 1)
    assert code == 2 and "a side ended" in err and "case.py" in err and "/b" in err
    code, _, err = lapa("bench", "compare", "--case", "no.py@nowhere", "--case", "no.py")
    assert code == 2 and "no file 'no.py', no folder 'nowhere'" in err


def test_an_installation_lends_a_build_nothing(monkeypatch):
    ours = types.SimpleNamespace(MAPPING={"lapa_jax": "here", "lapa_jax.machine": "here"})
    theirs = types.SimpleNamespace(MAPPING={"other": "there"})
    monkeypatch.setitem(sys.modules, "finder_of_ours", ours)
    monkeypatch.setitem(sys.modules, "finder_of_theirs", theirs)
    finders = [type("F", (), {"__module__": f"finder_of_{x}"}) for x in ("ours", "theirs")]
    monkeypatch.setattr(sys, "meta_path", list(finders))
    side.forget_installed()
    assert sys.meta_path == finders[1:]


def test_cpu_time_is_that_of_children_too():
    code = "import time\nwhile time.process_time() < 0.05: pass"
    before = side.cpu_seconds()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert side.cpu_seconds() - before >= 0.05


def test_the_peak_of_memory_is_not_that_of_who_started_it():
    code = "from lapa_jax.machine.memory import peak_resident_bytes; print(peak_resident_bytes())"
    held = np.ones(2**27)  # 1 GiB
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(child.stdout) < held.nbytes / 2 < held.nbytes < peak_resident_bytes()


def test_the_interval_of_a_median():
    assert compare.interval([1.0, 2.0]) == (None, None)
    assert compare.interval([0.5] * 5) == (0.5, 0.5)
    low, high = compare.interval(list(range(1, 101)))
    assert 35 < low < 50.5 < high < 66  # 50.5 +- 1.96 * 10, of the order statistics
