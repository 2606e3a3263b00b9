"""Trained models as objects: what the `load_...` functions of lapa_jax return."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.runs import examples, run as runs
from lapa_jax.policy.modality import MODALITIES


class LoadedQuantizer:
    """A trained quantizer; its methods are jitted and take NumPy or JAX arrays.

    Frames are (B, H, W, 3), uint8 or float in [0, 1], of `image_size`.
    """

    def __init__(self, run: runs.Run):
        examples.require_quantizer(run)
        config = run.stage.model_config
        self.run, self.config = run, run.config
        self.image_size: tuple[int, int] = config.image_size
        self.codebook_size: int = config.codebook_size
        self.code_length: int = config.code_length
        self._params, self._variables = run.params, run.variables
        self._quantize, self._decode = jax.jit(run.stage.quantize), jax.jit(run.stage.decode)

    def encode(self, first: np.ndarray | jax.Array, last: np.ndarray | jax.Array) -> jax.Array:
        """The latent actions z int32 (B, code_length) of frame pairs."""
        first, last = self._frames(first, "first"), self._frames(last, "last")
        return self._quantize(self._params, self._variables, first, last)

    def decode(self, first: np.ndarray | jax.Array, z: np.ndarray | jax.Array) -> jax.Array:
        """The later frames (B, H, W, 3) that z int (B, code_length) predicts, float32, not
        clipped."""
        first, z = self._frames(first, "first"), jnp.asarray(z)
        if not jnp.issubdtype(z.dtype, jnp.integer) or z.shape != (len(first), self.code_length):
            raise ValueError(
                f"z {z.dtype}{list(z.shape)} must be integers of shape "
                f"({len(first)}, {self.code_length})"
            )
        z = _in_codebook(z, "z", self.codebook_size)
        return self._decode(self._params, self._variables, first, z)

    def _frames(self, frames: np.ndarray | jax.Array, name: str) -> jax.Array:
        frames = jnp.asarray(frames)
        if frames.dtype != jnp.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {frames.dtype}: uint8, or float in [0, 1]")
        if frames.ndim != 4 or frames.shape[1:] != (*self.image_size, 3):
            raise ValueError(
                f"{name} of shape {frames.shape} must be (B, {self.image_size[0]}, "
                f"{self.image_size[1]}, 3)"
            )
        if frames.dtype != jnp.uint8 and ((frames < 0.0) | (frames > 1.0)).any():
            raise ValueError(
                f"{name} holds values from {frames.min()} to {frames.max()}: float frames are in "
                "[0, 1]"
            )
        return frames


class LoadedImageTokenizer:
    """An image tokenizer; its methods are jitted and take NumPy or JAX arrays.

    A code stands for `factor` x `factor` pixels; images may have any size that it divides.
    """

    def __init__(self, run: runs.Run):
        examples.require_image_tokenizer(run)
        config = run.stage.model_config
        self.config = run.config
        self.codebook_size: int = config.codebook_size
        self.factor: int = config.factor
        self._params, self._variables = run.params, run.variables
        self._encode, self._decode = jax.jit(run.stage.encode), jax.jit(run.stage.decode)

    def encode(self, images: np.ndarray | jax.Array) -> jax.Array:
        """The codes int32 (B, h, w) of images uint8 (B, H, W, 3), row by row."""
        return self._encode(self._params, self._variables, jnp.asarray(images))

    def decode(self, codes: np.ndarray | jax.Array) -> jax.Array:
        """The images float32 (B, H, W, 3) of codes int (B, h, w), in [-1, 1]: black is -1, white
        1."""
        codes = jnp.asarray(codes)
        if not jnp.issubdtype(codes.dtype, jnp.integer) or codes.ndim != 3 or not codes.size:
            raise ValueError(
                f"codes {codes.dtype}{list(codes.shape)} must be integers of shape (B, h, w)"
            )
        codes = _in_codebook(codes, "codes", self.codebook_size)
        return self._decode(self._params, self._variables, codes)


class Prediction(NamedTuple):
    """What a policy says, of one example or, with a leading B, of several."""

    values: jax.Array  # z int32 (code_length,), or a float32 (action_dim,) in the data's units
    # float32 (tokens, vocabulary): of each id of z or of the tokens of a, given those before it
    probabilities: jax.Array


class LoadedPolicy:
    """A policy; its methods are jitted and take NumPy or JAX arrays.

    Images are uint8 (H, W, 3) of `image_size` with one instruction, or (B, H, W, 3) with B; of
    several images an example (N, H, W, 3), or (B, N, H, W, 3), earliest first. A policy that was
    trained on cached image tokens needs the image tokenizer that made them.
    """

    def __init__(self, run: runs.Run, image_tokenizer: LoadedImageTokenizer | None = None):
        """Takes over the parameters of `run`."""
        examples.require_policy(run)
        stage, self._params = run.stage.for_decoding(run.params)
        self.run = dataclasses.replace(run, stage=stage, params=self._params)
        self.config, self.stage = run.config, stage
        self.image_size: tuple[int, int] = run.config.data.image_size
        self._variables = run.variables
        self._image_tokenizer = image_tokenizer

        def predict(*args, **options) -> Prediction:
            ids, logits = stage.predict(*args, **options)
            values = stage.actions.centre_of(ids, jnp) if stage.head == "action" else ids
            return Prediction(values, jax.nn.softmax(logits))

        self._predict = jax.jit(predict, static_argnames=("temperature", "top_k"))
        heads = dict.fromkeys(name for name in MODALITIES if stage.model_config.vocab(name))
        self._logits = jax.jit(
            lambda params, variables, *rows: stage.model.apply(
                params, variables, "logits", *rows, slots=heads
            )[0]
        )

    def logits(
        self, tokens: np.ndarray | jax.Array, modality: np.ndarray | jax.Array
    ) -> dict[str, jax.Array]:
        """Logits float32 (B, T, vocabulary) of every head, by name, for tokens int32 (B, T) of
        modality int8 (B, T): 0 text, 1 image, 2 latent, 3 action. Rows are whole: no padding."""
        tokens, modality = np.asarray(tokens), np.asarray(modality)
        if tokens.ndim != 2 or tokens.shape != modality.shape:
            raise ValueError(
                f"tokens {tokens.shape} and modality {modality.shape} must both be (B, T)"
            )
        for name, array in (("tokens", tokens), ("modality", modality)):
            if array.dtype.kind not in "iu":
                raise ValueError(f"{name} has dtype {array.dtype}: integers are expected")
        if not np.isin(modality, range(len(MODALITIES))).all():
            raise ValueError(f"modality holds {modality.min()} to {modality.max()}, not 0 to 3")
        for number, name in enumerate(MODALITIES):
            ids, size = tokens[modality == number], self.stage.model_config.vocab(name)
            if ids.size and (ids.min() < 0 or ids.max() >= size):
                raise ValueError(
                    f"{name} ids run from {ids.min()} to {ids.max()}; the model has {size}"
                )
        rows = [jnp.asarray(x, jnp.int32) for x in (tokens, modality, np.ones_like(modality))]
        return self._logits(self._params, self._variables, *rows)

    def predict_latent(
        self, image: np.ndarray | jax.Array, instruction: str | Sequence[str], **options
    ) -> jax.Array:
        """z int32 (code_length,), or (B, code_length): greedy, or by `temperature`, `top_k` and
        `seed`."""
        self.require_head("latent")
        return self.predict(image, instruction, **options).values

    def predict_action(
        self, image: np.ndarray | jax.Array, instruction: str | Sequence[str], **options
    ) -> jax.Array:
        """a float32 (action_dim,), or (B, action_dim), in the units of the data; options as of
        `predict_latent`."""
        self.require_head("action")
        return self.predict(image, instruction, **options).values

    def predict(
        self,
        image: np.ndarray | jax.Array,
        instruction: str | Sequence[str],
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Prediction:
        """What this policy's head says, with the model's probabilities (of temperature 1, among the
        ids that may be chosen). Raises ValueError for an image of another size or dtype, and for an
        instruction of more than `model.text_length` tokens."""
        if (seed is None) == (temperature > 0):
            raise ValueError(f"{temperature=} and {seed=}: sampling takes both")
        single = isinstance(instruction, str)
        texts = [instruction] if single else list(instruction)
        images = self._images(np.asarray(image), len(texts), single)
        ids = None
        if not self.stage.from_pixels:
            ids, images = self._image_ids(images), None
        found = self._predict(
            self._params,
            self._variables,
            self.stage.prompts(texts, ids),
            images,
            temperature=temperature,
            top_k=top_k,
            key=None if seed is None else jax.random.key(seed),
        )
        return Prediction(*(x[0] for x in found)) if single else found

    def require_head(self, head: str) -> None:
        """Raises ValueError where the policy predicts something else."""
        if self.stage.head != head:
            raise ValueError(f"this policy predicts the {self.stage.head}, not the {head}")

    def _images(self, image: np.ndarray, count: int, single: bool) -> np.ndarray:
        """(B, N, H, W, 3)."""
        shape = (*self.image_size, 3)
        if self.stage.num_images > 1:
            shape = (self.stage.num_images, *shape)
        expected = shape if single else (count, *shape)
        if image.dtype != np.uint8 or image.shape != expected:
            raise ValueError(
                f"image {image.dtype}{list(image.shape)} must be uint8{list(expected)}: resize it "
                "as the training data were"
            )
        return image.reshape(count, self.stage.num_images, *self.image_size, 3)

    def _image_ids(self, images: np.ndarray) -> np.ndarray:
        if self._image_tokenizer is None:
            raise ValueError(
                "this policy takes image tokens: give load_policy the image_tokenizer that made "
                "those of its training"
            )
        B, N = images.shape[:2]
        codes = self._image_tokenizer.encode(images.reshape(B * N, *images.shape[2:]))
        return np.asarray(codes).reshape(B, N, -1)


def _in_codebook(codes: jax.Array, name: str, size: int) -> jax.Array:
    if ((codes < 0) | (codes >= size)).any():
        raise ValueError(
            f"{name} holds codes from {codes.min()} to {codes.max()}, the codebook has {size}"
        )
    return codes.astype(jnp.int32)


def load_quantizer(directory: str | Path) -> LoadedQuantizer:
    """The quantizer of a run directory, trained here or made by `lapa import`."""
    return LoadedQuantizer(runs.load(directory))


def load_image_tokenizer(directory: str | Path) -> LoadedImageTokenizer:
    """The image tokenizer of a run directory that `lapa import` made."""
    return LoadedImageTokenizer(runs.load(directory))


def load_policy(
    directory: str | Path, *, image_tokenizer: str | Path | LoadedImageTokenizer | None = None
) -> LoadedPolicy:
    """The policy of a run directory, trained here or made by `lapa import`. `image_tokenizer`: what
    `load_image_tokenizer` returned, or its directory."""
    if isinstance(image_tokenizer, str | Path):
        image_tokenizer = load_image_tokenizer(image_tokenizer)
    return LoadedPolicy(runs.load(directory), image_tokenizer)
