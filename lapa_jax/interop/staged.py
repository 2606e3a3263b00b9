"""What exports share: their flags and config, what they are compared with, and the directory that
gets its name once it is checked."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from data_pipelines import storage
from lapa_jax import config as configs
from lapa_jax import stages
from lapa_jax.interop.parity import Parity
from lapa_jax.runs.loaded import Model
from lapa_jax.runs.run import write_json

PARITY = "parity.json"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
Reference = TypeVar("Reference")


@dataclasses.dataclass(frozen=True)
class Options:
    """Of an export.

    precision: of the weights of a policy; default: as the run has them
    """

    precision: str | None = dataclasses.field(default=None, metadata={"choices": PRECISIONS})


def exported_config(run: Model, precision: str | None) -> tuple[dict[str, Any], np.dtype]:
    """The config that describes what is exported, and the dtype of its parameters."""
    config = configs.to_dict(run.config)
    config["optimizer"]["ema_decay"] = 0.0  # where there was an average, it is what is exported
    dtype = PRECISIONS.get(precision, config["model"].get("param_dtype", "float32"))
    if "param_dtype" in config["model"]:
        config["model"] |= {"param_dtype": dtype, "base_dtype": "param_dtype"}
    elif dtype != "float32":
        raise ValueError(f"--precision {precision}: a run of stage {run.config.stage!r} is float32")
    return config, np.dtype(dtype)


def plain_stage(run: Model, config: dict[str, Any], compute_dtype: str) -> stages.Stage:
    """The run's stage, of an exported config, as references compute: attention by plain
    products."""
    plain = configs.from_dict(config)
    plain.compute_dtype = compute_dtype
    plain.model.update(attention="xla", remat="none")
    return stages.build(plain, run.assets)


def take_over(
    run: Model, dtype: np.dtype, make: Callable[[str], Reference]
) -> tuple[Reference, Reference | None]:
    """What `make(compute_dtype)` gives of the run in float32, and in bfloat16 where it computes or
    is exported in it.

    Takes the model over, so that it is in memory once: its parameters are rounded to `dtype`, as
    they are exported, and afterwards the run has none.
    """
    _round(run.params, dtype)
    exact = make("float32")
    in_bfloat16 = "bfloat16" in (run.config.compute_dtype, dtype.name)
    rough = make("bfloat16") if in_bfloat16 else None
    run.params.clear()
    run.variables.clear()
    return exact, rough


def _round(tree: dict[str, Any], dtype: np.dtype) -> None:
    """Leaf by leaf and in place."""
    for name, one in tree.items():
        if isinstance(one, dict):
            _round(one, dtype)
        else:
            tree[name] = jnp.asarray(one, dtype)


@contextlib.contextmanager
def staged(
    out: Path, run: Model, card: Callable[[Parity], str] | None
) -> Iterator[tuple[Path, Parity]]:
    """(a directory, the checks to make of it). It gets the name `out` if all went well and the
    checks passed; else it is removed, or, for those who want to look, renamed to OUT.failed. `card`
    gives its README.md; without one the file in it that is called like `out` gets that name, and
    parity.json one beside it."""
    failed, parity = out.with_name(f"{out.name}.failed"), Parity()
    if failed.exists():
        shutil.rmtree(failed)
    storage.make_directory(out.parent)
    beside = dict(dir=out.parent, prefix=f".{out.name}.", suffix=".incomplete")
    with storage.named(out), tempfile.TemporaryDirectory(**beside) as made:
        folder = Path(made) / "export"  # with the rights of any other
        folder.mkdir()
        yield folder, parity
        origin = {"run": run.workdir.name, "step": run.step, "params_hash": run.params_hash}
        write_json(folder / PARITY, origin | parity.to_json())
        if not parity.passed:
            os.replace(folder, failed)
            raise ValueError(
                f"what was written does not do what the run does, and is kept as {failed}: "
                f"{parity.failures()}"
            )
        if card is None:
            os.replace(folder / PARITY, out.with_name(f"{out.name}.{PARITY}"))
            os.replace(folder / out.name, out)
        else:
            (folder / "README.md").write_text(card(parity))
            os.replace(folder, out)
