"""What is added to any other objective: that one, with some tools changed.

Shape suffixes: see base.py.
"""

from typing import Any

from lapa_jax.latent.objectives.base import Objective, Tools


class Mixed(Objective):
    """Its settings have `of`, a mapping in configs, and here (class, settings) of the other
    objective. What it does not say itself is as that one says."""

    def __init__(self, settings: Any, config: Any, *, rngs: Any):
        objective, inner = settings.of
        self.of = objective(inner, config, rngs=rngs)

    @classmethod
    def columns(cls, settings):
        objective, inner = settings.of
        return objective.columns(inner)

    @classmethod
    def fields(cls, settings):
        objective, inner = settings.of
        return objective.fields(inner)

    @classmethod
    def prepare(cls, settings, batch):
        objective, inner = settings.of
        return objective.prepare(inner, batch)

    @classmethod
    def borrowed(cls, settings):
        objective, inner = settings.of
        key = "model.objective"
        return tuple(
            found._replace(
                ours=f"objective/of{found.ours.removeprefix('objective')}",
                key=found.key.replace(key, f"{key}.of", 1),
                settings_key=found.settings_key.replace(key, f"{key}.of", 1),
            )
            for found in objective.borrowed(inner)
        )

    @classmethod
    def reads_patches(cls, settings):
        objective, inner = settings.of
        return objective.reads_patches(inner)

    def seen(self, frames_BTIJC, embedded_BTHWD):
        return self.of.seen(frames_BTIJC, embedded_BTHWD)

    def received(self, z_MLQ):
        return self.of.received(z_MLQ)

    def after_update(self, model, step, rng):
        self.of.after_update(model, step, rng)


class Changed:
    """The toolbox with other tools in the place of some."""

    def __init__(self, model: Tools, **tools: Any):
        self._model, self._tools = model, tools

    def __getattr__(self, name: str) -> Any:
        return self._tools[name] if name in self._tools else getattr(self._model, name)
