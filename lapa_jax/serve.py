"""`lapa serve`: a policy behind WebSocket (openpi's protocol) and REST (OpenVLA's), with a page.

    lapa serve --workdir runs/action_vla
    LAPA_SERVE_TOKEN=... lapa serve --workdir runs/action_vla --host 0.0.0.0 --port 8000

The port opens when everything is compiled. SIGTERM and Ctrl-C finish what was asked and exit with
0. Protocols, limits, security: docs/serving.md.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import socket
import threading
from collections.abc import Iterator

import jax
import uvicorn
from absl import logging

from lapa_jax import api
from lapa_jax.serving import describe
from lapa_jax.serving.app import Server
from lapa_jax.serving.engine import BATCH_SIZES, Engine
from lapa_jax.serving.images import RESIZING
from lapa_jax.serving.limits import Limits
from lapa_jax.serving.messages import Reader
from lapa_jax.serving.metrics import Metrics

TOKEN = "LAPA_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What a Host header may say then; 0.0.0.0 is openpi-client's default.
LOOPBACK_NAMES = (*LOOPBACK, "[::1]", "0.0.0.0")
DRAIN_SECONDS = 20.0


def main(argv: list[str]) -> int:
    server, listening = prepare(parser().parse_args(argv), os.environ.get(TOKEN, ""))
    with listening:
        server.run(sockets=[listening])
    logging.info("stopped; every request was answered")
    return 0


def prepare(args: argparse.Namespace, token: str) -> tuple["Uvicorn", socket.socket]:
    """A server that has compiled everything, and the socket that it is to run on."""
    if args.host not in LOOPBACK and not token:
        raise ValueError(
            f"--host {args.host} is open to others: set {TOKEN} to a secret that clients must send "
            "(Authorization: Bearer ...)"
        )
    if args.compile_cache:
        jax.config.update("jax_compilation_cache_dir", args.compile_cache)
    limits = Limits(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Limits)})
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
        timeout_graceful_shutdown=int(DRAIN_SECONDS),
    )
    listening = listen(args.host, args.port)
    name, port = listening.getsockname()[:2]
    logging.info("%s is served at http://%s:%d", args.workdir, name, port)
    return Uvicorn(config, server.engine), listening


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lapa serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="the policy's run")
    add("--host", default="127.0.0.1", help=f"others than this machine need {TOKEN} to be set")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--image_tokenizer", help="the run that made the image tokens the policy was trained on")
    add("--quantizer", help="the run whose labels the policy learnt: decodes z to pictures")
    add("--resizing", choices=RESIZING, default="crop", help="of images of another size")
    add("--batch_sizes", type=_numbers, default=BATCH_SIZES, help="compiled, e.g. 1,4,16")
    add("--action_names", type=_words, default=(), help="of each dimension, e.g. x,y")
    add("--action_units", type=_words, default=(), help="of each dimension, e.g. m,m")
    add("--compile_cache", default="", help="a folder that keeps compiled programs")
    for field in dataclasses.fields(Limits):
        add(f"--{field.name}", type=field.type, default=field.default)
    return parser


def build(args: argparse.Namespace, limits: Limits) -> Server:
    """The server of parsed arguments, not compiled yet."""
    policy = api.load_policy(args.workdir, image_tokenizer=args.image_tokenizer)
    quantizer = api.load_quantizer(args.quantizer) if args.quantizer else None
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


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at this address from now on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error.strerror}") from error


class Uvicorn(uvicorn.Server):
    """Which answers what was asked before it closes WebSockets, and then ends as if asked to."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self.engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        if not await self.engine.drain(DRAIN_SECONDS):
            logging.warning("requests without an answer after %g s", DRAIN_SECONDS)
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


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))
