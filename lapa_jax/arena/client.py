"""A client of policies: openpi's protocol, with every way in which a server can fail it named."""

import os
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import connect

from lapa_jax.serving import wire

TOKEN = "LAPA_SERVE_TOKEN"  # environment variable, as of `lapa serve`
_CONNECT_SECONDS = 10.0
_BUSY = ("429", "503")  # as an answer's first word: ask again


class ServerError(RuntimeError):
    """The server does not answer as it must; one line that says how, and what mends it."""


def address(given: str) -> str:
    """ws://HOST:PORT of that, of http://HOST:PORT, or of HOST:PORT."""
    text = given if "://" in given else f"ws://{given}"
    text = text.replace("http", "ws", 1) if text.startswith("http") else text
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("ws", "wss") and parts.hostname and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"--server {given} is no address of a server: ws://HOST:PORT")
    return text


class Policy:
    """A connection. metadata: what the server sent first."""

    def __init__(self, url: str, answer_seconds: float, start_seconds: float):
        """start_seconds: for the metadata, which may wait until a server has compiled."""
        self.url, self.answer_seconds = url, answer_seconds
        token = os.environ.get(TOKEN)
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        try:
            self._socket = connect(
                url,
                compression=None,
                ping_interval=None,  # a server that computes may not answer pings
                max_size=None,
                open_timeout=max(_CONNECT_SECONDS, start_seconds),
                additional_headers=headers,
                proxy=None,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            hint = f"set {TOKEN} to its secret" if status in (401, 403) else "is it openpi's?"
            raise ServerError(f"{url} refuses a WebSocket with HTTP {status}: {hint}") from error
        except (InvalidHandshake, InvalidURI, EOFError) as error:
            raise ServerError(
                f"{url} is no WebSocket server ({_line(error)}): it must speak openpi's protocol"
            ) from error
        except TimeoutError as error:
            raise ServerError(
                f"{url} does not answer within {start_seconds:g} s: --start_seconds gives it longer"
            ) from error
        except OSError as error:
            raise ServerError(
                f"{url}: no server there ({error.strerror or error}): start one (`lapa serve "
                "--workdir RUN`), or mend the address"
            ) from error
        try:
            self.metadata = self._receive(start_seconds, "metadata, --start_seconds")
            if not isinstance(self.metadata, dict):
                raise ServerError(
                    f"{url}: its first message is {str(self.metadata)[:80]!r}, not metadata as a "
                    "mapping: it must speak openpi's protocol"
                )
        except ServerError:
            self.close()
            raise

    def __enter__(self) -> "Policy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close_timeout = 0.2  # of a server that hangs
        self._socket.close()

    def ask(self, observation: dict[str, Any], dim: int) -> np.ndarray:
        """float32 (steps, dim): the actions that are answered. Raises ServerError."""
        data, end = wire.pack(observation), time.monotonic() + self.answer_seconds
        while True:
            try:
                self._socket.send(data)
            except WebSocketException as error:
                raise self._closed(error) from error
            answer = self._receive(end - time.monotonic(), "answer, --answer_seconds")
            if not isinstance(answer, str):
                return self._actions(answer, dim)
            if not answer.startswith(_BUSY) or time.monotonic() > end - 0.1:
                raise ServerError(f"{self.url} answers: {_last_of(answer)}")
            time.sleep(0.05)

    def _receive(self, seconds: float, what: str) -> Any:
        """A text as it is, bytes unpacked."""
        try:
            data = self._socket.recv(timeout=max(0.0, seconds))
            return data if isinstance(data, str) else wire.unpack(data)
        except TimeoutError as error:
            what, _, flag = what.partition(", ")
            raise ServerError(
                f"{self.url} sends no {what} in time: {flag} gives it longer"
            ) from error
        except WebSocketException as error:
            raise self._closed(error) from error
        except ValueError as error:
            raise ServerError(
                f"{self.url} sends {error}: it must speak openpi's protocol"
            ) from error

    def _closed(self, error: WebSocketException) -> ServerError:
        return ServerError(
            f"{self.url} has closed the connection ({error}): what it said itself tells why; the "
            "same command goes on once it answers again"
        )

    def _actions(self, answer: Any, dim: int) -> np.ndarray:
        if not isinstance(answer, dict) or "actions" not in answer:
            held = sorted(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
            raise ServerError(
                f"{self.url}: an answer must hold 'actions', this one has {held}: does its policy "
                "predict actions?"
            )
        try:
            found = np.asarray(answer["actions"])
        except ValueError:  # lists of unequal lengths
            found = np.empty(0, object)
        found = found[None] if found.ndim == 1 else found
        if found.dtype.kind not in "fiu" or found.ndim != 2 or 0 in found.shape:
            raise ServerError(
                f"{self.url}: actions of shape {list(found.shape)} and dtype {found.dtype}: they "
                f"must be numbers, (steps, {dim})"
            )
        if found.shape[1] != dim:
            raise ServerError(
                f"{self.url}: its actions have {found.shape[1]} dimensions, the environment's "
                f"{dim}: serve a policy of this environment (--list tells them)"
            )
        with np.errstate(over="ignore"):
            taken = found.astype(np.float32)
        if not np.isfinite(taken).all():
            one = found[int(np.argmin(np.isfinite(taken).all(1)))]
            raise ServerError(f"{self.url}: an action that is not finite: {one.tolist()}")
        return taken


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def _last_of(text: str) -> str:
    """Of a traceback, as openpi's server sends it, the line that says what."""
    lines = [line for line in text.strip().splitlines() if line.strip()] or ["an empty text"]
    return lines[-1 if lines[0].startswith("Traceback") else 0][:300]
