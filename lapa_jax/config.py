"""Config files: `--config FILE.py[:args]` with `--config.key=value` overrides, and their JSON form.

A config is a locked ConfigDict: an unknown key is an error. A run keeps its config as JSON, so that
reading a checkpoint never needs the file it was made from.
"""

import argparse
import copy
import difflib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from data_pipelines.storage import places

# Keys of earlier code, and what they are called now: `upgrade` reads them with a warning.
RENAMED: dict[str, str] = {
    "evaluation.blocks": "evaluation.env.blocks",
    "evaluation.families": "evaluation.env.families",
    "model.latent_vocab": "model.targets.latent.vocab",
    "model.action_vocab": "model.targets.action.vocab",
    "action_tokens": "model.targets.action.codec",
    "scene.num_blocks": "scene.blocks",  # of a demo
}
# Keys that came later ("*": under every name there is), with the value that says what was done
# before: what runs of earlier code have. Of a part that a name chooses, all that it lacked until it
# had one.
ADDED: dict[str, Any] = {
    "data.action_horizon": 1,
    "data.action_padding": "repeat",
    "data.action_absolute": [],
    "data.corpora.*.action_fraction": 1.0,
    "evaluation.env": {
        "name": "tabletop",
        "horizon": 40,
        "combinations": "all",
        "min_gap": 0.016,
    },
    "scene.name": "tabletop",
    "scene.combinations": "all",
    "scene.min_gap": 0.016,
}


def parse(
    parser: argparse.ArgumentParser, argv: list[str], *, or_workdir: bool = False
) -> tuple[argparse.Namespace, ConfigDict]:
    """Parses the verb's own flags and the config; exits with usage on unknown flags. `or_workdir`:
    --workdir, a flag of the verb, may name a run whose config it is."""
    parser.add_argument(
        "--config",
        required=not or_workdir,
        metavar="FILE.py[:args]",
        help="config file, e.g. experiments/quantizer/tabletop.py:quick=True; "
        "any key can be overridden with --config.key=value",
    )
    args, rest = parser.parse_known_args(argv)
    unknown = [a for a in rest if not (a.startswith("--config.") and "=" in a)]
    if unknown:
        parser.error(f"unknown arguments {unknown}; overrides are written --config.key=value")
    if not or_workdir:
        return args, load(args.config, rest)
    if bool(args.config) == bool(args.workdir):
        parser.error("give --config, or --workdir of a run")
    if args.config:
        return args, load(args.config, rest)
    if rest:
        parser.error(f"{rest}: the config of --workdir is as it is")
    return args, from_dict(json.loads((places.directory(args.workdir) / "config.json").read_text()))


def shipped() -> Path:
    """The folder of the shipped configs: beside this package in a checkout, installed inside of it.

    From now on `import experiments` finds it. ValueError where this process has another package of
    that name already.
    """
    here = Path(__file__).parent
    inside, beside = here / "experiments", here.parent / "experiments"
    folder = inside if inside.is_dir() else beside
    if "experiments" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "experiments", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["experiments"] = importlib.util.module_from_spec(spec)
    there = Path(next(iter(sys.modules["experiments"].__path__)))
    if not there.samefile(folder):
        raise ValueError(f"{there} hides the configs of lapa_jax, {folder}: rename it")
    return folder


def load(spec: str, overrides: list[str] | None = None) -> ConfigDict:
    """Loads `FILE.py[:args]`, applies `--config.key=value` strings, locks the result."""
    path = Path(spec.split(":", 1)[0])
    if not path.is_file():
        raise FileNotFoundError(
            f"config file {path} does not exist (from --config {spec}); "
            "shipped ones are under experiments/"
        )
    shipped()
    argv = ["lapa", f"--config={spec}"]
    config = today(_parsed(spec, argv, config_flags.DEFINE_config_file, None))
    if not overrides:
        return config
    known, named, old = _flatten(config), [], []
    for override in overrides:
        key, _, value = override.removeprefix("--config.").partition("=")
        if key in RENAMED:
            old.append(f"{key} (now {RENAMED[key]})")
            key = RENAMED[key]
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"keys: {', '.join(known)}"
            raise ValueError(f"config key {key!r} ({override}) is unknown in {spec}; {hint}")
        named.append(f"--config.{key}={value}")
    _warn_of(old)
    return _parsed(spec, ["lapa", *named], config_flags.DEFINE_config_dict, config)


