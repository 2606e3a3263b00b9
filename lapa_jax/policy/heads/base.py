"""What a head is: all that a policy knows of one thing that it predicts.

Shape suffixes: B examples, R rows, n slots, D width, V what a slot gives.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.normalise import Normaliser
from lapa_jax.nn import int8
from lapa_jax.nn.layers import Dense, dtype_of
from lapa_jax.nn.module import Functional, Tree, param
from lapa_jax.policy.attention import Backbone
from lapa_jax.policy.modality import ACTION, MODALITIES

COLUMNS = {"latent": "latent_action", "action": "action"}  # of the loader
SYMBOLS = {"latent": "z", "action": "a"}  # of answers
Assets = Mapping[str, bytes]


class Sources(Protocol):
    """What the assets of a new run may be made of."""

    inherited: Assets  # of the run that it starts from

    def instructions(self) -> list[str]:
        """Every instruction of its corpora once, sorted."""
        ...

    def actions(self) -> np.ndarray:
        """All actions of its corpora that are known, float32 (N, action_dim)."""
        ...

    def action_chunks(self, what_for: str) -> Iterator[np.ndarray]:
        """The chunks that its corpora's examples have, as batches have them, float32 (n, horizon,
        action_dim), in parts; how far it is stands on the screen under this name."""
        ...

    def states(self) -> np.ndarray:
        """All states of its corpora, float32 (N, S)."""
        ...

    def latents(self) -> np.ndarray:
        """All vectors of its label sets, which are of a quantizer without codes, float32 (N,
        width)."""
        ...

    def statistics(self, of: str, mode: str) -> Normaliser:
        """Of these "action", "latent" or "state" numbers, with the hash of the data; what is
        peculiar about them is said on the log."""
        ...


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Those of every head."""

    loss_weight: Annotated[
        float,
        "[0, 1e6]",
        "of its loss in the sum of all; 0.0: the model has the head's parameters, and that is all",
    ] = 1.0


class Decoded(NamedTuple):
    """What a head says of B examples."""

    values: jax.Array  # (B, ...), in the units of its column
    ids: jax.Array | None = None  # int32 (B, tokens), of heads that choose tokens
    logits: jax.Array | None = None  # float32 (B, tokens, vocabulary) that they were chosen by
    fed: jax.Array | None = None  # float32 (B, tokens, ...) that its slots hold where ids are FILL


