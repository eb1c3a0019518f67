"""GPUs by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config import Precision


@dataclass(frozen=True)
class Card:
    """Dense products, without sparsity, in 10¹² operations a second."""

    bfloat16: float
    """0 where it has no units for that."""
    float32: float
    gib: float
    bandwidth: float
    """Of its memory, 10⁹ bytes a second."""

    @property
    def precision(self) -> Precision:
        """What models are computed in on it."""
        return "bfloat16" if self.bfloat16 else "float32"

    def teraflops(self, precision: Precision) -> float:
        """In this precision; in the slower one where it has no units."""
        return (self.bfloat16 if precision == "bfloat16" else 0) or self.float32


CARDS = {
    "H200": Card(989, 67, 141, 4800),
    "H100": Card(989, 67, 80, 3350),
    "A100-80": Card(312, 19.5, 80, 2039),
    "A100-40": Card(312, 19.5, 40, 1555),
    "L40S": Card(362, 91.6, 48, 864),
    "4090": Card(165, 82.6, 24, 1008),
    "T4": Card(0, 8.1, 16, 320),
}


def card_of(name: str) -> Card:
    """The card of this name.

    Raises:
        ValueError: it is not in the table.
    """
    if name.upper() not in CARDS:
        raise ValueError(f"--gpu {name}: known are {', '.join(CARDS)}. Of another card give --memory alone")
    return CARDS[name.upper()]
