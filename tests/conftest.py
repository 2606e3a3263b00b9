"""All tests run on CPU with eight virtual devices, in full float32 precision."""

import os

from quick_flags import QUICK

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", QUICK]
).strip()

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
from fake_gcs import FakeStorage  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from lapa_jax.parallel.mesh import make_mesh  # noqa: E402
from lapa_jax.runs import start  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")

_CACHE = {
    "jax_persistent_cache_min_compile_time_secs": 0.5,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real episodes and videos."""
    folder = os.environ.get("LAPA_TEST_DATA")
    if not folder:
        pytest.skip("set LAPA_TEST_DATA to a folder with bridge_dataset/ and videos/ to run this")
    return Path(folder)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by all processes of a test session."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named:
        return Path(named)
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"


@pytest.fixture(scope="module")
def quick_compile(cache_folder: Path) -> Iterator[None]:
    """For this module and the processes it starts: programs are compiled for one device, without
    optimisation, and never twice."""
    before = {name: getattr(jax.config, name) for name in _CACHE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache_folder))
        for name, value in _CACHE.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        jax.config.update("jax_compilation_cache_dir", str(cache_folder))
        jax.config.update("jax_disable_most_optimizations", True)
        compilation_cache.reset_cache()
        patch.setattr(start, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_disable_most_optimizations", False)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR with one indexed corpus, DIR/robot, that has actions, instructions and random labels.
    Read only."""
    folder = tmp_path_factory.mktemp("tiny_data")
    tiny.write_labels(tiny.write_corpus(folder / "robot"))
    return folder


@pytest.fixture(scope="session")
def storage() -> Iterator[FakeStorage]:
    """A bucket, one for all tests: the clients look once in a process where the server is."""
    with FakeStorage().serve() as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment().items():
            patch.setenv(name, value)
        yield fake
