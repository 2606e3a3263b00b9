"""A policy: one model, trained on what its heads predict in rows of tokens.

Batch (R rows of k examples, T tokens; see policy/layout.py): tokens, segments int32 (R, T),
modality int8 (R, T), of each head MODALITY_slots int32 (R, k·n) and what it compares with
(MODALITY_targets int32 (R, k·n) where it predicts tokens), images uint8 (R, k·N, H, W, 3) where the
front-end computes image tokens, text_slots, text_targets int32 (R, k·M) where text is trained on,
state float32 (R, k, S + 1) and state_out_of_range float32 (R, k) where the robot's state is seen.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from data_pipelines.rlds.schema import images_per_example
from lapa_jax.nn import surgery
from lapa_jax.nn.module import Functional
from lapa_jax.nn.registry import default_settings, typed_config
from lapa_jax.nn.stack import unstack
from lapa_jax.policy import heads
from lapa_jax.policy import state as states
from lapa_jax.policy.decoding import extend
from lapa_jax.policy.front_end import front_end_column, front_end_config
from lapa_jax.policy.heads.tokens import CODEC, cross_entropy
from lapa_jax.policy.layout import Layout, LegacyLayout, Slots, by_row, last_tokens, left_pad, pack
from lapa_jax.policy.modality import WEIGHTS, WITH_IDS
from lapa_jax.policy.text import TextTokenizer, train
from lapa_jax.policy.vla import VLA, VLAConfig
from lapa_jax.stages import augmentation
from lapa_jax.stages.stage import (
    Assets,
    Batch,
    Metrics,
    Params,
    Sources,
    Stage,
    Unusable,
    Variables,
)

TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class RowSettings:
    """Keys of config.model that say how rows are laid out; the others are the model's own."""

    targets: Annotated[Mapping[str, Any], "what is predicted, by modality, each with its head"]
    state: Annotated[Mapping[str, Any], "of the robot, as an input"] = field(
        default_factory=lambda: default_settings(states.StateConfig)
    )
    tokenizer: Annotated[
        str, "a SentencePiece .model; empty: trained on the corpora's instructions"
    ] = ""
    action_codec: Annotated[
        str,
        "action_bins.json among the assets of a run of actions: its tokens are kept, as a head of "
        "actions that is taken from that run needs; empty: fitted on the corpora's actions",
    ] = ""
    text_length: Annotated[
        int, "[1, 1e6]", "tokens of an instruction at most, the begin mark included"
    ] = 20
    sequence_length: Annotated[
        int, "[0, 1e7]", "tokens of a row; 0: what the longest examples need"
    ] = 0
    examples_per_row: Annotated[int, "[1, 1e5]", "more than 1: packing"] = 1
    cotrain: Annotated[
        bool,
        "examples whose actions are not known are drawn, too: latent actions are learned from them",
    ] = False

    inverse_dynamics: Annotated[
        bool,
        "it is shown the frame and that a window later, and no instruction: it says what was done, "
        "to label videos with actions, and cannot act",
    ] = False


LAYOUT_KEYS = tuple(one.name for one in fields(RowSettings))


def policy_settings(*, latent_vocab: int = 0, action_vocab: int = 0, **changes: Any) -> ConfigDict:
    """config.model of a new policy, which predicts tokens of these vocabularies; 0: not those."""
    targets = heads.token_settings(latent=latent_vocab, action=action_vocab)
    model = default_settings(VLAConfig, targets=targets)
    return default_settings(RowSettings, **{**model, **changes})


