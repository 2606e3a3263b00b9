"""The one thread that calls a server's model, the requests that are open, and how both stop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lapa_jax.serving.limits import Refused

T = TypeVar("T")


class ModelThread:
    """Of one event loop, but for what `call` does. start.Uvicorn asks for all of it while the
    server stops."""

    def __init__(self):
        self.failed: Exception | None = None  # of compiling
        self.stopping = self.busy = self._gave_up = False
        self.open: set[asyncio.Task] = set()  # requests
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lapa-model")

    async def call(self, function: Callable[..., T], *given: Any) -> T:
        """On the model's thread."""

        def call() -> T:
            self.busy = True
            try:
                return function(*given)
            finally:
                self.busy = False

        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Around a request from its arrival until it is answered: who stops waits for it. Raises
        Refused once nobody waits."""
        task = asyncio.current_task()
        self.open.add(task)
        try:
            if self._gave_up:
                raise Refused(503, "the server stops")
            yield
        except asyncio.CancelledError:
            if not self._gave_up:
                raise
            task.uncancel()
            raise Refused(503, "the server stops before this is answered") from None
        finally:
            self.open.discard(task)

    def stop(self) -> None:
        self.stopping = True

    def give_up(self) -> None:
        """Tells everybody who waits for an answer that there is none."""
        self._gave_up = True
        for task in self.open:
            task.cancel()

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
