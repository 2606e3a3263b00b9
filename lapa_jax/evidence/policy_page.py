"""What a policy's evaluation looks like as a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lapa_jax.evidence import action_errors
from lapa_jax.evidence.page import of_the_training
from lapa_jax.machine.environment import describe_environment
from lapa_jax.report import figures
from lapa_jax.report.html import Report, estimate
from lapa_jax.runs.loaded import Model

MOST = 12  # dimensions of the chunks that are drawn


def write(path: Path, run: Model, result: Mapping[str, Any], left_out: str) -> None:
    """Writes the report of `lapa evaluate`; left_out: why there was no closed loop, or ""."""
    report = Report("What the policy predicts", f"{run.workdir}, step {run.step:,}.")
    if tokens := result.get("tokens"):
        section = report.section(
            "Training's own metrics",
            f"Means over {tokens['examples']:,} examples of "
            f"{', '.join(Path(name).name for name in result['corpora'])}.",
        )
        told = [k for k in tokens if k != "examples" and not k.endswith("_interval")]
        section.table(
            ["metric", "value"],
            [[k, estimate(tokens[k], *tokens.get(f"{k}_interval", ()))] for k in told],
            "Without a policy: the most common token of other episodes, and a logistic regression "
            "on the frame." * any("majority" in k for k in told),
        )
    for name, found in result.get("actions", {}).items():
        section = report.section(
            f"Actions on {Path(name).name}",
            f"{found['examples']:,} examples of {found['episodes']:,} episodes"
            f"{of_the_training(found['seen_in_training'])}. Errors are in the units of the data. "
            "The policy sees the recorded images: they do not add up as they do where it acts "
            "itself.",
        )
        head, *rows = action_errors.table(found)
        intervals = found[action_errors.POLICY]["l1_interval"]
        for row, interval in zip(rows, intervals, strict=True):
            row[1] = estimate(row[1], *interval)
        section.table(
            head,
            rows,
            "L1 is the mean absolute error, with its 95 % interval by resampling episodes; R² is 1 "
            "less the MSE by that of the mean action of these examples. To compare with, L1 of the "
            "mean action, of the action before repeated, and, of policies with tokens, of the true "
            "actions as their tokens say them, about the least that such a policy can reach. Out "
            "of range: the share of the numbers beyond those that become -1 and 1, by the "
            "statistics of the training.",
        )
        if found["decoded"] < 1.0:
            section.text(
                f"{1.0 - found['decoded']:.1%} of the answers say no actions, or some that are not "
                "finite: nothing would be taken of them, and they are in no error."
            )
        if by_step := action_errors.steps_table(found):
            section.table(*_split(by_step), "L1 by the step of the chunk.")
            names = [row[0] for row in rows]
            shown = names[:MOST]
            left = f" The first {MOST} of {len(names)} dimensions." if names[MOST:] else ""
            section.figure(
                figures.chunk_curves(found["chunks"], shown),
                "The longest chunks of these examples, ordered by their error in units of the "
                f"spread of each dimension.{left}",
            )
    if "success" in result:
        section = report.section("Closed loop", "Share of episodes that succeed, with 95 %.")
        section.table(
            ["family", "success", "episodes"],
            [
                [family, estimate(one["estimate"], one["low"], one["high"]), one["episodes"]]
                for family, one in result["success"].items()
            ],
        )
    elif left_out:
        report.section("Closed loop").text(f"Not measured: {left_out}.")
    closing = report.section("How this was made")
    closing.settings("Versions and hardware", describe_environment())
    closing.settings("Config of the run", run.config.to_dict())
    report.write(path)


def _split(table: list[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    head, *rows = table
    return head, rows
