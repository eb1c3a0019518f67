"""What a piece of work holds in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at a time; a memory map is not among them.

    The first time there is also what is imported and remembered for good.
    """
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
