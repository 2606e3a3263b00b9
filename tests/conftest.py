"""All tests run on CPU with eight virtual devices, in full float32 precision.

Compiling is most of what they do: programs are not optimised, and what one process of a test run
has compiled, the others read.
"""

import gc
import os
import shutil
import tempfile

from quick_flags import ENVIRONMENT, QUICK

os.environ |= ENVIRONMENT
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", QUICK]
).strip()
_MADE = "JAX_COMPILATION_CACHE_DIR" not in os.environ  # else by the main process, or by the user
if _MADE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
import tiny  # noqa: E402
from fake_gcs import FakeStorage  # noqa: E402

from lapa_jax.parallel.mesh import make_mesh  # noqa: E402
from lapa_jax.runs import start  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
gc.set_threshold(50_000, 20, 100)  # of tracing a program, collecting garbage was a third


# Files of one test each or of many that take a minute or more, the longest first: begun before the
# others, they leave no worker alone at the end. Order it by `--durations=60`.
LONG = (
    *("test_torture", "test_demo", "test_hosts", "test_pipeline", "test_bottlenecks"),
    *("test_resume", "test_no_collapse", "test_bench", "test_quantizer", "test_devices"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_unconfigure() -> None:
    if _MADE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real episodes and videos."""
    folder = os.environ.get("LAPA_TEST_DATA")
    if not folder:
        pytest.skip("set LAPA_TEST_DATA to a folder with bridge_dataset/ and videos/ to run this")
    return Path(folder)


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """For this module: what trains compiles for one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        yield


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
