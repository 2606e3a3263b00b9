"""Whom the server lets in, what it refuses, and how it stops."""

import dataclasses
import re
import signal
import socket
import tempfile
import threading
import time
from types import SimpleNamespace

import json_numpy
import msgpack
import numpy as np
import psutil
import pytest
import requests
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from served import TOKEN, b64, picture, png, serving
from tiny import command, lapa
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lapa_jax.runs import loaded, unipi
from lapa_jax.serving import limits, start
from lapa_jax.serving.limits import Limits, Rate, Refused
from lapa_jax.verbs import serve

TEXT = "push the red block"


def act(server, image, instruction=TEXT, **more) -> tuple[int, str]:
    """(status, the reason that is given)."""
    message = {"image": image, "instruction": instruction} | more
    found = requests.post(f"{server.url}/act", json=message)
    return found.status_code, found.json().get("error", "")


# --- Who ---


def test_nothing_without_the_token(latent_server):
    for path in ("/metadata", "/metrics", "/nothing"):
        assert requests.get(latent_server.url + path).status_code == 401
        for value in ("Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer "):
            found = requests.get(latent_server.url + path, headers={"Authorization": value})
            assert found.status_code == 401 and TOKEN not in found.text
    assert act(latent_server, b64(png(picture(0)))) == (
        401,
        "Authorization: Bearer TOKEN is missing",
    )
    with pytest.raises(InvalidStatus, match="401"):
        WebsocketClientPolicy("127.0.0.1", latent_server.port)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(f"{latent_server.url}/metadata", headers=headers).status_code == 200
    for path in ("/", "/page.js", "/page.css", "/healthz"):  # they tell nothing
        assert requests.get(latent_server.url + path).status_code == 200


def test_other_machines_need_a_token(action_run, monkeypatch):
    monkeypatch.delenv("LAPA_SERVE_TOKEN", raising=False)
    code, _, error = lapa("serve", "--workdir", action_run, "--host", "0.0.0.0")
    assert code == 2 and "set LAPA_SERVE_TOKEN" in error
    monkeypatch.setenv("LAPA_SERVE_TOKEN", "schl\u00fcssel")
    code, _, error = lapa("serve", "--workdir", action_run, "--host", "0.0.0.0")
    assert code == 2 and "must be printable ASCII" in error and error.count("\n") == 1
    monkeypatch.setenv("LAPA_SERVE_TOKEN", "x")
    for host in ("no.such.host.invalid", "a" * 99, "a..b", "::1%nothing"):
        code, _, error = lapa("serve", "--workdir", action_run, "--host", host)
        assert code == 2 and f"--host {host} --port 8000: " in error and error.count("\n") == 1


NUMBERS = {
    flag: ("nan", "inf", "-inf", "-1", "1e400", "x", "")
    for flag in ("port", "batch_sizes", *(field.name for field in dataclasses.fields(Limits)))
}
NUMBERS["port"] += ("65536", "1.5")
NUMBERS["batch_sizes"] += ("0", "1,nan", "99999")


@pytest.mark.parametrize("flag", NUMBERS)
def test_numbers_have_a_range(flag, capsys):
    """Before anything is read."""
    for value in NUMBERS[flag] + (() if flag in ("port", "requests_per_second") else ("0",)):
        with pytest.raises(SystemExit) as ended:
            serve.main(["--workdir", "none", f"--{flag}={value}"])
        assert ended.value.code == 2 and f"argument --{flag}: " in capsys.readouterr().err


@pytest.mark.slow
def test_what_does_not_fit_the_policy(latent_run, quantizer_run, monkeypatch, caplog):
    code, _, error = lapa("serve", "--workdir", latent_run, "--port", 0, "--action_names", "x,y")
    assert code == 2 and "are of policies that act" in error
    policy, quantizer = loaded.load_policy(latent_run), loaded.load_quantizer(quantizer_run)
    unipi.check_quantizer(policy, quantizer)
    assert "the run records no label sets" in caplog.text
    labels = {"label_sets": {"robot": {"quantizer_hash": "another"}}}
    policy = dataclasses.replace(policy, provenance=labels)
    with pytest.raises(ValueError, match=r"learnt labels of \['another'\]"):
        unipi.check_quantizer(policy, quantizer)


def test_a_port_in_use(action_server, action_run):
    """It is told before anything is loaded and compiled."""
    code, _, error = lapa("serve", "--workdir", action_run, "--port", action_server.port)
    assert code == 2 and f"--port {action_server.port}: Address already in use" in error
    with start.bind("127.0.0.1", 0, 1.0) as one:  # two that load at the same time
        port = one.getsockname()[1]
        with start.bind("127.0.0.1", port, 1.0) as other:
            start.listen(one)
            with pytest.raises(OSError, match=f"--port {port}: Address already in use"):
                start.listen(other)


