"""Parts that a config chooses by name: `{name, ...settings}` against a registry.

A part's dataclass declares its settings, with type, range and meaning (data_pipelines/keys.py), and
their defaults for new configs. A field without an annotation is no key of config files: its stage
fills it in from elsewhere in the config. A config that is read must have every key; defaults are
only for new ones.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import keys

Registry = Mapping[str, tuple[type, type | None]]  # name → (config class, module class)


def named_config(settings: Mapping[str, Any], registry: Registry, key: str) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...settings}` mapping, which stands under `key`.

    An unknown name, and unknown or missing settings, raise ValueError.
    """
    settings = dict(settings)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"{key}.name={name!r} must be one of {sorted(registry)}")
    return name, typed_config(registry[name][0], settings, key)


def typed_config(kind: type, settings: Mapping[str, Any], key: str) -> Any:
    """`kind(**settings)`; settings that are unknown, missing, defaults or not, or out of range
    raise ValueError."""
    filled_in = {field.name for field in fields(kind)} - keys.names(kind)
    keys.check(kind, {k: v for k, v in settings.items() if k not in filled_in}, key)
    if missing := sorted(filled_in - set(settings)):
        raise ValueError(f"{key}: unknown keys [], missing keys {missing}")
    return kind(**settings)


def named_settings(name: str, registry: Registry, what: str, **changes: Any) -> ConfigDict:
    """`{name, ...settings}` for a new config: the defaults of that part, with these changes."""
    if name not in registry:
        raise ValueError(f"{what}={name!r} must be one of {sorted(registry)}")
    return ConfigDict({"name": name, **default_settings(registry[name][0], **changes)})


def default_settings(kind: type, **changes: Any) -> ConfigDict:
    """The settings of `kind` for a new config, with these changes."""
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(kind)
        if field.default is not MISSING or field.default_factory is not MISSING
    }
    return ConfigDict({**defaults, **changes})
