"""Codebook size x code length: how much a latent action must hold.

Shows: perplexity, skill and the probe's R² of 8 codebook sizes x 4 code lengths.

    lapa sweep experiments/sweeps/codebook.py --workdir runs/sweep --dry_run
    lapa sweep experiments/sweeps/codebook.py --workdir runs/sweep --index 0 --count 8

Cost: 32 runs of experiments/quantizer/tabletop.py, which reads what it says there; quick=True has
2 x 2 points of its quick form.
"""

from experiments import base
from experiments.quantizer import tabletop


def get_sweep(arg: str | None = None) -> dict:
    """`quick`, `data`, `views` as for the quantizer."""
    arg = base.parse_arg(arg, quick=False, data="data/tabletop", views="human+robot")
    config = tabletop.get_config(f"quick={arg.quick},data={arg.data},views={arg.views}")
    sizes, lengths = (2, 4, 8, 16, 32, 64, 128, 256), (1, 2, 4, 8)
    if arg.quick:
        sizes, lengths = (4, 8), (1, 2)
    return {
        "config": config,
        "grid": {"model.codebook_size": sizes, "model.code_length": lengths},
    }
