"""Fits that evaluation repeats for every corpus, shorter."""

from collections.abc import Iterator

import pytest

from lapa_jax.evidence import true_action


@pytest.fixture(scope="session", autouse=True)
def short_fits() -> Iterator[None]:
    """A quarter of the steps, which is enough for a tiny decoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(true_action, "STEPS", 100)
        yield
