"""Window: how far apart the two frames of a pair should be.

Shows: perplexity, skill and the probe's R² of five windows. Skill compares with a copy of the first
frame, which is worse the longer the window: compare R².

    lapa sweep experiments/sweeps/window.py --workdir runs/sweep_window

Cost: 5 runs of experiments/quantizer/tabletop.py; quick=True has 2 of its quick form.
"""

from experiments.sweeps.grid import over_tabletop

KEY = "data.corpora.*.window_seconds"


def get_sweep(arg: str | None = None) -> dict:
    """`quick`, `data`, `views` as for the quantizer."""
    return over_tabletop(arg, {KEY: (0.1, 0.2, 0.3, 0.4, 0.6)}, quick={KEY: (0.2, 0.4)})
