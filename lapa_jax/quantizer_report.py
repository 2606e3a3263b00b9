"""What a quantizer's evaluation looks like: pictures and tables for any report."""

from typing import Any

import jax
import numpy as np

from lapa_jax import runs
from lapa_jax.diagnostics.codebook import actions_per_code
from lapa_jax.evaluate_quantizer import QuantizerEvaluation
from lapa_jax.report import figures
from lapa_jax.report.html import Section

MAX_CODES = 16  # columns of the atlas


def quantizer_pictures(section: Section, found: QuantizerEvaluation, view: str) -> None:
    report = found.report
    shown = np.linspace(0, len(found.z) - 1, 8).astype(int)
    section.figure(
        figures.reconstruction_grid(
            found.first[shown],
            found.last[shown],
            found.recon[shown],
            labels=[f"z = {_name(z)}" for z in found.z[shown]],
        ),
        f"{view}: pairs {report['window_seconds']:g} s apart and the later frame as predicted from "
        f"the first frame and z. Skill {report['reconstruction']['skill']:.2f}, PSNR "
        f"{report['reconstruction']['psnr']:.1f} dB.",
    )
    section.figure(
        figures.code_usage(report["codes"]["histogram"]),
        f"{view}: how often each code is used. Perplexity "
        f"{report['codes']['mean_perplexity']:.2f}.",
    )
    if found.actions is not None:
        rows = actions_per_code(found.z, found.actions, _codebook_size(report))
        section.figure(
            figures.code_meaning(rows, names=("x, metres a window", "y, metres a window")),
            f"{view}: the true motion under each latent action, which the quantizer never saw: "
            "arrows to the mean, ellipses of one standard deviation.",
        )
        section.table(
            ["features", "R² x", "R² y", "mean R²"],
            [[name, *p["r2"], p["r2_mean"]] for name, p in report["probe"].items()],
            f"{view}: linear probe to the true motion, tested on other episodes; beside the "
            "controls that see shuffled z or the first frame only.",
        )


def _codebook_size(report: dict[str, Any]) -> int:
    return len(report["codes"]["histogram"][0])


def _name(z: np.ndarray) -> str:
    return " ".join(str(int(code)) for code in z)


def atlas(quantizer: runs.Run, heldout: dict[str, QuantizerEvaluation]) -> Any:
    """Common latent actions decoded from a few start frames of every view."""
    everything = np.concatenate([found.z for found in heldout.values()])
    codes, counts = np.unique(everything, axis=0, return_counts=True)
    codes = codes[np.sort(np.argsort(-counts, kind="stable")[:MAX_CODES])]
    per_view = 3 if len(heldout) == 1 else 2
    starts = np.concatenate(
        [
            found.first[np.linspace(0, len(found.first) - 1, per_view + 2).astype(int)[1:-1]]
            for found in heldout.values()
        ]
    )
    repeated = np.repeat(starts, len(codes), axis=0)
    z = np.tile(codes, (len(starts), 1)).astype(np.int32)
    decoded = jax.jit(quantizer.stage.decode)(quantizer.params, quantizer.variables, repeated, z)
    decoded = np.asarray(decoded).reshape(len(starts), len(codes), *starts.shape[1:])
    return figures.atlas(starts, np.clip(decoded, 0, 1), [f"z = {_name(c)}" for c in codes])
