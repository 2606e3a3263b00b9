"""A sweep: points, resumption, sharing, results."""

import csv

import pytest
import tiny
from tiny import lapa, succeed

from lapa_jax.studies import sweep

pytestmark = pytest.mark.usefixtures("quick_compile")
CODEBOOK = tiny.ROOT / "experiments" / "sweeps" / "codebook.py"


@pytest.fixture
def small_sweep(tiny_data, tmp_path, monkeypatch):
    """A sweep file with two tiny points."""
    path = tmp_path / "small.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(tiny.ROOT / 'tests')!r})\n"
        "import tiny\n"
        "from pathlib import Path\n"
        "def get_sweep(arg=None):\n"
        f"    config = tiny.config('quantizer', Path({str(tiny_data)!r}), steps=2)\n"
        "    return {'config': config, 'grid': {'model.codebook_size': (4, 8),\n"
        "            'data.corpora.*.window_seconds': (0.2,)}}\n"
    )
    return path


def test_shipped_grids():
    points = sweep.read_points(str(CODEBOOK))
    assert len(points) == 32 and len({p.name for p in points}) == 32
    assert points[5].name == "codebook_size=4,code_length=2"
    assert points[5].config.model.codebook_size == 4
    for name in ("window", "model_size", "data", "no_collapse"):
        assert len(sweep.read_points(str(CODEBOOK.with_name(f"{name}.py")))) >= 5
    windows = sweep.read_points(str(CODEBOOK.with_name("window.py")))
    assert {c.window_seconds for c in windows[0].config.data.corpora.values()} == {0.1}


@pytest.mark.slow
def test_points_are_shared_without_gap_or_overlap(tmp_path):
    names = []
    for index in range(5):
        out = succeed(
            "sweep", CODEBOOK, "--workdir", tmp_path, "--dry_run", "--index", index, "--count", 5
        )
        assert "of 32 points" in out
        names += out.splitlines()[:-1]
    assert sorted(names) == sorted(p.name for p in sweep.read_points(str(CODEBOOK)))
    code, _, error = lapa("sweep", CODEBOOK, "--workdir", tmp_path, "--index", 2, "--count", 2)
    assert code == 2 and "--index 2" in error


@pytest.mark.slow
def test_a_sweep_runs_continues_and_tells(small_sweep, tmp_path):
    workdir = tmp_path / "sweep"
    first = ("sweep", small_sweep, "--workdir", workdir, "--count", 2, "--index")
    out = succeed(*first, 0)
    assert "1 points are not done yet, the first: codebook_size=8" in out
    trained = sorted(p for p in workdir.rglob("*") if "checkpoints" in p.parts)
    assert trained and not (workdir / "sweep.csv").exists()
    succeed(*first, 0)  # nothing to do
    assert sorted(p for p in workdir.rglob("*") if "checkpoints" in p.parts) == trained
    out = succeed(*first, 1)
    rows = list(csv.DictReader((workdir / "sweep.csv").open()))
    assert [row["model.codebook_size"] for row in rows] == ["4", "8"]
    assert all(1.0 <= float(row["perplexity"]) <= float(row["model.codebook_size"]) for row in rows)
    assert "perplexity" in out and "<svg" not in out
    page = (workdir / "sweep.html").read_text()
    assert "codebook_size" in page and "Heat map of perplexity" in page


def test_a_wrong_key_is_named(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from experiments.quantizer import tabletop\n"
        "def get_sweep(arg=None):\n"
        "    return {'config': tabletop.get_config(), 'grid': {'model.codebok_size': (4,)}}\n"
    )
    with pytest.raises(ValueError, match="the config has no key 'model.codebok_size'"):
        sweep.read_points(str(path))
    for grid, told in (
        ("{'model.codebook_size': ('many',)}", "model.codebook_size='many'"),
        (
            "{'model.codebook_size': (8, 1)}",
            r"model.codebook_size=1 must be an integer in \[2, 1e7",
        ),
        ("None", "get_sweep gives"),
        ("{'model.codebook_size': 3}", "codebook_size=3 must be several values"),
    ):
        path.write_text(
            "from experiments.quantizer import tabletop\n"
            "def get_sweep(arg=None):\n"
            f"    return {{'config': tabletop.get_config(), 'grid': {grid}}}\n"
        )
        with pytest.raises(ValueError, match=told):
            sweep.read_points(str(path))
    with pytest.raises(FileNotFoundError, match="`lapa configs` lists the shipped"):
        sweep.read_points(str(tmp_path / "none.py"))
