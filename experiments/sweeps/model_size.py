"""Model size: what a wider and deeper quantizer gains.

Shows: perplexity, skill and the probe's R² over width x decoder depth.

    lapa sweep experiments/sweeps/model_size.py --workdir runs/sweep_size

Cost: 9 runs of experiments/quantizer/tabletop.py and larger; quick=True has 2 of its quick form.
"""

from experiments import base
from experiments.quantizer import tabletop


def get_sweep(arg: str | None = None) -> dict:
    """`quick`, `data`, `views` as for the quantizer."""
    arg = base.parse_arg(arg, quick=False, data="data/tabletop", views="human+robot")
    config = tabletop.get_config(f"quick={arg.quick},data={arg.data},views={arg.views}")
    widths, depths = ((16, 32), (1,)) if arg.quick else ((48, 96, 192), (1, 2, 4))
    return {"config": config, "grid": {"model.dim": widths, "model.decoder_depth": depths}}