def test_pages_of_other_origins_are_refused(action_server):
    """A web page that the user has open can reach the loopback interface, too."""
    found = requests.post(
        f"{action_server.url}/act", json={}, headers={"Origin": "http://evil.com"}
    )
    assert found.status_code == 403
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{action_server.port}", origin="http://evil.com")
    rebound = {"Host": f"evil.com:{action_server.port}"}
    assert requests.get(f"{action_server.url}/metadata", headers=rebound).status_code == 400
    for odd in ("http://[", "null", "://"):
        found = requests.get(f"{action_server.url}/metadata", headers={"Origin": odd})
        assert found.status_code == 403, odd
    own = {"Origin": action_server.url}
    assert requests.get(f"{action_server.url}/metadata", headers=own).status_code == 200


# --- What ---

PIXELS = picture(0)
DEEP = np.zeros((4, 4), np.uint16)


MISTAKES = {
    "a path": ("/etc/passwd", "paths and addresses are not read"),
    "an address": ("http://example.com/x.png", "paths and addresses are not read"),
    "no image": (b64(b"GIF89a" + bytes(20)), "neither a JPEG nor a PNG"),
    "a cut PNG": (b64(png(PIXELS)[:-500]), "damaged PNG"),
    "a cut JPEG": (b64(b"\xff\xd8\xff\xe0"), "damaged JPEG"),
    "16 bits": (b64(png(DEEP)), "not of 8 bits"),
    "floats": ((PIXELS / 255).tolist(), "integers from 0 to 255"),
    "too bright": ((PIXELS.astype(int) + 1).tolist(), "integers from 0 to 255"),
    "ragged": ([[[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]], "lists of different lengths"),
    "grey": ([[[1]]], "not (height, width, 3)"),
    "two images": ([b64(png(PIXELS))] * 2, "2 images, and the policy takes 1"),
    "a ribbon": (b64(png(picture(0, (4, 400)))), "at most 8 to 1"),
    "a number": (3, "image is a int"),
    "nothing": (None, "image is a NoneType"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_images(action_server, name):
    image, reason = MISTAKES[name]
    status, told = act(action_server, image)
    assert status in (413, 422) and reason in told, told


def test_wrong_messages(action_server):
    image = b64(png(PIXELS))
    assert act(action_server, image, 5) == (422, "instruction must be a string, not int")
    status, told = act(action_server, image, "word " * 100)
    assert status == 422 and "more than model.text_length=24" in told
    status, told = act(action_server, image, "\ud800")
    assert status == 422 and "surrogates" in told
    status, told = act(action_server, image, picture=True)
    assert status == 422 and "without --quantizer" in told
    array = json_numpy.dumps({"image": PIXELS, "instruction": TEXT, "picture": True})
    found = requests.post(f"{action_server.url}/act", data=array)
    assert found.status_code == 422 and "answered by one array" in found.json()["error"]
    for body in (b"", b"{", b"[" * 100_000, b"\xff", b"3", b"[]", b'{"encoded": 3}'):
        found = requests.post(f"{action_server.url}/act", data=body)
        assert found.status_code in (400, 422) and found.json()["error"]
    assert requests.get(f"{action_server.url}/act").status_code == 405
    assert requests.get(f"{action_server.url}/../../etc/passwd").status_code == 404


def test_wrong_websocket_messages(action_server):
    """Each is told its mistake; the connection goes on."""
    array = msgpack_numpy.pack_array(PIXELS)
    wrong_arrays = [
        array | {b"shape": [32, 48]},
        array | {b"shape": [-1, 48, 3]},
        array | {b"shape": [2**40, 2**40, 3]},
        array | {b"dtype": "O"},
        array | {b"dtype": "<f8"},
        array | {b"data": "text"},
        {b"__npgeneric__": True, b"data": 3, b"dtype": "|u1"},
    ]
    messages = [msgpack.packb({"image": x, "prompt": TEXT}) for x in wrong_arrays]
    messages += [b"", b"\xc1", b"\x91" * 5_000, b"\xdd\xff\xff\xff\xff", msgpack.packb([1]), "text"]
    with connect(f"ws://127.0.0.1:{action_server.port}") as client:
        assert b"image_size" in client.recv()
        for message in messages:
            client.send(message)
            told = client.recv()
            assert isinstance(told, str) and re.match(r"4\d\d: ", told), told
        client.send(msgpack_numpy.packb({"image": PIXELS, "prompt": TEXT}))
        assert b"actions" in client.recv()


# --- How much ---


@pytest.mark.slow
def test_limits(action_run, monkeypatch):
    flags = ("--request_mib", 0.05, "--image_pixels", 5_000, "--requests_per_second", 5)
    with serving(action_run, *flags, "--read_seconds", 0.5, "--connections", 1) as server:
        bomb = np.zeros((4000, 4000), bool)  # 16 megapixels in some kB
        status, told = act(server, b64(png(bomb)))
        assert status == 413 and "at most 5000 pixels" in told
        address = f"{server.url}/act"
        assert requests.post(address, data=bytes(60_000)).status_code == 413
        chunks = (bytes(10_000) for _ in range(8))  # of no told length
        assert requests.post(address, data=chunks).status_code == 413
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert b" 408 " in slow.recv(4096)
        with connect(f"ws://127.0.0.1:{server.port}") as client:
            with pytest.raises(InvalidStatus, match="429"):
                connect(f"ws://127.0.0.1:{server.port}")
            assert requests.post(address, data=b"{}").status_code == 429
            client.recv()
            client.send(bytes(60_000))
            with pytest.raises(ConnectionClosed, match="1009"):
                client.recv()
        now = time.monotonic()  # a slow machine's bucket fills between requests
        monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now))
        found = [requests.post(address, json={"image": 1, "instruction": ""}) for _ in range(12)]
        assert found[-1].status_code == 429 and found[-1].headers["Retry-After"] == "1"


def test_rate_is_of_an_address(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = Rate(2.0)
    for address in ("a", "b"):
        rate.spend(address)
        rate.spend(address)
        with pytest.raises(Refused, match="2 requests a second"):
            rate.spend(address)
    now += 0.5
    rate.spend("a")
    with pytest.raises(Refused):
        rate.spend("a")


@pytest.mark.slow
def test_too_many_wait(action_run):
    """Whoever comes when the queue is full is told to come again; the others are answered."""
    with serving(action_run, "--waiting", 2, "--batch_sizes", 1) as server:
        engine, release = server.server.engine, threading.Event()
        compute = engine._compute
        engine._compute = lambda batch: (release.wait(20), compute(batch))[1]
        found = []

        def ask() -> None:
            found.append(act(server, b64(png(PIXELS)))[0])

        askers = [threading.Thread(target=ask) for _ in range(6)]
        for asker in askers:
            asker.start()
        while len(found) < 3:
            time.sleep(0.01)
        release.set()
        for asker in askers:
            asker.join()
        assert sorted(found) == [200] * 3 + [429] * 3


@pytest.mark.slow
def test_failures_show_nothing_of_the_server(action_run):
    def fail(batch):
        raise RuntimeError("a secret of line 7")

    with serving(action_run, "--batch_sizes", 1) as server:
        engine = server.server.engine
        compute = engine._compute
        engine._compute = lambda batch: compute(batch)._replace(values=np.full((1, 2), np.nan))
        status, told = act(server, b64(png(PIXELS)))
        assert (status, told) == (503, "the policy's answer is not finite")
        engine._compute = fail
        status, told = act(server, b64(png(PIXELS)))
        assert (status, told) == (500, "the server failed; its log says how")
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        with pytest.raises(RuntimeError, match="500: the server failed") as error:
            client.infer({"image": PIXELS, "prompt": TEXT})
        assert "secret" not in str(error.value)
        client._ws.close()


# --- Stopping ---


@pytest.mark.slow
def test_signals_answer_what_was_asked(action_run):
    """Also SIGHUP, and SIGTERM at every process that the server started: every request that was
    sent gets its answer, WebSockets are closed, the exit code is 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "--workdir", str(action_run), "--port", str(port), "--batch_sizes", "1,8"]
    with tempfile.TemporaryFile("w+") as output:
        process = command(arguments, output)
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    clients = [connect(f"ws://127.0.0.1:{port}") for _ in range(8)]
                    break
                except ConnectionRefusedError:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.1)
            message = msgpack_numpy.packb({"image": PIXELS, "prompt": TEXT})
            for client in clients:
                client.recv()
                client.send(message)
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
            process.send_signal(signal.SIGHUP)
            answers = [msgpack_numpy.unpackb(client.recv(30)) for client in clients]
            assert all(np.isfinite(answer["actions"]).all() for answer in answers)
            for client in clients:
                with pytest.raises(ConnectionClosed, match="1001"):
                    client.recv(30)
            assert process.wait(30) == 0
            with pytest.raises(ConnectionRefusedError):
                connect(f"ws://127.0.0.1:{port}")
        finally:
            process.kill()
        output.seek(0)
        assert "every request was answered" in output.read()
