"""The ASGI application: REST, openpi's WebSocket, the page, metrics; who may ask, and how often."""

import asyncio
import base64
import contextlib
import hmac
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from absl import logging
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from lapa_jax.serving import wire
from lapa_jax.serving.engine import Answer, Engine
from lapa_jax.serving.limits import Limits, Rate, Refused
from lapa_jax.serving.messages import Observation
from lapa_jax.serving.metrics import Metrics
from lapa_jax.serving.reading import Readers

T = TypeVar("T")
PAGE = (
    ("/", "page.html", "text/html"),
    ("/page.js", "page.js", "text/javascript"),
    ("/page.css", "page.css", "text/css"),
)
_OPEN = (*(path for path, _, _ in PAGE), "/healthz")  # without a token
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
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
        files = resources.files("lapa_jax.serving")
        page = {path: (files.joinpath(name).read_text(), kind) for path, name, kind in PAGE}

        async def page_file(request: Request) -> Response:
            text, kind = page[request.url.path]
            return Response(text, media_type=kind, headers=_HEADERS)

        async def health(request: Request) -> Response:
            status = self.engine.status
            return JSONResponse({"status": status}, 200 if status == "ok" else 503)

        async def describe(request: Request) -> Response:
            return JSONResponse(self.metadata)

        async def scrape(request: Request) -> Response:
            return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

        return Starlette(
            routes=[
                *[Route(path, page_file) for path in page],
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
            exception_handlers={Refused: _refused, HTTPException: _refused, Exception: _failed},
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
            body = await self._body(request)
            observation = await self._read("json", body)
            answer = await self.engine.predict(observation)
            found = await self._rest(observation, answer)
        return JSONResponse(json.dumps(found) if observation.encoded else found)

    async def _body(self, request: Request) -> bytes:
        limit, length = self.limits.request_bytes, request.headers.get("content-length", "0")
        body = bytearray()
        with contextlib.suppress(ValueError):
            if int(length) > limit:
                raise Refused(413, f"a body of {length} bytes: at most {limit}")
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise Refused(413, f"a body of more than {limit} bytes")
        except TimeoutError as error:
            raise Refused(408, f"no whole body in {self.limits.read_seconds:g} s") from error
        except ClientDisconnect as error:
            raise Refused(400, "the client left") from error
        return bytes(body)

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
            found["picture"] = _data_uri(picture)
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
            await websocket.send_denial_response(await _refused(websocket, error))
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


class Guard:
    """Lets nobody in without the token, and no web page of another origin. Once the server stops
    its answers say that they are the last of their connections."""

    def __init__(self, app: ASGIApp, token: str, engine: Engine):
        self.app, self.token, self.engine = app, token.encode(), engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers, refusal = Headers(scope=scope), None
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            refusal = JSONResponse({"error": "a page of another origin"}, 403)
        elif not self._known(headers) and (scope["path"] not in _OPEN or scope["type"] != "http"):
            told = {"WWW-Authenticate": "Bearer"}
            refusal = JSONResponse({"error": "Authorization: Bearer TOKEN is missing"}, 401, told)

        async def send_last(message: Message) -> None:
            if self.engine.stopping and message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await (refusal or self.app)(scope, receive, send_last)

    def _known(self, headers: Headers) -> bool:
        # openpi-client sends "Api-Key TOKEN".
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.encode() if scheme.lower() in ("bearer", "api-key") else b""
        return not self.token or hmac.compare_digest(given, self.token)


async def _refused(request: Request | WebSocket, error: Exception) -> Response:
    if isinstance(error, Refused):
        headers = {"Retry-After": "1"} if error.status in (429, 503) else None
        return JSONResponse({"error": error.reason}, error.status, headers)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says how"}, 500)


def _timing(answer: Answer) -> dict[str, float]:
    return {
        "infer_ms": round(answer.infer_ms, 3),
        "queue_ms": round(answer.queue_ms, 3),
        "batch": answer.batch,
    }


def _json_numpy(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}


def _data_uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
