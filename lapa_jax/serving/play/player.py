"""The frames of a game: one start frame, and what the model imagines along a sequence of z.

A game has no session on the server: it is its z since the start frame, which the client sends whole
each time. So a page that is loaded again, or another server, goes on where it was, undoing is a
shorter list, and nothing must be kept for anybody. What was imagined lately is held here, by what
led to it, so that a further z costs one step of the model.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lapa_jax.runs.loaded import LoadedPolicy
from lapa_jax.serving.limits import Refused
from lapa_jax.serving.model_thread import ModelThread
from lapa_jax.world.imagination import Imagination

_HELD_BYTES = 256 * 2**20


class Moment(NamedTuple):
    state: Any
    frame: np.ndarray  # uint8 (H, W, 3)
    said: np.ndarray | None = None  # z, by the policy where there is one


class Player(ModelThread):
    """`along` is of one event loop."""

    def __init__(
        self,
        imagination: Imagination,
        first: np.ndarray,
        policy: LoadedPolicy | None = None,
        instruction: str = "",
    ):
        """first: uint8 (H, W, 3), of the model's size. policy: a latent VLA that `check_policy` let
        pass, which is told the instruction at each frame. Compiles a step."""
        super().__init__()
        self.imagination, self.policy, self.instruction = imagination, policy, instruction
        imagination.warm()
        self.start = Moment(imagination.start(first[None]), first, self._said(first))
        held = sum(x.nbytes for x in jax.tree.leaves(self.start))
        self.most = max(2, _HELD_BYTES // held)
        self._held: OrderedDict[bytes, Moment] = OrderedDict()

    async def along(self, z: np.ndarray, since: int, wanted: Callable[[], Any]) -> list[Moment]:
        """The moments after `since`, `since` + 1, ... and all of z (n, ...): moment 0 is the start.
        wanted: awaited before each step; False ends it with Refused."""
        keys, at = self._keys(z), since
        while at and keys[at] not in self._held:
            at -= 1
        now, found = self._of(keys[at]) or self.start, []
        for k in range(at, len(z) + 1):
            if k > at:
                now = self._of(keys[k]) or await self._next(now, z[k - 1], keys[k], wanted)
            if k >= since:
                found.append(now)
        return found

    async def _next(
        self, now: Moment, z: np.ndarray, key: bytes, wanted: Callable[[], Any]
    ) -> Moment:
        if not await wanted():
            raise Refused(400, "the client left")
        self._held[key] = found = await self.call(self._step, now, z)
        if len(self._held) > self.most:
            self._held.popitem(last=False)
        return found

    def _step(self, now: Moment, z: np.ndarray) -> Moment:
        state, frames = self.imagination.step(now.state, z[None])
        frame = np.asarray(frames)[0]
        if not np.isfinite(frame).all():
            raise Refused(503, "the model's frame is not finite")
        frame = np.round(frame * 255.0).astype(np.uint8)
        return Moment(state, frame, self._said(frame))

    def _said(self, frame: np.ndarray) -> np.ndarray | None:
        if self.policy is None:
            return None
        return np.asarray(self.policy.predict_latent(frame, self.instruction))

    def _of(self, key: bytes) -> Moment | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def _keys(self, z: np.ndarray) -> list[bytes]:
        """Of every beginning of z, the empty one first."""
        hashed, keys = hashlib.blake2b(digest_size=16), []
        for one in [b"", *(np.ascontiguousarray(x).tobytes() for x in z)]:
            hashed.update(one)
            keys.append(hashed.digest())
        return keys
