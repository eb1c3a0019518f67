"""How often somebody may ask: token buckets, in bounded memory."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_BUCKETS = 10_000


class Limiter:
    """Lets each key do ``burst`` things at once and ``per_second`` things a second after that.

    At most `MOST_BUCKETS` keys are remembered; the one that was idle longest is forgotten first, whose bucket is
    the likeliest to be full again.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key → (left, when)

    def wait(self, key: str) -> float:
        """Take one; 0 when there was one, else the seconds until there is."""
        with self._lock:
            now = self._clock()
            left, when = self._buckets.pop(key, (float(self._burst), now))
            left = min(self._burst, left + (now - when) * self._per_second)
            allowed = left >= 1
            self._buckets[key] = (left - 1 if allowed else left, now)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
            return 0.0 if allowed else (1 - left) / self._per_second

    def __len__(self) -> int:
        return len(self._buckets)


def network(address: str) -> str:
    """Whom an address stands for: one IPv6 customer has 2^64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((parsed, 64), strict=False))
