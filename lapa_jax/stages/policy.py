"""What the two policy stages share: one model, tokens predicted at fixed target slots.

Batch: image uint8 (B, H, W, 3), text int32 (B, T), text_mask bool (B, T), targets int32 (B, L).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lapa_jax.models.decoding import decode
from lapa_jax.models.module import Functional
from lapa_jax.models.vla import VLA, VLAConfig, vla_flops
from lapa_jax.stages.stage import Assets, Batch, Metrics, Params, Stage, Variables
from lapa_jax.tokens.text import TextTokenizer, train

TOKENIZER = "tokenizer.model"


class PolicyStage(Stage):
    """A VLA trained on one head's target tokens. Subclasses name the head and make the targets."""

    head: str
    target_field: str

    def __init__(self, config: ConfigDict, assets: Assets, limits: Sequence[int]):
        self.config = config
        self.limits = tuple(int(n) for n in limits)  # vocabulary of each target slot
        self.tokenizer = TextTokenizer(assets[TOKENIZER], config.model.text_length)
        model = config.model.to_dict()
        del model["tokenizer"]
        model["front_end"] |= {"image_size": config.data.image_size}
        self.model_config = VLAConfig(**model, compute_dtype=config.compute_dtype)
        for name, needed in (
            ("text", self.tokenizer.vocab_size),
            (self.head, max(self.limits)),
        ):
            if needed > self.model_config.vocab(name):
                raise ValueError(
                    f"model.{name}_vocab={self.model_config.vocab(name)} is too small: "
                    f"{needed} ids are in use"
                )
        self.model = Functional(lambda rngs: VLA(self.model_config, rngs=rngs))

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
        text, mask = self.tokenizer.encode(batch["instruction"])
        return {
            "image": batch["frames"][:, 0],
            "text": text,
            "text_mask": mask,
            "targets": self.targets(batch[self.target_field]),
        }

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Loader column → target tokens int32 (B, L)."""
        raise TypeError(f"{type(self).__name__} does not say how to make targets")

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        B, config = self.config.global_batch, self.model_config
        shapes = {
            "image": ((B, *self.config.data.image_size, 3), jnp.uint8),
            "text": ((B, config.text_length), jnp.int32),
            "text_mask": ((B, config.text_length), jnp.bool_),
            "targets": ((B, len(self.limits)), jnp.int32),
        }
        return {name: jax.ShapeDtypeStruct(*spec) for name, spec in shapes.items()}

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        """Cross entropy of the target tokens, mean over tokens (every row has as many)."""
        del rng
        logits, variables = self.model.apply(
            params,
            variables,
            "target_logits",
            batch["image"],
            batch["text"],
            batch["text_mask"],
            batch["targets"],
            self.head,
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()
        correct = jnp.argmax(logits, axis=-1) == batch["targets"]
        metrics = {
            "token_accuracy": correct.mean(),
            "sequence_accuracy": correct.all(axis=-1).mean(),
        }
        return loss, metrics, variables

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        loss, metrics, _ = self.loss(params, variables, batch, jax.random.key(0))
        return metrics | {"loss": loss}

    def model_flops(self) -> float:
        return 3.0 * vla_flops(self.model_config, len(self.limits), self.head)

    def predict(
        self,
        params: Params,
        variables: Variables,
        image: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
    ) -> jax.Array:
        """Greedy target tokens int32 (B, L); pure, may be jitted."""
        del variables
        return decode(
            self.model,
            params,
            image,
            text,
            text_mask,
            self.head,
            len(self.limits),
            vocab_limit_n=jnp.asarray(self.limits),
        )
