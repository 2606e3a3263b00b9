"""The application of `lapa play`: the page, frames along z, a video of them, and corrections."""

import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lapa_jax.arena.results import write_video
from lapa_jax.serving.guard import Guard, data_uri, failed, page_routes, read_body, refused
from lapa_jax.serving.limits import Limits, Rate, Refused
from lapa_jax.serving.play.player import Player
from lapa_jax.serving.play.saves import Saves

FRAMES = 64  # of one answer
VIDEO_RATE = 5.0  # frames a second where the model's is not known
_LARGEST = 1e6  # number of a vector
LIMITS = Limits(request_mib=1.0, connections=64)


class Server:
    """What the routes share; metadata: what /metadata tells; steps: the most from the start;
    saves: where corrections go, if anywhere."""

    def __init__(
        self,
        player: Player,
        metadata: dict[str, Any],
        *,
        steps: int,
        saves: Saves | None = None,
    ):
        self.engine, self.metadata, self.steps = player, metadata | {"steps": steps}, steps
        self.saves = saves
        self.limits, self.rate = LIMITS, Rate(LIMITS.requests_per_second)
        self._read = Game(player.imagination.codes, player.imagination.shape, steps)

    def stop(self) -> None:
        """From now on every answer is the last one of its connection."""
        self.engine.stop()

    def app(self, token: str, hosts: Sequence[str]) -> Starlette:
        """As the app of `lapa serve`."""

        async def health(request: Request) -> Response:
            return JSONResponse({"status": "stopping" if self.engine.stopping else "ok"})

        async def describe(request: Request) -> Response:
            return JSONResponse(self.metadata)

        return Starlette(
            routes=[
                *page_routes("lapa_jax.serving.play"),
                Route("/frames", self.frames, methods=["POST"]),
                Route("/video", self.video, methods=["POST"]),
                Route("/corrections", self.corrections, methods=["POST"]),
                Route("/healthz", health),
                Route("/metadata", describe),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
                Middleware(Guard, token=token, engine=self.engine),
            ],
            exception_handlers={Refused: refused, HTTPException: refused, Exception: failed},
            lifespan=self._lifespan,
        )

    async def frames(self, request: Request) -> Response:
        """{"z": all of them since the start, "since": n} → {"frames": after n, n + 1, ... and all
        of them, as PNG in data URIs, "said": what the policy says at each, where there is one,
        "ms": in the model}."""
        with self._asked(request):
            z, since = self._read.frames(await read_body(request, self.limits))
            start = time.perf_counter()
            found = await self.engine.along(z, since, _there(request))
            took = 1e3 * (time.perf_counter() - start)
            told = {"frames": [data_uri(x.frame) for x in found], "ms": round(took, 3)}
            if self.engine.policy:
                told["said"] = [x.said.tolist() for x in found]
            return JSONResponse(told)

    async def video(self, request: Request) -> Response:
        """{"z": ...} → an mp4 of the start frame and all that follow."""
        with self._asked(request):
            z = self._read.video(await read_body(request, self.limits))
            found = await self.engine.along(z, 0, _there(request))
            rate = self.engine.imagination.rate or VIDEO_RATE
            data = await self.engine.call(_mp4, np.stack([x.frame for x in found]), rate)
        return Response(data, media_type="video/mp4")

    async def corrections(self, request: Request) -> Response:
        """{"z": ..., "instruction": what the policy is told} → {"episodes", "pairs", "corrected":
        what the corpus holds once this game is in it}."""
        with self._asked(request):
            body = await read_body(request, self.limits)
            if self.saves is None:
                raise Refused(422, "nothing is saved: start lapa play with --policy, --corrections")
            z = self._read.corrections(body, self.engine.instruction)
            found = await self.engine.along(z, 0, _there(request))
            return JSONResponse(await self.engine.call(self.saves.save, found, z))

    @contextlib.contextmanager
    def _asked(self, request: Request) -> Iterator[None]:
        self.rate.spend(request.client.host if request.client else "")
        if len(self.engine.open) >= self.limits.connections:
            raise Refused(429, f"{len(self.engine.open)} requests are open already")
        with self.engine.request():
            yield

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.engine.close()


class Game:
    """What a client may send, as arrays; raises Refused for the rest."""

    def __init__(self, codes: int, shape: tuple[int, ...], steps: int):
        self.codes, self.shape, self.steps = codes, shape, steps

    def frames(self, body: bytes) -> tuple[np.ndarray, int]:
        """(z (n, ...), since)."""
        message = self._message(body, {"z", "since"})
        z, since = self._z(message["z"]), message["since"]
        if type(since) is not int or not 0 <= since <= len(z):
            raise Refused(422, f"since must be a whole number from 0 to {len(z)}, as many as z")
        if len(z) - since >= FRAMES:
            raise Refused(422, f"{len(z) - since + 1} frames asked at once: at most {FRAMES}")
        return z, since

    def video(self, body: bytes) -> np.ndarray:
        return self._z(self._message(body, {"z"})["z"])

    def corrections(self, body: bytes, instruction: str) -> np.ndarray:
        message = self._message(body, {"z", "instruction"})
        z, given = self._z(message["z"]), message["instruction"]
        if given != instruction:
            raise Refused(422, "instruction is not that of this server's policy: load the page")
        if not len(z):
            raise Refused(422, "z has no step: there is nothing to save")
        return z

    def _message(self, body: bytes, keys: set[str]) -> dict[str, Any]:
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the body is not JSON in UTF-8, or nested too deep") from error
        if not isinstance(message, dict) or set(message) != keys:
            raise Refused(400, f"the body must be an object with the keys {sorted(keys)} alone")
        return message

    def _z(self, given: Any) -> np.ndarray:
        if not isinstance(given, list):
            raise Refused(422, "z must be a list, of one z for each step")
        if len(given) > self.steps:
            raise Refused(422, f"{len(given)} steps: at most {self.steps} (--steps)")
        for one in given:
            self._check(one, self.shape)
        dtype = np.int32 if self.codes else np.float32
        return np.array(given, dtype).reshape(len(given), *self.shape)

    def _check(self, given: Any, shape: tuple[int, ...]) -> None:
        if shape:
            if not isinstance(given, list) or len(given) != shape[0]:
                raise Refused(422, f"each z must be lists of the lengths {list(self.shape)}")
            for one in given:
                self._check(one, shape[1:])
        elif self.codes:
            if type(given) is not int or not 0 <= given < self.codes:
                raise Refused(422, f"each code must be a whole number from 0 to {self.codes - 1}")
        elif type(given) not in (int, float) or not abs(given) <= _LARGEST:  # NaN is refused, too
            raise Refused(
                422, f"each number of a vector must be from -{_LARGEST:g} to {_LARGEST:g}"
            )


def _there(request: Request) -> Any:
    """Whether the client still waits, to be awaited."""

    async def wanted() -> bool:
        return not await request.is_disconnected()

    return wanted


def _mp4(frames: np.ndarray, rate: float) -> bytes:
    with tempfile.TemporaryDirectory(prefix="lapa-play-") as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames, rate)
        return path.read_bytes()
