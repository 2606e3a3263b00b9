"""A server of openpi's protocol, in a thread of this process."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from websockets.sync.server import ServerConnection, serve

from lapa_jax.serving import wire


class Stub:
    """metadata: what is sent first, packed unless it is bytes or a text. answer: of an observation,
    likewise. asked: the observations."""

    def __init__(self, metadata: Any = None, answer: Callable[[dict], Any] | None = None):
        self.metadata = {} if metadata is None else metadata
        self.answer = answer or (lambda seen: {"actions": np.full((2, 2), 0.5, np.float32)})
        self.asked: list[dict] = []
        self.url = ""

    def handle(self, connection: ServerConnection) -> None:
        with contextlib.suppress(Exception):  # clients go as they like
            self._send(connection, self.metadata)
            for message in connection:
                self.asked.append(wire.unpack(message))
                self._send(connection, self.answer(self.asked[-1]))

    def _send(self, connection: ServerConnection, value: Any) -> None:
        connection.send(value if isinstance(value, str | bytes) else wire.pack(value))


@contextlib.contextmanager
def serving(*args: Any, status: int = 0, **more: Any) -> Iterator[Stub]:
    """status: of HTTP, with which it refuses everybody."""
    stub = Stub(*args, **more)
    refuse = (lambda connection, _: connection.respond(status, "")) if status else None
    with serve(stub.handle, "127.0.0.1", 0, compression=None, process_request=refuse) as server:
        host, port = server.socket.getsockname()[:2]
        stub.url = f"ws://{host}:{port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
