"""Shipped quantizer configs, in their quick form, keep their codes in use."""

import json

import pytest
import tiny
from tiny import succeed

from lapa_jax.studies import sweep

pytestmark = pytest.mark.usefixtures("quick_compile")
SWEEP = tiny.ROOT / "experiments" / "sweeps" / "no_collapse.py"


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    """Sixty expert episodes with noise."""
    folder = tmp_path_factory.mktemp("tabletop")
    scene = ("--families", "reach", "--blocks", 4, "--horizon", 40, "--noise", 0.3)
    succeed("data", "collect", "--out", folder, "--episodes", 60, "--views", "robot", *scene)
    succeed("data", "index", folder / "robot", "--workers", 1)
    return folder / "robot"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tabletop", "paper"])  # that of "videos" is the tabletop's
def test_half_of_eight_codes_are_used(recipe, robot, tmp_path):
    point = sweep.read_points(f"{SWEEP}:recipe={recipe},data={robot}")[0]
    assert point.values == {"model.codebook_size": 8, "seed": 0}
    sweep.open_sweep([point], tmp_path, None, max_pairs=2000).run()
    path = tmp_path / "points" / point.name / "evaluation.json"
    found = json.loads(path.read_text())["corpus"]
    assert found["codes"]["mean_perplexity"] >= 0.5 * 8
