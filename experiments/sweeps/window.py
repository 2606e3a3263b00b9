"""Window: how far apart the two frames of a pair should be.

Shows: perplexity, skill and the probe's R² of five windows. Skill compares with a copy of the first
frame, which is worse the longer the window: compare R².

    lapa sweep experiments/sweeps/window.py --workdir runs/sweep_window

Cost: 5 runs of experiments/quantizer/tabletop.py; quick=True has 2 of its quick form.
"""

from experiments import base
from experiments.quantizer import tabletop


def get_sweep(arg: str | None = None) -> dict:
    """`quick`, `data`, `views` as for the quantizer."""
    arg = base.parse_arg(arg, quick=False, data="data/tabletop", views="human+robot")
    config = tabletop.get_config(f"quick={arg.quick},data={arg.data},views={arg.views}")
    windows = (0.2, 0.4) if arg.quick else (0.1, 0.2, 0.3, 0.4, 0.6)
    return {"config": config, "grid": {"data.corpora.*.window_seconds": windows}}
