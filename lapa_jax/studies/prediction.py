"""Which diagnostic of a latent action model tells the success of the policy that it makes.

A model is {"model": its kind, "setting", "seed", "success", and what was measured of it}. Kinds are
what is resampled, and left out: two seeds of a kind are alike.
"""

import collections
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
UNTRAINED = "untrained"  # the kind beside which success is told


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
    sizes = collections.Counter(model["setting"] for model in known)
    if not known or min(sizes.values()) < LEAST:
        return None
    kinds = np.array([model["model"] for model in known])
    rho, ends = rank_correlation(*(_ranks(known, key) for key in (measure, "success")), kinds)
    if rho is None:
        return None
    return Interval(rho, *(ends or (-np.inf, np.inf)), 0.95)


def _ranks(models: Models, key: str) -> np.ndarray:
    """Within each setting, in 0..1, so that settings of other sizes count alike."""
    from scipy.stats import rankdata

    settings = np.array([model["setting"] for model in models])
    values, ranks = np.array([model[key] for model in models], np.float64), np.zeros(len(models))
    for setting in set(settings):
        own = settings == setting
        ranks[own] = (rankdata(values[own]) - 0.5) / own.sum()
    return ranks


def best(models: Models) -> list[tuple[str, Interval]]:
    """Every measure that is known of all models, the strongest correlation first."""
    found = [(name, correlation(models, name)) for name in measures_of(models)]
    known = [(name, rho) for name, rho in found if rho is not None]
    return sorted(known, key=lambda one: -abs(one[1].estimate))


def fitted(models: Models, measure: str, values: np.ndarray) -> np.ndarray:
    """The success that a monotone curve through these models (isotonic regression, in the direction
    of their rank correlation) gives for values of a measure; between models it is interpolated."""
    from scipy.optimize import isotonic_regression

    x, y = (np.array([model[key] for model in models]) for key in (measure, "success"))
    ranks = (_ranks(models, key) - 0.5 for key in (measure, "success"))
    order = np.argsort(x, kind="stable")
    curve = isotonic_regression(y[order], increasing=bool(np.dot(*ranks) >= 0)).x
    places, first = np.unique(x[order], return_inverse=True)
    heights = np.bincount(first, curve) / np.bincount(first)
    return np.interp(values, places, heights)


def _errors(models: Models, names: Sequence[str]) -> dict[str, np.ndarray]:
    """By measure, of each model how far off the curve through the models of other kinds is."""
    kinds = np.array([model["model"] for model in models])
    found = {name: np.zeros(len(models)) for name in names}
    for kind in dict.fromkeys(kinds):
        own, others = ([m for m in models if (m["model"] == kind) == is_own] for is_own in (1, 0))
        truth = np.array([model["success"] for model in own])
        for name in names:
            said = fitted(others, name, np.array([model[name] for model in own]))
            found[name][kinds == kind] = np.abs(said - truth)
    return found


def best_told(models: Models, names: Sequence[str]) -> tuple[str, float]:
    """(the measure that tells success best of kinds that are left out, its mean error)."""
    errors = {name: float(x.mean()) for name, x in _errors(models, names).items()}
    name = min(errors, key=errors.get)
    return name, errors[name]


def left_out(models: Models) -> dict[str, dict[str, Any]]:
    """How far off each way is on the kinds of models that it has not seen: {name: {error, chosen}},
    mean absolute error of success with kinds resampled. "best" takes, of each kind that is left
    out, the measure that does best so among the others, which `chosen` counts; "mean" says what
    the others of the setting reach on average."""
    kinds = list(dict.fromkeys(model["model"] for model in models))
    names = measures_of(models)
    if len(kinds) < LEAST or not names:
        return {}
    errors, chosen = _errors(models, names), collections.Counter()
    which = np.array([model["model"] for model in models])
    errors |= {name: np.zeros(len(models)) for name in ("best", "mean")}
    for kind in kinds:
        others = [model for model in models if model["model"] != kind]
        name, _ = best_told(others, names)
        chosen[name] += 1
        errors["best"][which == kind] = errors[name][which == kind]
        for i in np.flatnonzero(which == kind):
            near = [m["success"] for m in others if m["setting"] == models[i]["setting"]]
            errors["mean"][i] = abs(np.mean(near) - models[i]["success"])
    return {
        name: {"error": bootstrap_ratio(x, np.ones(len(x)), which, seed=0), "chosen": chosen[name]}
        for name, x in errors.items()
    }


def nearest(models: Models, measure: str, value: float, count: int = NEAREST) -> list[float]:
    """The successes of the models whose value of a measure is nearest, the least first."""
    known = [model for model in models if model.get(measure) is not None]
    known.sort(key=lambda model: abs(model[measure] - value))
    return sorted(model["success"] for model in known[:count])


def outlook(report: Mapping[str, Any]) -> str | None:
    """What the models on record (experiments/studies/predictors.py) came to whose value was nearest
    to this report's of the diagnostic, among those that it has, that tells success best of kinds
    left out; None where fewer than 2 NEAREST are on record. The report is of pairs of the tabletop:
    values of other videos do not compare."""
    path = configs.shipped() / "studies" / record.FOLDER / "predictors.json"
    if not path.exists():
        return None
    models = joined(record.read(path)["rows"])
    values = {row["measure"]: row["value"] for row in measures.rows(report)}
    names = [name for name in measures_of(models) if values.get(name) is not None]
    if len(models) < 2 * NEAREST or not names:
        return None
    name, error = best_told(models, names)
    known = [model[name] for model in models if model.get(name) is not None]
    if not min(known) <= values[name] <= max(known):
        return (
            f"{name} {values[name]:.3g} is outside of what {len(models)} models on record had, "
            f"{min(known):.3g} to {max(known):.3g}: it tells nothing of a policy's success"
        )
    low, *_, high = nearest(models, name, values[name])
    floor = [100 * model["success"] for model in models if model["model"] == UNTRAINED]
    beside = f"; untrained ones gave {min(floor):.0f} to {max(floor):.0f} %" if floor else ""
    return (
        f"on the tabletop, of {len(models)} models, the {NEAREST} whose {name} was nearest to "
        f"{values[name]:.3g} gave policies that succeed in {100 * low:.0f} to {100 * high:.0f} %"
        f"{beside} (by it alone, success of other kinds is told to within {100 * error:.1f} points "
        "on average; docs/evidence.md)"
    )


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
    return {caption: dot_plots(dots, "diagnostic", known, alike=True)}
