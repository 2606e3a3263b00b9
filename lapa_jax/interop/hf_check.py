"""A policy in PyTorch (hf.py), compared with the policy that it was."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.interop.mapping import functional
from lapa_jax.interop.parity import LIMIT, Parity, clearly_different, difference, real_examples
from lapa_jax.nn.module import Functional
from lapa_jax.policy.front_end import VqganConfig, front_end_config
from lapa_jax.policy.image_tokenizer import ImageEncoder, ImageTokenizerConfig, nearest
from lapa_jax.policy.layout import LEGACY_END_OF_FRAME
from lapa_jax.policy.modality import MODALITIES, WITH_IDS
from lapa_jax.runs.loaded import Model, load_image_tokenizer
from lapa_jax.stages.policy import PolicyStage

IMAGE_TOKENIZER = "image_tokenizer"  # the part of the model in PyTorch, the prefix of its tensors
INSTRUCTIONS = ("pick up the red block and put it to the left of the bowl", "go", "")
ROWS, ROW_LENGTH = 4, 24  # of random tokens
REAL = 4  # examples of the run's own data
# Else XLA widens the weights of all layers before it goes through them: three times the memory.
LAYER_BY_LAYER = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def encoder(config: ImageTokenizerConfig) -> Functional:
    """The half of an image tokenizer that a policy needs."""
    return functional(ImageEncoder, config, dtype=jnp.float32)


class Tokenizer:
    """The image tokenizer of a policy, computing in float32: its own, or the run's that made its
    cached tokens."""

    def __init__(self, config: ImageTokenizerConfig, weights: dict[str, Any]):
        self.config, self.weights = config, weights
        self._encoder = encoder(config)

    def __call__(self, images_NIJC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(codes int32 (N, tokens), latents (N, tokens, C)); image by image, whose features take
        much memory."""

        @jax.jit
        def encode(weights, image):
            latents, _ = self._encoder.apply(weights, {}, "latents", image)
            latents = latents.reshape(-1, latents.shape[-1])
            return nearest(latents, weights["codebook"]), latents

        with jax.default_matmul_precision("highest"):
            found = [encode(self.weights, image[None]) for image in images_NIJC]
        codes, latents = (np.stack(x) for x in zip(*found, strict=True))
        return codes, latents


def find_tokenizer(run: Model, workdir: str | None) -> Tokenizer | None:
    """The tokenizer to export with a policy. ValueError for a `workdir` that does not fit."""
    settings = front_end_config(run.stage.model_config.front_end)[1]
    if isinstance(settings, VqganConfig):
        if workdir:
            raise ValueError(
                f"--image_tokenizer {workdir}: the policy of {run.workdir} has its own"
            )
        return Tokenizer(settings.tokenizer, run.variables["front_end"]["encoder"])
    if not workdir:
        return None
    if run.stage.from_pixels:
        raise ValueError(
            f"--image_tokenizer {workdir}: the policy of {run.workdir} takes no image tokens"
        )
    source = load_image_tokenizer(workdir)
    config, policy = source.stage.model_config, run.stage.model_config
    if not isinstance(config, ImageTokenizerConfig):
        raise ValueError(
            f"--image_tokenizer {workdir} is of model.architecture={config.architecture!r}: what "
            "is exported knows 'vqgan' alone"
        )
    rows, columns = config.grid(run.config.data.image_size)
    if rows * columns != policy.tokens_per_image or config.codebook_size > policy.image_vocab:
        raise ValueError(
            f"--image_tokenizer {workdir} makes {rows * columns} tokens of {config.codebook_size} "
            f"codes of an image of {run.config.data.image_size}; the policy of {run.workdir} takes "
            f"{policy.tokens_per_image} of {policy.image_vocab}"
        )
    return Tokenizer(config, source.params["encoder"])


