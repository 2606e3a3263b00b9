"""Results of record: kept as they were found, and the only source of the tables made of them."""

import itertools
import json
import os
import re

import pytest
import tiny
from ml_collections import ConfigDict

from lapa_jax.studies import record
from lapa_jax.studies.study import Cell, Part, Study, version


def test_rows_are_kept(tmp_path):
    rows = [{"arm": "one", "rate": 0.5, "outcomes": [True, False], "asked": ["go", "stay"]}]
    study = Study(tmp_path, [Cell({"seed": 3}, (Part("a", lambda: rows),))])
    study.claim({"arguments": "x=1", "size": "cpu"})
    study.run()
    record.Record(tmp_path / "kept.json", "lapa study mine.py:x=1", study, study.claims).write()
    found = record.read(tmp_path / "kept.json")
    assert found["command"] == "lapa study mine.py:x=1"
    assert found["versions"] == [version()] and found["size"] == "cpu"
    assert found["minutes"] == {"a": [1, 0.0]}
    assert found["rows"] == [{"seed": 3, "arm": "one", "rate": 0.5, "outcomes": [True, False]}]
    (tmp_path / "kept.json").write_text('{"rows": ')
    with pytest.raises(ValueError, match=r"kept\.json is damaged"):
        record.read(tmp_path / "kept.json")


def arms_study(workdir, done, steps=9, seeds=2):
    def part(arm, seed):
        config = ConfigDict({"steps": steps, "seed": seed, "data": str(workdir / f"data_s{seed}")})

        def work():
            done.append((arm, seed))
            return [{"family": "push", "outcomes": [seed == 1, arm == "lapa"]}]

        return Part(f"success_{arm}_s{seed}", work, lambda: config)

    order = [(arm, seed) for seed in range(seeds) for arm in ("lapa", "vpt")]
    cells = [Cell({"arm": arm, "seed": seed}, (part(arm, seed),)) for arm, seed in order]
    study = Study(workdir, cells)
    study.claim({"arguments": "", "size": "cpu"})
    return study


def test_a_record_is_added_to_from_anywhere(tmp_path):
    """Whatever two machines without a common disk did of it, one after the other."""
    path, done = tmp_path / "found.json", []
    first = arms_study(tmp_path / "a", done)
    first.run(0, 2, lambda cell: record.Record(path, "lapa study x", first, first.claims).write())
    assert record.read(path)["cells"] == [2, 4] and done == [("lapa", 0), ("lapa", 1)]
    second = arms_study(tmp_path / "b", done)
    kept = record.Record(path, "lapa study x", second, second.claims)
    assert [cell.values["arm"] for cell in second.missing()] == ["vpt", "vpt"]
    second.run()
    kept.write()
    assert done[2:] == [("vpt", 0), ("vpt", 1)]
    whole = arms_study(tmp_path / "c", [])
    whole.run()
    found = record.read(path)
    assert found["rows"] == whole.rows() == second.rows()
    assert found["cells"] == [4, 4] and found["minutes"] == {"success_vpt": [2, 0.0]} | {
        "success_lapa": [2, 0.0]
    }
    assert found["configs"][""]["common"] == {"steps": 9, "data": "WORKDIR/data"}
    assert found["configs"][""]["kinds"] == {"success_lapa": {}, "success_vpt": {}}
    again = path.read_bytes()
    record.Record(path, "lapa study x", second, second.claims).write()
    assert path.read_bytes() == again


def test_configs_are_folded_without_loss():
    """A dict that is empty in one kind and absent in another stays what it is."""
    kinds = {
        "a": {"stage": "x", "model": {"dim": 8, "of": {}}, "steps": 3},
        "b": {"stage": "x", "model": {"dim": 8}, "steps": 4},
        "c": {"stage": "y", "model": {"dim": 8, "of": {"name": "z"}}},
    }
    folded = record._folded(kinds)
    assert folded["x"]["common"] == {"model": {"dim": 8}, "stage": "x"}
    assert record._unfolded(folded) == kinds


