"""Model size: what a wider and deeper quantizer gains.

Shows: perplexity, skill and the probe's R² over width x decoder depth.

    lapa sweep experiments/sweeps/model_size.py --workdir runs/sweep_size

Cost: 9 runs of experiments/quantizer/tabletop.py and larger; quick=True has 2 of its quick form.
"""

from experiments.sweeps.grid import over_tabletop


def get_sweep(arg: str | None = None) -> dict:
    """`quick`, `data`, `views` as for the quantizer."""

    def grid(widths: tuple[int, ...], depths: tuple[int, ...]) -> dict:
        return {"model.dim": widths, "model.decoder_depth": depths}

    return over_tabletop(arg, grid((48, 96, 192), (1, 2, 4)), quick=grid((16, 32), (1,)))
