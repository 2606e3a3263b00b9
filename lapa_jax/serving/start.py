"""From the flags of `lapa serve` to a server, and how it stops."""

import argparse
import asyncio
import contextlib
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import uvicorn
from absl import logging

from lapa_jax.envs.execution import check_rate
from lapa_jax.runs import loaded, unipi
from lapa_jax.serving import connections, describe
from lapa_jax.serving.app import LINGER_SECONDS, Server
from lapa_jax.serving.engine import Engine
from lapa_jax.serving.limits import TOKEN, Limits
from lapa_jax.serving.messages import Reader
from lapa_jax.serving.metrics import Metrics
from lapa_jax.serving.reading import Readers

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What a Host header may say then; 0.0.0.0 is openpi-client's default.
LOOPBACK_NAMES = (*LOOPBACK, "[::1]", "0.0.0.0")
DRAIN_SECONDS = 20.0  # for what is asked
_BACKLOG = 2048  # connections that wait to be taken
CLOSE_SECONDS = 5  # then, for what is being sent and for clients to close their side


def prepare(
    args: argparse.Namespace, limits: Limits, token: str
) -> tuple["Uvicorn", socket.socket]:
    """A server that compiles when it is run, and the socket that it is to run on, bound and not
    listening yet."""
    names = names_of(args.host, token)
    if args.compile_cache:
        _make_folder(args.compile_cache)
        jax.config.update("jax_compilation_cache_dir", args.compile_cache)
    bound = bind(args.host, args.port, limits.read_seconds)
    try:
        server = build(args, limits)
    except BaseException:
        bound.close()
        raise
    return Uvicorn(server, token, names), bound


def names_of(host: str, token: str) -> Sequence[str]:
    """By which a server of this address may be asked. Raises ValueError for one that is open to
    others without a token, and for a token that no header can hold."""
    if host not in LOOPBACK and not token:
        raise ValueError(
            f"--host {host} is open to others: set {TOKEN} to a secret that clients must send "
            "(Authorization: Bearer ...)"
        )
    if not (token.isascii() and token.isprintable()) or token != token.strip():
        raise ValueError(f"{TOKEN} must be printable ASCII and not start or end with a space")
    return LOOPBACK_NAMES if host in LOOPBACK else ("*",)


def build(args: argparse.Namespace, limits: Limits) -> Server:
    """The server of parsed arguments, not compiled yet."""
    policy = loaded.load_policy(
        args.workdir, image_tokenizer=args.image_tokenizer, weights=args.weights
    )
    quantizer = loaded.load_quantizer(args.quantizer) if args.quantizer else None
    if quantizer:
        unipi.check_quantizer(policy, quantizer)
        if not quantizer.stage.model_config.has_codes:
            raise ValueError("--quantizer draws codes of z, and these are vectors")
    reader = Reader(
        image_size=tuple(policy.image_size),
        num_frames=policy.config.data.num_frames,
        num_cameras=policy.stage.num_cameras,
        image_keys=args.image_keys,
        resizing=args.resizing,
        limits=limits,
        state_dim=policy.stage.state.dim if policy.stage.state else 0,
        state_key=args.state_key,
        **_acts(policy, args),
    )
    metadata = describe.metadata(
        policy,
        reader,
        action_names=args.action_names,
        action_units=args.action_units,
        control_hz=args.control_hz,
        quantizer=quantizer,
    )
    logging.info("an observation has %s", describe.needed(reader))
    metrics = Metrics()
    engine = Engine(
        policy,
        metrics,
        quantizer=quantizer,
        batch_sizes=args.batch_sizes,
        max_waiting=limits.waiting,
        seed=args.seed,
        real_time=bool(reader.follows),
    )
    return Server(engine, Readers(reader), metadata, limits, metrics)


def _acts(policy: loaded.LoadedPolicy, args: argparse.Namespace) -> dict[str, Any]:
    """What a reader must know of how the policy acts."""
    head = policy.stage.head
    if args.real_time and not head.guided:
        logging.warning("--real_time: the head %r is not guided by the answer before", head.name)
    if not head.acts:
        return {}
    check_rate(policy.control_hz, args.control_hz, "the policy", "--control_hz")
    follows = head.describe()["dim"] if args.real_time and head.guided else 0
    rate = args.control_hz or policy.control_hz
    return {"horizon": head.horizon, "control_hz": rate, "follows": follows}


def bind(host: str, port: int, seconds: float) -> socket.socket:
    """A socket at this address, which refuses connections until a server listens. Clients that do
    not take what they are sent for so many seconds are cut off."""
    bound = None
    try:
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * seconds))
        bound.bind((host, port))
        return bound
    except (OSError, UnicodeError) as error:
        if bound is not None:
            bound.close()
        why = getattr(error, "strerror", None) or "not the name of a host"
        raise OSError(f"--host {host} --port {port}: {why}") from error


def listen(bound: socket.socket) -> None:
    """Raises OSError where another server, which was bound as well, came first."""
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        raise OSError(f"--port {bound.getsockname()[1]}: {error.strerror}") from error


def _accepted(listening: socket.socket) -> Iterator[socket.socket]:
    """Connections that clients have made, and that nobody has taken."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield listening.accept()[0]


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--compile_cache {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise OSError(f"--compile_cache {path}: cannot be written to")


class Uvicorn(uvicorn.Server):
    """Which answers what was asked before it closes connections, and then ends as if asked to."""

    def __init__(self, server: Server, token: str, names: Sequence[str]):
        """token and names: those of `Server.app`."""
        limits = server.limits
        config = uvicorn.Config(
            server.app(token, names),
            http=functools.partial(connections.Http, most=4 * limits.connections + 64),
            ws=connections.WebSocket,
            log_config=None,
            log_level="warning",
            access_log=False,
            ws_max_size=limits.request_bytes,
            ws_per_message_deflate=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=limits.read_seconds,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.lapa = server

    @property
    def engine(self) -> Engine:
        return self.lapa.engine

    async def startup(self, sockets: list[socket.socket]) -> None:
        for one in sockets:
            listen(one)
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        logging.info("served at http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.engine.failed is not None

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def shutdown(self, sockets: list[socket.socket]) -> None:
        waiting = [one for listening in sockets for one in _accepted(listening)]
        for listening in (*self.servers, *sockets):
            listening.close()
        for one in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, one)
        if self.engine.failed is None:
            logging.info("stopping: what was asked is answered, for up to %g s", DRAIN_SECONDS)
        self.lapa.stop()
        asked, alive = self.engine.open, self.server_state.connections
        await self._until(lambda: not alive, LINGER_SECONDS)
        for connection in list(alive):
            if isinstance(connection, connections.Http) and connection.idle:
                connection.shutdown()
        answered = await self._until(lambda: not asked, DRAIN_SECONDS - LINGER_SECONDS)
        if answered:
            logging.info("stopped; every request was answered")
        else:
            logging.warning("stopping, with %d requests not answered", len(asked))
            self.engine.give_up()
        self.force_exit = False  # what is left is short
        await self._until(lambda: not alive, CLOSE_SECONDS if answered else 1.0)
        await super().shutdown([])

    async def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Waits for it; not for longer, nor after a second signal. Whether it is done."""
        end = asyncio.get_running_loop().time() + seconds
        while not done() and not self.force_exit and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        return done()

    def handle_exit(self, sig: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
