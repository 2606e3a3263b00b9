"""Which diagnostic of a latent action model tells the success of the policy that it makes.

A model is {"model": its kind, "setting", "seed", "success", and what was measured of it}. Kinds are
what is resampled, and left out: two seeds of a kind are alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lapa_jax import config as configs
from lapa_jax.diagnostics.statistics import Interval, bootstrap_ratio, rank_correlation
from lapa_jax.evidence import measures
from lapa_jax.report.figures import Picture, dot_plots
from lapa_jax.studies import record
from lapa_jax.studies.record import interval

Models = Sequence[Mapping[str, Any]]
VALUES = ("model", "setting", "seed")
LEAST = 4  # models, for a rank to say anything
NEAREST = 10  # models that a new one is set beside


def joined(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Models of which both are there: the row of what was measured, and those of the policy's
    outcomes, one a family; "success" is the mean over families."""
    found: dict[tuple, dict[str, Any]] = {}
    rates: dict[tuple, list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in VALUES)
        own = found.setdefault(key, dict(zip(VALUES, key, strict=True)))
        if row["what"] == "success":
            rates.setdefault(key, []).append(float(np.mean(row["outcomes"])))
            own["success"] = float(np.mean(rates[key]))
        else:
            own |= {k: x for k, x in row.items() if k not in (*VALUES, "what")} | {"known": True}
    return [own for own in found.values() if "success" in own and own.pop("known", False)]


def measures_of(models: Models) -> list[str]:
    """Those that are known of all models and differ."""
    names = dict.fromkeys(key for model in models for key in model)
    found = []
    for name in names:
        values = [model.get(name) for model in models]
        if name not in (*VALUES, "success") and None not in values and len(set(values)) > 1:
            found.append(name)
    return found


def correlation(models: Models, measure: str) -> Interval | None:
    """Spearman's ρ of a measure and success, ranks taken within each setting, with kinds
    resampled; None of fewer than LEAST models in a setting, or where one of the two never
    changes."""
    known = [model for model in models if model.get(measure) is not None]
    settings = {model["setting"] for model in known}
    x, y = np.zeros(len(known)), np.zeros(len(known))
    for setting in settings:
        own = np.array([model["setting"] == setting for model in known])
        if own.sum() < LEAST:
            return None
        for ranks, name in ((x, measure), (y, "success")):
            values = np.array([model[name] for model in known], np.float64)[own]
            ranks[own] = _ranks(values)
    if not settings:
        return None
    kinds = np.array([model["model"] for model in known])
    rho, ends = rank_correlation(x, y, kinds)
    if rho is None:
        return None
    return Interval(rho, *(ends or (-np.inf, np.inf)), 0.95)


def _ranks(values: np.ndarray) -> np.ndarray:
    """In 0..1, so that settings of other sizes count alike."""
    from scipy.stats import rankdata

    return (rankdata(values) - 0.5) / len(values)


def best(models: Models) -> list[tuple[str, Interval]]:
    """Every measure that is known of all models, the strongest correlation first."""
    found = [(name, correlation(models, name)) for name in measures_of(models)]
    known = [(name, rho) for name, rho in found if rho is not None]
    return sorted(known, key=lambda one: -abs(one[1].estimate))


def fitted(models: Models, measure: str, values: np.ndarray) -> np.ndarray:
    """The success that a monotone curve through these models (isotonic regression, in the direction
    of their rank correlation) gives for values of a measure; between models it is interpolated."""
    from scipy.optimize import isotonic_regression

    rho = correlation(models, measure)
    x = np.array([model[measure] for model in models], np.float64)
    y = np.array([model["success"] for model in models], np.float64)
    order = np.argsort(x, kind="stable")
    rises = rho is None or rho.estimate >= 0
    curve = isotonic_regression(y[order], increasing=rises).x
    places, first = np.unique(x[order], return_inverse=True)
    heights = np.bincount(first, curve) / np.bincount(first)
    return np.interp(values, places, heights)


def left_out(models: Models) -> dict[str, dict[str, Any]]:
    """How far off each way is on the kinds of models that it has not seen: {name: {error, chosen}},
    mean absolute error of success with kinds resampled. "best" takes, of each kind that is left
    out, the measure of strongest correlation on the others, which `chosen` counts; "mean" says what
    the others of the setting reach on average."""
    kinds = list(dict.fromkeys(model["model"] for model in models))
    if len(kinds) < LEAST:
        return {}
    names = measures_of(models)
    errors: dict[str, list[float]] = {name: [] for name in ("mean", "best", *names)}
    chosen: dict[str, int] = {}
    which: list[str] = []
    for kind in kinds:
        own = [model for model in models if model["model"] == kind]
        others = [model for model in models if model["model"] != kind]
        truth = np.array([model["success"] for model in own])
        said = {}
        for name in names:
            said[name] = fitted(others, name, np.array([model[name] for model in own]))
        ranked = [name for name, _ in best(others) if name in said]
        if not ranked:
            return {}
        said["best"] = said[ranked[0]]
        chosen[ranked[0]] = chosen.get(ranked[0], 0) + 1
        means = [
            np.mean([m["success"] for m in others if m["setting"] == model["setting"]])
            for model in own
        ]
        said["mean"] = np.array(means)
        for name, values in said.items():
            errors[name] += np.abs(values - truth).tolist()
        which += [kind] * len(own)
    return {
        name: {
            "error": bootstrap_ratio(np.array(e), np.ones(len(e)), np.array(which), seed=0),
            "chosen": chosen.get(name, 0),
        }
        for name, e in errors.items()
    }


