"""Numbers as people read them, and the mapping of numbers onto a drawing: ticks, scales, smoothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefloop.report.entries import Interval
from prefloop.report.read import Points

THIN = "\u202f"  # narrow no-break space, between a number and its unit
NARROW_GROUPS = 10_000  # four digits need no separator


def number(value: float) -> str:
    """Three or four significant digits, a true minus sign, thin spaces between thousands."""
    size = abs(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if size >= 1e7 or 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size >= NARROW_GROUPS:
        text = f"{value:,.0f}".replace(",", THIN)
    elif value == int(value) and size < NARROW_GROUPS:
        text = str(int(value))
    else:
        text = f"{value:.{0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return text.replace("-", "−")


def percent(share: float, digits: int = 1) -> str:
    if not math.isfinite(share):
        return number(share)
    return f"{100 * share:.{digits}f}{THIN}%".replace("-", "−")


def interval_text(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def duration(seconds: float) -> str:
    """`0.4 s`, `48 s`, `3 min 20 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02d}{THIN}min"


def memory(megabytes: float) -> str:
    if not math.isfinite(megabytes):
        return number(megabytes)
    return f"{megabytes / 1024:.1f}{THIN}GB" if megabytes >= 1024 else f"{megabytes:.0f}{THIN}MB"


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % Wilson interval of a share seen in `n` observations."""
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def finite(points: Points) -> Points:
    return [(x, y) for x, y in points if drawable(x) and drawable(y)]


def drawable(value: float) -> bool:
    """Finite, and small enough that sums and squares of it are finite too."""
    return abs(value) < 1e100  # False for NaN


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high], about `wanted` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / max(wanted, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [0.0 if k == 0 else float(f"{k * step:.15g}") for k in range(first, last + 1)]


def tick_label(value: float, all_ticks: Sequence[float]) -> str:
    """As many decimals as the distance of the ticks asks for, the same for all of them."""
    size = max(abs(tick) for tick in all_ticks)
    step = abs(all_ticks[1] - all_ticks[0]) if len(all_ticks) > 1 else size
    if value == 0:
        return "0"
    if size >= 1e6 or (size < 1e-2 and step > 0):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    decimals = 0
    while decimals < 6 and abs(round(step, decimals) - step) > step * 1e-6:
        decimals += 1
    text = f"{value:,.{decimals}f}" if size >= NARROW_GROUPS else f"{value:.{decimals}f}"
    return text.replace(",", THIN).replace("-", "−")


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end] of the drawing; logarithmic on request (then low > 0)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high, wanted)
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / max(wanted, 1)))
        return [10.0**k for k in range(first, last + 1, stride)]


def padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    """A little air on both sides; a flat line gets air in proportion to its height."""
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-12):
        air = (high - low) * share
    else:
        air = abs(high) * 0.1 or 1.0
    return low - air, high + air


def rolling(points: Points, window: int) -> Points:
    """The straight line through the neighbours of each point, at that point.

    Inside, with evenly spaced points, this is the mean of a centred window; at both ends, where the window is
    cut off, a mean would lag behind the trend and the line does not.
    """
    half = window // 2
    return [(points[i][0], _local(points[max(0, i - half) : i + half + 1], points[i][0])) for i in range(len(points))]


def _local(part: Points, at: float) -> float:
    mean_x = sum(x for x, _ in part) / len(part)
    mean_y = sum(y for _, y in part) / len(part)
    spread = sum((x - mean_x) ** 2 for x, _ in part)
    if spread == 0:
        return mean_y
    return mean_y + (at - mean_x) * sum((x - mean_x) * (y - mean_y) for x, y in part) / spread


def thin(points: Points, limit: int) -> tuple[Points, list[tuple[float, float, float]]]:
    """At most `limit` points: means of equal buckets, and (x, lowest, highest) of each if there are more."""
    if len(points) <= limit:
        return points, []
    means: Points = []
    band: list[tuple[float, float, float]] = []
    for i in range(limit):
        bucket = points[i * len(points) // limit : (i + 1) * len(points) // limit]
        xs, ys = [x for x, _ in bucket], [y for _, y in bucket]
        x = sum(xs) / len(xs)
        means.append((x, sum(ys) / len(ys)))
        band.append((x, min(ys), max(ys)))
    return means, band
