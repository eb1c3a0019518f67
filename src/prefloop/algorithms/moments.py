"""Mean and variance of numbers that come in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared distances from it, of everything seen so far [Chan et al. 1979]."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_batch(self, values: Float[Tensor, " B"]) -> RunningMoments:
        """These moments with another batch."""
        values = values.double()
        count = self.count + len(values)
        mean = float(values.mean())
        shift = mean - self.mean
        squares = float((values - mean).square().sum()) + shift**2 * self.count * len(values) / count
        return RunningMoments(count, self.mean + shift * len(values) / count, self.squares + squares)

    @property
    def deviation(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self.squares / self.count)
