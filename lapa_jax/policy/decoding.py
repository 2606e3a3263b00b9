"""Decoding, for heads: `decode` token by token with a key-value cache, `one_by_one` what is no
token, `in_one_pass` all slots at once.

Tokens come from the asked head's vocabulary only, and exactly `num_tokens` are produced: what has
an end is filled up after it. Greedy unless a temperature is given.

Shape suffixes: B batch, n targets, V vocabulary.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lapa_jax.nn.module import Functional, Tree
from lapa_jax.policy.grammar import Grammar
from lapa_jax.policy.modality import MODALITIES


def fed_of(prompts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a model is fed beside the tokens of prompts: `fed` of its `outputs` and `prefill`."""
    return {name: prompts[name] for name in MODALITIES if name in prompts} or None


@partial(jax.jit, static_argnames=("vla", "head", "num_tokens", "temperature", "top_k"))
def decode(
    vla: Functional,
    params: Tree,
    variables: Tree,
    prompts: Mapping[str, jax.Array],
    images: jax.Array | None,
    head: str,
    num_tokens: int,
    *,
    vocab_limit_n: jax.Array | None = None,
    grammar: Grammar | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(ids int32 (B, num_tokens), the logits float32 (B, num_tokens, V) they were chosen by).

    `prompts`: tokens, modality and segments (B, T) that end at the last slot, and what is fed
    beside them (`fed_of`). `vocab_limit_n` (num_tokens,): slot i chooses among ids below
    vocab_limit_n[i] (action dimensions have different numbers of bins). `grammar` confines tokens
    to those that may follow the ones before (see grammar.py). `temperature` > 0 samples, among the
    `top_k` likeliest (0: all), and needs `key`.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} must be at least 1")
    if temperature < 0 or (temperature > 0 and key is None):
        raise ValueError(f"temperature={temperature} must be 0, or positive with a key")
    if top_k < 0 or (top_k and not temperature):
        raise ValueError(f"top_k={top_k} must be 0 (all), or positive with a temperature")
    if vocab_limit_n is not None and vocab_limit_n.shape != (num_tokens,):
        raise ValueError(
            f"vocab_limit_n of shape {vocab_limit_n.shape} must be ({num_tokens},): one per slot"
        )

    def call(method, *args):
        return vla.apply(params, variables, method, *args)[0]

    def choose(logits_BV, i, state):
        if grammar is not None:
            allowed = grammar.allowed(state, num_tokens - i)
            logits_BV = jnp.where(allowed, logits_BV, -jnp.inf)
        token, logits_BV = pick(logits_BV, i)
        return (token, logits_BV), state if grammar is None else grammar.advance(state, token)

    def pick(logits_BV, i):
        if vocab_limit_n is not None:
            allowed = jnp.arange(logits_BV.shape[-1]) < vocab_limit_n[i]
            logits_BV = jnp.where(allowed, logits_BV, -jnp.inf)
        if temperature == 0.0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), logits_BV
        if 0 < top_k < logits_BV.shape[-1]:
            least = jax.lax.top_k(logits_BV, top_k)[0][..., -1:]
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        step_key = jax.random.fold_in(key, i)
        token = jax.random.categorical(step_key, logits_BV / temperature).astype(jnp.int32)
        return token, logits_BV

    tokens, modality, segments = (prompts[k] for k in ("tokens", "modality", "segments"))
    fed = fed_of(prompts)
    logits, cache = call("prefill", tokens, modality, segments, images, head, num_tokens, fed)
    state = None if grammar is None else grammar.start(len(tokens))
    first, state = choose(logits, 0, state)

    def step(carry, i):
        token, cache, state = carry
        logits, cache = call("step", token[:, None], tokens.shape[1] + i, cache, head)
        chosen, state = choose(logits[:, 0], i + 1, state)
        return (chosen[0], cache, state), chosen

    _, rest = jax.lax.scan(step, (first[0], cache, state), jnp.arange(num_tokens - 1))
    ids, logits = (
        jnp.concatenate([one[:, None], jnp.moveaxis(more, 0, 1)], axis=1)
        for one, more in zip(first, rest, strict=True)
    )
    return ids, logits


def if_finite(values: jax.Array, logits_BnV: jax.Array) -> jax.Array:
    """Values float (B, ...), NaN where the logits that they were chosen by say nothing: those of
    tokens that are no choice are -inf."""
    finite_B = jnp.isfinite(logits_BnV.max(axis=-1)).all(axis=1)
    return jnp.where(finite_B.reshape(-1, *[1] * (values.ndim - 1)), values, jnp.nan)


def one_by_one(
    vla: Functional,
    params: Tree,
    variables: Tree,
    prompts: Mapping[str, jax.Array],
    images: jax.Array | None,
    head: str,
    num_tokens: int,
) -> jax.Array:
    """What a head gives, (B, n, V), that is fed each before it gives the next."""

    def call(method, *args):
        return vla.apply(params, variables, method, *args)[0]

    rows = tuple(prompts[k] for k in ("tokens", "modality", "segments"))
    first, cache = call("prefill", *rows, images, head, num_tokens, fed_of(prompts))

    def step(carry, i):
        values, cache = carry
        found, cache = call("step", values[:, None], rows[0].shape[1] + i, cache, head)
        return (found[:, 0], cache), found[:, 0]

    _, rest = jax.lax.scan(step, (first, cache), jnp.arange(num_tokens - 1))
    return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], axis=1)


def in_one_pass(
    vla: Functional,
    params: Tree,
    variables: Tree,
    prompts: Mapping[str, jax.Array],
    images: jax.Array | None,
    head: str,
    ids_Bn: jax.Array,
) -> jax.Array:
    """What a head gives, (B, n, V), at n slots after the prompts that hold these ids."""
    rows = extend(prompts, head, ids_Bn)
    tokens, modality, segments = (rows[k] for k in ("tokens", "modality", "segments"))
    T, n = prompts["tokens"].shape[1], ids_Bn.shape[1]
    slots = {head: jnp.broadcast_to(T + jnp.arange(n), ids_Bn.shape)}
    given = (tokens, modality, segments, images)
    found, _ = vla.apply(params, variables, "outputs", *given, slots=slots, fed=fed_of(prompts))
    return found[head]


def extend(
    prompts: Mapping[str, jax.Array],
    modality: str,
    ids_Bn: jax.Array,
    fed: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Prompts with tokens of a modality after them, whose ids are FILL where they are `fed`."""
    more = {"tokens": ids_Bn, "segments": jnp.ones_like(ids_Bn)}
    more["modality"] = jnp.full_like(ids_Bn, MODALITIES.index(modality))
    found = {
        name: jnp.concatenate([x, more[name].astype(x.dtype)], axis=1) if name in more else x
        for name, x in prompts.items()
    }
    return found if fed is None else found | {modality: fed}
