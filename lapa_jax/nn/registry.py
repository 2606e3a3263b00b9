"""Parts that a config chooses by name: `{name, ...settings}` against a registry."""

from collections.abc import Mapping
from typing import Any

Registry = Mapping[str, tuple[type, type]]  # name → (config class, module class)


def named_config(settings: Mapping[str, Any], registry: Registry, key: str) -> tuple[str, Any]:
    """(name, typed config) of a `{name, ...settings}` mapping, which stands under `key`.

    An unknown name, and unknown or missing settings, raise ValueError.
    """
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in registry:
        raise ValueError(f"{key}.name={name!r} must be one of {sorted(registry)}")
    return name, typed_config(registry[name][0], settings, f"{key} ({name})")


def typed_config(kind: type, settings: Mapping[str, Any], key: str) -> Any:
    """`kind(**settings)`; unknown or missing settings are a ValueError with the key."""
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{key}: {error}") from error
