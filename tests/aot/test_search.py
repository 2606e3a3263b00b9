"""Searches over layouts, on made-up results: nothing is compiled."""

import dataclasses

import pytest
import tiny

from lapa_jax import config as configs
from lapa_jax.aot import search
from lapa_jax.aot.search import Layout
from lapa_jax.aot.topology import parse
from lapa_jax.nn.stack import REMAT
from lapa_jax.parallel.sharding import MESH_AXES, ShardingError

POLICY = str(tiny.ROOT / "experiments/latent_vla/tabletop.py")


def config(**overrides):
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return configs.load(POLICY, flags)


def result(layout, topology, *, peak, step, fits=True):
    return {
        "topology": topology.name,
        "mesh": dict(zip(MESH_AXES, layout.mesh, strict=True)),
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
def made_up():
    """`assess` by a formula: memory falls with sharding, recomputation and accumulation, which all
    cost time. `tried` are the layouts it was asked for."""
    tried = []

    def assess(config, topology):
        layout = Layout.of(config, topology)
        tried.append(layout)
        data, fsdp, _, tensor = layout.mesh
        if tensor > 4:
            raise ShardingError("model.heads=4")
        remat = search.REMAT_ORDER.index(layout.remat)
        state = 64.0 / (fsdp * tensor)
        peak = state + 32.0 / (1 + remat) / layout.microbatches / (data * fsdp)
        step = 10.0 + remat + layout.microbatches + 0.1 * fsdp + tensor
        return result(layout, topology, peak=peak, step=step, fits=peak <= 16.0)

    assess.tried = tried
    return assess


def test_a_layout_is_what_a_config_says_and_back():
    topology = parse("v5e-16")
    layout = Layout.of(config(mesh__preset="fsdp", mesh__fsdp=4), topology)
    assert layout == Layout((4, 4, 1, 1), "fsdp", "none", 1)
    other = dataclasses.replace(layout, mesh=(1, 16, 1, 1), remat="full", microbatches=2)
    assert other.flags(layout) == (
        "--config.mesh.data=1 --config.mesh.fsdp=16 --config.model.remat=full "
        "--config.microbatches=2"
    )
    flags = other.flags(layout).split()
    changed = configs.load(POLICY, ["--config.mesh.preset=fsdp", *flags])
    assert Layout.of(changed, topology) == other
    original = config()
    assert Layout.of(other.apply(original), topology) == other
    assert Layout.of(original, topology).mesh == (16, 1, 1, 1), "the config itself is kept"


def test_changes_that_fit_are_the_cheapest(made_up):
    found = search.changes_that_fit(made_up, config(), parse("v5e-16"))
    assert len(found) == 3 and all(r["fits"] for r in found)
    steps = [r["roofline"]["step_ms"] for r in found]
    assert steps == sorted(steps)
    assert len(made_up.tried) == len(set(made_up.tried))
    single = [Layout.of_result(r) for r in found]
    assert all(layout.mesh != (16, 1, 1, 1) for layout in single), "no remat can help there"


def test_no_change_helps(made_up):
    """What is known to be too large without compiling costs nothing; compiles are limited."""
    found = search.changes_that_fit(made_up, config(), parse("v5e-4"), wanted=99, compiles=2)
    assert len(found) <= 2 < len(made_up.tried)


def test_search_tries_meshes_remat_and_microbatches(made_up):
    base, topology = config(mesh__preset="fsdp", mesh__data=1, mesh__fsdp=16), parse("v5e-16")
    first = made_up(base, topology)
    results = search.search(made_up, base, topology, 14, first)
    assert sum(r["compile_seconds"] > 0 for r in results if r is not first) == 14
    assert len(made_up.tried) == len(set(made_up.tried)), "none is tried twice"
    assert len({r["remat"] for r in results}) > 1
    assert len({r["microbatches"] for r in results}) > 1
    assert len({tuple(r["mesh"].values()) for r in results}) > 2
    for r in results:
        rows = r["mesh"]["data"] * r["mesh"]["fsdp"]
        assert base.global_batch % (rows * r["microbatches"]) == 0 or r is first


def test_pareto_keeps_what_nothing_beats():
    layout, topology = Layout((4, 1, 1, 1), "dp", "none", 1), parse("v5e-4")
    points = [(5.0, 1.0), (3.0, 2.0), (4.0, 3.0), (2.0, 2.0), (1.0, 9.0), (9.0, 0.5)]
    results = [result(layout, topology, peak=p, step=s, fits=p < 8) for p, s in points]
    front = [(r["peak_gib"], r["roofline"]["step_ms"]) for r in search.pareto(results)]
    assert front == [(5.0, 1.0), (2.0, 2.0), (1.0, 9.0)]


def test_remat_is_known():
    assert set(search.REMAT_ORDER) <= set(REMAT)
