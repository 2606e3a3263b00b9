"""A server of this process, in a thread, and what its clients need."""

import base64
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image

from lapa_jax.runs import loaded
from lapa_jax.serving import start
from lapa_jax.serving.app import Server
from lapa_jax.serving.engine import Engine
from lapa_jax.serving.limits import Limits
from lapa_jax.serving.messages import Reader
from lapa_jax.serving.metrics import Metrics
from lapa_jax.serving.reading import Readers
from lapa_jax.verbs import flags, serve

TOKEN = "a secret"
SIZE = (32, 48)  # of the policies of tiny_policy


class Served(NamedTuple):
    server: start.Uvicorn
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(run: Path, *given: object, token: str = "") -> Iterator[Served]:
    arguments = ["--workdir", run, "--port", 0, "--batch_sizes", "1,4", *given]
    args = serve.parser().parse_args([str(x) for x in arguments])
    with running(*start.prepare(args, flags.read(args, Limits), token)) as found:
        yield found


@contextlib.contextmanager
def running(server: start.Uvicorn, bound: socket.socket) -> Iterator[Served]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    compiled = getattr(server.engine, "ready", None)  # else before it is made
    with bound:
        port = bound.getsockname()[1]
        thread.start()
        try:
            while not (server.started and (compiled is None or compiled.is_set())):
                assert thread.is_alive()
                time.sleep(0.01)
            yield Served(server, port)
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def serving_nothing(seconds: float = 0.0, **limits: float) -> Iterator[Served]:
    """A server whose policy, of two actions, takes so long and answers the mean of its image."""

    def predict(images: np.ndarray, texts: Sequence[str], state: None) -> loaded.Prediction:
        time.sleep(seconds)
        means = images.reshape(len(images), -1).mean(1, dtype=np.float32)
        return loaded.Prediction(np.stack([means, means], 1), None)

    head = SimpleNamespace(draws=False, reply=lambda values, probabilities: {"a": values})
    stage = SimpleNamespace(
        num_images=1,
        num_cameras=1,
        head=head,
        state=None,
        layout=SimpleNamespace(text=lambda text: None),
    )
    policy = SimpleNamespace(stage=stage, image_size=SIZE, predict=predict)
    found = Limits(**{"requests_per_second": 0, **limits})
    metadata = {"policy": "action", "chunk": 1, "unnorm_keys": []}
    metrics, readers = Metrics(), Readers(Reader(SIZE, 1, 1, (), "crop", found))
    server = Server(Engine(policy, metrics, batch_sizes=(1, 64)), readers, metadata, found, metrics)
    bound = start.bind("127.0.0.1", 0, found.read_seconds)
    with running(start.Uvicorn(server, "", start.LOOPBACK_NAMES), bound) as one:
        yield one


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
