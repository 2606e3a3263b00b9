"""Config files: `--config FILE[:args]` with `--config.key=value` overrides, and their JSON form.

A config is a locked ConfigDict: an unknown key is an error. A run keeps its config as JSON, so that
reading a checkpoint never needs the file it was made from.
"""

import argparse
import copy
import difflib
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
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
# Keys that came later ("*": under every name there is; "X(Y)": under X where it has Y), with the
# value that says what was done before: what runs of earlier code have. Of a part that a name
# chooses, all that it lacked until it had one. "(Y)" is the config itself where it has Y.
ADDED: dict[str, Any] = {
    "(stage).compile_effort": "full",
    "model(lora_rank).base_dtype": "param_dtype",
    "optimizer(b2).moments": "float32",
    "data.action_horizon": 1,
    "data.action_padding": "repeat",
    "data.action_absolute": [],
    "data.unusable_episodes": "refuse",
    "data.corpora.*.action_fraction": 1.0,
    "data.corpora.*.action_set": "",
    "data.corpora.*.state_key": "",
    "model(spatial_depth).architecture": "native",
    "model(multipliers).architecture": "vqgan",
    "model(spatial_depth).spatial_sees": "clip",
    "model(targets).action_codec": "",
    "model(targets).cotrain": False,
    "model(targets).inverse_dynamics": False,
    "model(targets).state": {},
    "model(targets).state.enabled": False,
    "model(targets).state.normalisation": "q01_q99",
    "model(targets).state.noise_std": 0.0,
    "model(targets).state.dropout": 0.0,
    "evaluation.env": {
        "name": "tabletop",
        "horizon": 40,
        "combinations": "all",
        "min_gap": 0.016,
    },
    "evaluation.execution_horizon": 1,
    "model.objective(decay).target": "latent",
    "model.objective.of(decay).target": "latent",
    **{
        f"{holder}.{key}": value
        for holder in ("model(registers)", "model.objective.teacher")
        for key, value in (
            ("class_token", True),
            ("layer_scale", True),
            ("activation", "gelu"),
            ("norm_eps", 1e-6),
            ("pixels", "imagenet"),
        )
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
        metavar="FILE[:args]",
        help="a file, or a shipped config (`lapa configs`), e.g. quantizer/tabletop:quick=True; "
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
    path = places.directory(args.workdir) / "config.json"
    if "stage" not in (found := read(path)):
        raise ValueError(f"{path} is not the config of a run")
    return args, from_dict(found)


def read(path: Path) -> dict[str, Any]:
    """The plain config in a config.json. Raises ValueError where it is damaged."""
    return places.read_json(path, "`lapa train` with the config of the run writes it anew")


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


def shipped_files(*functions: str) -> dict[str, Path]:
    """{name: file} of the shipped files with one of these functions, as "quantizer/tabletop"."""
    folder = shipped()
    return {
        str(path.relative_to(folder).with_suffix("")): path
        for path in sorted(folder.glob("*/*.py"))
        if any(f"\ndef {function}(" in path.read_text("utf-8") for function in functions)
    }


def locate(spec: str) -> Path:
    """The file that `FILE[:args]` names: a path or the name of a shipped one, with or without
    "experiments/" and ".py", wherever this runs. FileNotFoundError names the nearest."""
    name = spec.partition(":")[0]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    short = name.removeprefix("experiments/").removesuffix(".py")
    known = shipped_files("get_config", "get_sweep", "get_study")
    if short in known:
        return known[short]
    hint = "`lapa configs` lists the shipped ones"
    beside = map(str, sorted(path.parent.glob("*.py")))
    close = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.8)
    if close := close or difflib.get_close_matches(short, known, n=3, cutoff=0.5):
        hint = f"did you mean {' or '.join(close)}? {hint}"
    what = "is a folder" if path.is_dir() else "does not exist"
    raise FileNotFoundError(f"{path} {what}, and no config of that name is shipped; {hint}")


def call(spec: str, function: str, *given: Any, optional: bool = False) -> Any:
    """What `function(arg, *given)` gives of the file of `FILE[:arg]`; without one, or where the
    function takes none, arg is left to its default or None. ValueError for a file that is wrong,
    with its line; `optional`: None where it has no such function."""
    path, (_, colon, arg) = locate(spec), spec.partition(":")
    if path.suffix != ".py":
        raise ValueError(f"{path} is no Python file: a file with {function} is wanted")
    found = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(found)
    shipped()
    try:
        found.loader.exec_module(module)
        made = getattr(module, function, None)
        if made is None and optional:
            return None
        if not callable(made):
            raise ValueError(f"has no function {function}(arg)")
        if len(inspect.signature(made).parameters) > len(given):
            given = (arg or None, *given)
        elif colon:
            raise ValueError(f"its {function} takes no arguments, but {arg!r} is given")
        return made(*given)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}" if error.filename else str(path)
        raise ValueError(f"{where}: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    except Exception as error:  # anything: of a file that anybody wrote
        calls = traceback.extract_tb(error.__traceback__)
        line = [one.lineno for one in calls if one.filename == str(path)][-1:]
        # ml_collections tells the whole config.
        fields = r"Other fields present: .*?(Did you mean|$)"
        said = re.sub(fields, r"\1", str(error), flags=re.DOTALL)
        where = ", line ".join([spec, *map(str, line)])
        raise ValueError(f"{where}: {type(error).__name__}: {said}") from error


def load(spec: str, overrides: list[str] | None = None) -> ConfigDict:
    """Loads `FILE[:args]` (see `locate`), applies `--config.key=value`, locks the result."""
    config = call(spec, "get_config")
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{spec}: get_config gives a {type(config).__name__}, not a ConfigDict")
    try:
        config = today(config.lock())
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    if not overrides:
        return config
    known, named, old = flatten(config), [], []
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
    values = flags.FlagValues()
    argv = ["lapa", *named]
    config_flags.DEFINE_config_dict(
        "config", config, lock_config=True, flag_values=values, sys_argv=argv
    )
    try:
        values(argv)
    except flags.Error as error:
        raise ValueError(f"{spec}: {error}") from None
    return today(values.config)


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
    one warning names those that were renamed. A config of today is returned as it is. A value that
    begins with "~" is a path, and gets the home directory."""
    values, old = _at_home(values), []
    _upgrade(values, old)
    _warn_of(list(dict.fromkeys(old)))
    return values


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _at_home(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


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
            if isinstance(value, dict) and isinstance(there, dict) and "name" not in there:
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
    """The mappings at a path, in which "*" is any name and "X(Y)" an X that has Y; none where it
    leads nowhere."""
    found = [values]
    for part in path:
        name, _, sibling = part.removesuffix(")").partition("(")
        nexts = [v for x in found for k, v in x.items() if name in ("*", k)] if name else found
        found = [x for x in nexts if isinstance(x, dict) and (not sibling or sibling in x)]
    return found


def _made(values: dict[str, Any], path: list[str]) -> dict[str, Any]:
    for name in path:
        values = values.setdefault(name, {})
    return values


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config's values by their keys, as "optimizer.b1"."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists). ValueError names a key whose value is
    none, as a Path or a NumPy scalar."""
    try:
        return json.loads(json.dumps(config.to_dict()))
    except TypeError:
        for key, value in flatten(config).items():
            _check_plain(key, value)
        raise


def _check_plain(key: str, value: Any) -> None:
    try:
        json.dumps(value)
    except TypeError as error:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(
            f"{key}={value!r}, a {kind}, must be a plain value of Python: a number, a text, or a "
            f"tuple of them"
        ) from error


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_dict`: lists become tuples, the result is locked and has today's keys."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(upgrade(values))).lock()


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two plain configs: key → (old, new)."""
    a, b = flatten(old), flatten(new)
    return {
        k: (a.get(k, "absent"), b.get(k, "absent"))
        for k in sorted(a.keys() | b.keys())
        if a.get(k, "absent") != b.get(k, "absent")
    }
