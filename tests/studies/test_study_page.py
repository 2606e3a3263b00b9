"""The page of a study says what was found so far, what is not there, and which code made it."""

import json

import pytest

from lapa_jax.studies import page
from lapa_jax.studies.study import Cell, Part, Study

FILE = '''"""Does it help?

Cost: nothing.
"""

def tables(rows):
    of = {row["arm"]: row for row in rows}
    gap = sum(of["lapa"]["outcomes"]) - sum(of["scratch"]["outcomes"])
    return {"gap": [["less `scratch`", "by"], ["`lapa`", f"{gap} starts"]]}
'''


def cell(arm, labels, outcomes):
    row = {"family": "reach", "outcomes": outcomes, "steps": 40}
    values = {"arm": arm, "seed": 0, "labels": labels}
    return Cell(values, (Part(f"success_{arm}_{labels}", lambda: [row]),))


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return f"{path}:x=1"


def test_a_page_of_a_part_names_what_is_missing(spec, tmp_path):
    cells = [
        cell(arm, labels, [arm == "lapa", labels == 100])
        for arm in ("lapa", "scratch")
        for labels in (10, 100)
    ]
    study = Study(tmp_path / "study", cells)
    (text,) = [page.write(study, spec, "lapa study mine").read_text()]
    assert (
        "No cell is done yet" in text
        and "4 cells are not done yet (arm, seed, labels): lapa 0 10;" in text
    )
    study.run(index=0, count=2)  # those of 10 labels
    study.do(cells[1].parts[0])
    made = tmp_path / "study" / "parts" / "success_lapa_10.json"
    made.write_text(json.dumps(json.loads(made.read_text()) | {"versions": ["0.0.1"]}))
    text = page.write(study, spec, "lapa study mine", claims=False).read_text()
    assert "1 cells are not done yet (arm, seed, labels): scratch 0 100." in text
    assert "Parts of 1 cells were made by version 0.0.1 of the code; this page is of" in text
    assert ": lapa 0 10." in text and "no claim" in text
    assert "Does it help?" in text and "<code>lapa study mine</code>" in text
    assert '<th scope="col">less <code>scratch</code></th>' in text and "2 starts" in text
    assert "success, lapa: 10: 50%, 100: 100%." in text  # of the picture
    assert "50.0 % (9.5 to 90.5)" in text  # of the row


def test_what_the_file_cannot_tell_of_a_part_is_a_note(spec, tmp_path):
    cells = [cell(arm, 10, [True]) for arm in ("lapa", "scratch")]
    study = Study(tmp_path / "study", cells)
    study.run(index=0, count=2)
    text = page.write(study, spec, "lapa study mine").read_text()
    assert "<code>tables</code> of the study&#39;s file needs cells that are missing" in text
    assert "KeyError" in text and "scratch" in text
    alone = Study(tmp_path / "study", cells[:1])
    with pytest.raises(ValueError, match="mine.py, line 8: KeyError"):
        page.write(alone, spec, "lapa study mine")
