"""A world model: the next frame of those before and of the latent actions of a label set."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.normalise import Normaliser
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import typed_config
from lapa_jax.nn.surgery import Borrowed
from lapa_jax.policy.heads import Sources
from lapa_jax.stages import augmentation
from lapa_jax.stages.stage import Assets, Batch, Metrics, Params, Stage, Variables
from lapa_jax.world.config import TOKENIZER_KEY, DynamicsConfig
from lapa_jax.world.dynamics import Dynamics, Scene

Z = "latent_action_of_pairs"
STATISTICS = "latent_statistics.json"  # the asset, where z is of vectors


class DynamicsStage(Stage):
    """Batch: frames uint8 (B, T, H, W, 3), and z of each but the last, int32 (B, T − 1, L) or
    float32 (B, T − 1, L, width), normalised."""

    fields = ("frames", Z)
    image_column = "frames"

    def __init__(self, config: ConfigDict, assets: Assets):
        self.config, self.assets = config, assets
        data, model = config.data, config.model
        if data.history_seconds:
            raise ValueError(
                f"data.history_seconds={data.history_seconds} must be 0.0: of a clip each frame "
                "is followed by its z, a window of the label set later"
            )
        self.statistics = None
        if not model.latent_codes:
            self.statistics = Normaliser.from_json(assets[STATISTICS])
        settings = {
            **model,
            "image_size": data.image_size,
            "num_frames": data.num_frames,
            "compute_dtype": config.compute_dtype,
            "latent_dim": self.statistics.dim if self.statistics else 0,
        }
        self.model_config = typed_config(DynamicsConfig, settings, "model")
        self.model = Functional(lambda rngs: Dynamics(self.model_config, rngs=rngs))
        tokenizer = Borrowed(
            key="model.weights",
            run=model.weights,
            hint="an image tokenizer (experiments/image_tokenizer/)",
            stage="image_tokenizer",
            settings_key=TOKENIZER_KEY,
            settings=model.image_tokenizer.to_dict(),
            theirs="",
            ours="tokenizer",
        )
        self.borrowed = (tokenizer,)

    @classmethod
    def fields_of(cls, config: ConfigDict) -> tuple[str, ...]:
        for name, corpus in config.data.corpora.items():
            if corpus.extra_image_keys:
                raise ValueError(
                    f"data.corpora.{name}.extra_image_keys is {list(corpus.extra_image_keys)}: a "
                    "dynamics model sees one camera, whose z those of the label set are"
                )
        return cls.fields

    @staticmethod
    def make_assets(config: ConfigDict, sources: Sources) -> dict[str, bytes]:
        if config.model.latent_codes:
            return {}
        return {STATISTICS: sources.statistics("latent", "mean_std").to_json()}

    def check(self, batch: dict[str, np.ndarray]) -> None:
        self.z(batch[Z])

    def z(self, values: np.ndarray) -> np.ndarray:
        """Latent actions (..., L) or (..., L, width) of a label set as the model takes them; raises
        ValueError where they are of another kind, number or width, or out of range."""
        config, codes = self.model_config, self.model_config.latent_codes
        found = "codes" if values.dtype.kind in "iu" else "vectors"
        if found != ("codes" if codes else "vectors"):
            raise ValueError(
                f"latent actions are {found}: set model.latent_codes to "
                + ("the values that they have" if found == "codes" else "0")
            )
        shape = values.shape[-1:] if codes else values.shape[-2:]
        wanted = (config.latent_length, config.latent_dim)[: len(shape)]
        if shape != wanted:
            raise ValueError(
                f"latent actions are of shape {list(shape)}, not {list(wanted)}: set "
                "model.latent_length, or take the label set that the run began with"
            )
        if not codes:
            return self.statistics.normalise(values.astype(np.float32)).reshape(values.shape)
        if values.size and (values.min() < 0 or values.max() >= codes):
            raise ValueError(
                f"latent actions hold codes from {values.min()} to {values.max()}, "
                f"model.latent_codes is {codes}"
            )
        return values.astype(np.int32)

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns = {"frames": batch["frames"], "z": self.z(batch[Z])}
        return columns | augmentation.column(self.config.data, batch)

    def watch(self) -> list[tuple[int, str]]:
        told = "free_skill_1 and the later ones above 0 (evaluation.every_steps)"
        return [(self.config.steps, told)]

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        data, model, rows = self.config.data, self.model_config, self.config.global_batch
        frames = (rows, data.num_frames, *data.image_size, 3)
        z, dtype = (rows, model.seen, model.latent_length), jnp.int32
        if model.latent_dim:
            z, dtype = (*z, model.latent_dim), jnp.float32
        spec = {"frames": jax.ShapeDtypeStruct(frames, jnp.uint8)}
        spec["z"] = jax.ShapeDtypeStruct(z, dtype)
        return spec | augmentation.column_spec(data, rows)

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        (loss, metrics), variables = self.model.apply(
            params, variables, "__call__", batch["frames"], batch["z"], rng=rng
        )
        return loss, metrics, variables

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        return self.model.apply(params, variables, "evaluate", batch["frames"], batch["z"])[0]

    def imagine(
        self,
        params: Params,
        variables: Variables,
        frames: jax.Array,
        z: jax.Array,
        key: jax.Array,
        *,
        temperature: float = 0.0,
    ) -> jax.Array:
        """The frames float32 (B, S, H, W, 3) in [0, 1] after T first ones uint8 (B, T, H, W, 3), of
        the z (B, T − 1 + S, ...) that follow them and what is imagined, as `z` gives them."""
        options: dict[str, Any] = dict(rng=key, temperature=temperature)
        return self.model.apply(params, variables, "imagine", frames, z, **options)[0]

    def begin(self, params: Params, variables: Variables, frames: jax.Array) -> Scene:
        """What `step` goes on from: one frame each, uint8 (B, H, W, 3)."""
        model = self.model_config
        shape = (len(frames), 0, model.latent_length)
        none = jnp.zeros(shape, jnp.int32)
        if model.latent_dim:
            none = jnp.zeros((*shape, model.latent_dim), jnp.float32)
        return self.model.apply(params, variables, "begin", frames, none)[0]

    def step(
        self, params: Params, variables: Variables, scene: Scene, z: jax.Array
    ) -> tuple[Scene, jax.Array]:
        """(the scene with it, the next frame float32 (B, H, W, 3) in [0, 1], of the likeliest
        tokens), of the z (B, ...) that leads to it, as `z` gives it: frame by frame what `imagine`
        does at once."""
        options: dict[str, Any] = dict(rng=jax.random.key(0), temperature=0.0)
        return self.model.apply(params, variables, "step_frame", scene, z, **options)[0]
