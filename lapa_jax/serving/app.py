"""The ASGI application: REST, openpi's WebSocket, the page, metrics; who may ask, and how often."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from absl import logging
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lapa_jax.serving import wire
from lapa_jax.serving.engine import Answer, Engine
from lapa_jax.serving.guard import Guard, data_uri, failed, page_routes, read_body, refused
from lapa_jax.serving.limits import Limits, Rate, Refused
from lapa_jax.serving.messages import Observation
from lapa_jax.serving.metrics import Metrics
from lapa_jax.serving.reading import Readers

T = TypeVar("T")
_GOING_AWAY = 1001  # close code of WebSockets
LINGER_SECONDS = 0.5  # once the server stops: what is under way may still come


class Server:
    """What the routes share."""

    def __init__(
        self,
        engine: Engine,
        readers: Readers,
        metadata: dict[str, Any],
        limits: Limits,
        metrics: Metrics,
    ):
        self.engine, self.readers, self.metadata = engine, readers, metadata
        self.limits, self.metrics = limits, metrics
        self.rate = Rate(limits.requests_per_second)
        self.open = 0  # REST requests and WebSockets
        self._patience: set[asyncio.Timeout] = set()  # of WebSockets that wait for a message
        self._other_units = False  # whether the log has told of them

    def stop(self) -> None:
        """From now on every answer is the last one of its connection."""
        self.engine.stop()
        soon = asyncio.get_running_loop().time() + LINGER_SECONDS
        for timeout in self._patience:
            if not timeout.expired():
                timeout.reschedule(soon)

    def app(self, token: str, hosts: Sequence[str]) -> Starlette:
        """token: what clients must show; "": nothing. hosts: names by which we may be asked."""

        async def health(request: Request) -> Response:
            status = self.engine.status
            return JSONResponse({"status": status}, 200 if status == "ok" else 503)

        async def describe(request: Request) -> Response:
            return JSONResponse(self.metadata)

        async def scrape(request: Request) -> Response:
            return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

        return Starlette(
            routes=[
                *page_routes("lapa_jax.serving"),
                WebSocketRoute("/", self.talk),
                Route("/act", self.act, methods=["POST"]),
                Route("/healthz", health),
                Route("/metadata", describe),
                Route("/metrics", scrape),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
                Middleware(Guard, token=token, engine=self.engine),
            ],
            exception_handlers={Refused: refused, HTTPException: refused, Exception: failed},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.readers.open()
        batches = asyncio.create_task(self.engine.run())
        yield
        batches.cancel()
        self.engine.close()
        self.readers.close()

    # --- REST ---

    async def act(self, request: Request) -> Response:
        """One observation as JSON. An image that came as json-numpy is answered as OpenVLA does:
        the array alone, in that form."""
        with self._counted("rest", request), self._slot(), self.engine.request():
            if not self.engine.ready.is_set():
                raise Refused(503, f"the server is {self.engine.status}")
            body = await read_body(request, self.limits)
            observation = await self._read("json", body)
            answer = await self.engine.predict(observation)
            found = await self._rest(observation, answer)
        return JSONResponse(json.dumps(found) if observation.encoded else found)

    async def _read(self, form: str, data: bytes) -> Observation:
        observation = await self.readers.read(form, data)
        self.engine.check_text(observation.instruction)
        key = observation.unnorm_key
        if key and key not in self.metadata["unnorm_keys"] and not self._other_units:
            self._other_units = True
            logging.warning(
                "a client asks for unnorm_key %r: this policy has one set of units, of %s",
                key[:60],
                self.metadata["unnorm_keys"],
            )
        return observation

    async def _rest(self, observation: Observation, answer: Answer) -> dict[str, Any] | list:
        if observation.form == "array":
            return _json_numpy(answer.values)
        if observation.form == "arrays":
            return [_json_numpy(one) for one in self._steps(answer.values)]
        found: dict[str, Any] = dict(answer.reply)
        if observation.picture:
            picture = await self.engine.picture(observation, answer.values)
            found["picture"] = data_uri(picture)
        found = {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in found.items()}
        return found | {"timing": _timing(answer)}

    # --- WebSocket ---

    async def talk(self, websocket: WebSocket) -> None:
        """openpi's protocol: metadata first, then for every observation a dict of arrays. A text
        frame is an error; the connection stays open."""
        try:
            with self._slot(), self.metrics.connections.track_inprogress():
                await self._converse(websocket)
        except Refused as error:  # no slot
            await websocket.send_denial_response(await refused(websocket, error))
        except WebSocketDisconnect:
            return

    async def _converse(self, websocket: WebSocket) -> None:
        await websocket.accept()
        # Who comes while programs are compiled waits for the metadata.
        if await self._patient(self.engine.ready.wait(), None) is not None:
            await websocket.send_bytes(wire.pack(self.metadata))
        why = "the server stops"
        while not self.engine.stopping:
            seconds = self.limits.idle_seconds
            message = await self._patient(websocket.receive(), seconds)
            if message is None:
                if not self.engine.stopping:
                    why = f"no message in {seconds:g} s"
                break
            if message["type"] == "websocket.disconnect":
                return
            await self._reply(websocket, message.get("bytes"))
        await websocket.close(_GOING_AWAY, why)

    async def _patient(self, awaited: Awaitable[T], seconds: float | None) -> T | None:
        """What is awaited, or None when time is up, which is soon after the server is stopped."""
        try:
            async with asyncio.timeout(seconds) as timeout:
                self._patience.add(timeout)
                return await awaited
        except TimeoutError:
            return None
        finally:
            self._patience.discard(timeout)

    async def _reply(self, websocket: WebSocket, data: bytes | None) -> None:
        try:
            with self.engine.request():
                with self._counted("websocket", websocket):
                    if data is None:
                        raise Refused(400, "a text frame: messages are msgpack in binary frames")
                    observation = await self._read("msgpack", data)
                    answer = await self.engine.predict(observation)
                    found: dict[str, Any] = dict(answer.reply)
                    if "a" in found:
                        found = {"actions": self._steps(found["a"])}
                    if observation.picture:
                        found["picture"] = await self.engine.picture(observation, answer.values)
                await websocket.send_bytes(wire.pack(found | {"server_timing": _timing(answer)}))
        except Refused as error:
            await websocket.send_text(f"{error.status}: {error.reason}")
        except WebSocketDisconnect:
            raise
        except Exception:
            logging.exception("a request failed")
            await websocket.send_text("500: the server failed; its log says how")

    def _steps(self, values: np.ndarray) -> np.ndarray:
        """Of an action policy float32 (chunk, action_dim); of others as they are."""
        chunk = self.metadata["chunk"]
        return values.reshape(chunk, -1) if self.metadata["policy"] == "action" else values

    @contextlib.contextmanager
    def _counted(self, protocol: str, connection: Request | WebSocket) -> Iterator[None]:
        """Around a request: raises Refused where its address asks too often, and counts it."""
        start, status = time.perf_counter(), 500
        try:
            self.rate.spend(connection.client.host if connection.client else "")
            yield
            status = 200
        except Refused as error:
            status = error.status
            raise
        finally:
            self.metrics.request(protocol, status, time.perf_counter() - start)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        """Raises Refused where too many requests and WebSockets are open already."""
        if self.open >= self.limits.connections:
            raise Refused(429, f"{self.open} requests and WebSockets are open already")
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def _timing(answer: Answer) -> dict[str, float]:
    return {
        "infer_ms": round(answer.infer_ms, 3),
        "queue_ms": round(answer.queue_ms, 3),
        "batch": answer.batch,
    }


def _json_numpy(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}
