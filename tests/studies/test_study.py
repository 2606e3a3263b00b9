"""Studies: parts are done once and in order, cells are shared, rows come together."""

import csv
import json

import numpy as np
import pytest

from lapa_jax.studies.study import Cell, Interrupted, Part, Study, contrast, name_of, write_csv


def two_arms(done: list[str], outcomes: dict[str, list[bool]]) -> list[Cell]:
    """Arms that share their data; `done` tells what ran."""

    def part(name, result=None):
        return Part(name, lambda: done.append(name) or result)

    data = part("data")
    return [
        Cell({"arm": arm}, (data, part(arm), part(f"success_{arm}", [{"outcomes": found}])))
        for arm, found in outcomes.items()
    ]


def test_parts_are_done_once_and_by_whose_cell_it_is(tmp_path):
    done, outcomes = [], {"one": [True, False], "two": [False, False]}
    study = Study(tmp_path, two_arms(done, outcomes))
    study.run(index=1, count=2)
    assert done == ["data", "two", "success_two"]
    assert [cell.values for cell in study.missing()] == [{"arm": "one"}]
    Study(tmp_path, two_arms(done, outcomes)).run()
    assert done[3:] == ["one", "success_one"] and not study.missing()
    rows = study.rows()
    assert rows == [{"arm": arm, "outcomes": found} for arm, found in outcomes.items()]
    assert list(study.seconds())[:2] == ["data", "two"]
    write_csv(tmp_path / "rows.csv", [rows[0] | {"rate": 0.5}, rows[1] | {"late": 1}])
    read = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert read[1] == {"arm": "two", "rate": "", "late": "1"}
    gap = contrast(rows, "one", "two")
    assert gap.estimate == 0.5 and gap.low < 0.5 < gap.high


def test_what_is_interrupted_goes_on_and_keeps_its_time(tmp_path):
    def stopped():
        raise Interrupted

    cell = Cell({"seed": 0}, (Part("train", stopped),))
    with pytest.raises(Interrupted):
        Study(tmp_path, [cell]).run()
    path = tmp_path / "parts" / "train.json"
    before = json.loads(path.read_text())
    assert not before["done"] and before["seconds"] >= 0.0
    path.write_text(json.dumps(before | {"seconds": 100.0}))
    study = Study(tmp_path, [Cell({"seed": 0}, (Part("train", lambda: [{"loss": 1.0}]),))])
    study.run()
    assert study.seconds()["train"] >= 100.0 and study.rows() == [{"seed": 0, "loss": 1.0}]


@pytest.mark.parametrize("torn", ["", '{"done": tr', "\x00" * 9, "\xff"])
def test_a_damaged_part_is_named(tmp_path, torn):
    study = Study(tmp_path, two_arms([], {"one": [True]}))
    (tmp_path / "parts" / "data.json").write_bytes(torn.encode("latin-1"))
    with pytest.raises(ValueError, match=r"parts/data\.json is damaged"):
        study.run()


def test_cells_are_named_by_their_values():
    assert name_of({"model.dim": 8, "data.image_size": (2, 3)}) == "dim=8,image_size=2x3"


def test_arms_are_compared_start_by_start():
    """The same rates: what counts is in how many starts the arms differ."""
    agree = [{"arm": arm, "outcomes": [True] * 30 + [False] * 30} for arm in ("a", "b")]
    turned = np.roll(agree[1]["outcomes"], 30).tolist()
    differ = [agree[0], {"arm": "b", "outcomes": turned}]
    close, far = contrast(agree, "a", "b"), contrast(differ, "a", "b")
    assert close.estimate == far.estimate == 0.0
    assert close.high - close.low < 0.5 * (far.high - far.low)
