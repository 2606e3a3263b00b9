"""Connections that are closed where what they promise does not come in time.

uvicorn's protocols wait for ever for the head of a first request, for one of which a byte has come,
and for the end of a WebSocket's message.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_POLICY_VIOLATION = 1008  # close code


class Http(H11Protocol):
    """`timeout_keep_alive` is the time for a whole head: from the connection, or from the answer
    before. most: connections, at which further ones are closed."""

    def __init__(self, *given: Any, most: int, **more: Any):
        super().__init__(*given, **more)
        self.most = most

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        seconds = self.timeout_keep_alive
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self.handle_events()  # ends the time at a whole head

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self.send_400_response("no whole request in time")
        else:
            super().timeout_keep_alive_handler()


class WebSocket(WebSocketsSansIOProtocol):
    """Closed where a message that has begun is not whole in `timeout_keep_alive` seconds."""

    _late: asyncio.TimerHandle | None = None

    def __init__(self, *given: Any, **more: Any):
        super().__init__(*given, **more)
        self.close_timeout = self.config.timeout_keep_alive  # for a client to close its side

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        begun = bool(self.conn.reader.buffer or self.frames)
        if begun and self._late is None:
            self._late = self.loop.call_later(self.config.timeout_keep_alive, self._too_late)
        elif not begun:
            self._in_time()

    def send_receive_event_to_app(self) -> None:
        self._in_time()
        super().send_receive_event_to_app()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.conn.fail(_POLICY_VIOLATION, "no whole message in time")
        told: dict[str, Any] = {"type": "websocket.disconnect", "code": _POLICY_VIOLATION}
        self.queue.put_nowait(told)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
