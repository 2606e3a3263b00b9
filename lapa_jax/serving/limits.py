"""What a client may ask for, and how it is told that it may not."""

import dataclasses
import time
from collections import OrderedDict
from typing import Annotated

TOKEN = "LAPA_SERVE_TOKEN"  # environment variable
BATCH_SIZES = (1, 2, 4, 8, 16)  # that are compiled
_ADDRESSES = 10_000  # that are remembered


class Refused(Exception):
    """A request that is not answered: an HTTP status (4xx, or 503) and the reason, for the client.
    The reason holds no text of a library: those show addresses and paths."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one request, of one address, and of the whole server; flags of `lapa serve`."""

    request_mib: Annotated[float, "[0.001, 1024]", "a body or a WebSocket message, MiB"] = 8.0
    image_pixels: Annotated[int, "[1, 268435456]", "of one image, before it is resized"] = 1 << 22
    image_scans: Annotated[
        int, "[1, 1000]", "scans of one JPEG; a progressive one has about ten"
    ] = 32
    decode_seconds: Annotated[
        float, "[0.01, 600]", "of a processor, to parse a request and decode its images"
    ] = 1.0
    requests_per_second: Annotated[
        float, "[0, 1e6]", "of one address, as many at once; 0: any number"
    ] = 200.0
    waiting: Annotated[int, "[1, 1e5]", "requests that may wait for the model"] = 256
    connections: Annotated[int, "[1, 1e5]", "WebSockets and REST requests that may be open"] = 256
    read_seconds: Annotated[
        float,
        "[0.1, 3600]",
        "within which a request must arrive: its head, its body, a WebSocket's message",
    ] = 10.0
    idle_seconds: Annotated[
        float, "[0.1, 1e6]", "after which a WebSocket without a message is closed"
    ] = 1800.0

    @property
    def request_bytes(self) -> int:
        return int(self.request_mib * 2**20)


class Rate:
    """A bucket of requests for every address, filled at `per_second` up to a second's worth."""

    def __init__(self, per_second: float):
        self.per_second, self.burst = per_second, max(1.0, per_second)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, address: str) -> None:
        """Takes one request out. Raises Refused where there is none."""
        if not self.per_second:
            return
        now = time.monotonic()
        level, then = self._buckets.pop(address, (self.burst, now))
        level = min(self.burst, level + (now - then) * self.per_second)
        enough = level >= 1.0
        self._buckets[address] = (level - enough, now)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        if not enough:
            raise Refused(429, f"more than {self.per_second:g} requests a second from your address")
