"""Run directories: claimed by one config, read back whole (config, stage, params, assets)."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash
from ml_collections import ConfigDict

import lapa_jax
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.models import lora
from lapa_jax.models.module import flatten
from lapa_jax.training import checkpoint

# Keys that may differ when a run is continued: none of them changes what is computed, those of
# the guard not before a step that it is for.
MAY_CHANGE = (
    "log_every_steps",
    "checkpoint.",
    "guard.",
    "evaluation.",
    "logging.",
    "data.decode",
    "data.num_threads",
    "data.prefetch_batches",
    "data.max_bad_fraction",
)


def claim(workdir: str | Path, config: ConfigDict) -> Path:
    """Makes `workdir` the directory of this config's run, or checks that it is.

    Raises ValueError listing the keys that differ when it holds a run of another config.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    values = configs.to_dict(config)
    if path.exists():
        changes = configs.difference(json.loads(path.read_text()), values)
        changes = {k: v for k, v in changes.items() if not k.startswith(MAY_CHANGE)}
        if changes:
            lines = [f"  {k}: {old!r} there, {new!r} now" for k, (old, new) in changes.items()]
            raise ValueError(
                f"{workdir} is the run of another config; choose another --workdir, or restore\n"
                + "\n".join(lines)
            )
    write_json(path, values)
    return workdir


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".incomplete")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def code_version() -> str:
    return lapa_jax.__version__


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, read from its newest good checkpoint. What LoRA has learned is in the kernels:
    `config`, `stage` and `params` are without its factors."""

    workdir: Path
    step: int
    config: ConfigDict
    stage: stages.Stage
    params: dict[str, Any]  # the moving average where the run keeps one
    variables: dict[str, Any]
    assets: dict[str, bytes]
    provenance: dict[str, Any]
    params_hash: str  # of all parameters: where labels and policies come from


def load(workdir: str | Path, step: int | None = None) -> Run:
    """Reads a run for inference, on whatever devices there are.

    Raises FileNotFoundError when the directory holds no checkpoint.
    """
    directory = Path(workdir) / "checkpoints"
    meta = checkpoint.load_meta(directory, step)
    config = configs.from_dict(meta["config"])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    loaded = checkpoint.load_params(
        directory, step, ema=config.optimizer.ema_decay > 0, shardings=device
    )
    params = loaded.params
    if lora.is_adapted(params):
        params = lora.merge(params, config.model.lora_alpha)
        config.model.lora_rank = 0
    return Run(
        workdir=Path(workdir),
        step=loaded.step,
        config=config,
        stage=stages.build(config, loaded.meta["assets"]),
        params=params,
        variables=loaded.variables,
        assets=loaded.meta["assets"],
        provenance=loaded.meta["provenance"],
        params_hash=params_hash(params),
    )


def params_hash(params: dict[str, Any]) -> str:
    """A digest of all parameters: names, shapes, dtypes and values."""
    digest = xxhash.xxh3_128()
    for path, value in sorted(flatten(params).items()):
        value = np.ascontiguousarray(value)
        digest.update(f"{path} {value.dtype} {value.shape} ".encode())
        digest.update(value.view(np.uint8).reshape(-1))
    return digest.hexdigest()
