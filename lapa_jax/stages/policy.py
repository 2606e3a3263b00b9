"""What the two policy stages share: one model, target tokens predicted in rows of tokens.

Batch (R rows of k examples, T tokens; see policy/layout.py): tokens, segments int32 (R, T),
modality int8 (R, T), target_slots, targets int32 (R, k·L), images uint8 (R, k·N, H, W, 3) where the
front-end computes image tokens, text_slots, text_targets int32 (R, k·M) where text is trained on.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from data_pipelines.rlds.schema import images_per_example
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import default_settings, typed_config
from lapa_jax.nn.stack import unstack
from lapa_jax.policy.decoding import decode
from lapa_jax.policy.front_end import front_end_column
from lapa_jax.policy.layout import Layout, LegacyLayout, left_pad, pack
from lapa_jax.policy.text import TextTokenizer, train
from lapa_jax.policy.vla import VLA, VLAConfig
from lapa_jax.stages import augmentation
from lapa_jax.stages.image_tokenizer import adopt_tokenizer, tokenizer_source
from lapa_jax.stages.stage import Assets, Batch, Metrics, Params, Stage, Variables

TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class RowSettings:
    """Keys of config.model that say how rows are laid out; the others are the model's own."""

    tokenizer: str = ""  # a SentencePiece .model; empty: trained on the corpora's instructions
    text_length: int = 20  # tokens of an instruction at most, the begin mark included
    sequence_length: int = 0  # tokens of a row; 0: what the longest examples need
    examples_per_row: int = 1  # more: packing


LAYOUT_KEYS = tuple(field.name for field in fields(RowSettings))


def policy_settings(**changes: Any) -> ConfigDict:
    """config.model of a new policy."""
    return default_settings(VLAConfig, **{**default_settings(RowSettings), **changes})


