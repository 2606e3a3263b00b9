"""Config files: `--config FILE.py[:args]` with `--config.key=value` overrides, and their JSON form.

A config is a locked ConfigDict: an unknown key is an error. A run keeps its config as JSON, so that
reading a checkpoint never needs the file it was made from.
"""

import argparse
import difflib
import json
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lapa_jax.training import places


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


def load(spec: str, overrides: list[str] | None = None) -> ConfigDict:
    """Loads `FILE.py[:args]`, applies `--config.key=value` strings, locks the result."""
    path = Path(spec.split(":", 1)[0])
    if not path.is_file():
        raise FileNotFoundError(
            f"config file {path} does not exist (from --config {spec}); "
            "shipped ones are under experiments/"
        )
    overrides = overrides or []
    known = _flatten(_read(spec, []))
    for override in overrides:
        key = override.removeprefix("--config.").split("=", 1)[0]
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"keys: {', '.join(known)}"
            raise ValueError(f"config key {key!r} ({override}) is unknown in {spec}; {hint}")
    return _read(spec, overrides)


def _read(spec: str, overrides: list[str]) -> ConfigDict:
    argv = ["lapa", f"--config={spec}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, lock_config=True, flag_values=values, sys_argv=argv
    )
    try:
        values(argv)
    except flags.Error as error:
        # An error of the file itself arrives as a traceback inside of two others.
        cause = error.__context__ and error.__context__.__context__
        raise ValueError(f"{spec}: {cause or error}") from None
    return values.config


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
    """The inverse of `to_dict`: lists become tuples, the result is locked."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(values)).lock()


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two plain configs: key → (old, new)."""
    a, b = _flatten(old), _flatten(new)
    return {
        k: (a.get(k, "absent"), b.get(k, "absent"))
        for k in sorted(a.keys() | b.keys())
        if a.get(k, "absent") != b.get(k, "absent")
    }