def _parsed(spec: str, argv: list[str], define: Callable[..., Any], default: Any) -> ConfigDict:
    """The locked config that a flag --config gives, which `define` makes."""
    values = flags.FlagValues()
    define("config", default, lock_config=True, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.Error as error:
        # An error of the file itself arrives as a traceback inside of two others.
        cause = error.__context__ and error.__context__.__context__
        raise ValueError(f"{spec}: {cause or error}") from None
    return values.config


def today(config: ConfigDict) -> ConfigDict:
    """A config with today's keys: itself, where nothing of earlier code is in it."""
    known = to_dict(config)
    now = upgrade(known)
    return config if now == known else from_dict(now)


def _warn_of(old: list[str]) -> None:
    if old:
        logging.warning("config keys of earlier code: %s", ", ".join(old))


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A plain config of earlier code with today's keys, those of the stages in it (of a demo) too;
    one warning names those that were renamed. A config of today is returned as it is."""
    values, old = copy.deepcopy(values), []
    _upgrade(values, old)
    _warn_of(list(dict.fromkeys(old)))
    return values


def _upgrade(values: dict[str, Any], old: list[str]) -> None:
    before = len(old)
    for key, new in RENAMED.items():
        *path, name = key.split(".")
        holder = _holders(values, path)
        if holder and name in holder[0]:
            old.append(f"{key} (now {new})")
            *path, new_name = new.split(".")
            _made(values, path)[new_name] = holder[0].pop(name)
    for key, value in ADDED.items():
        *path, name = key.split(".")
        for holder in _holders(values, path):
            there = holder.setdefault(name, copy.deepcopy(value))
            if isinstance(value, dict) and "name" not in there:
                there |= copy.deepcopy(value)
    if len(old) > before:
        _complete_targets(values)
    for one in values.values():
        if isinstance(one, dict) and "stage" in one:
            _upgrade(one, old)


def _complete_targets(values: dict[str, Any]) -> None:
    """Earlier code gave a policy vocabularies alone, of 0 where it lacks one; what was trained was
    the stage's."""
    targets = values.get("model", {}).get("targets", {})
    stages = {"latent": "latent_pretraining", "action": "action_finetuning"}
    for name, codec in (("latent", "codes"), ("action", "bins")):
        settings = targets.pop(name, {})
        if settings.get("vocab"):
            weight = float(values.get("stage", stages[name]) == stages[name])
            defaults = {"name": "tokens", "codec": codec, "loss_weight": weight}
            targets[name] = defaults | settings


def _holders(values: dict[str, Any], path: list[str]) -> list[dict[str, Any]]:
    """The mappings at a path, in which "*" is any name; none where it leads nowhere."""
    found = [values]
    for name in path:
        nexts = [v for x in found for k, v in x.items() if name in ("*", k)]
        found = [x for x in nexts if isinstance(x, dict)]
    return found


def _made(values: dict[str, Any], path: list[str]) -> dict[str, Any]:
    for name in path:
        values = values.setdefault(name, {})
    return values


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_dict`: lists become tuples, the result is locked and has today's keys."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(upgrade(values))).lock()


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two plain configs: key → (old, new)."""
    a, b = _flatten(old), _flatten(new)
    return {
        k: (a.get(k, "absent"), b.get(k, "absent"))
        for k in sorted(a.keys() | b.keys())
        if a.get(k, "absent") != b.get(k, "absent")
    }