class PolicyStage(Stage):
    """A VLA trained on one head's target tokens. Subclasses name the head and make the targets."""

    head: str
    target_field: str
    image_column = "images"
    # of the text that follows the image, where the layout has such text (legacy)
    text_loss_weight = 0.0

    def __init__(self, config: ConfigDict, assets: Assets, limits: Sequence[int]):
        self.config, self.assets = config, assets
        self.limits = tuple(int(n) for n in limits)  # vocabulary of each target slot
        self.tokenizer = TextTokenizer(assets[TOKENIZER])
        model = {k: v for k, v in config.model.to_dict().items() if k not in LAYOUT_KEYS}
        self.from_pixels = front_end_column(model["front_end"]) == "frames"
        if self.from_pixels:
            model["front_end"] |= {"image_size": config.data.image_size}
        model["compute_dtype"] = config.compute_dtype
        self.model_config = typed_config(VLAConfig, model, "model")
        for name, needed in (
            ("text", self.tokenizer.vocab_size),
            (self.head, max(self.limits)),
        ):
            if needed > self.model_config.vocab(name):
                raise ValueError(
                    f"model.{name}_vocab={self.model_config.vocab(name)} is too small: "
                    f"{needed} ids are in use"
                )
        if config.data.num_frames > 1 and not config.data.history_seconds:
            raise ValueError(
                f"data.num_frames={config.data.num_frames} with data.history_seconds=0.0 would "
                "show a policy later frames: set data.history_seconds, the time between frames"
            )
        self.num_images = images_per_example(config.data)
        self.num_cameras = self.num_images // config.data.num_frames
        self.layout = (LegacyLayout if config.model.legacy else Layout)(
            self.tokenizer,
            head=self.head,
            text_length=config.model.text_length,
            num_images=self.num_images,
            tokens_per_image=self.model_config.tokens_per_image,
            image_vocab=self.model_config.image_vocab,
            num_targets=len(self.limits),
        )
        self.examples_per_row = config.model.examples_per_row
        longest = self.examples_per_row * self.layout.example_length
        self.row_length = config.model.sequence_length or longest
        self.with_text = bool(self.text_loss_weight and self.layout.num_text_targets)
        self.model = Functional(lambda rngs: VLA(self.model_config, rngs=rngs))

    @classmethod
    def fields_of(cls, config: ConfigDict) -> tuple[str, ...]:
        column = front_end_column(config.model.front_end)
        return tuple(column if f == "frames" else f for f in cls.fields)

    @staticmethod
    def make_tokenizer(config: ConfigDict, inherited: Assets, instructions: Sequence[str]) -> bytes:
        """That of the run we start from, the file of the config, or one trained on the corpus."""
        path = config.model.tokenizer
        if TOKENIZER in inherited:
            if path:
                raise ValueError(
                    f"model.tokenizer={path!r} and config.init_from are both set; the tokenizer "
                    "of init_from is the one that its embeddings belong to"
                )
            return inherited[TOKENIZER]
        if path:
            with open(path, "rb") as file:
                return file.read()
        return train(instructions, config.model.text_vocab)

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        targets = self.targets(batch[self.target_field])
        ids = [None] * len(targets) if self.from_pixels else batch["image_tokens"]
        examples = [
            self.layout.example(text, image, target)
            for text, image, target in zip(batch["instruction"], ids, targets, strict=True)
        ]
        k = self.examples_per_row
        rows, order = pack(examples, examples_per_row=k, length=self.row_length)
        if not self.with_text:
            rows = {name: x for name, x in rows.items() if not name.startswith("text_")}
        if self.from_pixels:
            frames = batch["frames"] if k == 1 else batch["frames"][order]
            rows["images"] = frames.reshape(len(order) // k, -1, *frames.shape[2:])
        return rows | augmentation.column(self.config.data, batch, order, k)

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Loader column → target tokens int32 (B, L)."""
        raise TypeError(f"{type(self).__name__} does not say how to make targets")

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        k, T, L = self.examples_per_row, self.row_length, len(self.limits)
        if self.config.global_batch % k:
            raise ValueError(
                f"global_batch={self.config.global_batch} must be a multiple of "
                f"model.examples_per_row={k}"
            )
        R = self.config.global_batch // k
        shapes = {
            "tokens": ((R, T), jnp.int32),
            "modality": ((R, T), jnp.int8),
            "segments": ((R, T), jnp.int32),
            "target_slots": ((R, k * L), jnp.int32),
            "targets": ((R, k * L), jnp.int32),
        }
        if self.with_text:
            text = ((R, k * self.layout.num_text_targets), jnp.int32)
            shapes |= {"text_slots": text, "text_targets": text}
        if self.from_pixels:
            frames = (R, k * self.num_images, *self.config.data.image_size, 3)
            shapes["images"] = (frames, jnp.uint8)
        spec = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
        return spec | augmentation.column_spec(self.config.data, R, k)

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        """Cross entropy of the target tokens, mean over tokens (every row has as many); the mean
        weighted with that of the text after the image, where text is trained on."""
        del rng
        slots = {self.head: batch["target_slots"]}
        if self.with_text:
            slots["text"] = batch["text_slots"]
        logits, variables = self.model.apply(
            params,
            variables,
            "logits",
            batch["tokens"],
            batch["modality"],
            batch["segments"],
            batch.get("images"),
            slots=slots,
        )
        loss, correct = cross_entropy(logits[self.head], batch["targets"])
        metrics = {
            "token_accuracy": correct.mean(),
            "sequence_accuracy": correct.reshape(-1, len(self.limits)).all(axis=-1).mean(),
        }
        if self.with_text:
            text_loss, text_correct = cross_entropy(logits["text"], batch["text_targets"])
            metrics |= {
                f"{self.head}_loss": loss,
                "text_loss": text_loss,
                "text_accuracy": text_correct.mean(),
            }
            loss = (1.0 - self.text_loss_weight) * loss + self.text_loss_weight * text_loss
        return loss, metrics, variables

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        loss, metrics, _ = self.loss(params, variables, batch, jax.random.key(0))
        return metrics | {"loss": loss}

    def frozen_from(self) -> tuple[str, str] | None:
        return tokenizer_source(self.model_config.front_end)

    def adopt(self, variables: Variables, config: ConfigDict, params: Params) -> Variables:
        return adopt_tokenizer(self.model_config.front_end, variables, config, params)

    def for_decoding(self, params: Params) -> tuple["PolicyStage", Params]:
        """(this stage, its parameters) with the layers apart: decodes faster, and cannot train.

        `params` are taken over: the stacked layers are taken out of them.
        """
        stage = copy.copy(self)
        stage.model = Functional(lambda rngs: VLA(self.model_config, rngs=rngs, stacked=False))
        return stage, unstack(params, "backbone")

    def prompts(
        self, instructions: Sequence[str], image_ids: Sequence[np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Prompts for `predict`: tokens, segments int32 and modality int8 (B, T). `image_ids`:
        int (images, tokens an image) each, for models that take ids."""
        images = image_ids if image_ids is not None else [None] * len(instructions)
        prompts = [self.layout.prompt(*one) for one in zip(instructions, images, strict=True)]
        return left_pad(prompts, self.layout.prompt_length)

    def predict(
        self,
        params: Params,
        variables: Variables,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
        **options,
    ) -> tuple[jax.Array, jax.Array]:
        """Target tokens int32 (B, L), greedy unless `options` (of policy/decoding.py) ask for
        more, and their logits (B, L, V); pure, may be jitted. `images` uint8 (B, N, H, W, 3)."""
        return decode(
            self.model,
            params,
            variables,
            prompts,
            images,
            self.head,
            len(self.limits),
            vocab_limit_n=jnp.asarray(self.limits),
            **options,
        )


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean over all tokens, whether the likeliest is the target (R, n))."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    return loss, jnp.argmax(logits, axis=-1) == targets
