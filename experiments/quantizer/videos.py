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

from ml_collections import ConfigDict

from experiments import base
from experiments.quantizer import tabletop


def get_config(arg: str | None = None) -> ConfigDict:
    """`quick`: a minute on a CPU. `data`: the converted corpus. `window`: seconds of a pair.
    `holdout`: part of the clips that training leaves out, for `lapa evaluate --holdout`."""
    arg = base.parse_arg(arg, data="data/my_clips", window=0.5, holdout=0.0)
    config = tabletop.get_config(f"quick={arg.quick}")
    as_indexed = dict(image_key="", action_key="", instruction_key="")
    if not 0 <= arg.holdout < 1:
        raise ValueError(f"holdout={arg.holdout} must be 0 or more, and below 1")
    fraction = 1.0 - arg.holdout
    videos = base.corpus(arg.data, window_seconds=arg.window, fraction=fraction, **as_indexed)
    config.data.corpora = ConfigDict({"videos": videos})
    return config
