"""Where the first parameters of a run come from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.storage import places
from lapa_jax.nn import lora
from lapa_jax.nn.module import flatten, unflatten
from lapa_jax.parallel import sharding
from lapa_jax.runs.loaded import Model, averages, digest, load, open_checkpoints
from lapa_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained run to start from, of whose arrays nothing has been read yet."""

    workdir: Path
    assets: dict[str, bytes]
    params: dict[str, Any]  # abstract; as `Model.params`
    merged: Model | None  # with LoRA: read whole, since its kernels must be computed

    def read(self, shardings: dict[str, Any]) -> tuple[dict[str, jax.Array], str]:
        """({path: parameter} of the paths in `shardings`, each read to where it says and nowhere
        else; the hash of all parameters). Every process must call it."""
        if self.merged is not None:
            flat = flatten(self.merged.params)
            taken = {path: flat[path] for path in shardings}
            return sharding.place(taken, shardings), self.merged.params_hash
        directory, meta = open_checkpoints(self.workdir)
        loaded = checkpoint.load_params(
            directory, ema=averages(meta), shardings=unflatten(shardings)
        )
        return flatten(loaded.params), digest(loaded.records)


def find(workdir: str | Path) -> Source:
    """The run in a directory, to start from: every parameter may then be read to other devices.

    Raises FileNotFoundError when the directory holds no checkpoint.
    """
    directory, meta = open_checkpoints(workdir)
    records = checkpoint.load_params(directory, ema=averages(meta), shardings={}).records
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