class Inputs:
    """What the policy and its copy are both given: random rows of tokens; and examples, random and
    real ones."""

    def __init__(self, run: Model, tokenizer: Tokenizer | None):
        stage, rng = run.stage, np.random.default_rng(0)
        model, layout = stage.model_config, stage.layout
        vocab = np.array([stage.vocabularies[name] for name in WITH_IDS])
        self.present = np.array([MODALITIES.index(name) for name in stage.with_logits])
        self.modality = rng.choice(self.present, (ROWS, ROW_LENGTH))
        self.tokens = rng.integers(0, vocab[self.modality])
        pixels = stage.from_pixels or tokenizer is not None
        self.instructions, N = list(INSTRUCTIONS), stage.num_images
        if pixels:
            shape = (len(INSTRUCTIONS), N, *run.config.data.image_size, 3)
            images = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            codes = min(model.image_vocab, LEGACY_END_OF_FRAME)
            shape = (len(INSTRUCTIONS), N, layout.tokens_per_image)
            images = rng.integers(0, codes, shape, dtype=np.int32)
        column = "frames" if pixels else "image_tokens"
        columns = (column, "instruction", *["state"] * bool(stage.state))
        states = np.zeros((len(images), 0))
        if stage.state:
            own = rng.uniform(-1, 1, (len(images), stage.state.dim))
            states = stage.state.statistics.restore(own)
        real, self.real = real_examples(run.config.data, columns, REAL)
        if real is not None:
            images = np.concatenate([images, real[column]])
            self.instructions += list(real["instruction"])
            none = np.zeros((len(real[column]), 0))
            states = np.concatenate([states, real["state"] if stage.state else none])
        kept = [
            i
            for i, text in enumerate(self.instructions)
            if _fits(stage, text) and np.isfinite(states[i]).all()
        ]
        self.images, self.instructions = images[kept], [self.instructions[i] for i in kept]
        self.states = states[kept] if stage.state else None
        self.ids = None if stage.from_pixels else self.images
        if tokenizer is not None:
            B = len(kept)
            ids, latents = tokenizer(self.images.reshape(B * N, *self.images.shape[2:]))
            self.image_ids, self.image_latents = ids.reshape(B, N, -1), latents
            self.codebook = np.asarray(tokenizer.weights["codebook"])
            if not stage.from_pixels:
                self.ids = self.image_ids


def _fits(stage: PolicyStage, instruction: str) -> bool:
    try:
        stage.layout.text(instruction)
    except ValueError:  # too long
        return False
    return True


class Reference:
    """What our policy makes of the inputs, in a compute dtype."""

    def __init__(self, run: Model, inputs: Inputs, stage: PolicyStage):
        rows = [jnp.asarray(x, jnp.int32) for x in (inputs.tokens, inputs.modality)]
        heads = {MODALITIES[i]: None for i in inputs.present}
        run_rows = jax.jit(
            lambda params, variables, *rows: stage.model.apply(
                params, variables, "outputs", *rows, jnp.ones_like(rows[0]), slots=heads
            )[0],
            compiler_options=LAYER_BY_LAYER,
        )
        weights = run.params, run.variables
        prompts = stage.prompts(inputs.instructions, inputs.ids, inputs.states)
        images = inputs.images if stage.from_pixels else None
        with jax.default_matmul_precision("highest"):
            self.logits = {k: np.asarray(x) for k, x in run_rows(*weights, *rows).items()}
            predict = jax.jit(stage.predict, compiler_options=LAYER_BY_LAYER)
            found = predict(*weights, prompts, images)
        self.head, self.values = stage.head.modality, np.asarray(found.values)
        self.ids = self.chosen_by = self.noise = None
        if found.ids is not None:
            self.ids, self.chosen_by = np.asarray(found.ids), np.asarray(found.logits)
        if stage.head.draws:
            self.noise = {name: np.asarray(x) for name, x in stage.head.noise().items()}


