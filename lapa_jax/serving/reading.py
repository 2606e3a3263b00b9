"""Bytes of clients → observations, in processes of their own.

A few bytes can ask for much work. Here they get so much processor time and memory and no more: the
kernel ends a process that takes more, another one takes its place, and the server goes on. None of
them imports JAX; they are forked from a process that has imported this module and nothing else.
"""

import asyncio
import multiprocessing
import resource
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path

import msgpack
import numpy as np
from absl import logging

from lapa_jax.serving.limits import Refused
from lapa_jax.serving.messages import Observation, Reader

_PROCESSES = 2
_MOST_SECONDS = 10.0  # of the clock, and as many for each of a processor: machines are busy
_LENGTH = struct.Struct("<Q")
_MIB = 2**20


class Readers:
    """`read` is of one event loop, between `open` and `close`."""

    def __init__(self, reader: Reader):
        self.reader, self.seconds = reader, reader.limits.decode_seconds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._idle: asyncio.Queue[_Process] = asyncio.Queue()
        self._all: set[_Process] = set()
        self._replacing: set[asyncio.Task] = set()

    async def open(self) -> None:
        for _ in range(_PROCESSES):
            await self._start()

    def close(self) -> None:
        for task in self._replacing:
            task.cancel()
        for process in self._all:
            process.end()

    async def read(self, form: str, data: bytes) -> Observation:
        """form: "json" or "msgpack". Raises Refused."""
        process, done = await self._idle.get(), False
        try:
            async with asyncio.timeout(_MOST_SECONDS * (1 + self.seconds)):
                reply = await process.ask(form, data)
            done = True
        except (TimeoutError, EOFError, OSError) as error:
            raise Refused(422, await process.why(self.seconds)) from error
        finally:
            if done:
                self._idle.put_nowait(process)
            else:  # it works on what nobody waits for, or is gone
                process.end()
                self._all.discard(process)
                task = asyncio.create_task(self._replace())
                self._replacing.add(task)
                task.add_done_callback(self._replacing.discard)
        return _observation(reply)

    async def _replace(self) -> None:
        while True:
            try:
                return await self._start()
            except (OSError, EOFError):
                logging.exception("no process to read requests can be started: again in a second")
                await asyncio.sleep(1.0)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        made = self._context.Process(target=work, args=(theirs, self.reader), daemon=True)
        with theirs:
            await asyncio.to_thread(made.start)
        process = _Process(made, *await asyncio.open_unix_connection(sock=ours, limit=_MIB))
        self._all.add(process)
        await process.replies.readexactly(1)  # signals do not end it from here on
        self._idle.put_nowait(process)


class _Process:
    """One of them, and the socket to it."""

    def __init__(self, process, replies: asyncio.StreamReader, requests: asyncio.StreamWriter):
        self.process, self.replies, self.requests = process, replies, requests

    async def ask(self, form: str, data: bytes) -> bytes:
        """Raises EOFError or OSError where the process ends before it has answered."""
        self.requests.writelines([_LENGTH.pack(len(data)), form[0].encode(), data])
        await self.requests.drain()
        (length,) = _LENGTH.unpack(await self.replies.readexactly(_LENGTH.size))
        return await self.replies.readexactly(length)

    def end(self) -> None:
        self.process.kill()
        self.requests.close()

    async def why(self, seconds: float) -> str:
        """What a client is told whose request ended the process, or that took too long."""
        await asyncio.to_thread(self.process.join, 0.2)
        code = self.process.exitcode
        if code in (None, -signal.SIGPROF):
            return f"what was sent takes more than {seconds:g} s to read"
        logging.warning("a request ended the process that read it, by signal or code %d", code)
        return "what was sent cannot be read: it ended the process that tried"


def work(connection: socket.socket, reader: Reader) -> None:
    """What such a process does: answers until the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server says when
    _limit_memory(reader)
    read = {b"j": reader.from_json, b"m": reader.from_msgpack}
    with connection.makefile("rwb") as stream:
        stream.write(b"!")
        stream.flush()
        while head := stream.read(_LENGTH.size):
            form, data = stream.read(1), stream.read(*_LENGTH.unpack(head))
            # The kernel ends this process, whatever it is in, when the time is up.
            signal.setitimer(signal.ITIMER_PROF, reader.limits.decode_seconds)
            try:
                reply = _pack(read[form](data))
            except Refused as error:
                reply = msgpack.packb({"status": error.status, "reason": error.reason})
            except MemoryError:
                reply = msgpack.packb({"status": 413, "reason": "it takes too much memory to read"})
            except Exception:
                reply = msgpack.packb({"failed": traceback.format_exc()})
            signal.setitimer(signal.ITIMER_PROF, 0)
            stream.write(_LENGTH.pack(len(reply)) + reply)
            stream.flush()


def _limit_memory(reader: Reader) -> None:
    """To what is taken already, and some for a request of the largest size."""
    if sys.platform != "linux":
        return
    limits = reader.limits
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    more = 128 * _MIB + 16 * (limits.request_bytes + limits.image_pixels)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or taken + more < hard:
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, hard))


def _pack(found: Observation) -> bytes:
    plain = vars(found) | {"images": found.images.tobytes(), "shape": found.images.shape}
    if found.state is not None:
        plain["state"] = found.state.tobytes()
    if found.going_on is not None:
        plain["going_on"] = [part.tobytes() for part in found.going_on]
    return msgpack.packb(plain, unicode_errors="backslashreplace")


def _observation(reply: bytes) -> Observation:
    found = msgpack.unpackb(reply)
    if "failed" in found:
        raise RuntimeError(f"a request could not be read:\n{found['failed']}")
    if "status" in found:
        raise Refused(found["status"], found["reason"])
    shape = found.pop("shape")
    images = np.frombuffer(found.pop("images"), np.uint8).reshape(shape)
    if found["state"] is not None:
        found["state"] = np.frombuffer(found["state"], np.float32)
    if found["going_on"] is not None:
        actions, weights = (np.frombuffer(part, np.float32) for part in found["going_on"])
        found["going_on"] = actions.reshape(len(weights), -1), weights
    return Observation(images, **found)
