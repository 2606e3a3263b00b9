"""All tests run on CPU with eight virtual devices, in full float32 precision."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real episodes and videos."""
    folder = os.environ.get("LAPA_TEST_DATA")
    if not folder:
        pytest.skip("set LAPA_TEST_DATA to a folder with bridge_dataset/ and videos/ to run this")
    return Path(folder)
