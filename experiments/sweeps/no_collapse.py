r"""Do codes stay in use? Codebook size x seed of a shipped quantizer config in its quick form.

Shows: perplexity by codebook size, over three seeds. The aim is half of the codebook for 8 and 16
codes and three tenths for 64 and 256; docs/trials.md has what is reached.

    lapa sweep experiments/sweeps/no_collapse.py:recipe=tabletop,data=data/tabletop/robot \
        --workdir runs/no_collapse
    lapa sweep experiments/sweeps/no_collapse.py:recipe=paper,data=BRIDGE,image_key=image_0,\
fps=5.0,window=0.6 --workdir runs/no_collapse_bridge

Cost: 12 runs of the recipe's quick form, about a minute each on two CPU cores for the tabletop's;
quick=True has 2 of them.
"""

from ml_collections import ConfigDict

from experiments import base
from experiments.quantizer import paper, tabletop, videos

RECIPES = {"tabletop": tabletop, "videos": videos, "paper": paper}


def get_sweep(arg: str | None = None) -> dict:
    """`recipe`: of experiments/quantizer. `data`: one corpus with frames of `size` pixels a side;
    `sidecars`: where its index is, if not beside it; `fps` 0: as it says."""
    corpus = dict(data="data/tabletop/robot", size=64, window=0.2, fps=0.0, image_key="image")
    arg = base.parse_arg(arg, recipe="tabletop", sidecars="", **corpus)
    if arg.recipe not in RECIPES:
        raise ValueError(f"recipe={arg.recipe!r} must be one of {sorted(RECIPES)}")
    config = RECIPES[arg.recipe].get_config("quick=True")
    # The grid of patches stays that of the recipe.
    config.model.patch_size = config.model.patch_size * arg.size // config.data.image_size[0]
    config.data.image_size = (arg.size, arg.size)
    corpus = base.corpus(
        arg.data,
        sidecar_dir=arg.sidecars,
        window_seconds=arg.window,
        fps=arg.fps,
        image_key=arg.image_key,
    )
    config.data.corpora = ConfigDict({"corpus": corpus})
    sizes, seeds = (8, 16, 64, 256), (0, 1, 2)
    if arg.quick:
        sizes, seeds = (8, 16), (0,)
    return {"config": config, "grid": {"model.codebook_size": sizes, "seed": seeds}}
