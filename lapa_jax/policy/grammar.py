"""Which tokens may follow, so that what comes in the end says exactly so many numbers.

A token is some bytes; the bytes of all tokens together are numbers in UTF-8 (codecs/bpe.py). One
may end within a number, which the next must go on with. Here that is a table: of each state, which
is what bytes of a number are open, and of each token, the next state and the numbers that it
completes. A token is allowed where the numbers that are left can still be said in the slots that
are left, so that every choice leads to an answer.

Shape suffixes: B examples, n slots, V ids, S states, R numbers of an answer, L numbers of a token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.policy.codecs import bpe

_NEVER = 2**20  # tokens


class State(NamedTuple):
    """After some tokens of each example."""

    open_B: jax.Array  # int32: the state
    left_B: jax.Array  # int32: how many numbers are still to come


class Grammar(NamedTuple):
    """Tables, int32. The last id is the end, after which only itself may come."""

    next_SV: np.ndarray  # the state after a token, -1 where it cannot follow
    count_SV: np.ndarray  # numbers that it completes
    first_SV: np.ndarray  # the one of them that was open before it, -1: none
    own_VL: np.ndarray  # the others
    least_SR: np.ndarray  # (S, R + 1): tokens that so many numbers need at least

    @classmethod
    def of(
        cls, tokens: Sequence[bytes], ids: int, numbers: int, below: int, left_out: Sequence[int]
    ) -> "Grammar":
        """For answers of so many `numbers`, all less than `below`, by these tokens but those that
        are left out; there are `ids` and the end."""
        spelled = {chr(n).encode(): n for n in range(below) if not 0xD800 <= n < 0xE000}
        spelled.pop(chr(bpe.REPLACEMENT).encode(), None)
        begun = {key[:i] for key in spelled for i in range(1, len(key))}
        states = [b"", *sorted(begun, key=lambda key: (len(key), key))]
        number = {key: s for s, key in enumerate(states)}
        next_SV = np.full((len(states), ids + 1), -1, np.int32)
        count_SV, first_SV = np.zeros_like(next_SV), np.full_like(next_SV, -1)
        own: list[list[int]] = [[] for _ in range(ids + 1)]
        skipped = set(left_out)
        for v, token in enumerate(tokens):
            head = len(token) - len(token.lstrip(bytes(range(0x80, 0xC0))))
            read = _read(token[head:], spelled, number)
            if v in skipped or read is None:
                continue
            own[v], after = read
            for s, key in enumerate(states):
                joined = key + token[:head]
                if (not head and not s) or joined in spelled and head and s:
                    next_SV[s, v], count_SV[s, v] = after, len(own[v]) + (s > 0)
                    first_SV[s, v] = spelled[joined] if s else -1
                elif head == len(token) and s and joined in number:
                    next_SV[s, v] = number[joined]
        own_VL = np.zeros((ids + 1, max(1, *map(len, own))), np.int32)
        for v, values in enumerate(own):
            own_VL[v, : len(values)] = values
        return cls(next_SV, count_SV, first_SV, own_VL, _least(next_SV, count_SV, numbers))

    @property
    def numbers(self) -> int:
        """Of an answer."""
        return self.least_SR.shape[1] - 1

    @property
    def end(self) -> int:
        return self.own_VL.shape[0] - 1

    def start(self, examples: int) -> State:
        none = jnp.zeros(examples, jnp.int32)
        return State(none, none + self.numbers)

    def allowed(self, state: State, slots: jax.Array | int) -> jax.Array:
        """bool (B, V): the tokens that may come next, in the first of so many slots."""
        next_BV = jnp.asarray(self.next_SV)[state.open_B]
        left_BV = state.left_B[:, None] - jnp.asarray(self.count_SV)[state.open_B]
        R = self.numbers
        place = jnp.maximum(next_BV, 0) * (R + 1) + jnp.clip(left_BV, 0, R)
        least_BV = jnp.asarray(self.least_SR).reshape(-1)[place]
        # One slot is this token's, one the end's.
        may = (next_BV >= 0) & (left_BV >= 0) & (least_BV + 2 <= slots)
        done = (state.open_B == 0) & (state.left_B == 0)
        return may.at[:, self.end].set(done)

    def advance(self, state: State, token_B: jax.Array) -> State:
        """After a token that is allowed."""
        at = state.open_B, token_B
        more = token_B != self.end
        after = jnp.where(more, jnp.asarray(self.next_SV)[at], state.open_B)
        return State(after, state.left_B - jnp.where(more, jnp.asarray(self.count_SV)[at], 0))

    def read(self, ids_Bn: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the numbers int32 (B, R) that ids say up to the end, bool (B,) whether they do: the
        numbers of others mean nothing)."""
        next_SV, count_SV = jnp.asarray(self.next_SV), jnp.asarray(self.count_SV)

        def step(carry, token_B):
            open_B, ended_B, good_B = carry
            ends_B = ended_B | (token_B == self.end)
            after_B = next_SV[open_B, token_B]
            good_B &= ends_B | (after_B >= 0)
            count_B = jnp.where(ends_B, 0, count_SV[open_B, token_B])
            after_B = jnp.where(ends_B, open_B, jnp.maximum(after_B, 0))
            return (after_B, ends_B, good_B), (open_B, count_B)

        none = jnp.zeros(len(ids_Bn), jnp.int32)
        begin = none, none > 0, none == 0
        (last_B, ended_B, good_B), found = jax.lax.scan(step, begin, ids_Bn.T)
        open_Bn, count_Bn = (x.T for x in found)
        ends_Bn = jnp.cumsum(count_Bn, axis=1)
        good_B &= ended_B & (last_B == 0) & (ends_Bn[:, -1] == self.numbers)
        places = jnp.arange(self.numbers)
        slot_BR = jax.vmap(lambda ends: jnp.searchsorted(ends, places, side="right"))(ends_Bn)
        slot_BR = jnp.minimum(slot_BR, ids_Bn.shape[1] - 1)
        token_BR, open_BR, begin_BR = (
            jnp.take_along_axis(x, slot_BR, axis=1) for x in (ids_Bn, open_Bn, ends_Bn - count_Bn)
        )
        first_BR = jnp.asarray(self.first_SV)[open_BR, token_BR]
        offset_BR = places - begin_BR - (first_BR >= 0)
        own_BR = jnp.asarray(self.own_VL)[token_BR, jnp.maximum(offset_BR, 0)]
        return jnp.where(offset_BR < 0, first_BR, own_BR), good_B


def _read(
    data: bytes, spelled: dict[bytes, int], number: dict[bytes, int]
) -> tuple[list[int], int] | None:
    """(the numbers of bytes that begin with one, the state after them); None where they are no such
    numbers."""
    found, start = [], 0
    for stop in range(1, len(data) + 1):
        if (n := spelled.get(data[start:stop])) is not None:
            found.append(n)
            start = stop
    after = number.get(data[start:])
    return None if after is None else (found, after)


def _least(next_SV: np.ndarray, count_SV: np.ndarray, numbers: int) -> np.ndarray:
    least_SR = np.full((len(next_SV), numbers + 1), _NEVER, np.int32)
    least_SR[0, 0] = 0
    may = [np.flatnonzero(row >= 0) for row in next_SV]
    pairs = [
        np.unique(np.stack([next_SV[s, v], count_SV[s, v]]), axis=1) for s, v in enumerate(may)
    ]
    for left in range(1, numbers + 1):
        for s in reversed(range(len(next_SV))):  # more bytes of a number are open in later states
            after, count = pairs[s][:, pairs[s][1] <= left]
            if len(after):
                least_SR[s, left] = min(_NEVER, 1 + least_SR[after, left - count].min())
    return least_SR
