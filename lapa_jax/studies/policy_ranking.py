"""How policies are ranked by what is said of them without a robot, beside their real success.

Rows of experiments/studies/imagined.py: of each policy {"arm", "seed", "labels"} its real outcomes
("what": "success"), the error of its actions and its loss on held-out episodes ("errors"), and
outcomes in what worlds imagined ("imagined", "imagination"); of each imagination what its judge is
worth ("judge").
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lapa_jax.diagnostics import ranking
from lapa_jax.diagnostics.statistics import Interval
from lapa_jax.evidence.imagined_success import agreement

SOON = 5  # windows: of what is imagined further on little is left (docs/world.md, "Rollouts")
SHOWN = (1, 3, 5, 10, 20)  # windows of a judge's table
ERROR, LOSS = "error of actions", "loss"  # on held-out episodes
HALF = "real success, other start states"
KEYS = ("arm", "seed", "labels")

Rows = Models = Sequence[Mapping[str, Any]]


def tables(rows: Rows) -> dict[str, list[list[str]]]:
    found = policies(rows)
    return {
        "ranking": ranking_table(found),
        "beside": beside_table(found),
        "agreement": agreement_table(found),
        "judges": judges_table(rows),
        "policies": policies_table(found),
    }


def policies(rows: Rows) -> list[dict[str, Any]]:
    """Those whose real success is known: values, `real` outcomes bool (N,), and as far as they are
    known `loss`, `action_error`, and of each imagination its row, as imagined_NAME."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        if row["what"] == "judge":
            continue
        own = found.setdefault(tuple(row[key] for key in KEYS), {key: row[key] for key in KEYS})
        if row["what"] == "success":
            own["real"] = np.array(row["outcomes"], bool)
        elif row["what"] == "errors":
            own |= {key: row[key] for key in ("loss", "action_error")}
        else:
            own[f"imagined_{row['imagination']}"] = row
    return [one for one in found.values() if "real" in one]


def predictors(models: Models) -> dict[str, list[float | None]]:
    """What is said of each policy, larger for the better ones, by the name it is shown by; None
    where it is not known. Those of imaginations are rates of success."""
    found: dict[str, list[float | None]] = {}
    for key in _imagined(models):
        for name, windows in ((f"imagined by {_name(key)}", None), (f"{_name(key)}, soon", SOON)):
            told = [one.get(key) for one in models]
            found[name] = [x and sum(x["by_window"][:windows]) / x["episodes"] for x in told]
    for name, key in ((ERROR, "action_error"), (LOSS, "loss")):
        found[name] = [-one[key] if key in one else None for one in models]
    return found


def _imagined(models: Models) -> list[str]:
    return [
        key for key in dict.fromkeys(k for m in models for k in m) if key.startswith("imagined_")
    ]


def _name(key: str) -> str:
    return f"`{key.removeprefix('imagined_')}`"


def _known(*said: Sequence[float | None]) -> np.ndarray:
    """bool (P,): of which policies all of these are known."""
    return np.array([None not in values for values in zip(*said, strict=True)], bool)


def _real(models: Models) -> tuple[np.ndarray, np.ndarray]:
    """(success of each, the arm and number of labels of each: what differs in a seed alone)."""
    groups = [f"{one['arm']} {one['labels']}" for one in models]
    return np.array([one["real"].mean() for one in models]), np.array(groups)


def ranking_table(models: Models) -> list[list[str]]:
    """Every predictor against real success, on the policies of which it is known; of rates also the
    mean absolute error."""
    header = ["predicted by", "policies", "ρ", "ρ, arms resampled", "τ", "r"]
    shown = [[*header, "MMRV, points", "error, points"]]
    real, groups = _real(models)
    said = {name: (values, real) for name, values in predictors(models).items()}
    halves = [np.array([one["real"][i::2].mean() for one in models]) for i in range(2)]
    said[HALF] = halves[0].tolist(), halves[1]
    for name, (values, truth) in said.items():
        rows = _known(values)
        given = np.array(values)[rows].astype(np.float64), truth[rows]
        found = {key: ranking.over_models(f, *given) for key, f in ranking.MEASURES.items()}
        by_arm = ranking.over_models(ranking.spearman, *given, groups[rows].tolist())
        off = None
        if name not in (ERROR, LOSS):
            off = ranking.over_models(ranking.mean_absolute_error, *given)
        cells = [found["spearman"], by_arm, found["kendall"], found["pearson"]]
        points = [_told(x, 1, 0.01) for x in (found["mmrv"], off)]
        shown.append([name, str(int(rows.sum())), *map(_told, cells), *points])
    return shown


