"""A new config: what belongs to no part of a model, with its defaults. Parts keep their own.

The model is missing, which each stage adds; see also nn/registry.py.
"""

from typing import Any

from ml_collections import ConfigDict

from lapa_jax.stages.augmentation import augment_settings
from lapa_jax.training.optimizer import optimizer_settings

POLICIES = ("latent_pretraining", "action_finetuning")


def corpus_settings(path: str, **changes: Any) -> dict[str, Any]:
    """One corpus of a mixture."""
    return {
        "path": path,  # directory with the TFRecord shards
        "split": "train",
        "sidecar_dir": "",  # where index and label sets lie; empty: beside the shards
        "weight": 1.0,  # share of the mixture, relative to the others
        "fraction": 1.0,  # of its episodes that are drawn from
        "action_fraction": 1.0,  # of its episodes whose actions are known; those of the others not
        "min_episode_steps": 0,  # shorter episodes are not drawn from
        "require_instruction": False,  # of episodes drawn from, where training does not need it
        "window_seconds": 0.6,  # time between the two frames of a pair
        "fps": 0.0,  # 0.0: from the episodes' metadata
        # Of the index; image_key "": the only one there is, the others "": those it was built with.
        "image_key": "image",
        "extra_image_keys": (),  # further cameras of each example, after image_key
        "action_key": "action",
        "instruction_key": "language_instruction",
        "label_set": "",  # name of the label set that gives latent actions
        "image_token_set": "",  # name of the set that gives image tokens, of each camera
    } | changes


def data_settings(stage: str) -> dict[str, Any]:
    """config.data, without corpora."""
    return {
        "image_size": (64, 64),  # height, width in pixels
        "num_frames": 2 if stage == "quantizer" else 1,
        # Time between the frames of an example, which end at the current one. 0.0: they begin
        # there, window_seconds of their corpus apart.
        "history_seconds": 0.5 if stage in POLICIES else 0.0,
        "chain_pairs": 1,  # pairs of one episode side by side in the batch, sharing frames
        "sampling": "per_frame",  # or per_video, as the paper's code
        # Of frames a window apart, the mean difference in 0..255 below which neither pair nor label
        # is drawn. Above 0.0 it needs `lapa data motion`.
        "min_pair_difference": 0.0,
        "tail": "drop",  # frames beyond the episode; or clamp, as the paper's code
        "action_horizon": 1,  # actions of an example, of so many steps from its own on
        # Past the end of the episode: repeat the last one; or no_motion, where all dimensions but
        # action_absolute are zero; or drop, which draws whole ones alone.
        "action_padding": "repeat",
        "action_absolute": (),  # dimensions that are no motion, as (-1,): the gripper's
        # Or windowed: whole blocks, for object stores. The three keys below are for that alone.
        "access": "random",
        "block_mib": 64.0,  # MiB of consecutive episodes that are read at once
        "window_blocks": 2,  # whose samples are permuted together
        "lanes": 8,  # that read for themselves: a multiple of the hosts
        "decode": "auto",  # threads (simplejpeg) or tf (tf.data)
        "num_threads": 2,
        "prefetch_batches": 4,
        "max_bad_fraction": 0.001,  # more undecodable examples than this stop the run
        "augment": augment_settings("none"),  # of images in training
        "corpora": {},
    }


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
                # Of an action VLA in closed loop, per family of the tabletop's tasks; 0: none. One
                # process.
                "episodes": 0,
                "families": ("reach",),
                "blocks": 4,
            },
            "logging": {  # besides metrics.jsonl
                "tensorboard": True,
                "wandb_project": "",  # of Weights & Biases; empty: not there
            },
        }
    )
