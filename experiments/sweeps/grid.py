"""What the sweeps over the tabletop's quantizer share: their arguments and their config."""

from experiments import base
from experiments.quantizer import tabletop


def over_tabletop(arg: str | None, grid: dict, *, quick: dict) -> dict:
    """A sweep over `grid`, or over `quick` of quick forms where `arg` has quick=True; `arg` also
    has `data` and `views`, as for the quantizer."""
    arg = base.parse_arg(arg, data="data/tabletop", views="human+robot")
    config = tabletop.get_config(f"quick={arg.quick},data={arg.data},views={arg.views}")
    return {"config": config, "grid": quick if arg.quick else grid}
