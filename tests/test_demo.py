"""The main job, whole: `lapa demo --size tiny`, and its continuation after an interruption."""

import json
from html.parser import HTMLParser

import pytest

from lapa_jax import cli

PARTS = ["collect", "quantizer", "label", "latent_vla", "lapa", "scratch", "report"]


class Page(HTMLParser):
    """Headings, picture descriptions, and everything that a page would load."""

    def __init__(self):
        super().__init__()
        self.headings, self.alts, self.loads, self._heading = [], [], [], False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self._heading = tag in ("h1", "h2")
        if tag == "img":
            self.alts.append(attrs["alt"])
        self.loads += [attrs[k] for k in ("src", "href") if k in attrs]

    def handle_data(self, data):
        if self._heading and data.strip():
            self.headings.append(data.strip())
            self._heading = False


@pytest.mark.slow
def test_tiny_demo_runs_whole_and_continues(tmp_path, capsys):
    workdir = tmp_path / "demo"
    assert cli.main(["demo", "--size", "tiny", "--workdir", str(workdir)]) == 0
    assert str(workdir / "report.html") in capsys.readouterr().out

    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["wall_seconds"] > 0
    quantizer = summary["quantizer"]
    assert quantizer["codebook_size"] == 8 and quantizer["code_length"] == 1
    assert 1 <= quantizer["perplexity"] <= 8 and quantizer["psnr"] > 10
    for arm in ("lapa", "scratch"):
        counts = summary["policy"][arm]
        assert 0 <= counts["successes"] <= counts["episodes"] == 16
    gap, policy = summary["lapa_minus_scratch"], summary["policy"]
    assert gap["low"] <= gap["estimate"] <= gap["high"]
    assert 16 * gap["estimate"] == policy["lapa"]["successes"] - policy["scratch"]["successes"]

    page = Page()
    page.feed((workdir / "report.html").read_text())
    assert "Data" in page.headings and len(page.alts) >= 10
    assert all(load.startswith(("data:", "#")) for load in page.loads)

    # The arms differ in what they start from, and in nothing else that decides the result.
    arms = {a: json.loads((workdir / a / "config.json").read_text()) for a in ("lapa", "scratch")}
    assert arms["lapa"].pop("init_from") and not arms["scratch"].pop("init_from")
    assert arms["scratch"]["model"].pop("tokenizer") and not arms["lapa"]["model"].pop("tokenizer")
    held = {arm: arms[arm]["optimizer"]["groups"]["rest"].pop("lr_scale") for arm in arms}
    assert held == {"lapa": 0.0, "scratch": 1.0}
    assert arms["lapa"] == arms["scratch"]

    # Again: only what is missing is done.
    before = {p: (workdir / "parts" / f"{p}.json").read_text() for p in PARTS}
    (workdir / "parts" / "report.json").unlink()
    assert cli.main(["demo", "--size", "tiny", "--workdir", str(workdir)]) == 0
    after = {p: (workdir / "parts" / f"{p}.json").read_text() for p in PARTS}
    assert [p for p in PARTS if before[p] != after[p]] == ["report"]
    again = json.loads((workdir / "summary.json").read_text())
    assert again["quantizer"] == summary["quantizer"] and again["policy"] == summary["policy"]


def test_lapa_alone_tells_every_verb_with_an_example(capsys):
    assert cli.main([]) == 0
    told = capsys.readouterr().out
    for verb, (_, _, example) in cli.VERBS.items():
        assert f"  {verb} " in told and example in told
    assert cli.main(["dance"]) == 2
    assert "unknown verb 'dance'" in capsys.readouterr().err
