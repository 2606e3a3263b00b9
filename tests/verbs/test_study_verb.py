"""A study that a file describes: parts done once, interruption, sharing, rows."""

import csv

import pytest
from tiny import lapa, succeed

STUDY = """
from lapa_jax.studies.study import Cell, Interrupted, Part, Study

def get_study(arg, workdir):
    def note(name, result=None):
        def work():
            with open(workdir / "log", "a") as file:
                file.write(name + " ")
            if (workdir / "signal").exists() and name == "b":
                raise Interrupted
            return result
        return Part(name, work)

    shared = note("shared")
    rows = {arm: [{"value": value, "arm": arm}] for arm, value in (("a", 0.25), ("b", 1.0))}
    return Study(workdir, [Cell({"arm": x, "seed": 0}, (shared, note(x, rows[x]))) for x in "ab"])
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "two_arms.py"
    path.write_text(STUDY)
    return path


def test_an_interrupted_study_continues_and_tells(study, tmp_path):
    workdir = tmp_path / "study"
    workdir.mkdir()
    (workdir / "signal").touch()
    assert lapa("study", study, "--workdir", workdir)[0] == 75
    (workdir / "signal").unlink()
    out = succeed("study", study, "--workdir", workdir)
    assert (workdir / "log").read_text() == "shared a b b "
    assert out.split("\n")[:3] == ["arm  seed  value", "  a     0   0.25", "  b     0      1"]
    with open(workdir / "rows.csv") as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["0.25", "1.0"]


def test_machines_share_the_cells(study, tmp_path):
    workdir = tmp_path / "study"
    out = succeed("study", study, "--workdir", workdir, "--index", 1, "--count", 2)
    assert "1 points are not done yet, the first: arm=a,seed=0" in out
    assert not (workdir / "rows.csv").exists()
    assert "1 cells are not done yet (arm, seed): a 0." in (workdir / "report.html").read_text()
    succeed("study", study, "--workdir", workdir, "--index", 0, "--count", 2)
    for spec, size, message in (
        (f"{study}:steps=9", None, "arguments:  there, steps=9 now"),
        (study, "quick", "size: cpu there, quick now"),
        (f"{study}:size=gpu", None, "size: cpu there, gpu now"),
        (f"{study}:size=gpu", "quick", "is of size gpu, and --size is quick"),
    ):
        more = ("--size", size) if size else ()
        code, _, error = lapa("study", spec, "--workdir", workdir, *more)
        assert code == 2 and message in error
    assert (workdir / "log").read_text() == "shared b a "
    assert (workdir / "rows.csv").exists()


def test_a_record_goes_on_elsewhere(study, tmp_path):
    kept, one, two = tmp_path / "kept.json", tmp_path / "one", tmp_path / "two"
    succeed("study", study, "--workdir", one, "--record", kept, "--index", 1, "--count", 2)
    out = succeed("study", study, "--workdir", two, "--record", kept)
    assert (two / "log").read_text() == "shared a "
    assert out.split("\n")[1:3] == ["  a     0   0.25", "  b     0      1"]
    code, _, error = lapa("study", f"{study}:steps=9", "--workdir", two / "c", "--record", kept)
    assert code == 2 and "arguments: '' there, 'steps=9' now" in error


def test_files_that_are_none(study, tmp_path):
    study.write_text("def get_study(arg, workdir):\n    return []\n")
    for path, message in (
        (study, "gives a list, not a Study"),
        (tmp_path / "gone.py", "gone.py does not exist"),
        (__file__, "has no function get_study"),
    ):
        code, _, error = lapa("study", path, "--workdir", tmp_path / "out")
        assert code == 2 and message in error
    nothing = "from lapa_jax.studies.study import Study\n\n\ndef get_study(arg, workdir):\n"
    study.write_text(nothing + "    return Study(workdir, [])\n")
    assert "has no cell: its arguments leave" in lapa("study", study, "--workdir", tmp_path)[2]


def test_a_record_that_is_refused_leaves_the_directory_free(study, tmp_path):
    kept, out = tmp_path / "kept.json", tmp_path / "out"
    succeed("study", study, "--workdir", tmp_path / "one", "--record", kept)
    code, _, error = lapa("study", f"{study}:steps=9", "--workdir", out, "--record", kept)
    assert code == 2 and "'steps=9' now" in error
    succeed("study", study, "--workdir", out, "--record", kept)
