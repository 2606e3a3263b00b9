"""Whether a quantizer's latent actions can be used, by named thresholds (docs/measures.md).

A check compares a number of the report with its threshold. What was not measured is no failure, but
is named, and so is that training clips were measured.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import binom

COLLAPSE = 2.0  # perplexity: below it a slot tells less than one bit
CODES_USED = 0.5  # of the perplexity that even use would show, up to MANY_CODES codes
MANY_CODES, MANY_CODES_USED = 16, 0.3  # of larger codebooks less is asked
SKILL = 0.0  # over copying the first frame
Z_TELLS = 0.05  # skill from z, less that from the z of another pair
LEAKAGE = 0.25  # of the bits of z, those that the first frame of a new scene tells
MOTION = 0.3  # R² of a linear probe to the true motion, less that from the first frame alone
FEW_PAIRS, FEW_EPISODES = 200, 5  # below these a number is an anecdote

# The worst that holds: (nearly) one code, a check that failed, too little to say; or none of these.
COLLAPSED, WEAK, UNCLEAR, USABLE = "collapsed", "weak", "unclear", "usable"
_ESSENTIAL = ("collapse", "codes_used", "skill", "z_tells")


def even_perplexity(codebook_size: int, pairs: int) -> float:
    """The perplexity that `pairs` draws from evenly used codes show on average."""
    count = np.arange(1, pairs + 1)
    share = count / pairs
    chance = binom.pmf(count, pairs, 1 / codebook_size)
    return 2.0 ** float(-codebook_size * (chance * share * np.log2(share)).sum())


def verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """{word, checks: [{name, value, threshold, passed, told}], notes} of a corpus' report."""
    checks = [check for of in (_codes, _drawn, _scene, _motion) for check in of(report)]
    failed = [check["name"] for check in checks if check["passed"] is False]
    unknown = any(check["passed"] is None and check["name"] in _ESSENTIAL for check in checks)
    few = report["pairs"] < FEW_PAIRS or report["episodes"] < FEW_EPISODES
    word = COLLAPSED if "collapse" in failed else WEAK if failed else USABLE
    if word == USABLE and (unknown or few):
        word = UNCLEAR
    return {"word": word, "checks": checks, "notes": _notes(report, few)}


def lines(name: str, found: Mapping[str, Any]) -> list[str]:
    """The verdict as text, the word first."""
    marks = {True: "ok", False: "NOT", None: "?"}
    told = [f"  {marks[c['passed']]:3} {c['name']}: {c['told']}" for c in found["checks"]]
    return [f"{name}: {found['word']}", *told, *(f"  note: {note}" for note in found["notes"])]


def _check(
    name: str, value: float | None, threshold: float, told: str, *, most: bool = False, lacks: str
) -> dict[str, Any]:
    """told: what the value is, with {value} and {threshold}. most: it may not be above. lacks: why
    there may be no value."""
    bound = f"{'at most' if most else 'at least'} {threshold:.3g}"
    passed = None
    if value is not None:
        passed = bool(value <= threshold if most else value >= threshold)
        told = told.format(value=f"{value:.3g}", threshold=bound)
    else:
        told = f"not measured: {lacks}"
    return dict(name=name, value=value, threshold=threshold, passed=passed, told=told)


def _codes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    codes = report.get("codes")
    if codes is None:  # the latent stays continuous
        return []
    size = codes["codebook_size"]
    even = even_perplexity(size, codes["samples"])
    share = CODES_USED if size <= MANY_CODES else MANY_CODES_USED
    used = f"perplexity {{value}}, {{threshold}}: {share:g} of what {size} codes used evenly show"
    value, lacks = codes["mean_perplexity"], "no codes"
    if even < COLLAPSE:  # so few draws look alike however codes are used
        value, lacks = None, f"{codes['samples']} pairs cannot show perplexity {COLLAPSE:g}"
    return [
        _check("collapse", value, COLLAPSE, "perplexity {value}, {threshold}", lacks=lacks),
        _check("codes_used", value, share * even, used, lacks=lacks),
    ]


def _drawn(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    drawn, lacks = report["reconstruction"], "the frames never change"
    skill, other = drawn["skill"], drawn.get("skill_exchanged")
    gain = None if skill is None or other is None else skill - other
    copying = "skill {value} over copying the first frame, {threshold}"
    telling = "skill {value} above that with the z of another pair, {threshold}"
    return [
        _check("skill", skill, SKILL, copying, lacks=lacks),
        _check("z_tells", gain, Z_TELLS, telling, lacks=lacks),
    ]


def _scene(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "codes" not in report:
        return []
    given = report.get("content", {}).get("code_given_scene", {}).get("other_episodes")
    share = None
    if given and given["marginal_bits"]:
        share = given["explained_bits"] / given["marginal_bits"]
    told = "the first frame of a new scene tells {value} of the bits of z, {threshold}"
    lacks = "`lapa evaluate` does, on 3 episodes or more"
    return [_check("leakage", share, LEAKAGE, told, most=True, lacks=lacks)]


def _motion(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    probe = report.get("probe")
    if probe is None:  # a corpus without actions
        return []
    of_z, of_frame = (probe[name]["r2_mean"] for name in ("latent_action", "first_frame"))
    gain = None if of_z is None else of_z - max(of_frame or 0.0, 0.0)
    told = "R² of the true motion {value} above that of the first frame, {threshold}"
    return [_check("motion", gain, MOTION, told, lacks="the actions never change")]


def _notes(report: Mapping[str, Any], few: bool) -> list[str]:
    notes = []
    if seen := report["seen_in_training"]:
        notes.append(
            f"{seen:.0%} of the pairs are of episodes that the quantizer was trained on, which "
            "look better than new ones: train on a part (data.corpora.<name>.fraction, or "
            "holdout= of the config) and evaluate with --holdout"
        )
    if few:
        notes.append(
            f"few were measured ({report['pairs']:,} pairs, episodes: {report['episodes']:,}): "
            f"less than {FEW_PAIRS} pairs or {FEW_EPISODES} episodes say little of others"
        )
    if report["reconstruction"]["skill"] is None:
        notes.append("the frames never change: there is no motion to tell")
    return notes
