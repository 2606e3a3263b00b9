"""The training tasks by name. A new one is a file here and a line in `STAGES`."""

from ml_collections import ConfigDict

from lapa_jax.stages.dynamics import DynamicsStage
from lapa_jax.stages.image_tokenizer import ImageTokenizerStage
from lapa_jax.stages.policy import PolicyStage
from lapa_jax.stages.quantizer import QuantizerStage
from lapa_jax.stages.stage import Assets, Stage
from lapa_jax.stages.teacher import TeacherStage

STAGES: dict[str, type[Stage]] = {
    "teacher": TeacherStage,
    "image_tokenizer": ImageTokenizerStage,
    "quantizer": QuantizerStage,
    "dynamics": DynamicsStage,
    "latent_pretraining": PolicyStage,
    "action_finetuning": PolicyStage,
}


def get(name: str) -> type[Stage]:
    if name not in STAGES:
        raise ValueError(f"config.stage={name!r} is unknown; known: {sorted(STAGES)}")
    return STAGES[name]


def build(config: ConfigDict, assets: Assets) -> Stage:
    """The stage of a config; raises ValueError naming an asset that it needs and `assets` lacks."""
    return get(config.stage)(config, _Assets(assets))


class _Assets(dict):
    def __missing__(self, name: str) -> bytes:
        raise ValueError(f"the run has no asset {name!r}; there are: {sorted(self) or 'none'}")
