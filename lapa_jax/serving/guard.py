"""What servers of this room share: who may ask, the page's files, how bodies are read, and how a
client is told that it is refused."""

import asyncio
import base64
import contextlib
import hmac
import io
from importlib import resources
from typing import Protocol

import numpy as np
from PIL import Image
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from lapa_jax.serving.limits import Limits, Refused

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


def page_routes(package: str) -> list[Route]:
    """Of the files of PAGE that lie in a package."""
    files = resources.files(package)
    page = {path: (files.joinpath(name).read_text(), kind) for path, name, kind in PAGE}

    async def page_file(request: Request) -> Response:
        text, kind = page[request.url.path]
        return Response(text, media_type=kind, headers=_HEADERS)

    return [Route(path, page_file) for path in page]


async def read_body(request: Request, limits: Limits) -> bytes:
    """Raises Refused for one that is too large, or too late."""
    limit, length = limits.request_bytes, request.headers.get("content-length", "0")
    body = bytearray()
    with contextlib.suppress(ValueError):
        if int(length) > limit:
            raise Refused(413, f"a body of {length} bytes: at most {limit}")
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise Refused(413, f"a body of more than {limit} bytes")
    except TimeoutError as error:
        raise Refused(408, f"no whole body in {limits.read_seconds:g} s") from error
    except ClientDisconnect as error:
        raise Refused(400, "the client left") from error
    return bytes(body)


class Stoppable(Protocol):
    stopping: bool


class Guard:
    """Lets nobody in without the token, and no web page of another origin. Once the server stops
    its answers say that they are the last of their connections."""

    def __init__(self, app: ASGIApp, token: str, engine: Stoppable):
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


async def refused(request: Request | WebSocket, error: Exception) -> Response:
    if isinstance(error, Refused):
        headers = {"Retry-After": "1"} if error.status in (429, 503) else None
        return JSONResponse({"error": error.reason}, error.status, headers)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its log says how"}, 500)


def data_uri(picture: np.ndarray) -> str:
    """A PNG of uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
