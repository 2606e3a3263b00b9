"""A new config without its model, which each stage adds; and the check of a whole one.

Here are the keys, with their ranges and defaults, of what belongs to no part. Parts keep their own
(nn/registry.py), and so does the loader (data_pipelines/loader/settings.py).
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any

from ml_collections import ConfigDict

from data_pipelines import keys
from data_pipelines.loader.settings import CorpusSettings, DataSettings
from lapa_jax import envs
from lapa_jax.latent import architecture
from lapa_jax.latent.bottlenecks import BOTTLENECKS
from lapa_jax.latent.objectives import OBJECTIVES
from lapa_jax.latent.teacher import MaskedAutoencoderConfig
from lapa_jax.nn.layers import DTYPES
from lapa_jax.nn.registry import Registry, default_settings, named_settings
from lapa_jax.nn.vit import ViTConfig
from lapa_jax.parallel.sharding import PRESETS
from lapa_jax.policy.front_end import FRONT_ENDS
from lapa_jax.policy.heads import HEADS
from lapa_jax.policy.image_tokenizer import ImageTokenizerConfig
from lapa_jax.policy.state import StateConfig
from lapa_jax.policy.vla import VLAConfig
from lapa_jax.stages import STAGES
from lapa_jax.stages.augmentation import AUGMENTATIONS, augment_settings
from lapa_jax.stages.policy import RowSettings
from lapa_jax.training.groups import Group, read_groups
from lapa_jax.training.guard import GuardConfig
from lapa_jax.training.optimizer import OPTIMIZERS, make_schedule, optimizer_settings
from lapa_jax.world.config import TOKENIZER_KEY, DynamicsConfig
from lapa_jax.world.tokenizers import tokenizer_of

POLICIES = ("latent_pretraining", "action_finetuning")


def corpus_settings(path: str, **changes: Any) -> dict[str, Any]:
    """One corpus of a mixture."""
    return {"path": path, **default_settings(CorpusSettings), **changes}


def env_settings(name: str, **changes: Any) -> ConfigDict:
    """evaluation.env of a new config."""
    return named_settings(name, envs.ENVS, "evaluation.env", **changes)


_FRAMES = {"quantizer": 2, "image_tokenizer": 2, "dynamics": 5}  # of an example, in a new config


def data_settings(stage: str) -> ConfigDict:
    """config.data, without corpora."""
    return default_settings(
        DataSettings,
        corpora={},
        image_size=(64, 64),
        num_frames=_FRAMES.get(stage, 1),
        history_seconds=0.5 if stage in POLICIES else 0.0,
        augment=augment_settings("none"),  # of images in training
    )


_SIZE = "[1, 1048576] or -1"


@dataclass(frozen=True)
class StageSettings:
    """The keys of a config itself."""

    stage: Annotated[str, STAGES, "the training task"]
    data: Annotated[Mapping[str, Any], "what is read"]
    model: Annotated[Mapping[str, Any], "what is trained"]
    optimizer: Annotated[Mapping[str, Any], "how it is trained"]
    mesh: Annotated[Mapping[str, Any], "how devices share the work"]
    checkpoint: Annotated[Mapping[str, Any], "what is kept"]
    guard: Annotated[Mapping[str, Any], "against steps that are no good"]
    evaluation: Annotated[Mapping[str, Any], "during training"]
    logging: Annotated[Mapping[str, Any], "besides metrics.jsonl"]
    compute_dtype: Annotated[str, DTYPES, "of activations"]
    seed: Annotated[int, "[0, 4294967295]", "of all randomness"] = 0
    steps: Annotated[int, "[1, 1e9]", "of the optimizer"] = 1000
    global_batch: Annotated[int, "[1, 1e7]", "examples per optimizer step, over all hosts"] = 64
    microbatches: Annotated[
        int, "[1, 1e7]", "gradient accumulation: the batch in this many parts"
    ] = 1
    compile_effort: Annotated[
        str,
        ("full", "least"),
        "least: on CPUs the step compiles in a quarter of the time and takes twice as long",
    ] = "full"
    log_every_steps: Annotated[int, "[1, 1e9]", "lines of metrics.jsonl"] = 50
    init_from: Annotated[str, "workdir of the run whose parameters to start from"] = ""


@dataclass(frozen=True)
class LatentSettings(StageSettings):
    """The same where latent actions are predicted."""

    code_length: Annotated[int, "[1, 4096]", "codes of a latent action in the label set"] = 1


@dataclass(frozen=True)
class MeshSettings:
    preset: Annotated[str, PRESETS, "sharding rules, see docs/sharding.md"] = "dp"
    data: Annotated[int, _SIZE, "-1: all devices that the other axes leave"] = -1
    fsdp: Annotated[int, _SIZE, "devices that share parameters and the batch"] = 1
    seq: Annotated[int, _SIZE, "devices that share the tokens of a row"] = 1
    tensor: Annotated[int, _SIZE, "devices that share the width of layers"] = 1


@dataclass(frozen=True)
class CheckpointSettings:
    every_steps: Annotated[int, "[1, 1e9]", "one is written"] = 500
    every_minutes: Annotated[
        float,
        "[0, 1e6]",
        "also when so long has passed since the last one; looked at when metrics are logged; 0.0: "
        "not",
    ] = 0.0
    keep: Annotated[int, "[1, 1e6]", "the newest"] = 2
    keep_every_steps: Annotated[
        int, "[0, 1e9]", "besides, those of steps that this divides; 0: none"
    ] = 0
    best_metric: Annotated[
        str,
        "besides, the one with the best value of a metric of evaluation.jsonl, as mse; empty: none",
    ] = ""
    best_is: Annotated[str, ("lowest", "highest"), "which value of best_metric is best"] = "lowest"


@dataclass(frozen=True)
class EvaluationSettings:
    env: Annotated[Mapping[str, Any], "world of the episodes, by name"]
    every_steps: Annotated[int, "[0, 1e9]", "0: no evaluation during training"] = 0
    batches: Annotated[int, "[1, 1e6]", "of global_batch examples, the same ones each time"] = 8
    corpora: Annotated[
        tuple[str, ...],
        "not empty",
        "directories, read as the first corpus of training is; empty: the corpora of training",
    ] = ()
    split: Annotated[str, "not empty", "of these directories"] = "train"
    episodes: Annotated[
        int,
        "[0, 1e6]",
        "of an action VLA in closed loop, per family of the environment's tasks; 0: none; one "
        "process",
    ] = 0
    execution_horizon: Annotated[
        int,
        "[1, 1e4]",
        "actions of a chunk, of data.action_horizon, that are taken before the policy is asked "
        "again: here, in `lapa evaluate`, and of whoever acts with the run and says no other",
    ] = 1


@dataclass(frozen=True)
class LoggingSettings:
    tensorboard: Annotated[bool, "event files in the workdir"] = True
    wandb_project: Annotated[str, "of Weights & Biases; empty: not there"] = ""


def stage_settings(stage: str) -> ConfigDict:
    """A config of that stage with everything but the model."""
    return default_settings(
        StageSettings,
        stage=stage,
        data=data_settings(stage),
        optimizer=optimizer_settings(),
        mesh=default_settings(MeshSettings),
        checkpoint=default_settings(CheckpointSettings),
        guard=default_settings(GuardConfig),
        evaluation=default_settings(EvaluationSettings, env=env_settings("tabletop")),
        logging=default_settings(LoggingSettings),
    )


# --- The check of a whole config ---

MODELS: dict[str, tuple[type, ...]] = {
    "teacher": (MaskedAutoencoderConfig,),
    "dynamics": (DynamicsConfig,),
    **dict.fromkeys(POLICIES, (VLAConfig, RowSettings)),
}
# Of models that config.model chooses as a whole: what gives (config class, module class).
WHOLE_MODELS = {"quantizer": architecture, "image_tokenizer": tokenizer_of}
# What stands under a key: settings of one kind, or {name, ...settings}. "*" is any name.
KINDS: dict[str, type | Registry] = {
    "data": DataSettings,
    "data.corpora.*": CorpusSettings,
    "data.augment": AUGMENTATIONS,
    "model.bottleneck": BOTTLENECKS,
    "model.objective": OBJECTIVES,
    "model.objective.augment": AUGMENTATIONS,
    "model.objective.teacher": ViTConfig,
    "model.encoder": ViTConfig,
    "model.objective.of": OBJECTIVES,
    "model.objective.of.augment": AUGMENTATIONS,
    "model.objective.of.teacher": ViTConfig,
    f"{TOKENIZER_KEY}.bottleneck": BOTTLENECKS,
    "model.front_end": FRONT_ENDS,
    "model.front_end.tokenizer": ImageTokenizerConfig,
    "model.targets.*": HEADS,
    "model.state": StateConfig,
    "optimizer": OPTIMIZERS,
    "optimizer.groups.*": Group,
    "mesh": MeshSettings,
    "checkpoint": CheckpointSettings,
    "guard": GuardConfig,
    "evaluation": EvaluationSettings,
    "evaluation.env": envs.ENVS,
    "logging": LoggingSettings,
}


@dataclass(frozen=True)
class _Beside:
    corpora: Annotated[Mapping[str, Any], "the mixture, by name"]
    augment: Annotated[Mapping[str, Any], "of images in training, by name"]


def parts(config: ConfigDict) -> Iterator[tuple[str, dict[str, Any], tuple[type, ...]]]:
    """(key, settings, dataclasses of their keys) of a config itself, key "", and of all that is in
    it. What cannot be read as settings raises ValueError."""
    yield from _parts(config.to_dict(), "", config.get("stage"))


@functools.cache
def _named(choices: tuple[str, ...]) -> type:
    """The key that chooses among the parts of a registry."""
    return make_dataclass("Named", [("name", Annotated[str, choices, "which one"])])


def _parts(values: dict[str, Any], key: str, stage: str) -> Iterator[Any]:
    above, _, _ = key.rpartition(".")
    above = key if key in KINDS else f"{above}.*"
    kind = KINDS.get(above)
    if not key:
        yield key, values, (LatentSettings if "code_length" in values else StageSettings,)
    elif key == "model":
        of_whole = WHOLE_MODELS.get(stage)
        yield key, values, of_whole(values)[:1] if of_whole else MODELS.get(stage, ())
    elif key == TOKENIZER_KEY:
        yield key, values, tokenizer_of(values, key)[:1]
    elif isinstance(kind, Mapping):
        name = values.get("name")
        if not isinstance(name, str) or name not in kind:
            raise ValueError(f"{key}.name={name!r} must be one of {sorted(kind)}")
        yield key, values, (_named(tuple(kind)), kind[name][0])
    elif kind:
        yield key, values, (kind, _Beside) if key == "data" else (kind,)
    for name, value in values.items():
        where = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            yield from _parts(value, where, stage)
        elif f"{key}.*" in KINDS:
            raise ValueError(f"{where}={value!r} must be a mapping of keys")


def explained(config: ConfigDict) -> Iterator[tuple[str, Any, str]]:
    """(key, value, what it means and may be) of a config that was checked."""
    for key, values, kinds in parts(config):
        for one in (one for kind in kinds for one in keys.of(kind)):
            if not isinstance(values[one.name], dict):
                where = f"{key}.{one.name}" if key else one.name
                yield where, values[one.name], f"{one.doc} ({one})"


def check(config: ConfigDict) -> None:
    """Raises ValueError, which names the key, the value and what it must be, for a config that
    cannot be trained by what its keys alone say. Reads no file."""
    if config.stage == "image_tokenizer" and config.model.get("architecture") == "vqgan":
        raise ValueError(
            "model.architecture='vqgan' of stage 'image_tokenizer' cannot be trained, as 'patches' "
            "can: its runs come from lapa import --format vqgan_pickle"
        )
    for key, values, kinds in parts(config):
        keys.check(kinds, values, key)
    data = DataSettings.of(config.data)
    executed = config.evaluation.execution_horizon
    if executed > data.action_horizon:
        raise ValueError(
            f"evaluation.execution_horizon={executed} must be at most data.action_horizon="
            f"{data.action_horizon}, the actions that are predicted at once"
        )
    read_groups(config.optimizer.groups)
    make_schedule(config.optimizer, config.steps)
    envs.make(config.evaluation.env)
