"""Decoding a fixed number of target tokens: one prefill, then a scan with a key-value cache.

Tokens come from the asked head's vocabulary only, and there is no end-of-sequence token: exactly
`num_tokens` are produced. Greedy unless a temperature is given.

Shape suffixes: B batch, n targets, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lapa_jax.models.module import Functional, Tree


@partial(jax.jit, static_argnames=("vla", "head", "num_tokens", "temperature"))
def decode(
    vla: Functional,
    params: Tree,
    images: jax.Array,
    text_tokens: jax.Array,
    text_mask: jax.Array,
    head: str,
    num_tokens: int,
    *,
    vocab_limit_n: jax.Array | None = None,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """int32 (B, num_tokens).

    `vocab_limit_n` (num_tokens,): slot i chooses among ids below vocab_limit_n[i] (action
    dimensions have different numbers of bins). `temperature` > 0 samples and needs `key`.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} must be at least 1")
    if temperature < 0 or (temperature > 0 and key is None):
        raise ValueError(f"temperature={temperature} must be 0, or positive with a key")
    if vocab_limit_n is not None and vocab_limit_n.shape != (num_tokens,):
        raise ValueError(
            f"vocab_limit_n of shape {vocab_limit_n.shape} must be ({num_tokens},): one per slot"
        )

    def call(method, *args):
        return vla.apply(params, {}, method, *args)[0]

    def choose(logits_BV, i):
        if vocab_limit_n is not None:
            allowed = jnp.arange(logits_BV.shape[-1]) < vocab_limit_n[i]
            logits_BV = jnp.where(allowed, logits_BV, -jnp.inf)
        if temperature == 0.0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        step_key = jax.random.fold_in(key, i)
        return jax.random.categorical(step_key, logits_BV / temperature).astype(jnp.int32)

    logits, cache = call("prefill", images, text_tokens, text_mask, head, num_tokens)
    first = choose(logits, 0)
    prefix_length = cache.mask_BS.shape[1] - (num_tokens - 1)

    def step(carry, i):
        token, cache = carry
        logits, cache = call("step", token, prefix_length + i, cache, head)
        token = choose(logits, i + 1)
        return (token, cache), token

    _, rest = jax.lax.scan(step, (first, cache), jnp.arange(num_tokens - 1))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
