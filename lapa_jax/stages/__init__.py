"""The training tasks by name. A new one is a file here and a line in `STAGES`."""

from ml_collections import ConfigDict

from lapa_jax.stages.image_tokenizer import ImageTokenizerStage
from lapa_jax.stages.policy import PolicyStage
from lapa_jax.stages.quantizer import QuantizerStage
from lapa_jax.stages.stage import Assets, Stage
from lapa_jax.stages.teacher import TeacherStage

STAGES: dict[str, type[Stage]] = {
    "teacher": TeacherStage,
    "image_tokenizer": ImageTokenizerStage,
    "quantizer": QuantizerStage,
    "latent_pretraining": PolicyStage,
    "action_finetuning": PolicyStage,
}


def get(name: str) -> type[Stage]:
    if name not in STAGES:
        raise ValueError(f"config.stage={name!r} is unknown; known: {sorted(STAGES)}")
    return STAGES[name]


def build(config: ConfigDict, assets: Assets) -> Stage:
    return get(config.stage)(config, assets)
