"""Statistics over the real positions of a padded tensor."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(values: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, ""]:
    """Mean over the real positions; the padded ones may hold anything, NaN included."""
    return values[mask].mean()


def masked_whiten(
    values: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], *, keep_mean: bool = False
) -> Float[Tensor, "B R"]:
    """Shift and scale to mean 0 and (population) variance 1 over the real positions; padding becomes 0.

    Args:
        keep_mean: scale the distances from the mean only, as rewards need it: their sign decides whether ending is
            better than going on.

    Raises:
        ValueError: fewer than two real positions, whose variance means nothing.
    """
    real = values[mask]
    if real.numel() < 2:
        raise ValueError(
            f"whitening needs at least two response tokens in the batch; it has {real.numel()}. "
            "Use more episodes or longer responses"
        )
    whitened = (values - real.mean()) * (real.var(correction=0) + 1e-8).rsqrt()
    if keep_mean:
        whitened = whitened + real.mean()
    return whitened.where(mask, values.new_zeros(()))