def nearest(models: Models, measure: str, value: float, count: int = NEAREST) -> list[float]:
    """The successes of the models whose value of a measure is nearest, the least first."""
    known = [model for model in models if model.get(measure) is not None]
    known.sort(key=lambda model: abs(model[measure] - value))
    return sorted(model["success"] for model in known[:count])


def outlook(report: Mapping[str, Any]) -> str | None:
    """What the models on record (experiments/studies/predictors.py) whose value of the strongest
    diagnostic was nearest to this report's came to; None where fewer than 2 NEAREST are."""
    path = configs.shipped() / "studies" / record.FOLDER / "predictors.json"
    if not path.exists():
        return None
    models = joined(record.read(path)["rows"])
    if len(models) < 2 * NEAREST:
        return None
    values = {row["measure"]: row["value"] for row in measures.rows(report)}
    for name, rho in best(models):
        value = values.get(name)
        if value is not None:
            low, *_, high = nearest(models, name, value)
            return (
                f"on the tabletop, of {len(models)} models, the {NEAREST} whose {name} was nearest "
                f"to {value:.3g} gave policies that succeed in {100 * low:.0f} to "
                f"{100 * high:.0f} % (rank correlation {record.interval(rho)}; docs/evidence.md)"
            )
    return None


def correlation_table(models: Models) -> list[list[str]]:
    """Every measure by its correlation with success, within each setting and within both."""
    settings = list(dict.fromkeys(model["setting"] for model in models))
    counts = [sum(model["setting"] == setting for model in models) for setting in settings]
    header = ["diagnostic", f"ρ, all {len(models)} models"]
    shown = [[*header, *(f"{s}, {n}" for s, n in zip(settings, counts, strict=True))]]
    names = [name for name, _ in best(models)]
    more = dict.fromkeys(key for model in models for key in model)
    rest = [n for n in more if n not in (*VALUES, "success", *names)]
    for name in [*names, *rest]:
        cells = [correlation(models, name)]
        for setting in settings:
            cells.append(correlation([m for m in models if m["setting"] == setting], name))
        if any(cells):
            shown.append([f"`{name}`", *("–" if x is None else interval(x) for x in cells)])
    return shown


def left_out_table(models: Models) -> list[list[str]]:
    """How far off, in points of success."""
    shown = [["predicted from", "mean error, points", "chosen"]]
    found = left_out(models)
    first = {"best": "the best of the others", "mean": "the mean of the others"}
    order = sorted(found, key=lambda name: (name not in first, found[name]["error"].estimate))
    kinds = len({model["model"] for model in models})
    for name in order:
        error, count = found[name]["error"], found[name]["chosen"]
        points = Interval(*(100 * x for x in (error.estimate, error.low, error.high)), 0.95)
        told = f"{count} of {kinds} times" if count else "–"
        shown.append([first.get(name, f"`{name}`"), interval(points), told])
    return shown


def models_table(models: Models) -> list[list[str]]:
    """Every kind in every setting: success of all its seeds, and its strongest diagnostics."""
    names = [name for name, _ in best(models)][:5]
    shown = [["model", "setting", "success by seed, %", *(f"`{name}`" for name in names)]]
    for kind, setting in dict.fromkeys((m["model"], m["setting"]) for m in models):
        own = [m for m in models if (m["model"], m["setting"]) == (kind, setting)]
        cells = [f"{np.mean([m[name] for m in own]):.3g}" for name in names]
        rates = ", ".join(f"{100 * m['success']:.1f}" for m in own)
        shown.append([f"`{kind}`", setting, rates, *cells])
    return shown


def pictures(models: Models) -> dict[str, Picture]:
    """The correlations, with their intervals."""
    dots: list[dict[str, Any]] = []
    settings = list(dict.fromkeys(model["setting"] for model in models))
    for name, _ in best(models):
        dots.append({"diagnostic": name})
        for setting in settings:
            rho = correlation([m for m in models if m["setting"] == setting], name)
            if rho is not None:
                dots[-1][setting] = rho.estimate
                if np.isfinite(rho.low):
                    dots[-1] |= {f"{setting}_low": rho.low, f"{setting}_high": rho.high}
    known = {name: name for name in settings if any(name in dot for dot in dots)}
    if not known:
        return {}
    caption = "Rank correlation of each diagnostic with success, with 95 % intervals over kinds."
    return {caption: dot_plots(dots, "diagnostic", known)}
