"""Shipped configs on the machines they name, compiled ahead of time (`make test-aot`).

Golden files hold what must not change unseen: memory, collectives by family and whether they are in
the loop over layers. LAPA_UPDATE_GOLDEN=1 writes them anew.
"""

import re

import pytest
import tiny
from compilers import lapa_compile, needs_compilers

from experiments import hardware

pytestmark = [pytest.mark.aot, pytest.mark.slow, needs_compilers]

ROOMY = ("v5p-64", "v5e-256")


@pytest.mark.parametrize("spec, accelerator", hardware.SHIPPED)
def test_it_fits_as_it_did(spec, accelerator):
    code, result, _ = lapa_compile("--config", spec, "--topology", accelerator)
    assert code == 0 and result["fits"], result
    if "latent_vla/paper" in spec and accelerator in ROOMY:
        assert result["headroom"] >= 0.25 and result["mfu_bound"] >= 0.6
    found = {
        "arguments_gib": f"{result['arguments_gib']:.3g}",
        "peak_gib": f"{result['peak_gib']:.3g}",
        "mfu_bound": f"{result['mfu_bound']:.2f}",
        "limit": result["roofline"]["limit"],
        "collectives": {
            family: "in loops" if entry["in_loop"] else "outside of loops"
            for family, entry in result["collectives"].items()
        },
    }
    config = re.sub(r"^(experiments|tests/aot)/|\.py.*", "", spec)
    tiny.check_golden(f"aot/{re.sub(r'[^a-z0-9_]+', '-', f'{config}-{accelerator}')}.json", found)
