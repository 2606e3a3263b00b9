"""Results of record: kept as they were found, and the only source of the tables made of them."""

import os
import re

import pytest
import tiny

from lapa_jax.studies import record
from lapa_jax.studies.study import Cell, Part, Study, version


def test_rows_are_kept(tmp_path):
    rows = [{"arm": "one", "rate": 0.5, "outcomes": [True, False], "asked": ["go", "stay"]}]
    study = Study(tmp_path, [Cell({"seed": 3}, (Part("a", lambda: rows),))])
    study.run()
    record.write(tmp_path / "kept.json", "lapa study mine.py:x=1", study)
    found = record.read(tmp_path / "kept.json")
    assert found["command"] == "lapa study mine.py:x=1"
    assert found["versions"] == [version()] and found["size"] == "cpu"
    assert found["minutes"] == {"a": [1, 0.0]}
    assert found["rows"] == [{"seed": 3, "arm": "one", "rate": 0.5, "outcomes": [True, False]}]
    (tmp_path / "kept.json").write_text('{"rows": ')
    with pytest.raises(ValueError, match=r"kept\.json is damaged"):
        record.read(tmp_path / "kept.json")


def test_tables_of_a_document_are_filled_and_the_rest_stays():
    document = "a\n<!-- results one/x -->\nold\n<!-- end of results -->\nb\n"
    filled = record.filled(document, {"one/x": [["arm", "rate"], ["lapa", "0.5"]]})
    anchor = '<a id="results-one-x"></a>\n\n'
    assert filled == document.replace(
        "old\n", anchor + "| arm | rate |\n| --- | --- |\n| lapa | 0.5 |\n"
    )
    assert record.filled(filled, {"one/x": [["arm", "rate"], ["lapa", "0.5"]]}) == filled
    with pytest.raises(ValueError, match="one/x"):
        record.filled(document, {})
    shipped = record.filled(document.replace("one/x", "headline/main"), {})
    assert "Not run yet (`lapa study studies/headline`).\n<!-- end" in shipped
    with pytest.raises(ValueError, match="headline/mean"):
        record.filled(document.replace("one/x", "headline/mean"), {"headline/main": [["arm"]]})


def test_documents_say_what_was_found():
    """LAPA_UPDATE_GOLDEN=1 writes them anew."""
    tables = record.tables()
    for path in sorted((tiny.ROOT / "docs").glob("*.md")):
        document = path.read_text()
        filled = record.filled(document, tables)
        if os.environ.get("LAPA_UPDATE_GOLDEN") == "1":
            path.write_text(filled)
        assert document == filled, path.name
        for place in re.findall(r"\(#(results-[\w-]+)\)", document):
            assert f'<a id="{place}"></a>' in document, f"{path.name} has no table {place}"
