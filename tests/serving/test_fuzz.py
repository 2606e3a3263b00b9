"""A server that is sent what nobody should send keeps its head, and its memory.

`make fuzz` is the long form: LAPA_FUZZ_REQUESTS and LAPA_FUZZ_DISCONNECTS say how much.
"""

import contextlib
import json
import os
import re
import socket
import struct
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import fuzz
import numpy as np
import psutil
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from served import picture
from tiny import command
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

REQUESTS = int(os.environ.get("LAPA_FUZZ_REQUESTS", "400"))
DISCONNECTS = int(os.environ.get("LAPA_FUZZ_DISCONNECTS", "40"))
ROUNDS = 10  # after the first of which memory may not grow by more than
GROWTH = 0.05
TEXT = "push the red block"


class Target(NamedTuple):
    port: int
    process: psutil.Process

    def memory(self) -> int:
        return self.process.memory_info().rss

    def metrics(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.port}/metrics").text


@pytest.fixture(scope="module")
def target(action_run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "--workdir", str(action_run), "--port", str(port)]
    arguments += ["--requests_per_second", "0", "--batch_sizes", "1", "--read_seconds", "0.5"]
    with tempfile.TemporaryFile("w+") as log:
        process = command(arguments, log)
        try:
            deadline = time.monotonic() + 120
            while not ready(port):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            yield Target(port, psutil.Process(process.pid))
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
        log.seek(0)
        text = log.read()
        assert "Traceback" not in text and "Exception" not in text, text[-3000:]


def ready(port: int) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"http://127.0.0.1:{port}/healthz").ok
    return False


def post(target: Target, session: requests.Session, body: bytes) -> int:
    found = session.post(f"http://127.0.0.1:{target.port}/act", data=body, timeout=30)
    told = found.json()
    assert found.status_code == 200 or found.status_code < 500 and told["error"], found.text
    assert not re.search(r"0x[0-9a-f]{4}| object at |/lapa_jax/|\.py", found.text), found.text
    return found.status_code


def rest(target: Target, seed: int, number: int) -> Counter:
    found, rng = Counter(), np.random.default_rng(seed)
    with requests.Session() as session:

        @settings(
            max_examples=number - 2 * (number // 3),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(fuzz.messages)
        def one(message) -> None:
            found[post(target, session, json.dumps(message).encode())] += 1

        one._hypothesis_internal_use_seed = seed
        one()
        for _ in range(number // 3):
            mutated = fuzz.mutate(rng, fuzz.json_message(fuzz.plain_png(rng)))
            found[post(target, session, mutated)] += 1
            found[post(target, session, fuzz.json_image(rng))] += 1
    return found


def websocket(target: Target, seed: int, number: int) -> Counter:
    """Mutated msgpack; a connection that the server may close for it is opened again."""
    found, rng = Counter(), np.random.default_rng(seed)
    with contextlib.ExitStack() as stack:
        client = None
        for _ in range(number):
            if client is None:
                client = stack.enter_context(connect(f"ws://127.0.0.1:{target.port}"))
                client.recv(30)
            client.send(fuzz.msgpack_message(rng))
            try:
                answer = client.recv(30)
            except ConnectionClosed as closed:
                found[f"closed {closed.rcvd.code if closed.rcvd else ''}"] += 1
                client = None
                continue
            if isinstance(answer, str):
                assert re.match(r"4\d\d: ", answer), answer
                found[int(answer[:3])] += 1
            else:
                assert np.isfinite(msgpack_numpy.unpackb(answer)["actions"]).all()
                found[200] += 1
    return found


def broken_http(target: Target, seed: int, number: int) -> Counter:
    found, rng = Counter(), np.random.default_rng(seed)
    for _ in range(number):
        with socket.create_connection(("127.0.0.1", target.port), timeout=30) as client:
            with contextlib.suppress(OSError):  # the server may close before all is sent
                client.sendall(fuzz.raw_http(rng))
                client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                answer = client.recv(4096)
                status = re.match(rb"HTTP/1.1 (\d+)", answer)
                assert status is None or int(status[1]) < 500, answer
                found[int(status[1]) if status else "closed"] += 1
    return found


def disconnects(target: Target, seed: int, number: int) -> None:
    """Clients that vanish (TCP reset) in every state of a connection."""
    rng = np.random.default_rng(seed)
    handshake = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    message = msgpack_numpy.packb({"image": fuzz.pixels(rng), "prompt": "push"})
    frame = b"\x82" + struct.pack(">BH", 0x80 | 126, len(message)) + bytes(4) + message
    body = b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + bytes(4000)
    for _ in range(number):
        client = socket.create_connection(("127.0.0.1", target.port), timeout=30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sent = body if rng.random() < 0.3 else handshake + frame
        if rng.random() < 0.7:
            sent = sent[: rng.integers(len(sent))]
        with contextlib.suppress(OSError):
            client.sendall(sent)
            client.settimeout(float(rng.choice([0.001, 0.01])))
            client.recv(100)
        client.close()


def warm_up(target: Target) -> None:
    """Memory that the server takes once: for the largest images, in each thread that reads."""

    def large(_: int) -> None:
        with requests.Session() as session:
            for image in fuzz.bombs() * 3:
                post(target, session, fuzz.json_message(image))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(large, range(4)))


@pytest.mark.slow
def test_fuzz(target, action_policy, capsys):
    warm_up(target)
    found: dict[str, Counter] = {"rest": Counter(), "websocket": Counter(), "http": Counter()}
    memory = []
    for seed in range(ROUNDS):
        found["rest"] += rest(target, seed, REQUESTS * 5 // 10 // ROUNDS)
        found["websocket"] += websocket(target, seed, REQUESTS * 4 // 10 // ROUNDS)
        found["http"] += broken_http(target, seed, REQUESTS // 10 // ROUNDS)
        disconnects(target, seed, DISCONNECTS // ROUNDS)
        memory.append(target.memory())
    told = [f"{name}: {dict(counts.most_common())}" for name, counts in found.items()]
    told += [f"memory after each round, MiB: {[round(m / 2**20, 1) for m in memory]}"]
    with capsys.disabled():
        if "LAPA_FUZZ_REQUESTS" in os.environ:
            print("\n" + "\n".join(told))
    assert memory[-1] <= (1 + GROWTH) * memory[0], told
    assert not re.search(r'lapa_requests_total{[^}]*status="5', target.metrics())
    deadline = time.monotonic() + 10
    while "lapa_websockets 0.0" not in target.metrics():  # nobody is left
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client = WebsocketClientPolicy("127.0.0.1", target.port)
    answer = client.infer({"image": picture(1), "prompt": TEXT})["actions"]
    client._ws.close()
    np.testing.assert_array_equal(answer[0], action_policy.predict_action(picture(1), TEXT))
