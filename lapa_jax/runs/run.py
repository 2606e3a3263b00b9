"""Run directories: claimed by one config, read back whole (config, stage, params, assets)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash
from ml_collections import ConfigDict

from lapa_jax import version
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.nn import lora
from lapa_jax.nn.module import flatten, unflatten
from lapa_jax.parallel import sharding
from lapa_jax.training import checkpoint, checksum, places

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
    workdir = places.absolute(workdir)
    places.make(workdir)
    path = workdir / "config.json"
    values = configs.to_dict(config)
    if path.exists():
        changes = configs.difference(configs.upgrade(json.loads(path.read_text())), values)
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
    places.replace(path, json.dumps(value, indent=1) + "\n")


def code_version() -> str:
    return version.__version__


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


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained run to start from, of whose arrays nothing has been read yet."""

    workdir: Path
    assets: dict[str, bytes]
    params: dict[str, Any]  # abstract; as `Run.params`
    merged: Run | None  # with LoRA: read whole, since its kernels must be computed

    def read(self, shardings: dict[str, Any]) -> tuple[dict[str, jax.Array], str]:
        """({path: parameter} of the paths in `shardings`, each read to where it says and nowhere
        else; the hash of all parameters). Every process must call it."""
        if self.merged is not None:
            flat = flatten(self.merged.params)
            taken = {path: flat[path] for path in shardings}
            return sharding.place(taken, shardings), self.merged.params_hash
        directory, meta = _open(self.workdir)
        loaded = checkpoint.load_params(
            directory, ema=_averages(meta), shardings=unflatten(shardings)
        )
        return flatten(loaded.params), _digest(loaded.records)


def find(workdir: str | Path) -> Source:
    """The run in a directory, to start from: every parameter may then be read to other devices.

    Raises FileNotFoundError when the directory holds no checkpoint.
    """
    directory, meta = _open(workdir)
    records = checkpoint.load_params(directory, ema=_averages(meta), shardings={}).records
    params = unflatten(
        {
            "/".join(path): jax.ShapeDtypeStruct(tuple(r["shape"]), np.dtype(r["dtype"]))
            for path, r in records.items()
        }
    )
    merged = load(workdir) if lora.is_adapted(params) else None
    return Source(
        workdir=places.directory(workdir),
        assets=meta["assets"],
        params=params if merged is None else jax.eval_shape(lambda: merged.params),
        merged=merged,
    )


def load(workdir: str | Path, step: int | None = None) -> Run:
    """Reads a run for inference, whole on one device of this process.

    Raises FileNotFoundError when the directory holds no checkpoint.
    """
    directory, meta = _open(workdir, step)
    config = configs.from_dict(meta["config"])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    loaded = checkpoint.load_params(directory, step, ema=_averages(meta), shardings=device)
    params, digest = loaded.params, _digest(loaded.records)
    if lora.is_adapted(params):
        params = lora.merge(params, config.model.lora_alpha)
        config.model.lora_rank = 0
        digest = _digest(
            {
                tuple(path.split("/")): {
                    "dtype": str(x.dtype),
                    "shape": list(x.shape),
                    "checksum": checksum.of_array(x),
                }
                for path, x in flatten(params).items()
            }
        )
    return Run(
        workdir=places.directory(workdir),
        step=loaded.step,
        config=config,
        stage=stages.build(config, loaded.meta["assets"]),
        params=params,
        variables=loaded.variables,
        assets=loaded.meta["assets"],
        provenance=loaded.meta["provenance"],
        params_hash=digest,
    )


def _open(workdir: str | Path, step: int | None = None) -> tuple[Path, dict[str, Any]]:
    """(checkpoints of a run, meta)."""
    directory = places.directory(workdir) / "checkpoints"
    return directory, checkpoint.load_meta(directory, step)


def _averages(meta: dict[str, Any]) -> bool:
    """Whether a run keeps a moving average, which is then what others use."""
    return meta["config"]["optimizer"]["ema_decay"] > 0


def _digest(records: dict[tuple[str, ...], dict]) -> str:
    """Of all parameters: names, dtypes, shapes and values, by their checksums."""
    digest = xxhash.xxh3_128()
    for path, r in sorted(records.items()):
        digest.update(f"{'/'.join(path)} {r['dtype']} {r['shape']} {r['checksum']} ".encode())
    return digest.hexdigest()
