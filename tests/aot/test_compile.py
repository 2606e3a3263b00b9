"""`lapa compile`: what it builds and prints, and two real compiles, one for each compiler."""

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

# Where `make test` puts libtpu and the CUDA plugin, so that no other command of the environment
# tries to use them.
COMPILERS = Path(sys.prefix) / "aot"


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


def test_layouts_that_cannot_be(monkeypatch):
    monkeypatch.setattr(aot.Topology, "devices", lambda self: aot.jax.devices())
    with pytest.raises(ShardingError, match="mesh.data=1 .* 2 hosts of h100:2x4.*cross hosts"):
        aot.build(config(mesh__preset="fsdp", mesh__data=1, mesh__fsdp=8), parse("h100:2x4"))
    with pytest.raises(ShardingError, match="global_batch a multiple of 8"):
        aot.build(config(global_batch=12), parse("v5e-8"))
    program = aot.build(config(mesh__preset="fsdp", mesh__fsdp=4), parse("h100:2x4"))
    assert program.batch["tokens"].sharding.shard_shape(program.batch["tokens"].shape)[0] == 16


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
