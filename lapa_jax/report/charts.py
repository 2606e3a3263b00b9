"""Charts: loss curves, code usage, success rates with intervals, what each code means.

Matplotlib through its object interface (no pyplot, no global state), written as SVG whose inks
follow the reader's light or dark setting. The same input gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from lapa_jax.report.picture import (
    GRID,
    INK,
    MUTED,
    SERIES,
    STYLE,
    Picture,
    picture_of_svg,
    printable,
    wrap,
)

# Matplotlib knows no CSS variables: these stand in for them until the SVG is text.
_INK, _MUTED, _GRID = "#010203", "#040506", "#070809"
BEST = "#d1495b"  # outlines what is best
PAGE = 1130  # px: the width of a page
_STAND_INS = {_INK: INK, _MUTED: MUTED, _GRID: GRID}


def _plain(text: str) -> str:
    """Text for matplotlib, which reads $ as the start of a formula."""
    return printable(text).replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width / 96, height / 96), dpi=96, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def _dress(axes: Axes, *, x: str = "", y: str = "", title: str = "", grid: str = "y") -> None:
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(which="both", colors=_MUTED, labelsize=9, length=3)
    if grid:
        axes.grid(True, axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(_plain(x), color=_MUTED, fontsize=9.5)
    axes.set_ylabel(_plain(y), color=_MUTED, fontsize=9.5)
    if title:
        axes.set_title(_plain(title), color=_INK, fontsize=10.5, loc="left")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        style = dict(frameon=False, labelcolor=_INK, fontsize=9.5, ncols=min(4, len(labels)))
        figure.legend(handles, labels, loc="outside upper left", **style)


def _picture(figure: Figure, alt: str) -> Picture:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lapa_jax", "svg.fonttype": "path"}):
        unknown = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=unknown)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML and DTD heads name outside addresses
    for stand_in, color in _STAND_INS.items():
        svg = svg.replace(stand_in, color)
    head, rest = svg.split(">", 1)
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    return picture_of_svg(f"{head}>{STYLE}{rest}", alt, width, height)


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    metric: str = "loss",
    *,
    log: bool = False,
    smooth: int = 0,
    title: str = "",
) -> Picture:
    """`metric` over steps, one line per run; `runs` maps a name to rows of its metrics.jsonl.

    Rows without the metric (of another cadence) are no points of this curve. With `smooth` a
    running mean over that many points is drawn over the pale raw curve, where it has enough.
    """
    if not runs:
        raise ValueError("runs is empty: give at least one run")
    figure, axes = _one_panel(640, 320)
    said = []
    for number, (name, rows) in enumerate(runs.items()):
        points = [(row["step"], row[metric]) for row in rows if metric in row]
        if not points:
            known = sorted({key for row in rows for key in row})
            raise ValueError(f"run {name!r} has no metric {metric!r}; its rows have {known}")
        steps, values = np.asarray(points, np.float64).T
        color = SERIES[number % len(SERIES)]
        strong = dict(color=color, linewidth=1.8, label=_plain(name))
        if smooth > 1 and len(values) >= 4 * smooth:  # else little is left of the curve
            mean = np.convolve(values, np.full(smooth, 1 / smooth), "valid")
            axes.plot(steps, values, color=color, linewidth=1.0, alpha=0.3)
            axes.plot(steps[smooth - 1 :], mean, **strong)
        else:
            axes.plot(steps, values, **strong)
        said.append(f"{name} from {values[0]:.4g} to {values[-1]:.4g} at step {steps[-1]:.0f}")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    _dress(axes, x="step", y=metric, title=title)
    _legend(figure, axes)
    return _picture(figure, f"{metric} over training steps: {'; '.join(said)}.")


def code_usage(histogram: Sequence[Sequence[int]]) -> Picture:
    """Share of each code per slot; histogram (L, codebook_size) as `codebook_report` gives it."""
    counts = np.asarray(histogram, np.float64)
    if counts.ndim != 2 or (counts < 0).any() or not (counts.sum(1) > 0).all():
        raise ValueError(
            "histogram must be (code_length, codebook_size) counts, each slot used, "
            f"got shape {counts.shape}"
        )
    shares = counts / counts.sum(1, keepdims=True)
    slots, size = shares.shape
    columns = min(4, slots)
    rows = -(-slots // columns)
    figure = _figure(max(320, 215 * columns), 60 + 150 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for slot, axes in enumerate(grid.flat):
        if slot >= slots:
            axes.set_visible(False)
            continue
        axes.bar(np.arange(size), shares[slot], color=SERIES[0], width=0.78)
        axes.axhline(1 / size, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        share = shares[slot][shares[slot] > 0]
        perplexity = 2 ** -(share * np.log2(share)).sum()
        y = "share" if slot % columns == 0 else ""
        _dress(axes, x="code", y=y, title=f"slot {slot}: perplexity {perplexity:.2f}")
        for code in np.flatnonzero(shares[slot] == 0):
            axes.text(code, 0, "×", color=SERIES[3], ha="center", va="bottom", fontsize=9)
        if size <= 16:
            axes.set_xticks(np.arange(size))
    return _picture(
        figure,
        f"Share of each of {size} codes in {slots} slots; a dashed line marks "
        "equal use, a cross an unused code.",
    )


def success_chart(
    rows: Sequence[Mapping[str, Any]], *, title: str = "", label: str = "success rate"
) -> Picture:
    """Bars with intervals; rows have `family`, `arm`, `estimate`, `low`, `high` in [0, 1].

    Families group the bars, arms colour them, both in the order in which they appear. A missing
    (family, arm) leaves a gap.
    """
    if not rows:
        raise ValueError("rows is empty: give at least one (family, arm)")
    families, arms = (_distinct(rows, key) for key in ("family", "arm"))
    if len({(row["family"], row["arm"]) for row in rows}) < len(rows):
        raise ValueError("rows give a (family, arm) twice")
    width = 0.8 / len(arms)
    figure, axes = _one_panel(max(420, 130 + 26 * len(families) * (len(arms) + 1)), 340)
    for number, arm in enumerate(arms):
        mine = [row for row in rows if row["arm"] == arm]
        values = np.array([[row["estimate"], row["low"], row["high"]] for row in mine], float)
        estimate, low, high = values.T
        if not ((0 <= low) & (low <= estimate) & (estimate <= high) & (high <= 1)).all():
            raise ValueError(f"rows of arm {arm!r} must have 0 <= low <= estimate <= high <= 1")
        shift = (number - (len(arms) - 1) / 2) * width
        places = [families.index(row["family"]) + shift for row in mine]
        color = SERIES[number % len(SERIES)]
        axes.bar(places, estimate, width * 0.9, color=color, label=_plain(arm))
        whiskers = dict(ecolor=_INK, elinewidth=1.2, capsize=min(4.0, 14 * width))
        axes.errorbar(places, estimate, [estimate - low, high - estimate], fmt="none", **whiskers)
    room = (figure.get_figwidth() * 96 - 90) / len(families)
    names = [_plain("\n".join(wrap(family, room, 12.5))) for family in families]
    axes.set_xticks(range(len(families)), names)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _dress(axes, y=label, title=title)
    axes.tick_params(axis="x", colors=_INK, length=0, labelsize=9.5)
    _legend(figure, axes)
    said = "; ".join(
        f"{row['family']}, {row['arm']}: {row['estimate']:.0%} "
        f"({row['low']:.0%} to {row['high']:.0%})"
        for row in rows
    )
    return _picture(figure, f"{label} with intervals. {said}.")


def code_meaning(
    rows: Sequence[Mapping[str, Any]],
    *,
    dims: tuple[int, int] = (0, 1),
    names: tuple[str, str] = ("action 0", "action 1"),
    limit: int = 24,
) -> Picture:
    """Mean true action per latent action as arrows, with one-sigma ellipses.

    rows as `diagnostics.codebook.actions_per_code` gives them, most common first; the first
    `limit` are drawn and the picture says what share of the samples they are.
    """
    shown = list(rows[:limit])
    if not shown:
        raise ValueError("rows is empty: no latent action was seen often enough")
    pick = list(dims)
    means = np.array([row["mean"] for row in shown], np.float64)
    if max(pick) >= means.shape[1]:
        raise ValueError(f"dims {dims} do not fit actions of {means.shape[1]} dimensions")
    means = means[:, pick]
    covariances = np.array([row["covariance"] for row in shown], np.float64)[:, pick][:, :, pick]
    shares = np.array([row["share"] for row in shown], np.float64)
    figure, axes = _one_panel(560, 520)
    said = []
    for number, (row, mean, covariance) in enumerate(zip(shown, means, covariances, strict=True)):
        color = SERIES[number % len(SERIES)]
        values, vectors = np.linalg.eigh(covariance)
        angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        axis_lengths = 2 * np.sqrt(np.maximum(values[::-1], 0))
        pale = dict(facecolor=color, alpha=0.13, edgecolor="none")
        axes.add_patch(Ellipse(mean, *axis_lengths, angle=angle, **pale))
        thickness = 0.8 + 2.4 * shares[number] / shares.max()
        arrow = dict(arrowstyle="-|>", color=color, lw=thickness, shrinkA=0, shrinkB=0, alpha=0.9)
        axes.annotate("", mean, (0, 0), arrowprops=arrow)
        away = 13 * mean / (np.hypot(*mean) or 1.0)  # beyond the tip of the arrow
        side = "center" if abs(away[0]) < 6 else "right" if away[0] < 0 else "left"
        style = dict(color=_INK, fontsize=9, va="center", ha=side)
        code = " ".join(map(str, row["code"]))
        said.append(f"{code} → ({mean[0]:.3g}, {mean[1]:.3g})")
        axes.annotate(code, mean, textcoords="offset points", xytext=away, **style)
    spread = np.sqrt(np.maximum(np.diagonal(covariances, axis1=1, axis2=2), 0))
    reach = float((np.abs(means) + spread).max()) * 1.12 or 1.0
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.axhline(0, color=_GRID, linewidth=1)
    axes.axvline(0, color=_GRID, linewidth=1)
    title = f"{len(shown)} latent actions, {shares.sum():.0%} of the samples"
    _dress(axes, x=names[0], y=names[1], grid="both", title=title)
    return _picture(
        figure,
        f"Arrows to the mean true action ({names[0]}, {names[1]}) of {len(shown)} latent actions, "
        f"with one-sigma ellipses: {'; '.join(said)}.",
    )


def label_curves(
    efficiency: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Mapping[str, str]
) -> Picture:
    """Mean R² over the number of labels, with intervals: a panel for the linear probe and one for
    the small network, a line per feature set. `efficiency` is that of
    `diagnostics.label_efficiency`; `names`: feature set → what to call it, in the order to draw.
    """
    figure = _figure(720, 320)
    panels = figure.subplots(1, 2, sharey=True)
    said = []
    probes = (("linear", "linear probe"), ("mlp", "small network"))
    for axes, (kind, title) in zip(panels, probes, strict=True):
        for number, (key, name) in enumerate(names.items()):
            points = [
                (found["train_rows"], found["r2_mean"], *found["r2_mean_interval"])
                for found in efficiency[key][kind].values()
                if found["r2_mean"] is not None
            ]
            labels, mean = _band(axes, points, number, name)
            said.append(f"{name}, {title}: {mean[-1]:.2f} with {labels[-1]:.0f} labels")
        axes.set_xscale("log")
        # A probe on ten labels may be worse than any constant: how much worse says nothing.
        axes.set_ylim(-0.25, 1.0)
        _dress(axes, x="labels", y="mean R²" if axes is panels[0] else "", title=title)
    _legend(figure, panels[0])
    return _picture(figure, f"Mean R² of the true action over labels. {'; '.join(said)}.")


def _band(
    axes: Axes, points: Sequence[Sequence[float]], number: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draws line `number`, of points (x, estimate, low, high), and returns its x and estimates."""
    x, estimate, low, high = np.array(sorted(points), np.float64).T
    color = SERIES[number % len(SERIES)]
    line = dict(color=color, linewidth=1.8, marker="osD^"[number // len(SERIES) % 4], markersize=4)
    axes.plot(x, estimate, label=_plain(name), **line)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    return x, estimate


def success_curves(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], *, x: str = "labelled episodes"
) -> Picture:
    """Success over `x`: `band_curves` of rates in [0, 1]."""
    return band_curves(panels, x=x, y="success", rates=True)


def band_curves(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    *,
    x: str,
    y: str = "",
    rates: bool = False,
) -> Picture:
    """A panel for each title, a line with its band for each name, of points (x, estimate, low,
    high). `rates` are in [0, 1], and their x is on a log scale where its values are
    (`is_logarithmic`); else x counts steps."""
    if not panels or not all(panels.values()):
        raise ValueError(f"a panel has no line: {panels}")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure, grid = _panels(len(panels), 560 if len(panels) < 2 else 376, 340)
    said = []
    for place, (axes, (title, lines)) in enumerate(zip(grid, panels.items(), strict=True)):
        every = sorted({float(point[0]) for points in lines.values() for point in points})
        for name, points in lines.items():
            at, values = _band(axes, points, names.index(name), name)
            form = ".0%" if rates else ".3g"
            told = ", ".join(f"{n:g}: {v:{form}}" for n, v in zip(at, values, strict=True))
            said.append(f"{title}, {name}: {told}")
        if rates:
            if is_logarithmic(every):
                axes.set_xscale("log")
            axes.set_xticks(every, [f"{n:g}" for n in every])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _dress(axes, x=x, y="" if place else y, title=title)
    handles = {
        label: handle
        for axes in grid
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    style = dict(frameon=False, labelcolor=_INK, fontsize=9.5, ncols=min(6, len(handles)))
    figure.legend(handles.values(), handles, loc="outside upper left", **style)
    what = f"{y[:1].upper()}{y[1:]} over" if y else "Over"
    return _picture(figure, f"{what} {x}, with 95 % intervals. {'; '.join(said)}.")


def _distinct(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """In the order in which they appear."""
    return list(dict.fromkeys(row[key] for row in rows))


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Whether values are spread so that a log scale shows them: positive, over a factor of 8."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) > 1 and min(numbers) > 0 and max(numbers) >= 8 * min(numbers)


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """`count` panels of this size, as many side by side as a page is wide."""
    columns = min(count, max(1, int(PAGE // width)))
    rows = -(-count // columns)
    width = min(PAGE / columns, 1.4 * width) if rows > 1 else width
    figure = _figure(columns * width, rows * height)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def heat_maps(
    rows: Sequence[Mapping[str, Any]],
    down: str,
    across: str,
    best: Mapping[str, Mapping[str, Any] | None],
) -> Picture:
    """A panel for each measure: every row is a cell at (row[down], row[across]) with its number.
    best: measure → the row that is outlined, or None.

    A missing combination, or one without the measure, stays empty. Colours are on a log scale where
    the values are (`is_logarithmic`).
    """
    ys, xs = (_distinct(rows, key) for key in (down, across))
    figure, panels = _panels(len(best), 130 + 58 * len(xs), 100 + 34 * len(ys))
    said = []
    for axes, (measure, first) in zip(panels, best.items(), strict=True):
        values = np.full((len(ys), len(xs)), np.nan)
        for row in rows:
            if row[measure] is not None:
                values[ys.index(row[down]), xs.index(row[across])] = row[measure]
        known = values[np.isfinite(values)].tolist()
        if not known:
            raise ValueError(f"no row has a {measure}")
        scaled = np.log(values) if is_logarithmic(known) else values
        low, high = np.nanmin(scaled), np.nanmax(scaled)
        axes.imshow(scaled, cmap="viridis", aspect="auto", vmin=low, vmax=high)
        for i, j in np.argwhere(np.isfinite(values)):
            bright = scaled[i, j] > low + 0.6 * (high - low)
            ink = "black" if bright else "white"
            axes.text(j, i, f"{values[i, j]:.3g}", ha="center", va="center", fontsize=9, color=ink)
        told = [
            f"{_short(down)} {ys[i]}, {_short(across)} {xs[j]}: {values[i, j]:.3g}"
            for i, j in np.argwhere(np.isfinite(values))
        ]
        if first is not None:
            i, j = ys.index(first[down]), xs.index(first[across])
            place = (j - 0.46, i - 0.46)
            axes.add_patch(Rectangle(place, 0.92, 0.92, fill=False, edgecolor=BEST, linewidth=2.5))
            told.append(f"best {_short(down)} {ys[i]}, {_short(across)} {xs[j]}")
        axes.set_xticks(range(len(xs)), [str(x) for x in xs])
        axes.set_yticks(range(len(ys)), [str(y) for y in ys])
        _dress(axes, x=_short(across), y=_short(down), title=measure, grid="")
        said.append(f"Heat map of {measure}. {'; '.join(told)}.")
    return _picture(figure, " ".join(said))


def measure_curves(
    rows: Sequence[Mapping[str, Any]], key: str, best: Mapping[str, Mapping[str, Any] | None]
) -> Picture:
    """A panel for each measure over row[key], with its interval where there is one (MEASURE_low,
    MEASURE_high). best: measure → the row that is marked, or None.

    Either axis is on a log scale where its values are (`is_logarithmic`); what is no number is told
    in the order of the rows.
    """
    figure, panels = _panels(len(best), 360, 250)
    every = _distinct(rows, key)
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in every)
    said = []
    for axes, (measure, first) in zip(panels, best.items(), strict=True):
        shown = [row for row in rows if row[measure] is not None]
        if not shown:
            raise ValueError(f"no row has a {measure}")
        at = [row[key] if numeric else every.index(row[key]) for row in shown]
        values = np.array([row[measure] for row in shown], float)
        ends = [
            np.abs([(row.get(f"{measure}_{end}") or row[measure]) - row[measure] for row in shown])
            for end in ("low", "high")
        ]
        style = dict(color=SERIES[0], ecolor=_MUTED, linewidth=1.8, marker="o", capsize=3)
        order = np.argsort(at)
        axes.errorbar(
            np.array(at)[order], values[order], np.array(ends)[:, order], elinewidth=1, **style
        )
        if first is not None:
            where = first[key] if numeric else every.index(first[key])
            axes.plot(where, first[measure], "*", color=BEST, markersize=15, zorder=3)
        if numeric and is_logarithmic(every):
            axes.set_xscale("log")
        if is_logarithmic(values.tolist()):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks(every if numeric else range(len(every)), [_label(x) for x in every])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        _dress(axes, x=_short(key), title=measure)
        told = "; ".join(f"{_label(row[key])}: {row[measure]:.3g}" for row in shown)
        top = "" if first is None else f" Best at {_label(first[key])}."
        said.append(f"{measure} over {_short(key)}. {told}.{top}")
    return _picture(figure, " ".join(said))


def dot_plots(
    rows: Sequence[Mapping[str, Any]], key: str, panels: Mapping[str, str], alike: bool = False
) -> Picture:
    """What rows[key] are, one below the other, against each measure of `panels` (measure → title),
    with its interval where there is one (MEASURE_low, MEASURE_high); a dashed line at 0. A panel
    names no row that lacks its measure. `alike`: all panels have one scale."""
    names = [_plain(str(row[key])) for row in rows]
    room = 30 + 6.5 * max(map(len, names))
    columns = min(len(panels), max(1, int((PAGE - room) // 200)))
    deep = -(-len(panels) // columns)
    figure = _figure(PAGE, deep * (70 + 22 * len(rows)))
    grid = figure.subplots(deep, columns, sharey=True, sharex=alike, squeeze=False)
    said = []
    every = list(grid.flat)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    for axes, (measure, title) in zip(every[: len(panels)], panels.items(), strict=True):
        told = []
        for place, row in enumerate(rows):
            value = row.get(measure)
            if value is None:
                continue
            low, high = (
                value if row.get(f"{measure}_{end}") is None else row[f"{measure}_{end}"]
                for end in ("low", "high")
            )
            off = np.abs([[low - value], [high - value]])
            style = dict(fmt="o", color=SERIES[0], ecolor=_MUTED, capsize=2.5, markersize=5)
            axes.errorbar([value], [place], xerr=off, elinewidth=1.2, **style)
            told.append(f"{row[key]}: {value:.3g}")
        axes.axvline(0.0, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        _dress(axes, title=title, grid="both")
        said.append(f"{title}. {'; '.join(told)}.")
    return _picture(figure, " ".join(said))


def chunk_curves(chunks: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Picture:
    """Chunks side by side, a row of panels for each dimension, over the steps of the chunk. Each
    has `title`, and `true` and `predicted` (steps, dimensions). names: of the dimensions, with
    their units."""
    figure = _figure(min(PAGE, 120 + 330 * len(chunks)), 60 + 135 * len(names))
    grid = figure.subplots(len(names), len(chunks), sharex="col", sharey="row", squeeze=False)
    said = []
    for column, chunk in enumerate(chunks):
        true, predicted = (np.asarray(chunk[key], float) for key in ("true", "predicted"))
        steps = np.arange(len(true))
        for row, name in enumerate(names):
            axes = grid[row, column]
            style = dict(linewidth=1.8, markersize=4)
            axes.plot(steps, true[:, row], "o-", color=_INK, label="true", **style)
            axes.plot(steps, predicted[:, row], "s--", color=SERIES[0], label="predicted", **style)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
            last = row == len(names) - 1
            _dress(
                axes,
                x="step of the chunk" if last else "",
                y="" if column else name,
                title="" if row else chunk["title"],
            )
        off = np.abs(true - predicted).mean(axis=0)
        told = ", ".join(f"{name} {off[i]:.3g}" for i, name in enumerate(names))
        said.append(f"{chunk['title']}: mean absolute error {told}.")
    _legend(figure, grid[0, 0])
    return _picture(figure, f"True and predicted chunks. {' '.join(said)}")


def _short(key: str) -> str:
    """A config key without the places that it lies in."""
    return key.rsplit(".", 1)[-1]


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
