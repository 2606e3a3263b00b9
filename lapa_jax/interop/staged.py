"""What exports share: their config, and the directory that gets its name once it is checked."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.interop.parity import Parity
from lapa_jax.interop.safetensors_files import float_dtype
from lapa_jax.runs import run as runs
from lapa_jax.runs.loaded import Model

PARITY = "parity.json"


def exported_config(run: Model, precision: str | None) -> tuple[dict[str, Any], np.dtype]:
    """The config that describes what is exported, and the dtype of its parameters."""
    config = configs.to_dict(run.config)
    config["optimizer"]["ema_decay"] = 0.0  # where there was an average, it is what is exported
    dtype = config["model"].get("param_dtype", "float32")
    if precision:
        dtype = float_dtype(precision).name
    if "param_dtype" in config["model"]:
        config["model"]["param_dtype"] = dtype
    elif dtype != "float32":
        raise ValueError(f"--precision {precision}: a run of stage {run.config.stage!r} is float32")
    return config, float_dtype({"float32": "fp32", "bfloat16": "bf16"}[dtype])


def plain_stage(run: Model, compute_dtype: str, **model: str) -> stages.Stage:
    """The run's stage as references compute, with attention by plain products. `model`: keys of
    config.model that are other than the run's."""
    config = configs.from_dict(configs.to_dict(run.config))
    config.compute_dtype = compute_dtype
    config.model.update(attention="xla", remat="none", **model)
    return stages.build(config, run.assets)


@contextlib.contextmanager
def staged(out: Path, run: Model, one_file: bool = False) -> Iterator[tuple[Path, Parity]]:
    """(a directory, the checks to make of it). It gets the name `out` if all went well and the
    checks passed; else it is removed, or, for those who want to look, renamed to OUT.failed. With
    `one_file` the file in it that is called like `out` gets that name, and parity.json one beside
    it."""
    staging, failed = (out.with_name(f"{out.name}.{x}") for x in ("incomplete", "failed"))
    for leftover in (staging, failed):
        if leftover.exists():
            shutil.rmtree(leftover)
    staging.mkdir(parents=True)
    parity = Parity()
    try:
        yield staging, parity
    except BaseException:
        shutil.rmtree(staging)
        raise
    runs.write_json(
        staging / PARITY,
        {"run": run.workdir.name, "step": run.step, "params_hash": run.params_hash}
        | parity.to_json(),
    )
    if not parity.passed:
        os.replace(staging, failed)
        raise ValueError(
            f"what was written does not do what the run does, and is kept as {failed}: "
            f"{parity.failures()}"
        )
    if one_file:
        os.replace(staging / PARITY, out.with_name(f"{out.name}.{PARITY}"))
        os.replace(staging / out.name, out)
        staging.rmdir()
    else:
        os.replace(staging, out)