def test_a_record_of_something_else_is_refused(tmp_path):
    path = tmp_path / "found.json"
    study = arms_study(tmp_path / "a", [])
    study.run()
    record.Record(path, "lapa study x", study, study.claims).write()
    other = arms_study(tmp_path / "b", [], steps=8)  # which is folded away
    with pytest.raises(ValueError, match=r"\n  success_lapa: steps: 9 there, 8 now\n"):
        record.Record(path, "lapa study x", other, other.claims)
    study.claim({"arguments": "x=1"}, replace=True)
    with pytest.raises(ValueError, match=r"\n  arguments: '' there, 'x=1' now$"):
        record.Record(path, "lapa study x", study, study.claims)
    with pytest.raises(ValueError, match="a row that is of no cell"):
        fewer = arms_study(tmp_path / "c", [], seeds=1)
        record.Record(path, "lapa study x", fewer, fewer.claims)
    with pytest.raises(ValueError, match="is of `lapa study x`, not of `lapa study studies/y:a=1`"):
        record.Record(path, "lapa study studies/y:a=1", other, other.claims)
    found = json.loads(path.read_text())
    del found["configs"]
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="does not say by what configs"):
        record.Record(path, "lapa study x", study, study.claims)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"found\.json has no rows"):
        record.Record(path, "lapa study x", study, study.claims)
    with pytest.raises(OSError, match="found.json is there, and is no directory"):
        record.Record(path / "kept.json", "lapa study x", study, study.claims)


def test_tables_of_a_document_are_filled_and_the_rest_stays():
    document = "a\n<!-- results one/x -->\nold\n<!-- end of results -->\nb\n"
    filled = record.filled(document, {"one/x": [["arm", "rate"], ["lapa", "0.5"]]})
    anchor = '<a id="results-one-x"></a>\n\n'
    assert filled == document.replace(
        "old\n", anchor + "| arm | rate |\n| --- | --- |\n| lapa | 0.5 |\n"
    )
    assert record.filled(filled, {"one/x": [["arm", "rate"], ["lapa", "0.5"]]}) == filled
    partly = record.filled(document, {"one/x": [["arm"]]}, {"one": (3, 1200)})
    assert f"{anchor}So far 3 of 1,200 cells are done.\n\n| arm |" in partly
    assert record.filled(partly, {"one/x": [["arm"]]}, {"one": (3, 1200)}) == partly
    later = record.filled(document, {"one/y": [["arm"]]}, {"one": (3, 1200)})
    assert "So far 3 of 1,200 cells are done.\n\nNone of them is in this table.\n<!-- end" in later
    with pytest.raises(ValueError, match="one/x"):
        record.filled(document, {})
    shipped = record.filled(document.replace("one/x", "headline/main"), {})
    assert "Not run yet (`lapa study studies/headline`).\n<!-- end" in shipped
    with pytest.raises(ValueError, match="headline/mean"):
        record.filled(document.replace("one/x", "headline/mean"), {"headline/main": [["arm"]]})


def test_documents_say_what_was_found():
    """LAPA_UPDATE_GOLDEN=1 writes them anew."""
    tables, unfinished = record.tables(), record.unfinished()
    for path in sorted((tiny.ROOT / "docs").glob("*.md")):
        document = path.read_text()
        filled = record.filled(document, tables, unfinished)
        if os.environ.get("LAPA_UPDATE_GOLDEN") == "1":
            path.write_text(filled)
        # Not the texts: pytest takes minutes to tell two long ones apart.
        old, new = document.splitlines(), filled.splitlines()
        changed = [pair for pair in itertools.zip_longest(old, new) if len(set(pair)) > 1]
        assert changed[:1] == [], path.name
        for place in re.findall(r"\(#(results-[\w.-]+)\)", document):
            assert f'<a id="{place}"></a>' in document, f"{path.name} has no table {place}"
