"""Data: how many videos a quantizer needs.

Shows: perplexity, skill and the probe's R² over the share of the episodes that training draws from;
every point takes as many steps, and is measured on all episodes unless --corpus names others.

    lapa sweep experiments/sweeps/data.py --workdir runs/sweep_data --corpus data/heldout/robot

Cost: 5 runs of experiments/quantizer/tabletop.py; quick=True has 2 of its quick form.
"""

from experiments.sweeps.grid import over_tabletop

KEY = "data.corpora.*.fraction"


def get_sweep(arg: str | None = None) -> dict:
    """`quick`, `data`, `views` as for the quantizer."""
    return over_tabletop(arg, {KEY: (0.01, 0.03, 0.1, 0.3, 1.0)}, quick={KEY: (0.1, 1.0)})
