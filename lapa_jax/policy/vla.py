"""The policy: a LLaMA-style decoder over a row of tokens of several modalities.

Every modality has its own embedding and its own head; ids start at 0 in each. Text and images have
tables and vocabularies; what is predicted brings its own modules (policy/heads). A row holds one
example or several (packing), told apart by segment ids; segment 0 is padding. A token is an id of
its modality's table or, where the id is FILL, what the front-end makes of the images, or the
embedding of what a head is fed, in order.
Heads give something only where they are asked: at given slots.

Shape suffixes: B rows, T sequence, S keys, n slots, N images of a row, K heads, C head width, D
width, V what a head gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lapa_jax.nn import int8, lora
from lapa_jax.nn.attention import ATTENTIONS, last_seen
from lapa_jax.nn.layers import DTYPES, RMSNorm, SwiGLU, dtype_of
from lapa_jax.nn.position import rope_tables
from lapa_jax.nn.stack import REMAT, Stack
from lapa_jax.parallel.sharding import constrain, placement
from lapa_jax.policy.attention import SelfAttention, positions, take
from lapa_jax.policy.expert import Context
from lapa_jax.policy.front_end import FRONT_ENDS, front_end_config, front_end_settings
from lapa_jax.policy.heads.base import Embedding, Head, readout
from lapa_jax.policy.modality import FILL, IMAGE, MODALITIES, STATE
from lapa_jax.policy.state import StateInput

# Backbone sizes under the names LWM and EasyLM use, and small ones of our own.
SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(dim=128, depth=4, heads=4, head_dim=32, mlp_dim=352),
    "small": dict(dim=256, depth=6, heads=8, head_dim=32, mlp_dim=704),
    "debug": dict(dim=256, depth=2, heads=2, head_dim=128, mlp_dim=256),
    "200m": dict(dim=1024, depth=14, heads=8, head_dim=128, mlp_dim=2048),
    "1b": dict(dim=2048, depth=22, heads=16, head_dim=128, mlp_dim=5504),
    "3b": dict(dim=3200, depth=26, heads=32, head_dim=100, mlp_dim=8640),
    "7b": dict(dim=4096, depth=32, heads=32, head_dim=128, mlp_dim=11008),
    "13b": dict(dim=5120, depth=40, heads=40, head_dim=128, mlp_dim=13824),
    "30b": dict(dim=6656, depth=60, heads=52, head_dim=128, mlp_dim=17920),
    "65b": dict(dim=8192, depth=80, heads=64, head_dim=128, mlp_dim=22016),
}


@dataclass(frozen=True)
class VLAConfig:
    """The defaults: a small one for images of 64 pixels a side."""

    compute_dtype: str
    text_vocab: Annotated[int, "[1, 1e7]", "ids of text tokens"] = 384
    image_vocab: Annotated[int, "[0, 1e7]", "ids of image tokens; 0: no table and no head"] = 0
    front_end: Annotated[Mapping[str, Any], "between images and the backbone, by name"] = field(
        default_factory=lambda: front_end_settings("patches")
    )
    dim: Annotated[int, "[1, 65536]", "width of the layers"] = 128
    depth: Annotated[int, "[1, 1024]", "layers"] = 3
    heads: Annotated[int, "[1, 4096]", "of an attention"] = 4
    head_dim: Annotated[int, "[2, 4096]", "width of a head, even: RoPE rotates pairs"] = 32
    mlp_dim: Annotated[int, "[1, 1e6]", "width inside of a feed-forward"] = 256
    rope_theta: Annotated[float, "[1, 1e12]", "base of the rotary frequencies"] = 10_000.0
    norm_eps: Annotated[float, "(0, 1]", "added to the variance in norms"] = 1e-6
    init_std: Annotated[float, "(0, 100]", "of the weights at first"] = 0.06
    param_dtype: Annotated[str, DTYPES, "of the parameters"] = "float32"
    base_dtype: Annotated[
        str,
        ("param_dtype", *int8.HELD),
        "of the kernels and tables of layers and vocabularies, which then must be frozen",
    ] = "param_dtype"
    attention: Annotated[str, ATTENTIONS, "kernel of attention, see docs/sharding.md"] = "auto"
    remat: Annotated[str, REMAT, "what the backward pass keeps, see docs/training.md"] = "none"
    unroll: Annotated[int, "[0, 1024]", "layers per scan step; 0: all"] = 0
    legacy: Annotated[
        bool, "the original's prompt and rows, and rotary angles rounded to compute_dtype"
    ] = False
    lora_rank: Annotated[
        int, "[0, 65536]", "of the factors beside the kernels of lora_pattern; 0: no LoRA"
    ] = 0
    lora_alpha: Annotated[float, "(0, 1e6]", "the factors count lora_alpha / lora_rank"] = 16.0
    lora_pattern: Annotated[str, "not empty", "regular expression of paths inside of a layer"] = (
        "attention/(q|k|v|out)|mlp/(gate|up|down)"
    )

    def __post_init__(self) -> None:
        front_end_config(self.front_end)
        dtype_of(self.compute_dtype)
        dtype_of(self.param_dtype, "param_dtype")
        if self.base_dtype in int8.HELD and self.param_dtype != "float32":
            raise ValueError(
                f"model.param_dtype={self.param_dtype!r} must be 'float32' with model.base_dtype="
                f"{self.base_dtype!r}: it is that of what trains beside the base"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")

    @property
    def tokens_per_image(self) -> int:
        return front_end_config(self.front_end)[1].num_tokens


class Layer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: VLAConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = SelfAttention(config, config.dim, rngs=rngs)
        self.mlp_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(
            config.dim,
            config.mlp_dim,
            dtype=dtype_of(config.compute_dtype),
            std=config.init_std,
            rngs=rngs,
        )
        if config.lora_rank:
            lora.adapt(
                self,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                pattern=config.lora_pattern,
                rngs=rngs,
            )
        if config.base_dtype in int8.HELD:
            int8.hold_all(self, config.base_dtype)

    def __call__(self, x_BTD: jax.Array, tables, segments_BT, blocks_BT) -> jax.Array:
        return self.prefill(x_BTD, tables, segments_BT, blocks_BT, None)[0]

    def keys_and_values(self, x_BTD, tables) -> tuple[jax.Array, jax.Array]:
        return self.attention.heads(self.attention_norm(x_BTD), tables)[1:]

    def prefill(self, x_BTD, tables, segments_BT, blocks_BT, _):
        """As a call, and returns this layer's (keys, values)."""
        q, k, v = self.attention.heads(self.attention_norm(x_BTD), tables)
        mask = dict(q_segments_BT=segments_BT, kv_segments_BS=segments_BT, blocks_BT=blocks_BT)
        return self._finish(x_BTD, q, k, v, causal=True, **mask), (k, v)

    def watched(self, x_BTD, tables, segments_BT, blocks_BT, slots_Bn, _):
        """As `prefill`, and returns what it gives at these slots, too."""
        x, kv = self.prefill(x_BTD, tables, segments_BT, blocks_BT, None)
        return x, (kv, take(x, slots_Bn))

    def at(self, x_BTD, slots_Bn, tables, segments_BT, blocks_BT) -> jax.Array:
        """What a call gives at these slots, (B, n, D), without computing the others."""
        q, k, v = self.attention.heads(self.attention_norm(x_BTD), tables, slots_Bn)
        last_Bn = slots_Bn
        if blocks_BT is not None:
            last_Bn = jnp.take_along_axis(last_seen(blocks_BT, segments_BT), slots_Bn, axis=1)
        own = jnp.take_along_axis(segments_BT, slots_Bn, axis=1)
        mask = dict(q_segments_BT=own, kv_segments_BS=segments_BT, last_BT=last_Bn)
        return self._finish(take(x_BTD, slots_Bn), q, k, v, implementation="xla", **mask)

    def step(self, x_BnD, tables, segments_BS, slot, cache):
        """Tokens that see each other, whose keys and values enter the cache from `slot` on; returns
        the new cache."""
        q, k, v = self.attention.heads(self.attention_norm(x_BnD), tables)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)
            for old, new in zip(cache, (k, v), strict=True)
        )
        own = jnp.ones_like(segments_BS[:, : x_BnD.shape[1]])
        mask = dict(q_segments_BT=own, kv_segments_BS=segments_BS)
        return self._finish(x_BnD, q, k, v, **mask), (k, v)

    def _finish(self, x, q, k, v, **mask) -> jax.Array:
        x = x + self.attention.attend(q, k, v, **mask)
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", "length", "embed")


