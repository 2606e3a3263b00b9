"""What a client may ask for, and how it is told that it may not."""

import dataclasses
import time
from collections import OrderedDict
from typing import Any

TOKEN = "LAPA_SERVE_TOKEN"  # environment variable
BATCH_SIZES = (1, 2, 4, 8, 16)  # that are compiled
_ADDRESSES = 10_000  # that are remembered


class Refused(Exception):
    """A request that is not answered: an HTTP status (4xx, or 503) and the reason, for the client.
    The reason holds no text of a library: those show addresses and paths."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def _limit(default: float, least: float, most: float) -> Any:
    return dataclasses.field(default=default, metadata={"range": (least, most)})


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one request, of one address, and of the whole server; flags of `lapa serve`.

    request_mib: a body or a WebSocket message, MiB
    image_pixels: pixels of one image, before it is resized
    image_scans: scans of one JPEG; a progressive one has about ten
    decode_seconds: of a processor, to parse a request and decode its images
    requests_per_second: of one address, as many at once; 0: any number
    waiting: requests that may wait for the model
    connections: WebSockets and REST requests that may be open
    read_seconds: within which a request must arrive: its head, its body, a WebSocket's message
    idle_seconds: after which a WebSocket without a message is closed
    """

    request_mib: float = _limit(8.0, 0.001, 1024)
    image_pixels: int = _limit(1 << 22, 1, 1 << 28)
    image_scans: int = _limit(32, 1, 1000)
    decode_seconds: float = _limit(1.0, 0.01, 600)
    requests_per_second: float = _limit(200.0, 0, 1e6)
    waiting: int = _limit(256, 1, 100_000)
    connections: int = _limit(256, 1, 100_000)
    read_seconds: float = _limit(10.0, 0.1, 3600)
    idle_seconds: float = _limit(1800.0, 0.1, 1e6)

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
