"""One seed for a run, and independent ones derived from it by name."""

from __future__ import annotations

from prefloop.feedback.records import content_id


def derive(seed: int, *names: str | int) -> int:
    """A 62-bit seed that belongs to ``names``; other names, unrelated numbers."""
    return int(content_id("seed", seed, *names), 16) >> 66
