"""Predicting what a slow copy of the encoder makes of the next frame (LAOM, Nikulin et al. 2025),
or its pixels (CLAM, Liang et al. 2025).

What is predicted is learned with the rest, so that nothing asks for pixels that no motion explains.
The latent is read off a frame that may lie further ahead than the one predicted, and all frames are
changed at random, each for itself: what changes with camera and light alone is of no use. Actions
that are known of a few examples tell motion of the robot from all other motion.

Shape suffixes: see base.py; A action dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lapa_jax.latent.config import QuantizerConfig
from lapa_jax.latent.encoder import FrameEncoder
from lapa_jax.latent.objectives.base import Objective, mean_squared_error, standardised
from lapa_jax.latent.objectives.known import Labels
from lapa_jax.nn.image_changes import AUGMENTATIONS, DRAWS, CropAndColour, changed
from lapa_jax.nn.layers import Dense
from lapa_jax.nn.module import follow, freeze
from lapa_jax.nn.registry import named_config, named_settings


def _colours() -> dict[str, Any]:
    """Frames that are cropped each for itself move against each other: the latents of a short
    training are about that, and those of frames as they are then all alike (docs/zoo.md)."""
    return named_settings("crop_and_colour", AUGMENTATIONS, "augment", crop_area=1.0)


@dataclass(frozen=True)
class LatentTargetsConfig:
    """How fast the target follows, and what is known beside frames. The latent is read off the
    first frame of a clip and, in training, one of the others: data.num_frames says how many."""

    target: Annotated[
        str,
        ("latent", "pixels"),
        "what is predicted of the next frame: what the target makes of it, or the frame as it is "
        "(CLAM), whatever augment does to what the latent is read off",
    ] = "latent"
    decay: Annotated[
        float, "[0, 1)", "per step, of the target: a moving average of the encoder's weights"
    ] = 0.99
    augment: Annotated[
        Mapping[str, Any], "of frames in training, each for itself, by name, as data.augment"
    ] = field(default_factory=_colours)
    action_dim: Annotated[
        int,
        "[0, 4096]",
        "of the actions that are known of a part of the data "
        "(data.corpora.*.action_fraction); 0: none are asked for",
    ] = 0
    action_weight: Annotated[float, "[0, 1e6]", "of the error of known actions in the loss"] = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", dict(self.augment))
        named_config(self.augment, AUGMENTATIONS, "model.objective.augment")


class LatentTargets(Objective):
    """Mean squared error of the features of the next frame, each scaled to mean 0 and variance 1:
    those of the target, which has no gradient. The first frame reaches the prediction without
    gradient, too, so that the encoder learns through the latent alone. With
    model.predict="residual" the head's output is added to the target's features of the first frame.
    With target="pixels" there is none of these: the mean squared error is that of the pixels.
    """

    def __init__(self, settings: LatentTargetsConfig, config: QuantizerConfig, *, rngs):
        self.residual = config.predict == "residual"
        if settings.target == "latent":
            self.target = FrameEncoder(config, rngs=rngs)
            freeze(self.target)
            self.head = Dense(
                (config.dim,),
                (config.dim,),
                ("embed", None),
                bias=True,
                std=0.0 if self.residual else None,
                dtype=jnp.float32,
                rngs=rngs,
            )
        else:
            self.target = self.head = None
        dim = settings.action_dim
        self.actions = Labels(config, dim, rngs=rngs) if dim else None
        self.decay, self.action_weight = settings.decay, settings.action_weight
        _, self.changes = named_config(settings.augment, AUGMENTATIONS, "model.objective.augment")

    @classmethod
    def columns(cls, settings):
        if not settings.action_dim:
            return {}
        return {
            "action": jax.ShapeDtypeStruct((settings.action_dim,), jnp.float32),
            "action_known": jax.ShapeDtypeStruct((), bool),
        }

    def __call__(self, model, batch, *, train, rng=None):
        bottleneck_rng = rng
        frames = batch["frames"]
        first, following, later = drawn = frames[:, 0], frames[:, 1], frames[:, 1]
        if train:
            bottleneck_rng, ahead_rng, change_rng = jax.random.split(rng, 3)
            ahead_B = jax.random.randint(ahead_rng, (len(frames),), 1, frames.shape[1])
            later = jnp.take_along_axis(frames, ahead_B[:, None, None, None, None], axis=1)[:, 0]
            first, following, later = self._changed((first, following, later), change_rng)
        pairs = model.pairs(jnp.stack([first, later], axis=1), train=train)
        out = model.bottleneck(pairs.latent_MLQ, rng=bottleneck_rng, train=train)
        if self.target is None:
            first, following, _ = drawn
            pairs = pairs._replace(first_MIJC=first, last_MIJC=following)
            embedded_MHWD = model.patches(first[:, None])[:, 0]
            recon = model.draw(first, model.tokens(embedded_MHWD, out.z_q_BLD))
            metrics, loss = {}, mean_squared_error(recon, following)
        else:
            pairs = pairs._replace(last_MIJC=following)
            tokens_MHWD = model.tokens(pairs.embedded_MHWD, out.z_q_BLD)
            recon = model.draw(first, jax.lax.stop_gradient(tokens_MHWD))
            error, copy = self._errors(first, following, tokens_MHWD)
            skill = 1.0 - error / jnp.maximum(copy, 1e-12)
            metrics = {"target_loss": error, "target_skill": skill}
            loss = error + mean_squared_error(recon, following)
        if self.actions is not None:
            known = batch["action_known"]
            action = self.actions(pairs.latent_MLQ, batch["action"], known, train=train)
            metrics |= {"action_error": action, "action_known": jnp.mean(known)}
            loss = loss + self.action_weight * action
        metrics = jax.lax.stop_gradient(metrics)
        return model.outcome(pairs, out, recon, loss=loss, train=train, metrics=metrics)

    def after_update(self, model, step, rng):
        if self.target is not None:
            follow(self.target, model, jnp.where(step == 0, 0.0, self.decay))

    def _errors(self, first, following, tokens_MHWD):
        """Mean squared errors of features: of those predicted, of the first frame's."""
        first_MHWD, following_MHWD = self._features(first), self._features(following)
        predicted_MHWD = self.head(tokens_MHWD)
        if self.residual:
            predicted_MHWD = first_MHWD + predicted_MHWD
        copy = mean_squared_error(first_MHWD, following_MHWD)
        return mean_squared_error(predicted_MHWD, following_MHWD), copy

    def _features(self, frames_MIJC):
        x = self.target.encode_frame(frames_MIJC).astype(jnp.float32)
        return jax.lax.stop_gradient(standardised(x))

    def _changed(self, images, rng):
        """Images (M, I, J, C), each as its own numbers say."""
        if not isinstance(self.changes, CropAndColour):
            return images
        numbers = jax.random.uniform(rng, (len(images), len(images[0]), DRAWS))

        def one(numbers_9, image_IJC):
            return changed(self.changes, numbers_9, image_IJC[None])[0]

        each = jax.vmap(one)
        return [each(n, image) for n, image in zip(numbers, images, strict=True)]
