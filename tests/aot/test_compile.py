"""`lapa compile`: searches and advice on made-up results, and two real compiles, one a compiler."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from lapa_jax import compile as aot
from lapa_jax import config as configs
from lapa_jax.aot.topology import parse
from lapa_jax.parallel.sharding import ShardingError

POLICY = "experiments/latent_vla/tabletop.py"
# Where `make test` puts libtpu and the CUDA plugin, so that no other command of the environment
# tries to use them.
COMPILERS = Path(sys.prefix) / "aot"


# --- Layouts ---


def config(**overrides):
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return configs.load(str(tiny.ROOT / POLICY), flags)


def result(layout, topology, *, peak, step, fits=True):
    return {
        "topology": topology.name,
        "mesh": dict(zip(aot.MESH_AXES, layout.mesh, strict=True)),
        "preset": layout.preset,
        "remat": layout.remat,
        "microbatches": layout.microbatches,
        "fits": fits,
        "arguments_gib": 1.0,
        "peak_gib": peak,
        "hbm_gib": 16.0,
        "headroom": 1 - peak / 16.0,
        "roofline": {f"{n}_ms": step for n in ("compute", "hbm", "ici", "dcn", "step")}
        | {"limit": "ici"},
        "mfu_bound": 0.5,
        "compile_seconds": 60.0 if peak < 20.0 else 0.0,
    }


@pytest.fixture
def made_up(monkeypatch):
    """`assess` by a formula: memory falls with sharding, recomputation and accumulation, which all
    cost time. Returns the layouts that were tried."""
    tried = []

    def assess(config, topology):
        layout = aot.Layout.of(config, topology)
        tried.append(layout)
        data, fsdp, _, tensor = layout.mesh
        if tensor > 4:
            raise ShardingError("model.heads=4")
        remat = aot.REMAT_ORDER.index(layout.remat)
        state = 64.0 / (fsdp * tensor)
        peak = state + 32.0 / (1 + remat) / layout.microbatches / (data * fsdp)
        step = 10.0 + remat + layout.microbatches + 0.1 * fsdp + tensor
        return result(layout, topology, peak=peak, step=step, fits=peak <= 16.0)

    monkeypatch.setattr(aot, "assess", assess)
    return tried


def test_a_layout_is_what_a_config_says_and_back():
    topology = parse("v5e-16")
    layout = aot.Layout.of(config(mesh__preset="fsdp", mesh__fsdp=4), topology)
    assert layout == aot.Layout((4, 4, 1, 1), "fsdp", "none", 1)
    other = dataclasses.replace(layout, mesh=(1, 16, 1, 1), remat="full", microbatches=2)
    assert other.flags(layout) == (
        "--config.mesh.data=1 --config.mesh.fsdp=16 --config.model.remat=full "
        "--config.microbatches=2"
    )
    flags = other.flags(layout).split()
    changed = configs.load(str(tiny.ROOT / POLICY), ["--config.mesh.preset=fsdp", *flags])
    assert aot.Layout.of(changed, topology) == other
    original = config()
    assert aot.Layout.of(other.apply(original), topology) == other
    assert aot.Layout.of(original, topology).mesh == (16, 1, 1, 1), "the config itself is kept"


def test_changes_that_fit_are_the_cheapest(made_up):
    found = aot.changes_that_fit(config(), parse("v5e-16"))  # dp: 64 GiB of state a device
    assert len(found) == 3 and all(r["fits"] for r in found)
    steps = [r["roofline"]["step_ms"] for r in found]
    assert steps == sorted(steps)
    assert len(made_up) == len(set(made_up))
    single = [aot._layout(r) for r in found]
    assert all(layout.mesh != (16, 1, 1, 1) for layout in single), "no remat can help there"


def test_no_change_helps(made_up):
    """What is known to be too large without compiling costs nothing; compiles are limited."""
    found = aot.changes_that_fit(config(), parse("v5e-4"), wanted=99, compiles=2)
    assert len(found) <= 2 < len(made_up)
    assert "No change that was tried fits" in aot._advice(config(), parse("v5e-4"), [])


def test_search_tries_meshes_remat_and_microbatches(made_up):
    base, topology = config(mesh__preset="fsdp", mesh__data=1, mesh__fsdp=16), parse("v5e-16")
    first = aot.assess(base, topology)
    results = aot.search(base, topology, 14, [first])
    assert sum(r["compile_seconds"] > 0 for r in results if r is not first) == 14
    assert len(made_up) == len(set(made_up)), "none is tried twice"
    assert len({r["remat"] for r in results}) > 1
    assert len({r["microbatches"] for r in results}) > 1
    assert len({tuple(r["mesh"].values()) for r in results}) > 2
    for r in results:
        rows = r["mesh"]["data"] * r["mesh"]["fsdp"]
        assert base.global_batch % (rows * r["microbatches"]) == 0 or r is first


def test_pareto_keeps_what_nothing_beats():
    layout, topology = aot.Layout((4, 1, 1, 1), "dp", "none", 1), parse("v5e-4")
    points = [(5.0, 1.0), (3.0, 2.0), (4.0, 3.0), (2.0, 2.0), (1.0, 9.0), (9.0, 0.5)]
    results = [result(layout, topology, peak=p, step=s, fits=p < 8) for p, s in points]
    front = [(r["peak_gib"], r["roofline"]["step_ms"]) for r in aot.pareto(results)]
    assert front == [(5.0, 1.0), (2.0, 2.0), (1.0, 9.0)]


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


def test_layouts_that_cannot_be(monkeypatch):
    monkeypatch.setattr(aot.Topology, "devices", lambda self: aot.jax.devices())
    with pytest.raises(ShardingError, match="mesh.data=1 .* 2 hosts of h100:2x4.*cross hosts"):
        aot.build(config(mesh__preset="fsdp", mesh__data=1, mesh__fsdp=8), parse("h100:2x4"))
    with pytest.raises(ShardingError, match="global_batch a multiple of 8"):
        aot.build(config(global_batch=12), parse("v5e-8"))
    program = aot.build(config(mesh__preset="fsdp", mesh__fsdp=4), parse("h100:2x4"))
    assert program.batch["image"].sharding.shard_shape(program.batch["image"].shape)[0] == 16


# --- Real compilers ---


def compile_in_a_process(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tiny.ROOT), str(COMPILERS)])}
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(
        [sys.executable, "-m", "lapa_jax", "compile", *arguments],
        env=environment,
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
