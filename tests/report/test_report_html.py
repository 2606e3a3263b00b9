import html.parser
import json

import numpy as np
import pytest

from lapa_jax.report.html import Report
from lapa_jax.report.picture import Picture, picture_of_frame, wrap

ATTACK = 'push <script>alert("x")</script> & the `block`'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Checks that tags nest; collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> does not close the last tag"

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def picture():
    return picture_of_frame(np.zeros((8, 8, 3), np.uint8), "a black frame", scale=2)


def full_report(picture):
    report = Report("Title " + ATTACK, "Subtitle " + ATTACK)
    report.cards([{"label": ATTACK, "value": 0.5, "note": ATTACK}])
    section = report.section("Section " + ATTACK, ATTACK)
    section.text("One.\n\nTwo: " + ATTACK)
    section.table(["name", "value"], [[ATTACK, 1.0], ["x", None]], ATTACK)
    section.figure(picture, ATTACK)
    section.figure(Picture(picture.data_uri, '"><script>' + ATTACK, 4, 4))
    section.settings(ATTACK, {"a": {"b": ATTACK, "c": [1, 2]}, "d": 3e-4, "e": None, "f": True})
    section.notes([ATTACK], ATTACK)
    return report


def test_every_block_escapes_and_nests(picture):
    text = full_report(picture).html()
    reader = Reader(text)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "iframe", "object")]
    assert "<script" not in text
    shown = "".join(reader.words)
    assert shown.count('push <script>alert("x")</script> & the block') >= 8


def test_nothing_is_loaded_from_outside(picture):
    text = full_report(picture).html()
    assert "http://" not in text and "https://" not in text
    for tag, attributes in Reader(text).tags:
        for name in ("src", "href", "srcset", "action", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:60])
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text


def test_images_have_alt_texts_and_sharp_pixels(picture):
    text = full_report(picture).html()
    images = [attributes for tag, attributes in Reader(text).tags if tag == "img"]
    assert len(images) == 2 and all(image["alt"] for image in images)
    assert images[0]["class"] == "pixelated" and images[0]["width"] == "16"
    assert "image-rendering: pixelated" in text
    with pytest.raises(ValueError, match="alt"):
        Picture(picture.data_uri, " ", 1, 1)
    with pytest.raises(ValueError, match="data:"):
        Picture("https://example.org/x.png", "x", 1, 1)
    with pytest.raises(ValueError, match="Picture"):
        Report("x").figure(picture.data_uri, "caption")


def test_same_calls_same_bytes(picture):
    assert full_report(picture).html() == full_report(picture).html()


def test_sections_are_linked(picture):
    report = Report("t")
    report.section("same").text("a")
    report.section("same").text("b")
    tags = Reader(report.html()).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    anchors = [attributes["id"] for tag, attributes in tags if tag == "section"]
    assert links == ["#" + anchor for anchor in anchors] and len(set(anchors)) == 2


def test_numbers_stand_right_and_none_is_a_dash():
    report = Report("t")
    report.table(["arm", "rate", "note"], [["a", 1 / 3, "x"], ["b", None, 2]])
    report.settings("s", {"batch": 4096, "on": False})
    reader = Reader(report.html())
    cells = [a.get("class") for tag, a in reader.tags if tag == "td"][:3]
    assert cells == [None, "number", None]
    words = [word.strip() for word in reader.words]
    assert "0.3333" in words and "–" in words and "4096" in words and "no" in words


def test_malformed_blocks_are_errors():
    with pytest.raises(ValueError, match="2 cells"):
        Report("t").table(["a"], [[1, 2]])
    with pytest.raises(ValueError, match="label"):
        Report("t").cards([{"label": "x"}])
    with pytest.raises(ValueError, match="label"):
        Report("t").cards([{"label": "x", "value": 1, "colour": "red"}])


def test_write_is_atomic(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    Report("old").write(target)
    assert "old" in target.read_text(encoding="utf-8")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        Report("new").write(target)
    assert "old" in target.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError, match="missing"):
        Report("x").write(tmp_path / "missing" / "report.html")


def test_damaged_text_does_not_stop_the_report(tmp_path):
    path = Report("lone \udcff surrogate").write(tmp_path / "r.html")
    assert "lone ? surrogate" in path.read_text(encoding="utf-8")


def test_wrap_loses_nothing():
    text = "move the block " + "x" * 200 + " now"
    assert "".join(wrap(text, 120, 12)).replace(" ", "") == text.replace(" ", "")
    assert wrap("", 100, 12) == [""]


def test_environment_is_plain_and_names_versions():
    from lapa_jax.machine.environment import code_revision, describe_environment

    described = describe_environment()
    json.dumps(described, allow_nan=False)
    import jax

    assert described["packages"]["jax"] == jax.__version__
    assert described["hardware"]["devices"]["count"] == jax.device_count()
    assert described["hardware"]["cores"] >= 1
    assert code_revision("/proc/version") is None


def test_revision_belongs_to_tracked_files_only(tmp_path):
    import subprocess

    from lapa_jax.machine.environment import code_revision

    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    tracked, stray = tmp_path / "a.py", tmp_path / "b.py"
    tracked.write_text("1")
    stray.write_text("1")
    git("init", "-q")
    git("add", "a.py")
    git("commit", "-q", "-m", "x")
    first = code_revision(tracked)
    assert len(first["revision"]) == 40 and first["modified"] is False
    tracked.write_text("2")
    assert code_revision(tracked)["modified"] is True
    assert code_revision(stray) is None
