"""Pictures of data for people: the HTML page of a corpus, and the contact sheet of a batch.

The page is one file without scripts or outside resources; all text from the corpus is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.name or r.directory }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #3b7dd8; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.dim { color: var(--dim); } code { font-size: .9em; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; }
.tile { background: var(--soft); border-radius: .4rem; padding: .5rem .9rem; }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
td, th { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
.bar { display: inline-block; height: .75rem; background: var(--bar); border-radius: 2px; }
figure { margin: 0 0 1.1rem; } figcaption { margin-bottom: .25rem; }
.strip { display: flex; gap: 3px; overflow-x: auto; }
.strip div { flex: none; text-align: center; font-size: .75rem; color: var(--dim); }
.strip img { display: block; height: 96px; image-rendering: auto; border-radius: 3px; }
.plots { display: flex; flex-wrap: wrap; gap: .3rem .6rem; margin: -.5rem 0 1.5rem; }
.plots div { font-size: .75rem; color: var(--dim); }
.plots svg { display: block; width: 130px; height: 42px; background: var(--soft); }
.plots polyline { fill: none; stroke: var(--bar); stroke-width: 1.5;
 vector-effect: non-scaling-stroke; }
svg.bars { display: block; width: 180px; height: 26px; fill: var(--bar); }
</style></head><body>
<h1>{{ r.name or "corpus" }} <span class="dim">{{ r.version }}</span></h1>
<div class="dim"><code>{{ r.directory }}</code></div>
{% for name, s in r.splits.items() %}
<h2>Split {{ name }}{% if not s.complete_scan %}
 <span class="dim">(first {{ s.episodes }} episodes only)</span>{% endif %}</h2>
<div class="tiles">
<div class="tile"><b>{{ "{:,}".format(s.episodes) }}</b>episodes</div>
<div class="tile"><b>{{ "{:,}".format(s.frames) }}</b>frames</div>
<div class="tile"><b>{{ "%.2f h" % s.hours if s.hours_known else "unknown" }}</b>duration</div>
<div class="tile"><b>{{ s.fps | join(", ") }}</b>fps</div>
<div class="tile"><b>{{ "%.0f%%" % (100 * s.instructions.coverage) }}</b>with instruction</div>
<div class="tile"><b>{{ s.actions | length or "none" }}</b>action dimensions</div>
<div class="tile"><b>{{ "%.1f MB" % (s.bytes / 1e6) }}</b>in
{{ s.shards }} shard{{ "s" if s.shards > 1 }}</div>
</div>
{% if s.strips %}<h3>Episodes</h3>{% if s.actions %}<p class="dim">Actions by step, each
dimension between its least and greatest value in the split.</p>{% endif %}{% endif %}
{% for strip in s.strips %}{% for view, v in strip.views.items() %}
<figure><figcaption>{{ strip.instruction or "no instruction" }}
<span class="dim">{{ strip.episode }}{% if strip.views | length > 1 %}, {{ view }}{% endif %}</span>
</figcaption><div class="strip">
{% for image in v["images"] %}<div><img alt="step {{ v.steps[loop.index0] }}"
 src="data:image/{{ v.kind }};base64,{{ image }}">{{ v.steps[loop.index0] }}</div>{% endfor %}
</div></figure>
{% endfor %}{% if strip.actions %}<div class="plots">
{% for values in strip.actions %}{% set a = s.actions[loop.index0] %}<div>
<svg viewBox="0 0 120 40" preserveAspectRatio="none" role="img"
 aria-label="action {{ a.dimension }}"><polyline points="{{ line(values, a) }}"/></svg>
a{{ a.dimension }}</div>{% endfor %}</div>{% endif %}{% endfor %}
<h3>Episode length in steps</h3>
<p>min {{ s.lengths.min }}, median {{ "%g" % s.lengths.median }},
mean {{ "%.1f" % s.lengths.mean }}, max {{ s.lengths.max }}</p>
<table>{% set most = s.lengths.histogram | max %}
{% for count in s.lengths.histogram %}<tr>
{% set low, high = s.lengths.edges[loop.index0], s.lengths.edges[loop.index] - 1 %}
<td class="n">{{ low if low == high else "%s to %s" % (low, high) }}</td>
<td class="n">{{ count }}</td>
<td><span class="bar" style="width: {{ (280 * count / most) | round(1) }}px"></span></td>
</tr>{% endfor %}</table>
<h3>Instructions</h3>
<p>{{ s.instructions.distinct }} distinct.{% if s.instructions.changing_within_episode %}
{{ s.instructions.changing_within_episode }} episodes change theirs.{% endif %}</p>
<table>{% for text, count in s.instructions.most_common %}
<tr><td class="n">{{ count }}</td><td>{{ text }}</td></tr>{% endfor %}</table>
{% if s.actions %}<h3>Actions</h3><div class="wide"><table>
<tr><th class="n">dimension</th>{% for key in columns %}<th class="n">{{ key }}</th>{% endfor %}
<th>from 1 % to 99 %</th></tr>
{% for a in s.actions %}<tr><td class="n">{{ a.dimension }}</td>
{% for key in columns %}<td class="n">{{ "%.4g" % a[key] }}</td>{% endfor %}
<td>{% if a.constant %}constant{% else %}<svg class="bars" viewBox="0 0 120 24" role="img"
 aria-label="histogram of action {{ a.dimension }}"><path d="{{ bars(a.histogram.counts) }}"/></svg>
{% endif %}</td></tr>{% endfor %}</table></div>
{% if s.actions_not_finite %}<p>{{ s.actions_not_finite }} steps are NaN or infinite and left
out.</p>{% endif %}{% endif %}
{% endfor %}
<h2>Label sets</h2>
{% for labels in r.label_sets + r.image_token_sets %}
<h3>{{ labels.name }}, split {{ labels.split }}</h3>
<div class="wide"><table>{% for key, value in labels.items() if key not in ("name", "split") %}
<tr><td>{{ key }}</td><td><code>{{ value }}</code></td></tr>{% endfor %}</table></div>
{% else %}<p>none</p>{% endfor %}
<h2>Indexes</h2>
{% for index in r.indexes %}<p>{{ index.image_key }}, split {{ index.split }}:
<code>{{ index.hash }}</code></p>{% else %}<p>none</p>{% endfor %}
<h2>Features</h2>
<div class="wide"><table>{% for key, kind in r.features.items() %}
<tr><td><code>{{ key }}</code></td><td>{{ kind }}</td></tr>{% endfor %}</table></div>
</body></html>
"""


