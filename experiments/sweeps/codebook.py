"""Codebook size x code length: how much a latent action must hold.

Shows: perplexity, skill and the probe's R² of 8 codebook sizes x 4 code lengths.

    lapa sweep experiments/sweeps/codebook.py --workdir runs/sweep --dry_run
    lapa sweep experiments/sweeps/codebook.py --workdir runs/sweep --index 0 --count 8

Cost: 32 runs of experiments/quantizer/tabletop.py, about two minutes each on two cores of an AMD
EPYC, larger codebooks longer; quick=True has 2 x 2 points of its quick form.
"""

from experiments.sweeps.grid import over_tabletop

SIZES, LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256), (1, 2, 4, 8)


def get_sweep(arg: str | None = None) -> dict:
    """`quick`, `data`, `views` as for the quantizer."""

    def grid(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> dict:
        return {"model.codebook_size": sizes, "model.code_length": lengths}

    sweep = over_tabletop(arg, grid(SIZES, LENGTHS), quick=grid((4, 8), (1, 2)))
    sweep["config"].model.bottleneck.recent_size = 16 * max(sweep["grid"]["model.codebook_size"])
    return sweep