class Head:
    """The head of one modality of a config. Holds no arrays; what runs on devices is pure.

    An example has `num_slots` slots of the modality in its row. What the head gives at slot i is
    seen at the token before it where `next_token`, so that tokens are predicted one after the
    other; else at the slot itself. Where they are `one_block`, the slots of an example see each
    other.

    A head `beside` the backbone has no slots, but tokens of its own: its output is a module (what
    it is fed, Context) that sees the rows of the backbone, its keys and values ("layers") or its
    last hidden states ("hidden"), and that the backbone does not see.

    A head that `pulls` says nothing and has neither slots nor tokens: its output is given the
    hidden states after that layer at the slots of the head that answers, or, where that is beside
    the backbone, at the last token of each prompt.
    """

    next_token = False
    samples = False  # whether its tokens may be drawn
    one_block = False
    beside = ""  # or "layers", "hidden": see below
    pulls = 0  # at which layer, from 1
    draws = False  # whether answers begin with noise: `decode` takes a `key`
    guided = False  # whether answers can follow the one before: `decode` takes `going_on`

    name: str  # in `HEADS`
    modality: str  # "latent" or "action": a name of `modality.MODALITIES`
    settings: HeadConfig
    num_slots: int
    vocab: int  # ids that its slots may hold
    num_outputs: int  # values that it gives at a slot
    horizon: int = 1  # steps of time that an answer is for

    def __init__(self, modality: str, settings: HeadConfig, config: ConfigDict, assets: Assets): ...

    @property
    def acts(self) -> bool:
        """Whether its values are a robot's actions."""
        return self.modality == MODALITIES[ACTION]

    # --- On the host ---

    @staticmethod
    def columns(modality: str, config: ConfigDict) -> tuple[str, ...]:
        """What the loader must give, besides images and instructions."""
        del config
        return (COLUMNS[modality],)

    @staticmethod
    def make_assets(
        modality: str, settings: HeadConfig, config: ConfigDict, sources: Sources
    ) -> dict[str, bytes]:
        """The files of a new run that this head needs."""
        del modality, settings, config, sources
        return {}

    def rows(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Loader columns → (ids int32 (B, n) of the slots, what the loss compares with: arrays
        (B, n, ...) as `spec` says)."""
        raise NotImplementedError

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of one example, (n, ...) each: what `rows` gives for the loss, by name."""
        raise NotImplementedError

    # --- In the model ---

    def embedding(self, model: Backbone, rngs: nnx.Rngs) -> nnx.Module:
        """Ids int (B, T) → (B, T, D): at embeddings/MODALITY of the parameters. Of a head that is
        fed, its values, too."""
        return Embedding(self.vocab, model, None, rngs)

    def output(self, model: Backbone, rngs: nnx.Rngs) -> nnx.Module:
        """Hidden states (B, n, D) → (B, n, V): at heads/MODALITY of the parameters."""
        return readout(self.num_outputs, model, None, rngs)

    def draw(self, targets: Mapping[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
        """What a loss needs besides `targets`, as noise; "fed" (R, n, ...) is what the slots hold
        where their ids are FILL, or what the module beside the backbone is fed."""
        del targets, rng
        return {}

    def loss(
        self, outputs_RnV: jax.Array, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(mean over examples, metrics), of rows of whole examples; `targets`: as `rows` gives
        them, (R, n, ...), and what `draw` adds."""
        raise NotImplementedError

    def decode(
        self,
        model: Functional,
        params: Tree,
        variables: Tree,
        prompts: Mapping[str, jax.Array],
        images: jax.Array | None,
        **options: Any,
    ) -> Decoded:
        """What the model says after `prompts`; see policy/decoding.py. TypeError for `options` that
        it does not have."""
        raise NotImplementedError

    # --- For others ---

    @property
    def statistics(self) -> Normaliser | None:
        """Of what it predicts, in the data that it was trained on; None where it keeps none."""
        return None

    def nearest(self, actions: np.ndarray) -> np.ndarray | None:
        """The answers nearest to actions float (B, horizon, action_dim) in the units of the data;
        None where any action is one."""
        del actions
        return None

    def describe(self) -> dict[str, Any]:
        """Plain values, for clients of a server; of actions with their dimensions as "dim"."""
        raise NotImplementedError

    def reply(self, values: np.ndarray, probabilities: np.ndarray | None) -> dict[str, np.ndarray]:
        """What a server answers one observation with."""
        del probabilities
        return {SYMBOLS[self.modality]: values}


def partly(config: ConfigDict) -> bool:
    """Whether examples whose actions are not known are drawn, too, for other heads."""
    return bool(config.model.get("cotrain", False))


class Embedding(nnx.Module):
    def __init__(self, vocab: int, model: Backbone, axis: str | None, rngs: nnx.Rngs):
        table = model.init_std * jax.random.normal(rngs.params(), (vocab, model.dim))
        self.table = param(table, axis, "embed")
        self.table_scale = None  # where the table is int8: see nn/int8.py
        self.dtype = dtype_of(model.compute_dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        if self.table_scale is not None:
            return int8.dequantize(self.table[...][ids], self.table_scale[...][ids], self.dtype)
        return self.table[...][ids].astype(self.dtype)

    def hold(self, dtype: str) -> None:
        """Holds the table, which then cannot train, in fewer bits; of `int8.HELD`."""
        int8.hold(self, "table", dtype, (1,))


def readout(size: int, model: Backbone, axis: str | None, rngs: nnx.Rngs) -> Dense:
    """A linear map from the model's width to `size` values."""
    return Dense(
        (model.dim,),
        (size,),
        ("embed", axis),
        dtype=dtype_of(model.compute_dtype),
        std=model.init_std,
        rngs=rngs,
    )
