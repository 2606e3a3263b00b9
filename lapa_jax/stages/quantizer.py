"""Stage 1: learn latent actions from frame pairs (x_t, x_t+H) by predicting the later frame."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.rlds.schema import images_per_example
from lapa_jax.latent import Reading, architecture, reader
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import typed_config
from lapa_jax.stages import augmentation
from lapa_jax.stages.stage import (
    Assets,
    Batch,
    Metrics,
    Params,
    Stage,
    Unusable,
    Variables,
)


class QuantizerStage(Stage):
    """Batch: frames uint8 (B, num_frames, H, W, 3), of several cameras as many more, and the
    columns of the objective."""

    image_column = "frames"
    alarms = {
        "collapsed": "few codes are in use (perplexity_recent is under model.collapse_fraction of "
        "model.codebook_size). If it lasts: more model.bottleneck.continuous_steps, a smaller "
        "codebook, or a longer data.corpora.*.window_seconds"
    }

    def __init__(self, config: ConfigDict, assets: Assets):
        self.config, self.assets = config, assets
        settings = {
            **config.model,
            "image_size": config.data.image_size,
            "num_frames": config.data.num_frames,
            "compute_dtype": config.compute_dtype,
        }
        shape, kind = architecture(config.model)
        self.model_config = typed_config(shape, settings, "model")
        self._reader, self._settings = reader(config.model)
        self.model = _built(kind, self._reader, self.model_config)
        self._columns = self._reader.columns(self._settings)
        self.borrowed = self._reader.borrowed(self._settings)
        self._images = images_per_example(config.data)

    @classmethod
    def fields_of(cls, config: ConfigDict) -> tuple[str, ...]:
        kind, settings = reader(config.model)
        for name, corpus in config.data.corpora.items():
            cameras = list(corpus.extra_image_keys)
            if kind.views(settings) != bool(cameras):
                wanted = "one camera" if cameras else "several cameras"
                model = config.model.get("objective", {"name": config.model.architecture})
                raise ValueError(
                    f"data.corpora.{name}.extra_image_keys is {cameras}, but {model['name']!r} "
                    f"(model.objective.name) is of clips by {wanted}"
                )
        return ("frames", *kind.fields(settings))

    def unusable(self, instructions: Sequence[str]) -> Unusable:
        return Unusable(*self._reader.unusable(self._settings, instructions))

    def window_steps(self) -> int | None:
        return self._reader.window_steps(self._settings)

    def check(self, batch: dict[str, np.ndarray]) -> None:
        columns = self._reader.prepare(self._settings, batch)
        for name, spec in self._columns.items():
            if (found := columns[name].shape[1:]) != spec.shape:
                raise ValueError(
                    f"its {name!r} is of shape {found}, but model.objective wants {spec.shape}: "
                    "change the sizes there, data.action_horizon, or which keys of the corpus are "
                    "read"
                )

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = self._reader.prepare(self._settings, batch)
        return {"frames": batch["frames"], **columns} | augmentation.column(self.config.data, batch)

    def watch(self) -> list[tuple[int, str]]:
        bottleneck = self.config.model.get("bottleneck", {})
        alone = bottleneck.get("continuous_steps", 0)
        whole = alone + bottleneck.get("ramp_steps", 0)
        found = [(alone, "skill above 0 (codes begin now)")] if alone else []
        if self.model_config.has_codes:
            told = (
                "perplexity_recent at least half of model.codebook_size, and no alarm `collapsed`"
            )
            found.append((whole, told))
        last = "`lapa evaluate --holdout`: the verdict, above all motion and leakage"
        return [*found, (self.config.steps, last)]

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        data, rows = self.config.data, self.config.global_batch
        shape = (rows, self._images, *data.image_size, 3)
        spec = {"frames": jax.ShapeDtypeStruct(shape, jnp.uint8)}
        spec |= {name: x.update(shape=(rows, *x.shape)) for name, x in self._columns.items()}
        return spec | augmentation.column_spec(data, rows)

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        out, variables = self._outcome(params, variables, batch, train=True, rng=rng)
        return out["loss"], _with_skill(out["metrics"]), variables

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        return _with_skill(self._outcome(params, variables, batch, train=False)[0]["metrics"])

    def _outcome(self, params, variables, batch, **options):
        given = {name: batch[name] for name in self._columns}
        frames = batch["frames"]
        return self.model.apply(params, variables, "__call__", frames, **given, **options)

    def after_update(
        self, params: Params, variables: Variables, step: jax.Array, rng: jax.Array
    ) -> tuple[Params, Variables]:
        return self.model.after_update(params, variables, step, rng)

    # What the labeller, the evaluator and the report use; pure functions of the parameters.

    def quantize(
        self, params: Params, variables: Variables, first: jax.Array, last: jax.Array
    ) -> jax.Array:
        """Latent actions z int32 (B, code_length) of frames uint8 (B, H, W, 3)."""
        return self.model.apply(params, variables, "quantize", first, last)[0]

    def read(
        self, params: Params, variables: Variables, first: jax.Array, last: jax.Array
    ) -> Reading:
        """z, the latent before the bottleneck and what the decoder receives of frames uint8 (B, H,
        W, 3); of a continuous bottleneck, too."""
        return self.model.apply(params, variables, "read", first, last)[0]

    def decode(
        self, params: Params, variables: Variables, first: jax.Array, z: jax.Array
    ) -> jax.Array:
        """The later frame that z predicts, float32 (B, H, W, 3), not clipped."""
        return self.model.apply(params, variables, "decode", first, z)[0]

    def decode_latent(
        self, params: Params, variables: Variables, first: jax.Array, received: jax.Array
    ) -> jax.Array:
        """The same from what the decoder receives, float32 (B, code_length, quant_dim)."""
        return self.model.apply(params, variables, "decode_latent", first, received)[0]

    def compose(
        self,
        params: Params,
        variables: Variables,
        first: jax.Array,
        second: jax.Array,
        still: jax.Array,
    ) -> jax.Array:
        """What `decode_latent` takes of two motions in a row, of their latents (B, code_length,
        quant_dim) and those of frames paired with themselves, (N, ...); of architecture native."""
        return self.model.apply(params, variables, "compose", first, second, still)[0]

    def target(self, params: Params, variables: Variables, frames: jax.Array) -> jax.Array:
        """What frames uint8 (B, H, W, 3) are where the decoder's output is compared with them,
        float32: themselves in [0, 1], or features (B, rows, columns, width)."""
        return self.model.apply(params, variables, "target", frames)[0]


_BUILT: list[tuple[tuple[Any, ...], Functional]] = []  # the last ones, newest first


def _built(kind: type, objective: type, config: Any) -> Functional:
    """The module `kind(config)`. Building one takes up to a second, and a verb builds that of a run
    several times."""
    key = kind, objective, config
    model = next((model for known, model in _BUILT if known == key), None)
    if model is None:
        model = Functional(lambda rngs: kind(config, rngs=rngs))
        _BUILT[:] = [(key, model), *_BUILT[:7]]
    return model


def _with_skill(metrics: Metrics) -> Metrics:
    """Adds skill = 1 − MSE / MSE(copy of the first frame)."""
    return metrics | {"skill": 1.0 - metrics["mse"] / jnp.maximum(metrics["copy_mse"], 1e-12)}