def check(
    parity: Parity, model: Any, inputs: Inputs, exact: Reference, rough: Reference | None
) -> None:
    """In float32 everything must agree; in bfloat16 how often the likeliest token does is told."""
    import torch

    rounding = model.config.lapa["rope_rounding"]
    model.config.lapa["rope_rounding"] = "float32"  # as ours where it computes in float32
    model.compute_dtype = torch.float32
    if model.front_end is not None:
        model.front_end.float()
    for name, found in _logits(model, inputs).items():
        parity.at_most(f"{name}_logits", difference(found, exact.logits[name]), LIMIT)
    seen = np.ones(len(inputs.instructions), bool)
    if model.image_tokenizer is not None:
        seen = _check_image_tokens(parity, model, inputs)
    given = inputs.images, inputs.instructions, inputs.states
    values, ids, logits = model.answer(*given, noise=exact.noise)
    same = seen
    if exact.ids is not None:
        parity.at_most("tokens_that_differ", _not_tied(ids, exact, seen), 0)
        same = seen & (ids == exact.ids).all(axis=1)
        parity.stated["examples_with_equal_tokens"] = float(same.mean())
    if same.any() and exact.ids is not None:
        ours = exact.chosen_by[same]
        shown = np.isfinite(ours)  # not the ids that an action cannot have
        apart = difference(logits[same][shown], ours[shown])
        parity.at_most(f"{exact.head}_logits_of_examples", apart, LIMIT)
    if same.any() and exact.values.dtype.kind == "f":
        # Of tokens that are the same; numbers are as exact as the hidden states.
        limit = LIMIT if exact.ids is None else 1e-6
        parity.at_most(f"{exact.head}s", difference(values[same], exact.values[same]), limit)
    parity.stated |= {
        "random_rows": ROWS,
        "instructions": inputs.instructions,
        "real_inputs": inputs.real,
    }
    if rough is None:
        return
    model.config.lapa["rope_rounding"], model.compute_dtype = rounding, None
    for name, part in model.named_children():
        if name != IMAGE_TOKENIZER:
            part.to(torch.bfloat16)
    for name, found in _logits(model, inputs).items():
        ours = rough.logits[name]
        parity.stated[f"bfloat16_{name}"] = {
            "argmax_agreement": float((found.argmax(-1) == ours.argmax(-1)).mean()),
            "logits_difference": difference(found, ours),
        }


def _logits(model: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    found = model.logits(inputs.tokens, inputs.modality)
    return {name: x.float().numpy() for name, x in found.items()}


def _check_image_tokens(parity: Parity, model: Any, inputs: Inputs) -> np.ndarray:
    """Bool (B,): the examples whose images have the same tokens; from others, tied ones, nothing
    follows."""
    import torch

    images = inputs.images.reshape(-1, *inputs.images.shape[2:])
    ours = inputs.image_ids.reshape(len(images), -1)
    with torch.no_grad():
        found = [model.image_tokenizer(torch.tensor(image[None])).numpy() for image in images]
    found = np.concatenate(found).reshape(ours.shape)
    different = clearly_different(found, ours, inputs.image_latents, inputs.codebook)
    parity.at_most("image_tokens_that_differ", different, 0)
    parity.stated["equal_image_tokens"] = float((found == ours).mean())
    return (found == ours).reshape(len(inputs.images), -1).all(axis=1)


def _not_tied(ids: np.ndarray, exact: Reference, seen: np.ndarray) -> int:
    """Examples whose first different token was clearly less likely; what follows one depends on
    it."""
    wrong = 0
    for i in np.flatnonzero(seen):
        found, ours, logits = ids[i], exact.ids[i], exact.chosen_by[i]
        different = np.flatnonzero(found != ours)
        if len(different):
            at = different[0]
            margin = logits[at, ours[at]] - logits[at, found[at]]
            largest = np.abs(logits[at][np.isfinite(logits[at])]).max()
            wrong += bool(not margin <= LIMIT * largest)
    return wrong
