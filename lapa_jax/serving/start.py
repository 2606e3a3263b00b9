"""From the flags of `lapa serve` to a server that has compiled everything."""

import argparse
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import jax
import uvicorn
from absl import logging

from lapa_jax.runs import loaded
from lapa_jax.serving import describe
from lapa_jax.serving.app import Server
from lapa_jax.serving.engine import Engine
from lapa_jax.serving.limits import TOKEN, Limits
from lapa_jax.serving.messages import Reader
from lapa_jax.serving.metrics import Metrics

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What a Host header may say then; 0.0.0.0 is openpi-client's default.
LOOPBACK_NAMES = (*LOOPBACK, "[::1]", "0.0.0.0")
DRAIN_SECONDS = 20.0
CLOSE_SECONDS = 5  # then, for what is being sent and for WebSockets


def prepare(
    args: argparse.Namespace, limits: Limits, token: str
) -> tuple["Uvicorn", socket.socket]:
    """A server that has compiled everything, and the socket that it is to run on, bound and not
    listening yet."""
    if args.host not in LOOPBACK and not token:
        raise ValueError(
            f"--host {args.host} is open to others: set {TOKEN} to a secret that clients must send "
            "(Authorization: Bearer ...)"
        )
    if args.compile_cache:
        jax.config.update("jax_compilation_cache_dir", args.compile_cache)
    bound = bind(args.host, args.port)
    server = build(args, limits)
    seconds = server.engine.warm_up()
    logging.info("compiled batches of %s in %.1f s", args.batch_sizes, seconds)
    config = uvicorn.Config(
        server.app(token, LOOPBACK_NAMES if args.host in LOOPBACK else ("*",)),
        log_config=None,
        log_level="warning",
        access_log=False,
        ws_max_size=limits.request_bytes,
        ws_per_message_deflate=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return Uvicorn(config, server.engine), bound


def build(args: argparse.Namespace, limits: Limits) -> Server:
    """The server of parsed arguments, not compiled yet."""
    policy = loaded.load_policy(args.workdir, image_tokenizer=args.image_tokenizer)
    quantizer = loaded.load_quantizer(args.quantizer) if args.quantizer else None
    if quantizer:
        describe.check_quantizer(policy, quantizer)
    metadata = describe.metadata(
        policy,
        limits,
        resizing=args.resizing,
        action_names=args.action_names,
        action_units=args.action_units,
        quantizer=quantizer,
    )
    metrics = Metrics()
    engine = Engine(
        policy,
        metrics,
        quantizer=quantizer,
        batch_sizes=args.batch_sizes,
        max_waiting=limits.waiting,
    )
    reader = Reader(
        image_size=policy.image_size,
        num_images=policy.stage.num_images,
        resizing=args.resizing,
        limits=limits,
        check_text=policy.stage.layout.text,
        unnorm_keys=metadata["unnorm_keys"],
    )
    return Server(engine, reader, metadata, limits, metrics)


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address, which refuses connections until a server listens."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        return bound
    except OSError as error:
        bound.close()
        raise OSError(f"--host {host} --port {port}: {error.strerror}") from error


class Uvicorn(uvicorn.Server):
    """Which answers what was asked before it closes WebSockets, and then ends as if asked to."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self.engine = engine

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        logging.info("served at http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        if await self.engine.drain(DRAIN_SECONDS):
            logging.info("stopping; every request was answered")
        else:
            logging.warning("stopping, with requests not answered after %g s", DRAIN_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