class PolicyStage(Stage):
    """A VLA trained on what the heads of `model.targets` predict."""

    image_column = "images"

    def __init__(self, config: ConfigDict, assets: Assets):
        self.config, self.assets = config, assets
        self.tokenizer = TextTokenizer(assets[TOKENIZER])
        model = {k: v for k, v in config.model.to_dict().items() if k not in LAYOUT_KEYS}
        self.from_pixels = front_end_column(model["front_end"]) == "frames"
        if self.from_pixels:
            model["front_end"] |= {"image_size": config.data.image_size}
        model["compute_dtype"] = config.compute_dtype
        self.model_config = typed_config(VLAConfig, model, "model")
        self.borrowed = front_end_config(self.model_config.front_end)[1].borrowed
        if self.tokenizer.vocab_size > self.model_config.text_vocab:
            raise ValueError(
                f"model.text_vocab={self.model_config.text_vocab} is too small: "
                f"{self.tokenizer.vocab_size} ids are in use"
            )
        self.inverse_dynamics = config.model.inverse_dynamics
        if self.inverse_dynamics:
            self._check_inverse_dynamics()
        elif config.data.num_frames > 1 and not config.data.history_seconds:
            raise ValueError(
                f"data.num_frames={config.data.num_frames} with data.history_seconds=0.0 would "
                "show a policy later frames: set data.history_seconds, the time between frames"
            )
        self.num_images = images_per_example(config.data)
        self.num_cameras = self.num_images // config.data.num_frames
        self.state: states.StateInput | None = None
        if config.model.state.enabled:
            settings = typed_config(states.StateConfig, config.model.state, "model.state")
            self.state = states.StateInput(settings, assets[states.STATISTICS])
        self.parts = heads.build(config, assets)  # of the model, by modality
        self.heads = [head for head in self.parts.values() if head.settings.loss_weight]
        if self.heads and self.heads[-1].pulls:
            raise ValueError(
                f"model.targets.{self.heads[-1].modality} pulls at the slots of actions, and "
                "model.targets.action is missing, or is not trained"
            )
        for head in self.heads[:-1]:
            if not (head.next_token or head.pulls):
                raise ValueError(
                    f"model.targets.{head.modality} has no tokens that {self.heads[-1].modality}, "
                    "which comes after it, could see: it must be the last"
                )
        if config.model.legacy and any(head.beside for head in self.heads):
            raise ValueError(
                "model.legacy=True: the original's rows end with marks, which a head beside the "
                "backbone would see in training alone"
            )
        self.layout = (LegacyLayout if config.model.legacy else Layout)(
            self.tokenizer,
            slots=[Slots(h.modality, h.num_slots, h.next_token) for h in self.heads],
            text_length=config.model.text_length,
            num_images=self.num_images,
            tokens_per_image=self.model_config.tokens_per_image,
            image_vocab=self.model_config.image_vocab,
            sees_state=self.state is not None,
        )
        self.examples_per_row = config.model.examples_per_row
        longest = self.examples_per_row * self.layout.example_length
        self.row_length = config.model.sequence_length or longest
        self.model = self.functional()

    def _check_inverse_dynamics(self) -> None:
        data, model = self.config.data, self.config.model
        wanted = {"data.num_frames": (data.num_frames, 2)}
        wanted["data.history_seconds"] = (data.history_seconds, 0.0)
        wanted["data.action_horizon"] = (data.action_horizon, 1)
        wanted |= {f"model.{key}": (model[key], False) for key in ("legacy", "cotrain")}
        wanted["model.state.enabled"] = (model.state.enabled, False)
        for key, (value, needed) in wanted.items():
            if value != needed:
                raise ValueError(
                    f"{key}={value!r} must be {needed!r} with model.inverse_dynamics=True"
                )
        if not self.from_pixels:
            raise ValueError(
                f"model.front_end={model.front_end.name!r} takes image tokens: "
                "model.inverse_dynamics=True needs one that takes pixels"
            )

    def functional(self, *, stacked: bool = True) -> Functional:
        """Its model, with the layers stacked or apart."""
        config, parts, state = self.model_config, self.parts, self.state
        return Functional(lambda rngs: VLA(config, parts, rngs=rngs, stacked=stacked, state=state))

    @property
    def head(self) -> heads.Head:
        """The one that answers: the last of those that are trained."""
        if not self.heads:
            raise ValueError(
                "this policy predicts nothing: model.targets names no head with a loss_weight "
                "above 0.0"
            )
        return self.heads[-1]

    @property
    def acts(self) -> bool:
        return bool(self.heads) and self.head.acts

    @property
    def draws(self) -> bool:
        """Whether answers begin with noise."""
        return self.head.draws

    def check_sampling(self, temperature: float, top_k: int) -> None:
        """Raises ValueError where there are no tokens to sample."""
        if (temperature or top_k) and not self.head.samples:
            name = self.head.name
            raise ValueError(f"{temperature=}, {top_k=}: the head {name!r} has no tokens to sample")

    @property
    def vocabularies(self) -> dict[str, int]:
        """How many ids each modality has; 0 where the model has none of it."""
        found = {"text": self.model_config.text_vocab, "image": self.model_config.image_vocab}
        return dict.fromkeys(WITH_IDS, 0) | found | {m: x.vocab for m, x in self.parts.items()}

    @property
    def with_logits(self) -> list[str]:
        """The modalities whose heads give logits of ids."""
        sizes = self.vocabularies.items()
        return [m for m, n in sizes if n and (m not in self.parts or self.parts[m].next_token)]

    @classmethod
    def fields_of(cls, config: ConfigDict) -> tuple[str, ...]:
        found = (front_end_column(config.model.front_end), *heads.columns(config))
        if not config.model.inverse_dynamics:
            found = (found[0], "instruction", *found[1:])
        return (*found, "state") if config.model.state.enabled else found

    @staticmethod
    def make_assets(config: ConfigDict, sources: Sources) -> dict[str, bytes]:
        tokenizer = {TOKENIZER: PolicyStage.make_tokenizer(config, sources)}
        made = tokenizer | heads.make_assets(config, sources)
        if config.model.action_codec and CODEC not in made:
            raise ValueError(
                f"model.action_codec={config.model.action_codec!r} is of a head 'tokens', and "
                "model.targets has none of actions"
            )
        if config.model.state.enabled:
            statistics = sources.statistics("state", config.model.state.normalisation)
            made[states.STATISTICS] = statistics.to_json()
        return made

    @staticmethod
    def make_tokenizer(config: ConfigDict, sources: Sources) -> bytes:
        """That of the run we start from, the file of the config, or one trained on the corpus."""
        path = config.model.tokenizer
        if TOKENIZER in sources.inherited:
            if path:
                raise ValueError(
                    f"model.tokenizer={path!r} and config.init_from are both set; the tokenizer "
                    "of init_from is the one that its embeddings belong to"
                )
            return sources.inherited[TOKENIZER]
        if path:
            try:
                return Path(path).read_bytes()
            except OSError as error:
                raise ValueError(f"model.tokenizer={path!r} cannot be read: {error}") from error
        return train(sources.instructions(), config.model.text_vocab)

    def unusable(self, instructions: Sequence[str]) -> Unusable:
        k, layout = self.examples_per_row, self.layout
        needed = np.array([len(layout.any_text(text)) for text in instructions], int)
        longest = int(needed.max(initial=0))
        limit, others = layout.text_length, layout.example_length - layout.text_length
        key, why = "model.text_length", f"more than model.text_length={limit} tokens"
        room = self.row_length // k - others  # of each example, if all are as long
        if k == 1 and room < limit:
            key, limit = "model.sequence_length", room
            why = f"more than the {room} tokens that {key}={self.row_length} leaves to it"
        elif room < min(limit, longest):
            logging.warning(
                "model.sequence_length=%d leaves each of %d examples %d tokens of text; the "
                "longest instruction has %d: rows of long ones would stop the run",
                *(self.row_length, k, room, longest),
            )
        why = f"have an instruction of {why} (the longest has {longest})"
        return Unusable(needed > limit, why, f"Raise {key}")

    def check(self, batch: dict[str, np.ndarray]) -> None:
        for head in self.heads:
            head.rows(batch)
        if self.state:
            self.state.rows(batch["state"])
        for ids in () if self.from_pixels else batch["image_tokens"]:
            self.layout.prompt("", ids)

    def prepare(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        k, found = self.examples_per_row, [head.rows(batch) for head in self.heads]
        B = len(next(iter(batch.values())))
        texts = [""] * B if self.inverse_dynamics else batch["instruction"]
        images = [None] * B if self.from_pixels else batch["image_tokens"]
        ids = zip(*(of_head for of_head, _ in found), strict=True) if found else [()] * B
        examples = [self.layout.example(*one) for one in zip(texts, images, ids, strict=True)]
        rows, order = pack(examples, examples_per_row=k, length=self.row_length)
        for head, (_, targets) in zip(self.heads, found, strict=True):
            if head.beside or head.pulls:
                del rows[f"{head.modality}_slots"]  # of nothing
            for name, values in targets.items():
                rows[f"{head.modality}_{name}"] = by_row(values, order, k)
        for head in self.heads:
            if head.pulls:
                at = rows.get(f"{self.head.modality}_slots")
                rows[f"{head.modality}_slots"] = last_tokens(rows, k) if at is None else at
        if self.with_text:
            text = np.tile(self.layout.text_targets, (B, 1))
            rows["text_targets"] = by_row(text, order, k)
        else:
            rows.pop("text_slots", None)
        if self.state:
            own = self.state.rows(batch["state"])
            rows |= {name: by_row(values, order, k) for name, values in own.items()}
        if self.from_pixels:
            rows["images"] = by_row(batch["frames"], order, k)
        return rows | augmentation.column(self.config.data, batch, order, k)

    @property
    def with_text(self) -> bool:
        return self.layout.text_loss_weight > 0

    def watch(self) -> list[tuple[int, str]]:
        config, found = self.config, []
        if 0 < (warm := config.optimizer.get("warmup_steps", 0)) < config.steps:
            found.append((warm, "the loss is below that of the first line"))
        usual = "token accuracy above that of the usual token and of the first frame"
        if (saved := config.checkpoint.every_steps) < config.steps and not self.acts:
            found.append((saved, f"`lapa evaluate` of the first checkpoint: {usual}"))
        if every := config.evaluation.every_steps:
            found.append(
                (every, "the loss in evaluation.jsonl, which rises where it learns by heart")
            )
        last = "`lapa evaluate` on held-out episodes: "
        if self.acts:
            last += "errors beside the mean action and the one before repeated, and success"
        else:
            last += usual
        return [*found, (config.steps, last)]

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        k, T, data = self.examples_per_row, self.row_length, self.config.data
        R, rest = divmod(self.config.global_batch, k)
        if rest:
            raise ValueError(
                f"global_batch={self.config.global_batch} must be a multiple of "
                f"model.examples_per_row={k}"
            )

        def rows(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((R, *shape), dtype)

        spec = {"tokens": rows(T), "modality": rows(T, dtype=jnp.int8), "segments": rows(T)}
        for head in self.heads:
            if not head.beside:
                at = self.head if head.pulls else head
                spec[f"{head.modality}_slots"] = rows(k * (at.num_slots or 1))
            for name, x in head.spec().items():
                of_rows = rows(k * x.shape[0], *x.shape[1:], dtype=x.dtype)
                spec[f"{head.modality}_{name}"] = of_rows
        for name, x in self.state.spec().items() if self.state else ():
            spec[name] = rows(k, *x.shape[1:], dtype=x.dtype)
        if self.with_text:
            spec["text_slots"] = spec["text_targets"] = rows(k * len(self.layout.text_targets))
        if self.from_pixels:
            spec["images"] = rows(k * self.num_images, *data.image_size, 3, dtype=jnp.uint8)
        return spec | augmentation.column_spec(data, R, k)

    def loss(
        self, params: Params, variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, Metrics, Variables]:
        """The losses of the heads, summed by their weights, and that of the text after the image
        where text is trained on. The metrics of several heads have the modality before their
        names."""
        return self._loss(params, variables, batch, rng, disturbed=True)

    def eval_metrics(self, params: Params, variables: Variables, batch: Batch) -> Metrics:
        """The metrics and the loss; every state is shown as it is."""
        given = (params, variables, batch, jax.random.key(0))
        loss, metrics, _ = self._loss(*given, disturbed=False)
        return metrics | {"loss": loss}

    def _loss(
        self,
        params: Params,
        variables: Variables,
        batch: Batch,
        rng: jax.Array,
        *,
        disturbed: bool,
    ) -> tuple[jax.Array, Metrics, Variables]:
        targets = {}
        for number, head in enumerate(self.heads):
            given = {name: batch[f"{head.modality}_{name}"] for name in head.spec()}
            targets[head.modality] = given | head.draw(given, jax.random.fold_in(rng, number))
        fed = {m: given["fed"] for m, given in targets.items() if "fed" in given}
        last = self.heads[-1] if self.heads else None
        if last and last.next_token and last.modality in fed:  # its last vector is only predicted
            given = fed.pop(last.modality)
            R, V = len(given), given.shape[-1]
            shown = given.reshape(R, -1, last.num_slots, V)[:, :, :-1].reshape(R, -1, V)
            if shown.shape[1]:
                fed[last.modality] = shown
        if self.state:
            own = jax.random.fold_in(rng, len(self.heads)) if disturbed else None
            fed["state"] = self.state.trained_on(batch["state"], own)
        asked = [*targets, "text"] if self.with_text else list(targets)
        outputs, variables = self.model.apply(
            params,
            variables,
            "outputs",
            batch["tokens"],
            batch["modality"],
            batch["segments"],
            batch.get("images"),
            slots={name: batch.get(f"{name}_slots") for name in asked},
            fed=fed,
        )
        total, metrics = 0.0, {}
        if self.state:
            metrics[states.OUT_OF_RANGE] = self.state.out_of_range(batch)
        for head in self.heads:
            loss, found = head.loss(outputs[head.modality], targets[head.modality])
            total += head.settings.loss_weight * loss
            prefix = f"{head.modality}_" if len(self.heads) > 1 else ""
            if len(asked) > 1:
                found.pop("loss_weight", None)  # there is none that is right for all
            metrics |= {
                name if name.startswith(prefix) else prefix + name: value
                for name, value in found.items()
            }
            if len(asked) > 1:
                metrics[f"{head.modality}_loss"] = loss
        if self.with_text:
            text_loss, correct = cross_entropy(outputs["text"], batch["text_targets"])
            metrics |= {"text_loss": text_loss, "text_accuracy": correct.mean()}
            weight = self.layout.text_loss_weight
            total = (1.0 - weight) * total + weight * text_loss
        return total, metrics, variables

    def apart(self, weights: str = "trained") -> "PolicyStage":
        """This stage with the model's layers apart: decodes faster, and cannot train. `weights`: of
        WEIGHTS; what is not int8 has the dtypes of the parameters that it is given."""
        if weights not in WEIGHTS:
            raise ValueError(f"weights={weights!r} must be one of {list(WEIGHTS)}")
        stage = copy.copy(self)
        if weights == "int8":
            held = dict(base_dtype="int8", param_dtype="float32")
            stage.model_config = replace(self.model_config, **held)
        stage.model = stage.functional(stacked=False)
        return stage

    def for_decoding(
        self, params: Params, weights: str = "trained"
    ) -> tuple["PolicyStage", Params]:
        """(`apart`, its parameters).

        `params` are taken over: the stacked layers are taken out of them.
        """
        stage = self.apart(weights)
        if weights == "int8":
            params = surgery.held(params, stage.functional())
        return stage, unstack(params, "backbone")

    def prompts(
        self,
        instructions: Sequence[str],
        image_ids: Sequence[np.ndarray] | None = None,
        own: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Prompts for `predict`: tokens, segments int32 and modality int8 (B, T). `image_ids`:
        int (images, tokens an image) each, for models that take ids. `own`: the states of the
        robot, float32 (B, S) in the units of the data, for policies that see it."""
        images = image_ids if image_ids is not None else [None] * len(instructions)
        prompts = [self.layout.prompt(*one) for one in zip(instructions, images, strict=True)]
        rows = left_pad(prompts, self.layout.prompt_length)
        if (own is None) != (self.state is None):
            raise ValueError(
                "this policy sees the robot's state: it must be given"
                if self.state
                else "this policy was trained without the robot's state: give none"
            )
        if self.state:
            own = np.asarray(own)
            if own.dtype.kind not in "fiub":
                raise ValueError(f"the robot's state has dtype {own.dtype}, not of real numbers")
            own = own.astype(np.float32)
            self.state.check(own)
            if len(own) != len(rows["tokens"]):
                raise ValueError(f"{len(own)} states for {len(rows['tokens'])} instructions")
            rows["state"] = self.state.fed(own)
        return rows

    def predict(
        self,
        params: Params,
        variables: Variables,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
        **options: Any,
    ) -> heads.Decoded:
        """What the head that answers says after `prompts`, by `options` of its own; pure, may be
        jitted. `images` uint8 (B, N, H, W, 3). Heads before it speak first."""
        before = {name: x for name, x in options.items() if name != "going_on"}
        for head in self.heads[:-1]:
            if head.pulls:
                continue
            own = before if head.samples else {}
            said = head.decode(self.model, params, variables, prompts, images, **own)
            prompts = extend(prompts, head.modality, said.ids, said.fed)
        return self.head.decode(self.model, params, variables, prompts, images, **options)

    def act(self, *given: Any, **options: Any) -> jax.Array:
        """The values of `predict`, which takes the same: actions float32 (B, action_dim) in the
        units of the data, or (B, n, action_dim) of a head whose answers are for n steps."""
        return self.predict(*given, **options).values