def _told(found: Interval | None, digits: int = 2, unit: float = 1.0) -> str:
    """With its interval, where it has one."""
    if found is None:
        return "–"
    value, low, high = (
        f"{round(x / unit, digits) + 0.0:.{digits}f}"
        for x in (found.estimate, found.low, found.high)
    )
    return f"{value} ({low} to {high})" if np.isfinite(found.low) else value


def beside_table(models: Models) -> list[list[str]]:
    """What imagining gains in ρ on the rankings that need no world model, on the same policies."""
    header = [f"ρ less that of {x}{y}" for x in (ERROR, LOSS) for y in ("", ", arms resampled")]
    shown = [["predicted by", *header]]
    real, groups = _real(models)
    said = predictors(models)
    for name in [name for name in said if name not in (ERROR, LOSS)]:
        cells = []
        for other in (ERROR, LOSS):
            rows = _known(said[name], said[other])
            pair = [np.array(said[key])[rows].astype(np.float64) for key in (name, other)]
            for by in (None, groups[rows].tolist()):
                cells.append(_told(ranking.over_models(ranking.spearman, pair, real[rows], by)))
        shown.append([name, *cells])
    return shown


def agreement_table(models: Models) -> list[list[str]]:
    """From the same start state: imagined against real success, mean over policies."""
    shown = [["imagined by", "imagined success", "real", "same outcome", "by chance", "φ"]]
    for key in _imagined(models):
        own = [one for one in models if key in one]
        said = [np.array(one[key]["outcomes"], bool) for one in own]
        real = [one["real"][: len(x)] for one, x in zip(own, said, strict=True)]
        found = [agreement(a, b) for a, b in zip(said, real, strict=True)]
        phi = [one["phi"] for one in found if one["phi"] is not None]
        rates = [f"{100 * np.mean([x.mean() for x in xs]):.1f} %" for xs in (said, real)]
        means = [f"{100 * np.mean([x[k] for x in found]):.1f} %" for k in ("accuracy", "chance")]
        told = f"{np.mean(phi):.2f} ({min(phi):.2f} to {max(phi):.2f})" if phi else "–"
        shown.append([_name(key), *rates, *means, told])
    return shown


def judges_table(rows: Rows) -> list[list[str]]:
    """On episodes that taught neither the judge nor the quantizer; cm."""
    header = [
        "imagined by",
        "actions → z",
        "off, true frames",
        "episodes told rightly, true frames",
    ]
    header += ["off, imagined, after " + ", ".join(map(str, SHOWN)) + " windows"]
    shown = [[*header, "episodes told rightly, imagined", "done: truly, true frames, imagined"]]
    for row in rows:
        if row["what"] != "judge":
            continue
        if "map_accuracy" in row:
            shares = (100 * row[f"map_{key}"] for key in ("accuracy", "modal_accuracy"))
            known = "{:.1f} % of codes, the most common {:.1f} %".format(*shares)
        else:
            known = f"R² {row['map_r2_mean']:.2f}"
        errors = enumerate(row["imagined_error"], 1)
        off = ", ".join(f"{100 * x:.1f}" for k, x in errors if k in SHOWN)
        right = [f"{100 * row[f'{name}_accuracy']:.1f} %" for name in ("true", "imagined")]
        done = [row["done"], row["true_done"], row["imagined_done"]]
        told = ", ".join(f"{100 * x:.1f} %" for x in done)
        cells = [known, f"{100 * row['true_error']:.2f}", right[0], off, right[1], told]
        shown.append([f"`{row['imagination']}`", *cells])
    return shown


def policies_table(models: Models) -> list[list[str]]:
    """Every arm, means over its seeds of which that is known, the best in truth first."""
    names = _imagined(models)
    header = ["arm", "labels", "seeds", "real success"]
    header += [f"imagined by {_name(name)}" for name in names]
    shown = []
    for arm, labels in dict.fromkeys((one["arm"], one["labels"]) for one in models):
        own = [one for one in models if (one["arm"], one["labels"]) == (arm, labels)]
        values = [[one["real"].mean() for one in own]]
        values += [[np.mean(one[name]["outcomes"]) for one in own if name in one] for name in names]
        cells = [_mean(x, "{:.1f} %", 100) for x in values]
        for key, form, scale in (("action_error", "{:.2f}", 1000), ("loss", "{:.2f}", 1)):
            cells.append(_mean([one[key] for one in own if key in one], form, scale))
        shown.append((np.mean(values[0]), [f"`{arm}`", str(labels), str(len(own)), *cells]))
    shown.sort(key=lambda one: -one[0])
    return [[*header, "error of actions, mm", "loss"], *(cells for _, cells in shown)]


def _mean(values: Sequence[float], form: str, scale: float) -> str:
    return form.format(scale * np.mean(values)) if values else "–"
