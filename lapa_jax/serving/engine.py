"""The model behind the server: requests of many clients become batches of one worker thread.

While the model computes, requests gather; the next batch takes them all. Nobody waits for company:
an idle model starts at once. A batch is padded to one of a few sizes, all compiled before anything
is answered.
"""

import asyncio
import bisect
import dataclasses
import time
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from lapa_jax.runs.loaded import LoadedPolicy, LoadedQuantizer, Prediction
from lapa_jax.serving.limits import BATCH_SIZES, Refused
from lapa_jax.serving.messages import Observation
from lapa_jax.serving.metrics import Metrics
from lapa_jax.serving.model_thread import ModelThread


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the policy says of one observation, and how long that took."""

    reply: dict[str, np.ndarray]  # as the head names what it says
    values: np.ndarray  # z int32 (code_length,), or a float32 (action_dim,), or (n, action_dim)
    infer_ms: float  # of the whole batch, a picture before it on the same thread included
    queue_ms: float
    batch: int  # observations in it


@dataclasses.dataclass
class _Waiting:
    observation: Observation
    answer: asyncio.Future
    since: float


class Engine(ModelThread):
    """`predict` and `picture` are of one event loop, in which `run` runs; the rest is its thread's.

    quantizer: decodes a latent policy's z to a picture; of the policy's image size. seed: of the
    noise that some heads begin every answer with. real_time: answers may follow the one before.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        metrics: Metrics,
        *,
        quantizer: LoadedQuantizer | None = None,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        max_waiting: int = 256,
        seed: int = 0,
        real_time: bool = False,
    ):
        if list(batch_sizes) != sorted(set(batch_sizes)) or batch_sizes[0] < 1:
            raise ValueError(f"--batch_sizes {list(batch_sizes)} must ascend from 1 or more")
        self.policy, self.quantizer, self.metrics = policy, quantizer, metrics
        self.batch_sizes, self.max_waiting = tuple(batch_sizes), max_waiting
        self.real_time = real_time
        self.drawn_by = {"seed": seed} if policy.stage.head.draws else {}
        super().__init__()
        self.ready, self._compiled = asyncio.Event(), 0
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()

    @property
    def status(self) -> str:
        if self.stopping:
            return "stopping"
        programs = len(self.batch_sizes) * (1 + self.real_time) + (self.quantizer is not None)
        compiling = f"compiling: {self._compiled} of {programs} programs"
        return "ok" if self.ready.is_set() else compiling

    async def _warm_up(self) -> None:
        """Compiles every program that will be called."""
        start = time.perf_counter()
        stage = self.policy.stage
        images = np.zeros((stage.num_images, *self.policy.image_size, 3), np.uint8)
        own = np.zeros(stage.state.dim, np.float32) if stage.state else None
        alone = Observation(images, "", state=own)
        kinds = [alone]
        if self.real_time:
            head = stage.head
            before = np.zeros((head.horizon, head.describe()["dim"]), np.float32)
            kinds += [dataclasses.replace(alone, going_on=(before, before[:, 0]))]
        for one in kinds:
            for size in self.batch_sizes:
                await self.call(self._compute, [one] * size)
                self._compiled += 1
        if self.quantizer:
            z = np.zeros(self.quantizer.code_length, np.int32)
            await self.call(self._decode, images[-1], z)
        seconds = time.perf_counter() - start
        logging.info("compiled batches of %s in %.1f s: ready", self.batch_sizes, seconds)
        self.ready.set()

    async def run(self) -> None:
        """Compiles, then answers until it is cancelled."""
        try:
            await self._warm_up()
        except Exception as error:  # whoever runs the server is told
            self.failed = error
            return
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            start = time.perf_counter()
            try:
                observations = [one.observation for one in batch]
                found = await self.call(self._compute, observations)
            except Exception as error:  # goes to those who asked, whatever it is
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            seconds = time.perf_counter() - start
            self.metrics.batch(len(batch), seconds)
            for i, one in enumerate(batch):
                if not one.answer.done():  # cancelled while the server stops
                    times = 1e3 * seconds, 1e3 * (start - one.since)
                    of_one = jax.tree.map(lambda x, i=i: x[i], found)
                    if not np.isfinite(of_one.values).all():
                        one.answer.set_exception(Refused(503, "the policy's answer is not finite"))
                        continue
                    reply = self.policy.stage.head.reply(*of_one)
                    one.answer.set_result(Answer(reply, of_one.values, *times, len(batch)))

    async def predict(self, observation: Observation) -> Answer:
        """Raises Refused where too many wait already."""
        if len(self._waiting) >= self.max_waiting:
            raise Refused(429, f"{len(self._waiting)} requests wait already: try again")
        one = _Waiting(observation, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(one)
        self._arrived.set()
        return await one.answer

    async def picture(self, observation: Observation, z: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3): what the quantizer decodes z to, from the current frame."""
        if self.quantizer is None:
            raise Refused(422, "no pictures: the server runs without --quantizer")
        frame = observation.images[-self.policy.stage.num_cameras]
        return await self.call(self._decode, frame, z)

    def check_text(self, text: str) -> None:
        """Raises Refused for an instruction that the policy cannot take."""
        try:
            self.policy.stage.layout.text(text)
        except ValueError as error:
            raise Refused(422, str(error)[:300]) from error

    def _take(self) -> list[_Waiting]:
        batch, most = [], worthwhile(len(self._waiting), self.batch_sizes)
        while self._waiting and len(batch) < most:
            one = self._waiting.popleft()
            if not one.answer.done():
                batch.append(one)
        return batch

    def _compute(self, observations: list[Observation]) -> Prediction:
        """Of observations, and of the last one again as padding."""
        size = self.batch_sizes[bisect.bisect_left(self.batch_sizes, len(observations))]
        padded = observations + observations[-1:] * (size - len(observations))
        images = np.stack([one.images for one in padded])
        if self.policy.stage.num_images == 1:
            images = images[:, 0]
        own = np.stack([one.state for one in padded]) if self.policy.stage.state else None
        texts = [one.instruction for one in padded]
        options = dict(self.drawn_by)
        if following := [one.going_on for one in padded if one.going_on]:
            nothing = jax.tree.map(np.zeros_like, following[0])  # the weights of the others are 0
            each = [one.going_on or nothing for one in padded]
            options["going_on"] = tuple(np.stack(x) for x in zip(*each, strict=True))
        return jax.device_get(self.policy.predict(images, texts, state=own, **options))

    def _decode(self, frame: np.ndarray, z: np.ndarray) -> np.ndarray:
        found = jax.device_get(self.quantizer.decode(frame[None], z[None]))[0]
        return (np.clip(found, 0.0, 1.0) * 255.0).round().astype(np.uint8)


def worthwhile(waiting: int, sizes: Sequence[int]) -> int:
    """How many of those that wait to answer at once: all, unless more than a quarter of their batch
    would be padding and a smaller one is full."""
    waiting = min(waiting, sizes[-1])
    place = bisect.bisect_left(sizes, waiting)
    return sizes[place - 1] if place and 4 * waiting < 3 * sizes[place] else waiting