def corpus_page(report: dict[str, Any]) -> str:
    """HTML of an inspection report (made with strips=True)."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    columns = ("min", "q01", "mean", "q99", "max", "std")
    return environment.from_string(_PAGE).render(r=report, columns=columns, line=_line, bars=_bars)


def _line(values: Sequence[float], action: dict[str, Any]) -> str:
    """Points of a polyline in 120 x 40: an episode's actions between the extremes of all."""
    span = action["max"] - action["min"] or 1.0
    step = 120 / max(1, len(values) - 1)
    return " ".join(
        f"{number * step:.1f},{38 - 36 * (value - action['min']) / span:.1f}"
        for number, value in enumerate(values)
        if np.isfinite(value)
    )


def _bars(counts: Sequence[int]) -> str:
    """A path in 120 x 24."""
    width, most = 120 / len(counts), max(max(counts), 1)
    return "".join(
        f"M{number * width:.2f} 24v{-23 * count / most:.2f}h{0.85 * width:.2f}V24z"
        for number, count in enumerate(counts)
    )


def contact_sheet(
    path: str | Path, frames: np.ndarray, captions: Sequence[str], *, columns: int = 4
) -> None:
    """Writes a PNG: the frames of each example side by side, its caption above.

    frames: uint8 (examples, frames, height, width, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(frames) != len(captions):
        raise ValueError(f"{len(frames)} examples but {len(captions)} captions")
    count, per_example, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    lines = max(caption.count("\n") + 1 for caption in captions)
    cell_width = max(3.2, 1.6 * per_example)
    cell_height = cell_width * height / (width * per_example) + 0.19 * lines + 0.1
    figure = Figure(figsize=(columns * cell_width, rows * cell_height), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.axis("off")
        if number < count:
            axes.imshow(np.concatenate(list(frames[number]), axis=1), interpolation="nearest")
            for boundary in range(1, per_example):
                axes.axvline(boundary * width - 0.5, color="white", linewidth=2)
            axes.set_title(captions[number], fontsize=8, loc="left", pad=3, parse_math=False)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)
