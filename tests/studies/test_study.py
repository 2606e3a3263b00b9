"""Studies: parts are done once and in order, cells are shared, rows come together."""

import csv
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.storage.lease import Lease
from lapa_jax.studies import study as studies
from lapa_jax.studies.study import (
    Cell,
    Interrupted,
    Part,
    Study,
    check_seeds,
    contrast,
    name_of,
    version,
    write_csv,
)


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


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (5, "part 'success' gives 5, not the rows of its cell: a list of dicts"),
        ({"loss": 1.0}, "not the rows of its cell"),
        ([{"loss": np.float32(1)}], "rows that JSON does not hold: .*float32"),
    ],
)
def test_what_is_no_row_is_refused_and_done_again(tmp_path, rows, told):
    found = [rows, [{"loss": 1.0}]]
    study = Study(tmp_path, [Cell({"seed": 0}, (Part("success", lambda: found.pop(0)),))])
    with pytest.raises(ValueError, match=told) as raised:
        study.run()
    assert raised.value.__notes__ == [f"in part 'success' of the study in {tmp_path}"]
    assert study.missing()
    study.run()
    assert study.rows() == [{"seed": 0, "loss": 1.0}]


def test_a_cell_without_rows_is_named_by_who_asks_for_them(tmp_path):
    study = Study(tmp_path, [Cell({"seed": 0}, (Part("train", lambda: None),))])
    study.run()
    with pytest.raises(ValueError, match=r"cell seed=0 has no rows: remove .*parts/train\.json"):
        study.rows()


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


class Killed(BaseException):
    """Ends a process wherever it is."""


@pytest.mark.parametrize("place", ["before the work", "after it", "after its file"])
def test_a_study_killed_anywhere_gives_the_same_rows(place, tmp_path, monkeypatch):
    """At each of its parts once, where the files of the part are not yet, half or just written."""
    outcomes = {"one": [True, False], "two": [False, False]}
    whole = Study(tmp_path / "whole", two_arms([], outcomes))
    whole.run()
    write_csv(tmp_path / "whole.csv", whole.rows())
    write, left, kills = studies.runs.write_json, [], []

    def killed_at(moment, name):
        if (moment, name) == (place, left and left[0]):
            kills.append(left.pop(0))
            raise Killed

    def write_json(path, value):
        killed_at("after it", path.stem)
        if kills and path.stem == kills[-1] and not value["done"]:
            return  # a process that is killed writes nothing any more
        write(path, value)
        killed_at("after its file", path.stem)

    monkeypatch.setattr(studies.runs, "write_json", write_json)

    def killed(part):
        return Part(part.name, lambda: killed_at("before the work", part.name) or part.work())

    cells = [
        Cell(cell.values, [killed(part) for part in cell.parts]) for cell in two_arms([], outcomes)
    ]
    left += list(dict.fromkeys(part.name for cell in cells for part in cell.parts))
    for _ in range(len(left)):
        with pytest.raises(Killed):
            Study(tmp_path / "cut", cells).run()
        kills.append("")  # the next process writes
    cut = Study(tmp_path / "cut", cells)
    cut.run()
    write_csv(tmp_path / "cut.csv", cut.rows())
    assert not left and cut.rows() == whole.rows()
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_what_another_process_does_is_left_to_it(tmp_path, monkeypatch):
    """Its cell comes last; where nothing else is to do, one waits for it."""
    done, told = [], []
    study = Study(tmp_path, two_arms(done, {"one": [True], "two": [True]}))
    study.do(study.cells[0].parts[0])
    with Lease(tmp_path / "parts" / "one.lock", "one", "wait") as held:

        def waited(seconds):
            assert done == ["data", "two", "success_two"]
            held.release()

        monkeypatch.setattr(studies.time, "sleep", waited)
        study.run(told=told.append)
    assert done[3:] == ["one", "success_one"] and not study.missing()
    assert [cell.values["arm"] for cell in told] == ["two", "one"]


def trained(name, steps, workdir, **more):
    config = ConfigDict({"steps": steps, "log_every_steps": steps, "data": str(workdir / "data")})
    return Part(name, lambda: [{"steps": steps}], lambda: config, workdir / name, **more)


def test_a_part_that_is_done_is_refused_for_another_config(tmp_path):
    def study(steps, workdir=tmp_path / "a"):
        return Study(workdir, [Cell({"seed": 0}, (trained("train", steps, workdir),))])

    study(9).run()
    study(9).run()
    with pytest.raises(ValueError, match=r"part 'train' of .*\n  steps: 9 there, 8 now$"):
        study(8).run()
    shutil.move(tmp_path / "a", tmp_path / "b")
    study(9, tmp_path / "b").run()
    # An earlier version noted neither the config nor itself.
    path = tmp_path / "b" / "parts" / "train.json"
    found = json.loads(path.read_text())
    assert found["versions"] == [version()]
    path.write_text(json.dumps({key: found[key] for key in ("done", "seconds", "result")}))
    earlier = study(8, tmp_path / "b")
    assert earlier.versions(earlier.cells[0]) == ["an earlier version"]
    earlier.run()
    (tmp_path / "b" / "train").mkdir()
    (tmp_path / "b" / "train" / "config.json").write_text(json.dumps(found["decides"]))
    with pytest.raises(ValueError, match="steps: 9 there, 8 now"):
        earlier.run()


def test_cells_that_cannot_be_are_named(tmp_path):
    def part(name):
        return Part(name, lambda: [])

    arm = trained("vla", 1, tmp_path, starts_from={"init_from": tmp_path / "latent" / "assets"})
    latent, elsewhere = trained("latent", 1, tmp_path), trained("latent", 1, tmp_path / "other")
    for cells, message in (
        ([Cell({"seed": 0}, ())], "cell seed=0 has no part"),
        ([Cell({"seed": 0}, (part(x),)) for x in "ab"], "two cells are seed=0"),
        ([Cell({"seed": x}, (part("a"),)) for x in (0, 1)], "seed=0 and seed=1 both take"),
        ([Cell({"seed": 0}, (arm,))], r"'vla' starts from .*latent/assets \(init_from\)"),
        ([Cell({"seed": 0}, (elsewhere, arm))], "which no part before it makes"),
        ([Cell({"a": 0}, (latent, part("a"), Part("l", list, None, latent.run)))], "both train in"),
    ):
        with pytest.raises(ValueError, match=message):
            Study(tmp_path, cells)
    Study(tmp_path, [Cell({"seed": 0}, (latent, arm))])
    check_seeds({"videos": 600, "heldout": 601})
    with pytest.raises(ValueError, match="videos and labels have the same seed 600"):
        check_seeds({"videos": 600, "labels": 600})
