"""Work that is ended, connections that are closed, and how a server stops."""

import asyncio
import contextlib
import io
import socket
import time

import numpy as np
import pytest
import requests
from openpi_client import msgpack_numpy
from PIL import Image
from served import b64, picture, png, serving_nothing
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from lapa_jax.serving import app, start
from lapa_jax.serving.images import jpeg_scans
from lapa_jax.serving.limits import Limits, Refused
from lapa_jax.serving.messages import Reader
from lapa_jax.serving.reading import Readers

HEAD = b"POST /act HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)
MESSAGE = {"image": b64(png(picture(0))), "instruction": "push"}


def progressive(size: tuple[int, int]) -> bytes:
    """A JPEG of ten scans."""
    file = io.BytesIO()
    Image.fromarray(picture(1, size)).save(file, "JPEG", progressive=True)
    return file.getvalue()


def test_work_has_an_end():
    """Scans are counted before they are decoded; what takes long is ended, others go on."""
    assert jpeg_scans(progressive((32, 48)), 99) == 10
    assert jpeg_scans(progressive((32, 48)) + b"\xff\xda\0\2", 99) == 10  # after the end
    with serving_nothing(image_scans=9) as server:

        def act(image: bytes) -> tuple[int, str]:
            message = MESSAGE | {"image": b64(image)}
            found = requests.post(f"{server.url}/act", json=message)
            return found.status_code, found.json().get("error", "")

        assert act(progressive((32, 48))) == (413, "image is a JPEG of more than 9 scans")
    with serving_nothing(decode_seconds=0.05, image_scans=10) as server:
        assert act(progressive((2000, 2000))) == (
            422,
            "what was sent takes more than 0.05 s to read",
        )
        assert act(progressive((32, 48))) == (200, "")


def test_memory_has_an_end():
    """Three million empty lists are 3 MB of msgpack, and 192 MB of Python."""
    lists = b"\xdd" + (100_000).to_bytes(4) + b"\x90" * 100_000
    data = b"\x81\xa1x\xdc" + (30).to_bytes(2) + 30 * lists
    limits = Limits(request_mib=2, image_pixels=1, decode_seconds=60)

    async def read() -> None:
        readers = Readers(Reader((32, 48), 1, 1, (), "crop", limits))
        await readers.open()
        try:
            with pytest.raises(Refused, match="too much memory") as refused:
                await readers.read("msgpack", data)
            assert refused.value.status == 413
            with pytest.raises(Refused, match="instruction: the policy needs one of"):
                await readers.read("msgpack", b"\x80")
        finally:
            readers.close()

    asyncio.run(read())


SILENT = {
    "nothing": b"",
    "half a head": HEAD,
    "half a handshake": UPGRADE,
    "half a body": HEAD + b"Content-Length: 9\r\n\r\n{",
    "a body that is not read": b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
    "an idle WebSocket": UPGRADE + b"\r\n",
    "half a message": UPGRADE + b"\r\n",
}


def read_all(client: socket.socket) -> bytes:
    """Until the server closes the connection, within 20 s."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(9999):
            found += part
    return found


def test_half_open_connections_are_closed():
    with serving_nothing(read_seconds=0.6, idle_seconds=2.0) as server, contextlib.ExitStack() as s:
        clients = {}
        for name, sent in SILENT.items():
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            clients[name] = s.enter_context(client)
            client.sendall(sent)
        assert b" 101 " in clients["half a message"].recv(9999)
        for part in (b"\x82\xfe", b"\x00"):  # they trickle in
            for name in ("half a head", "half a message"):
                with contextlib.suppress(OSError):  # closed already
                    clients[name].sendall(part)
            time.sleep(0.1)
        answers = {name: read_all(client) for name, client in clients.items()}
    assert answers["nothing"] == b"" and b" 408 " in answers["half a body"]
    assert b"no message in 2 s" in answers["an idle WebSocket"]
    assert b"no whole message in time" in answers["half a message"]


async def robot(port: int, kind: str, told: list[str]) -> None:
    """Asks until the server says that it stops; every request must have its answer."""
    if kind == "websocket":
        async with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
            await client.recv()
            try:
                while True:
                    await client.send(msgpack_numpy.packb({"image": picture(0), "prompt": "push"}))
                    assert np.isfinite(msgpack_numpy.unpackb(await client.recv())["actions"]).all()
                    told.append("answer")
            except ConnectionClosed as closed:
                told.append(f"closed {closed.rcvd.code} {closed.rcvd.reason}")
        return
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = requests.Request("POST", f"http://127.0.0.1:{port}/act", json=MESSAGE).prepare().body
    while True:
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 200 ok" in head, head
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        told.append("answer")
        if b"connection: close" in head:
            assert await reader.read() == b""
            told.append("last")
            break
    writer.close()


def test_stopping_under_load(monkeypatch):
    """Nobody loses an answer; all are told that it was the last."""
    for module in (app, start):
        monkeypatch.setattr(module, "LINGER_SECONDS", 10.0)  # of a busy machine

    async def load(server) -> list[list[str]]:
        told: list[list[str]] = [[] for _ in range(64)]
        kinds = ["websocket", "rest"] * 32
        robots = [
            asyncio.create_task(robot(server.port, kind, one))
            for kind, one in zip(kinds, told, strict=True)
        ]
        while not all(told):
            await asyncio.sleep(0.01)
        server.server.should_exit = True
        await asyncio.gather(*robots)
        return told

    with serving_nothing(0.02, requests_per_second=0) as server:
        told = asyncio.run(load(server))
    ends = [one[-1] for one in told]
    assert ends == ["closed 1001 the server stops", "last"] * 32


def test_what_cannot_be_answered_is_told():
    """A second signal does not wait; whoever is not answered has 503, and no one 500."""
    with serving_nothing(1.0) as server:

        async def ask() -> tuple[str, int]:
            async with connect(f"ws://127.0.0.1:{server.port}") as client:
                await client.recv()
                await client.send(msgpack_numpy.packb({"image": picture(0), "prompt": "push"}))
                post = asyncio.to_thread(requests.post, f"{server.url}/act", json=MESSAGE)
                rest = asyncio.create_task(post)
                while len(server.server.engine.open) < 2:
                    await asyncio.sleep(0.01)
                server.server.handle_exit(15, None)
                server.server.handle_exit(15, None)
                return await client.recv(), (await rest).status_code

        told, status = asyncio.run(ask())
        assert told.startswith("503: the server stops") and status == 503


def test_compiling_is_told():
    with serving_nothing() as server:
        assert requests.get(f"{server.url}/healthz").json() == {"status": "ok"}
        engine = server.server.engine
        engine.ready.clear()
        found = requests.get(f"{server.url}/healthz")
        assert found.status_code == 503 and found.json() == {"status": "compiling: 2 of 2 programs"}
        found = requests.post(f"{server.url}/act", json=MESSAGE)
        assert found.status_code == 503 and found.headers["Retry-After"] == "1"
        assert found.json() == {"error": "the server is compiling: 2 of 2 programs"}

        async def wait() -> bytes:
            async with connect(f"ws://127.0.0.1:{server.port}") as client:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.recv(), 0.1)
                server.server.should_exit = True
                with pytest.raises(ConnectionClosed, match="1001"):
                    await client.recv()

        asyncio.run(wait())
