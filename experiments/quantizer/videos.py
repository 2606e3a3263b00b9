"""A quantizer on a folder of your own clips.

Shows: code usage, reconstructions and the atlas of codes for videos that nobody labelled.

    lapa demo --videos my_clips                     # converts, trains and reports
    lapa data convert video my_clips --out data/my_clips --fps 10 --size 64     # or by hand
    lapa train --config experiments/quantizer/videos.py:data=data/my_clips,holdout=0.1 \\
        --workdir runs/quantizer
    lapa evaluate --workdir runs/quantizer --holdout     # on the clips that were left out

Cost: 0.14 M parameters; as experiments/quantizer/tabletop.py, 900 steps in about two minutes on two
cores of an AMD EPYC. quick=True runs in about a minute there.
"""

import math

from ml_collections import ConfigDict

from experiments import base
from experiments.quantizer import tabletop


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`: the corpus, with frames of `size` pixels a side;
    `sidecars`: where its index is, if not beside it. `window`: seconds of a pair. `holdout`: part
    of the clips that training leaves out, for `lapa evaluate --holdout`."""
    arg = base.parse_arg(arg, data="data/my_clips", window=0.5, holdout=0.0, size=64, sidecars="")
    config = tabletop.get_config(f"quick={arg.quick}")
    if not 0 <= arg.holdout < 1:
        raise ValueError(f"holdout={arg.holdout} must be 0 or more, and below 1")
    found = dict(sidecar_dir=arg.sidecars, fraction=1.0 - arg.holdout, **base.AS_INDEXED)
    videos = base.corpus(arg.data, window_seconds=arg.window, **found)
    config.data.corpora = ConfigDict({"videos": videos})
    config.data.image_size = (arg.size, arg.size)
    config.model.patch_size = patch_of((arg.size, arg.size), config.model.patch_size)
    return config


def patch_of(sides: tuple[int, int], of_64: int = 8) -> int:
    """Pixels a side of the patches that frames of these sides are cut into, as near as may be to
    as many as 64 px have in patches of `of_64`. Raises ValueError where none is near."""
    wanted, common = min(sides) * of_64 / 64, math.gcd(*sides)
    near = range(max(1, math.ceil(wanted / 2)), max(1, int(2 * wanted)) + 1)
    fitting = [patch for patch in near if common % patch == 0]
    if not fitting:
        patch = max(1, round(wanted))
        better = [max(1, round(side / patch)) * patch for side in sides]
        size = "x".join(map(str, dict.fromkeys(better) if sides[0] == sides[1] else better))
        raise ValueError(
            f"frames of {sides[0]}x{sides[1]} pixels cannot be cut into square patches of about "
            f"{patch}: `lapa data convert --size {size}` makes frames that can"
        )
    return min(fitting, key=lambda patch: abs(math.log(patch / wanted)))
