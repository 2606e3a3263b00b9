"""The main job, whole: `lapa demo --size tiny`, and its continuation after an interruption."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from quick_flags import QUICK
from simplejpeg import encode_jpeg

from lapa_jax import cli
from lapa_jax.machine.host import NOT_LIGHT

LIGHT = Path(sys.prefix) / "light" / "bin"  # the light installation (requirements/light.txt)
needs_light = pytest.mark.skipif(
    not (LIGHT / "lapa").exists(), reason="make .venv/.light makes the light installation"
)

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


def light_process(*arguments: object) -> subprocess.Popen:
    """`lapa ARGUMENTS` in the light installation; what it writes is one text."""
    return subprocess.Popen(
        [LIGHT / "lapa", *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@needs_light
def test_the_light_installation_is_light():
    code = (
        "import importlib.metadata as m, json; print(json.dumps([[d.name, sum(p.stat().st_size "
        "for f in d.files if (p := f.locate()).suffix != '.pyc' and p.is_file())] "
        "for d in m.distributions()]))"
    )
    done = subprocess.run([LIGHT / "python", "-c", code], capture_output=True, check=True)
    sizes = {name.lower(): size for name, size in json.loads(done.stdout)}
    assert "jax" in sizes and not sizes.keys() & {*NOT_LIGHT, "tensorflow_cpu", "torch", "keras"}
    assert 500e6 < sum(sizes.values()) < 1e9
    pinned = {name.lower(): metadata.version(name) for name in ("jax", "numpy", "starlette", "av")}
    lines = (Path(__file__).parents[1] / "requirements/light.txt").read_text().lower().split()
    assert {f"{name}=={version}" for name, version in pinned.items()} <= set(lines)


@needs_light
@pytest.mark.slow
def test_tiny_demo_runs_whole_serves_and_continues(tmp_path, capsys):
    workdir = tmp_path / "demo"
    demo = light_process("demo", "--size", "tiny", "--workdir", workdir)
    told, _ = demo.communicate()
    assert demo.returncode == 0 and str(workdir / "report.html") in told, told[-3000:]
    plan = "lapa demo, tiny: 48 videos each of human and robot"
    assert plan in told and told.index(plan) < told.index("=== collect (part 1 of 8) ===")
    assert "\r" not in told and f"next: lapa serve --workdir {workdir}/lapa" in told

    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["wall_seconds"] > 0
    quantizer = summary["quantizer"]
    assert quantizer["codebook_size"] == 8 and quantizer["code_length"] == 1
    assert 1 <= quantizer["perplexity"] <= 8 and quantizer["psnr"] > 10
    for arm in ("lapa", "scratch"):
        counts = summary["policy"][arm]
        assert 0 <= counts["successes"] <= counts["episodes"] == 16
    same = summary["same_code_in_both_views"]["agreement"]
    assert 0 <= same["low"] <= same["estimate"] <= same["high"] <= 1
    gap, policy = summary["lapa_minus_scratch"], summary["policy"]
    assert gap["low"] <= gap["estimate"] <= gap["high"]
    assert 16 * gap["estimate"] == policy["lapa"]["successes"] - policy["scratch"]["successes"]

    page = Page()
    text = (workdir / "report.html").read_text()
    page.feed(text)
    assert "LAPA minus Scratch" in text and "paired outcomes" in text
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

    # The light installation serves what it has trained.
    server = light_process("serve", "--workdir", workdir / "lapa", "--port", 0)
    try:
        address = next(word for line in server.stdout for word in line.split() if "http://" in word)
        assert any(": ready" in line for line in server.stdout)  # 503 while it compiles
        picture = encode_jpeg(np.zeros((64, 64, 3), np.uint8))
        body = {"image": base64.b64encode(picture).decode(), "instruction": "reach the red star"}
        asked = urllib.request.Request(
            f"{address.rstrip('/')}/act",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert np.isfinite(json.loads(answer.read())["a"]).all()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.stdout.close()


def test_lapa_alone_tells_every_verb_with_an_example(capsys):
    assert cli.main([]) == 0
    told = capsys.readouterr().out
    for verb, (_, _, example) in cli.VERBS.items():
        assert f"  {verb} " in told and example in told
    assert cli.main(["dance"]) == 2
    assert "unknown verb 'dance'" in capsys.readouterr().err
