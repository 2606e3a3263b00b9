"""Something-Something V2: clips and labels in the official layout."""

import json

import pytest
import video_files as files
from corpora import read

from data_pipelines.convert import conversion, decode, ssv2
from lapa_jax.verbs import data

LABELS = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {
        "id": "42326",
        "label": "moving 3 [] cups up",
        "template": "Moving [number of] [something] up",
        "placeholders": ["3", "[] cups"],
    },
    {"id": "100904", "label": "poking a hole", "template": "Poking", "placeholders": []},
    {"id": "7", "label": "only a label"},
    {"id": "8"},
]


@pytest.fixture
def folder(tmp_path):
    for i, row in enumerate(LABELS):
        clip = tmp_path / "clips" / f"{row['id']}.webm"
        files.write_video(clip, files.grey_frames(3 + i), codec="libvpx-vp9", fps=12)
    (tmp_path / "train.json").write_text(json.dumps(LABELS))
    return tmp_path


def convert(folder, out, **changes):
    values = dict(labels=folder / "train.json", size=(16, 24), progress=False, per_shard=2)
    options = ssv2.Options(videos=folder / "clips", out=out, **(values | changes))
    return ssv2.convert_ssv2(options)


def test_other_fields_of_a_label_are_selected(folder, tmp_path):
    (folder / "clips" / "more.webm").write_bytes(b"")
    report = convert(folder, tmp_path / "out", instruction_key="label")
    texts = [item["language_instruction"] for item in read(tmp_path / "out").values()]
    assert texts[1:] == ["moving 3 [] cups up", "poking a hole", "only a label", ""]
    assert report.passed_over["files without a label"] == ["more.webm"]
    with pytest.raises(
        ValueError, match=r"no label of .* has \['caption'\]; they have .*'template'"
    ):
        convert(folder, tmp_path / "none", instruction_key="caption")


def test_clips_get_the_filled_template(folder, tmp_path):
    report = convert(folder, tmp_path / "out")
    found = read(tmp_path / "out")
    assert {name: item["language_instruction"] for name, item in found.items()} == {
        "78687.webm": "Holding potato next to vicks vaporub bottle",
        "42326.webm": "Moving 3 [] cups up",
        "100904.webm": "Poking",
        "7.webm": "only a label",
        "8.webm": "",
    }
    assert [files.frame_numbers(item["image"]) for item in found.values()] == [
        list(range(3 + i)) for i in range(5)
    ]
    assert (report.found, report.episodes, report.episodes_with_language) == (5, 5, 4)
    assert report.passed_over["files without a label"] == []
    assert [item["fps"][0] for item in found.values()] == [12.0] * 5


def test_missing_clips_and_templates_that_cannot_be_filled_are_named(folder, tmp_path):
    rows = [*LABELS, {"id": "9", "label": "x", "template": "x"}]
    rows[0] = LABELS[0] | {"placeholders": ["potato"]}
    (folder / "train.json").write_text(json.dumps(rows))
    with pytest.raises(conversion.TooManyBadError, match="78687.webm: template .* has 2 places"):
        convert(folder, tmp_path / "out")
    report = convert(folder, tmp_path / "out", max_bad_fraction=0.4)
    assert [name for name, _ in report.bad] == ["78687.webm", "9.webm"]
    assert "has 0 places, its placeholders are None" in report.bad[1][1]
    (folder / "clips/7.webm").unlink()
    report = convert(folder, tmp_path / "out2", max_bad_fraction=0.5)
    assert ("7.webm", "no such file") in report.bad and report.episodes == 3


def test_a_stopped_conversion_continues_to_the_same_files(folder, tmp_path, monkeypatch):
    convert(folder, tmp_path / "whole", name="ssv2")
    original = decode.read_clips

    def stops(path, settings):
        if path.name == "7.webm":
            raise KeyboardInterrupt
        return original(path, settings)

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decode, "read_clips", stops)
        convert(folder, out, name="ssv2")
    report = convert(folder, out, name="ssv2")
    assert (report.resumed_parts, report.episodes) == (1, 5)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"Holding [something]": "1"}, "not a list of labels"),
        ([{"label": "x"}], "entry 0: needs an 'id'"),
        ([{"id": "../x"}], "entry 0: needs an 'id'"),
        ([{"id": "1"}, {"id": 1}], "entry 1: second label for id '1'"),
    ],
)
def test_wrong_label_files(folder, tmp_path, rows, message):
    (folder / "train.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb(folder, tmp_path, capsys):
    argv = ["convert", "ssv2", folder / "clips", "--labels", folder / "train.json"]
    argv += ["--out", tmp_path / "out", "--size", "16", "--json"]
    assert data.main([str(part) for part in argv]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["noun"], report["episodes"]) == ("video", 5)
