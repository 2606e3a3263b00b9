"""The README.md of what is given away: what it is, how it was made, how to use it, its limits."""

import hashlib
import json
from typing import Any

import numpy as np

from lapa_jax.interop.parity import Parity
from lapa_jax.runs.loaded import LoadedPolicy, LoadedQuantizer, Model
from lapa_jax.version import __version__

LICENCE = """## Licence

The code in this repository is Apache-2.0, as lapa_jax is. The licence of {what} is for whoever
publishes it to state (`license:` at the top of this file); it may be bound by {bound}."""
_MADE = "Made by lapa_jax " + __version__


def model_card(
    run: Model,
    config: dict[str, Any],
    dtype: np.dtype,
    usage: str,
    parity: Parity,
    library: str = "",
) -> str:
    """Of an export: `config` and `dtype` as they are exported, `usage` in Markdown, `library` as
    the hub knows it."""
    provenance, name = run.provenance, run.workdir.name
    hashes = provenance.get("corpora", {})
    corpora = config.get("data", {}).get("corpora", {})
    told = {
        "stage": config["stage"],
        "step": f"{run.step} of {config.get('steps')}",
        "data": ", ".join(f"{x} {hashes.get(x, '')}".strip() for x in corpora),
        "global batch": config.get("global_batch"),
        "seed": config.get("seed"),
    }
    if provenance.get("imported"):  # then the settings of training are defaults that nobody used
        told = {"stage": config["stage"], "training": "by others: these weights were imported"}
    told |= {
        "config": f"sha256 {_digest(config)}",
        "parameters": f"xxh3 {run.params_hash}, here in {dtype}",
        "lapa_jax": provenance.get("code_version", __version__),
    }
    for key in ("init_from", "imported"):
        if provenance.get(key):
            told[key.replace("_", " ")] = _short(provenance[key])
    compared = {
        name: f"{one['value']:.3g} (at most {one['limit']:g})"
        for name, one in parity.checks.items()
    }
    what, limits = f"a model of stage {config['stage']}", []
    if isinstance(run, LoadedPolicy):
        what = f"a policy that predicts the {run.stage.head.modality} from images and instructions"
        if run.stage.acts:
            limits = ["Actions are in the units of its data: bound them before a robot moves."]
    elif isinstance(run, LoadedQuantizer):
        what = "a quantizer: two frames to a latent action"
        limits = ["Its latent actions mean nothing to robots, or to other quantizers."]
    limits.append("On other robots, cameras or rooms than those of its data nothing is promised.")
    return _card(
        _front("pipeline_tag: robotics", *([f"library_name: {library}"] if library else [])),
        f"# {name}\n\nThis is {what}. {_MADE}.",
        f"## How it was trained\n\n{_table(told)}",
        f"## How to use it\n\n{usage}",
        "## What was compared with the run\n\nBefore these files got their name (`parity.json`):"
        f"\n\n{_table(compared)}",
        f"## Limits\n\n{' '.join(limits)}",
        LICENCE.format(what="the weights", bound="those of the data and of earlier weights"),
    )


def dataset_card(name: str, repo: str, inspected: str) -> str:
    """Of a corpus; `inspected`: what `lapa data inspect` says of it."""
    usage = f"""```bash
lapa data pull {repo} --out data/{name}
lapa data inspect data/{name}
```

The shards are standard RLDS (TFRecord), which TFDS reads, too; `index`, `labels` and the like
beside them are sidecars of lapa_jax."""
    return _card(
        _front("task_categories:", "- robotics"),
        f"# {name}\n\nEpisodes as RLDS. {_MADE}.",
        f"## What is in it\n\n```\n{inspected}\n```",
        f"## How to use it\n\n{usage}",
        "## Limits\n\nIt holds what was recorded: people, rooms and things of others may be seen.",
        LICENCE.format(what="the data", bound="those of their sources"),
    )


def _card(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _digest(config: dict[str, Any]) -> str:
    """Of the config that is exported, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _front(*lines: str) -> str:
    """What the hub reads."""
    tags = ["tags:", "- robotics", "- lapa_jax"]
    return "\n".join(["---", "# license: state one here", *lines, *tags, "---"])


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _short(source: Any) -> str:
    """Names and hashes, no places on a machine."""
    if isinstance(source, dict):
        return ", ".join(f"{key} {str(x).rsplit('/', 1)[-1]}" for key, x in source.items())
    return str(source).rsplit("/", 1)[-1]
