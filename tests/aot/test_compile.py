"""`lapa compile`: what it builds and prints, and two real compiles, one for each compiler."""

import dataclasses
import json

import jax
import pytest
import tiny
from compilers import lapa_compile, needs_compilers

from lapa_jax import config as configs
from lapa_jax import train
from lapa_jax.aot import assess as aot
from lapa_jax.aot.topology import Topology, parse
from lapa_jax.parallel.sharding import ShardingError
from lapa_jax.verbs import compile as verb

QUICK = "experiments/latent_vla/tabletop.py:quick=True"


def config(**overrides):
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return configs.load(str(tiny.ROOT / "experiments/latent_vla/tabletop.py"), flags)


@pytest.mark.parametrize(
    "message, gib",
    [
        (
            "RESOURCE_EXHAUSTED: TPU program: memory required for HLO temporaries (19.33G) exceeds "
            "available HBM (15.75G)",
            19.33,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm.",
            512.5 / 1024,
        ),
        ("RESOURCE_EXHAUSTED: something else", None),
    ],
)
def test_how_much_memory_is_missing(message, gib):
    assert aot.needed_gib(message) == gib


@pytest.mark.slow
def test_layouts_that_cannot_be(monkeypatch):
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices())
    with pytest.raises(ShardingError, match="mesh.data=1 .* 2 hosts of h100:2x4.*cross hosts"):
        aot.build(config(mesh__preset="fsdp", mesh__data=1, mesh__fsdp=8), parse("h100:2x4"))
    with pytest.raises(ShardingError, match="global_batch a multiple of 8"):
        aot.build(config(global_batch=12), parse("v5e-8"))
    program = aot.build(config(mesh__preset="fsdp", mesh__fsdp=4), parse("h100:2x4"))
    assert program.batch["tokens"].sharding.shard_shape(program.batch["tokens"].shape)[0] == 16


@pytest.fixture
def on_cpu(monkeypatch):
    """Eight devices of this process stand for the machine that is not there."""
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices())


class Lowered(Exception):
    """Ends a run before it compiles."""


@pytest.mark.slow
def test_what_is_compiled_is_what_runs(on_cpu, tiny_data, tmp_path, monkeypatch):
    """The step of `lapa train` and that of `lapa compile` lower to the same program."""
    lowered = []
    build = train.programs.build

    def stop(*args, **kwargs):
        program = build(*args, **kwargs)
        lowered.append(program.step.lower(program.state, program.batch).as_text())
        raise Lowered

    config = tiny.config("latent_pretraining", tiny_data, mesh__preset="fsdp", mesh__fsdp=4)
    monkeypatch.setattr(train.programs, "build", stop)
    for run in (
        lambda: train.train(config, tmp_path),
        lambda: aot.build(config, parse("h100:2x4")),
    ):
        with pytest.raises(Lowered):
            run()
    assert lowered[0] == lowered[1]


@pytest.mark.slow
def test_remat_recomputes_what_it_says(on_cpu):
    """... of the products, which is most of the time: all, those of attention, or none."""
    executed = {}
    for remat in ("none", "dots", "dots_no_batch", "full"):
        changed = config(model__remat=remat, model__attention="xla", model__unroll=1)
        program = aot.build(changed, parse("v5e-8"))
        traced = program.step.trace(program.state, program.batch)
        flops = aot.executed(traced.jaxpr.jaxpr)
        executed[remat] = flops / program.work.flops
    assert executed["none"] == executed["dots"] == pytest.approx(1.0)
    assert 1.0 < executed["dots_no_batch"] < 1.05
    assert 1.2 < executed["full"] < 4 / 3


@pytest.mark.slow
def test_over_budget_exits_with_1_and_advice(on_cpu, monkeypatch):
    topology = parse("h100:2x4")
    small = dataclasses.replace(topology.chip, hbm_gib=1e-5)
    monkeypatch.setattr(
        verb, "parse_topology", lambda *_: dataclasses.replace(topology, chip=small)
    )
    arguments = ["--config", str(tiny.ROOT / QUICK), "--topology", "h100:2x4", "--json"]
    # A batch that leaves few layouts to try.
    code, out, _ = tiny.lapa("compile", *arguments, "--config.global_batch=8")
    assert code == 1
    assert "does not fit" in out and "No change that was tried fits" in out
    result = json.loads(out.splitlines()[-1])
    assert not result["fits"] and result["would_fit"] == []
    assert result["peak_gib"] > result["hbm_gib"]


# --- Real compilers ---


@pytest.mark.slow
@needs_compilers
def test_a_tpu_slice():
    layout = "--config.mesh.preset=fsdp --config.mesh.fsdp=4 --config.model.unroll=1".split()
    code, result, out = lapa_compile("--config", QUICK, *layout, "--topology", "v5e-4")
    assert code == 0 and result["fits"]
    assert result["topology"] == "v5e:2x2" and result["hbm_gib"] == 15.75
    assert 0 < result["arguments_gib"] < result["peak_gib"] < 1
    assert result["collectives"]["all-gather"]["in_loop"] > 0, "weights are gathered layer by layer"
    assert result["ici_gb"] > 0 and result["dcn_gb"] == 0
    assert 0 < result["mfu_bound"] < 1
    assert "| v5e:2x2 | 1, 4, 1, 1 | fsdp | none | 1 |" in out


@pytest.mark.slow
@needs_compilers
def test_gpu_hosts():
    layout = "--config.mesh.preset=fsdp --config.mesh.fsdp=2 --config.model.unroll=1".split()
    code, result, _ = lapa_compile("--config", QUICK, *layout, "--topology", "h100:2x2")
    assert code == 0 and result["fits"]
    assert result["mesh"] == {"data": 2, "fsdp": 2, "seq": 1, "tensor": 1}
    assert 0 < result["arguments_gib"] < result["peak_gib"] < 1
    families = result["collectives"]
    assert families["all-gather"]["in_loop"] > 0 and families["reduce-scatter"]["count"] > 0
    assert result["ici_gb"] > 0 and result["dcn_gb"] > 0, "gradients meet between the hosts"
