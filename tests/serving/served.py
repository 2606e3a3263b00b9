"""A server of this process, in a thread, and what its clients need."""

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lapa_jax.serving import start
from lapa_jax.serving.limits import Limits
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
    server, bound = start.prepare(args, flags.read(args, Limits), token)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    with bound:
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Served(server, bound.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
