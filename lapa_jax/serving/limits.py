"""What a client may ask for, and how it is told that it may not."""

import dataclasses
import time
from collections import OrderedDict

TOKEN = "LAPA_SERVE_TOKEN"  # environment variable
BATCH_SIZES = (1, 2, 4, 8, 16)  # that are compiled
_ADDRESSES = 10_000  # that are remembered


class Refused(Exception):
    """A request that is not answered: an HTTP status (4xx) and the reason, for the client."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one request, of one address, and of the whole server; flags of `lapa serve`.

    request_mib: a body or a WebSocket message, MiB
    image_pixels: pixels of one image, before it is resized
    requests_per_second: of one address, as many at once; 0: any number
    waiting: requests that may wait for the model
    connections: WebSockets and REST requests that may be open
    read_seconds: within which a body must arrive
    """

    request_mib: float = 8.0
    image_pixels: int = 1 << 22
    requests_per_second: float = 200.0
    waiting: int = 256
    connections: int = 256
    read_seconds: float = 10.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0.0
            if value < least or (value == least and field.name != "requests_per_second"):
                raise ValueError(f"--{field.name} {value} must be positive")

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