class Cache(NamedTuple):
    """State of a decode in progress."""

    keys_and_values: Any  # (depth, B, S, K, C) each; of each layer by itself unless stacked
    segments_BS: jax.Array  # 1 where a key may be seen
    position_B: jax.Array  # rotary position of the next token


class VLA(nnx.Module):
    """`predicted`: the heads, by modality. `stacked`: see stack.py. `state`: of a policy that sees
    the robot's."""

    def __init__(
        self,
        config: VLAConfig,
        predicted: Mapping[str, Head],
        *,
        rngs: nnx.Rngs,
        stacked: bool = True,
        state: StateInput | None = None,
    ):
        self.config = config
        self.dtype = dtype = dtype_of(config.compute_dtype)
        given = {"text": config.text_vocab, "image": config.image_vocab}
        embeddings, heads = {}, {}
        for name in MODALITIES:  # the order in which random numbers are drawn
            if name in predicted:
                if not (predicted[name].beside or predicted[name].pulls):
                    embeddings[name] = predicted[name].embedding(config, rngs)
                heads[name] = predicted[name].output(config, rngs)
            elif state is not None and name == MODALITIES[STATE]:
                embeddings[name] = state.embedding(config, rngs)
            elif given.get(name):
                embeddings[name] = Embedding(given[name], config, "vocab", rngs)
                heads[name] = readout(given[name], config, "vocab", rngs)
        self.embeddings, self.heads = nnx.data(embeddings), nnx.data(heads)
        self.beside = {m: head.beside for m, head in predicted.items() if head.beside}
        self.pulls = {m: head.pulls for m, head in predicted.items() if head.pulls}
        self.blocks = tuple(MODALITIES.index(m) for m, head in predicted.items() if head.one_block)
        name, settings = front_end_config(config.front_end)
        module = FRONT_ENDS[name][1]
        self.front_end = module and module(
            settings, config.dim, embeddings.get("image"), dtype=dtype, rngs=rngs
        )
        self.backbone = Stack(
            lambda rngs: Layer(config, rngs=rngs),
            config.depth,
            remat=config.remat,
            unroll=config.unroll,
            rngs=rngs,
            stacked=stacked,
        )
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        if config.base_dtype in int8.HELD:
            for name in given.keys() & embeddings.keys():
                int8.hold_all((embeddings[name], heads[name]), config.base_dtype)
        if config.param_dtype != "float32":
            for _, node in nnx.iter_graph(self):
                if isinstance(node, nnx.Param):
                    node.set_value(node[...].astype(dtype_of(config.param_dtype)))

    # --- Training and scoring: everything in one pass ---

    def outputs(
        self,
        tokens_BT: jax.Array,
        modality_BT: jax.Array,
        segments_BT: jax.Array,
        images_BNHWC: jax.Array | None = None,
        *,
        slots: Mapping[str, jax.Array | None],
        fed: Mapping[str, jax.Array] | None = None,
    ) -> dict[str, jax.Array]:
        """What the heads that `slots` names give, float32 (B, n, V), at its slots int (B, n), or at
        all where they are None. Of a vocabulary it is the logits of the token after the slot.
        `fed`: by modality, (B, m, ...) for its m slots of FILL; what a head beside the backbone
        computes with, and then it gives what its module does. Of heads that pull it is what their
        modules make of the hidden states there."""
        fed, slots = dict(fed or {}), dict(slots)
        of_beside = {name: fed.pop(name) for name in slots if name in self.beside}
        pulled = {name: slots.pop(name) for name in list(slots) if name in self.pulls}
        x = self.embed(tokens_BT, modality_BT, images_BNHWC, fed)
        given = (x, positions(segments_BT), segments_BT, self._blocks(modality_BT))
        asked_of = {name: at for name, at in slots.items() if name not in self.beside}
        names, asked = list(asked_of), list(asked_of.values())
        given_all = bool(asked) and all(at is not None for at in asked)
        found = {}
        if of_beside or pulled:
            x, context, seen = self._context(*given, *of_beside, pulled=pulled, alone=not asked)
            found = {m: self.heads[m](y).astype(jnp.float32) for m, y in seen.items()}
            found |= {m: self.heads[m](values, context) for m, values in of_beside.items()}
            chosen = [x if at is None else take(x, at) for at in asked]
        elif given_all and self.backbone.apart and placement()[1] == 1:
            # Nobody reads what the last layer would give elsewhere.
            x, _ = self._run(*given, only_Bn=jnp.concatenate(asked, axis=1))
            ends = np.cumsum([at.shape[1] for at in asked])
            chosen = jnp.split(x, ends[:-1], axis=1)
        else:
            x, _ = self._run(*given)
            chosen = [x if at is None else take(x, at) for at in asked]
        pairs = zip(names, chosen, strict=True)
        return found | {name: self._head(self.norm(y), name) for name, y in pairs}

    def _context(
        self,
        x_BTD,
        positions_BT,
        segments_BT,
        blocks_BT,
        *heads: str,
        pulled: Mapping[str, jax.Array] | None = None,
        alone: bool,
    ) -> tuple[jax.Array, Context, dict[str, jax.Array]]:
        """(hidden states, what these heads see of the backbone, and what those that are pulled see
        at their slots). Where the former are `alone`, nobody reads the hidden states unless one of
        them does."""
        wanted = {self.beside[name] for name in heads}
        given = (x_BTD, positions_BT, segments_BT, blocks_BT)
        kv, seen = None, {}
        if pulled or "layers" in wanted:
            of_layers = dict(per_layer=jnp.arange(self.config.depth))
            if pulled:
                ((name, slots_Bn),) = pulled.items()
                x, out = self._run(*given, slots_Bn, **of_layers, method="watched")
            else:
                only = alone and wanted == {"layers"} and self.backbone.apart
                x, out = self._run(*given, **of_layers, method="prefill", only_keys=only)
            if isinstance(out, list):  # of layers that are apart
                out = jax.tree.map(lambda *of_layers: jnp.stack(of_layers), *out)
            kv = out
            if pulled:
                kv, hidden = out
                seen = {name: hidden[self.pulls[name] - 1]}
        else:
            x, _ = self._run(*given)
        return x, Context(segments_BT, kv, self.norm(x) if "hidden" in wanted else None), seen

    def embed(
        self,
        tokens_BT: jax.Array,
        modality_BT: jax.Array,
        images_BNHWC: jax.Array | None = None,
        fed: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """(B, T, D): each token from the table of its modality, FILL from the front-end or from
        what is fed."""
        x = jnp.zeros((), self.dtype)
        for name, table in self.embeddings.items():
            mine = modality_BT == MODALITIES.index(name)
            x = x + jnp.where(mine[..., None], table(jnp.where(mine, tokens_BT, 0)), 0)
        if images_BNHWC is not None:
            B, N = images_BNHWC.shape[:2]
            images = images_BNHWC.reshape(B * N, *images_BNHWC.shape[2:])
            filled = {MODALITIES[IMAGE]: self.front_end(images).reshape(B, -1, x.shape[-1])}
        else:
            filled = {}
        filled |= {name: self.embeddings[name](values) for name, values in (fed or {}).items()}
        for name, y_BmD in filled.items():
            fill = (modality_BT == MODALITIES.index(name)) & (tokens_BT == FILL)
            at = jnp.maximum(jnp.cumsum(fill, axis=1) - 1, 0)[..., None]
            y = jnp.take_along_axis(y_BmD.astype(self.dtype), at, axis=1)
            x = jnp.where(fill[..., None], y, x)
        return x

    def _blocks(self, modality_BT: jax.Array) -> jax.Array | None:
        """The slots of heads whose slots see each other, for attention; None where there are
        none."""
        if not self.blocks:
            return None
        return jnp.where(jnp.isin(modality_BT, jnp.array(self.blocks)), modality_BT, 0)

    def _run(
        self,
        x_BTD,
        positions_BT,
        *shared,
        only_Bn: jax.Array | None = None,
        only_keys: bool = False,
        **options,
    ) -> tuple[jax.Array, Any]:
        """The backbone: embeddings → hidden states before the last norm, at these slots only where
        they are given; `only_keys`: the last layer gives its keys and values alone."""
        x = constrain(x_BTD, "batch", "length", "embed")
        config = self.config
        rounded = dtype_of(config.compute_dtype) if config.legacy else jnp.float32
        tables = rope_tables(positions_BT, config.head_dim, config.rope_theta, rounded)
        if only_Bn is not None:
            options["last"] = lambda layer, x: layer.at(x, only_Bn, tables, *shared)
        elif only_keys:
            options["last"] = lambda layer, x: (x, layer.keys_and_values(x, tables))
        return self.backbone(x, tables, *shared, **options)

    def _head(self, hidden_BnD: jax.Array, name: str) -> jax.Array:
        if name not in self.heads:
            raise ValueError(
                f"head={name!r} must be one of {sorted(self.heads)}: there is one for text, for "
                "images where model.image_vocab is above 0, and for what model.targets names"
            )
        return self.heads[name](hidden_BnD).astype(jnp.float32)

    # --- Decoding: a prompt once, then what follows it (see decoding.py) ---

    def context(
        self,
        tokens_BT: jax.Array,
        modality_BT: jax.Array,
        segments_BT: jax.Array,
        images_BNHWC: jax.Array | None,
        head: str,
        fed: Mapping[str, jax.Array] | None = None,
    ) -> Context:
        """What a head beside the backbone sees of prompts."""
        x = self.embed(tokens_BT, modality_BT, images_BNHWC, fed)
        given = (x, positions(segments_BT), segments_BT, self._blocks(modality_BT))
        return self._context(*given, head, alone=True)[1]

    def beside_it(self, values: Any, context: Context, head: str) -> Any:
        """What the module of such a head makes of these values."""
        return self.heads[head](values, context)

    def prefill(
        self,
        tokens_BT: jax.Array,
        modality_BT: jax.Array,
        segments_BT: jax.Array,
        images_BNHWC: jax.Array | None,
        head: str,
        num_tokens: int,
        fed: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, Cache]:
        """What the head gives (B, V) at the last slot, of a vocabulary the logits of the first
        target, and a cache with room for `num_tokens` − 1 more.

        Prompts end at the last slot; padding is at the left. `fed`: see `outputs`.
        """
        x, where = self.embed(tokens_BT, modality_BT, images_BNHWC, fed), positions(segments_BT)
        depth = jnp.arange(self.config.depth)
        mask = segments_BT, self._blocks(modality_BT)
        x, kv = self._run(x, where, *mask, per_layer=depth, method="prefill")
        room = num_tokens - 1
        wide = ((0, 0), (0, room), (0, 0), (0, 0))  # and an axis of layers where they are stacked
        kv = jax.tree.map(lambda y: jnp.pad(y, ((0, 0), *wide)[-y.ndim :]), kv)
        segments = jnp.pad(segments_BT, ((0, 0), (0, room)))
        output = self._head(self.norm(x[:, -1:]), head)[:, 0]
        return output, Cache(kv, segments, where[:, -1] + 1)

    def step(
        self, fed_Bn: jax.Array, slot: jax.Array, cache: Cache, head: str
    ) -> tuple[jax.Array, Cache]:
        """Feeds n tokens (ids, or values (B, n, ...) of a head that embeds those) that see each
        other, from cache slot `slot` on; returns what the head gives there (B, n, V), and the
        cache."""
        x, n = self.embeddings[head](fed_Bn), fed_Bn.shape[1]
        own = jnp.ones((len(x), n), cache.segments_BS.dtype)
        segments = jax.lax.dynamic_update_slice_in_dim(cache.segments_BS, own, slot, axis=1)
        where = cache.position_B[:, None] + jnp.arange(n)
        layers = dict(per_layer=cache.keys_and_values, method="step")
        x, kv = self._run(x, where, segments, slot, **layers)
        return self._head(self.norm(x), head), Cache(kv, segments, cache.position_B + n)
