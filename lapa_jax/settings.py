"""A new config without its model, which each stage adds.

Here are the defaults of what belongs to no part. Parts keep their own (nn/registry.py), and so does
the loader (data_pipelines/loader/settings.py).
"""

from typing import Any

from ml_collections import ConfigDict

from data_pipelines.loader.settings import CorpusSettings, DataSettings
from lapa_jax.envs import ENVS
from lapa_jax.nn.registry import default_settings, named_settings
from lapa_jax.stages.augmentation import augment_settings
from lapa_jax.training.optimizer import optimizer_settings

POLICIES = ("latent_pretraining", "action_finetuning")


def corpus_settings(path: str, **changes: Any) -> dict[str, Any]:
    """One corpus of a mixture."""
    return {"path": path, **default_settings(CorpusSettings), **changes}


def data_settings(stage: str) -> ConfigDict:
    """config.data, without corpora."""
    return default_settings(
        DataSettings,
        corpora={},
        image_size=(64, 64),
        num_frames=2 if stage == "quantizer" else 1,
        history_seconds=0.5 if stage in POLICIES else 0.0,
        augment=augment_settings("none"),  # of images in training
    )


def stage_settings(stage: str) -> ConfigDict:
    """A config of that stage with everything but the model."""
    return ConfigDict(
        {
            "stage": stage,
            "seed": 0,
            "steps": 1000,
            "global_batch": 64,  # examples per optimizer step, over all hosts
            "microbatches": 1,  # gradient accumulation: the batch in this many parts
            "log_every_steps": 50,
            "init_from": "",  # workdir of the run whose parameters to start from
            "data": data_settings(stage),
            "optimizer": optimizer_settings(),
            "mesh": {
                "preset": "dp",  # sharding rules, see docs/sharding.md
                "data": -1,  # -1: all devices that the other axes leave
                "fsdp": 1,
                "seq": 1,
                "tensor": 1,
            },
            "checkpoint": {
                "every_steps": 500,
                # Also when so long has passed since the last one; looked at when metrics are
                # logged. 0.0: not.
                "every_minutes": 0.0,
                "keep": 2,  # the newest
                "keep_every_steps": 0,  # besides, those of steps that this divides; 0: none
                # Besides, the one with the best value of a metric of evaluation.jsonl, as "mse";
                # "": none.
                "best_metric": "",
                "best_is": "lowest",  # or highest
            },
            "guard": {
                # What happens to a step that is not finite or a spike: stop, skip or rollback.
                "action": "stop",
                "spike_sigmas": 0.0,  # of the loss above its mean; 0.0: no loss is a spike
                # Of mean and deviation; before so many steps none is a spike.
                "memory_steps": 100,
                "max_events": 20,  # steps skipped or rolled back; one more stops the run
            },
            "evaluation": {
                "every_steps": 0,  # 0: no evaluation during training
                "batches": 8,  # of global_batch examples, the same ones each time
                # Directories, read as the first corpus of training is; empty: the corpora of
                # training.
                "corpora": (),
                "split": "train",  # of these directories
                # Of an action VLA in closed loop, per family of the environment's tasks; 0: none.
                # One process.
                "episodes": 0,
                "env": named_settings("tabletop", ENVS, "evaluation.env"),
            },
            "logging": {  # besides metrics.jsonl
                "tensorboard": True,
                "wandb_project": "",  # of Weights & Biases; empty: not there
            },
        }
    )
