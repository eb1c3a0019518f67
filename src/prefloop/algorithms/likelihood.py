"""Log-probabilities of tokens and of sequences."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_log_probs(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """log softmax(logits / T)[target], in float32 whatever the logits' precision. Differentiable once."""
    result: Tensor = _TokenLogProbs.apply(logits, targets, temperature)
    return result


class _TokenLogProbs(torch.autograd.Function):
    """The gradient is (1[target] − softmax) / T, and softmax is at hand from the forward pass: one table of N × V is
    kept, and turned into the gradient in its place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        scaled = logits.float()
        if temperature != 1:
            scaled = scaled / temperature if scaled is logits else scaled.div_(temperature)
        chosen = scaled.gather(1, targets[:, None])[:, 0] - scaled.amax(1)
        # On a processor in its place: a row is read before it is written, and fresh memory costs as much as that.
        table = torch.softmax(scaled, 1, out=scaled if scaled.is_cpu and scaled is not logits else None)
        log_probs = chosen + table.amax(1).log()  # the highest probability is 1 / Σ exp(logit − the highest logit)
        ctx.table, ctx.dtype, ctx.temperature = table, logits.dtype, temperature
        ctx.save_for_backward(targets)
        return log_probs

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (targets,) = ctx.saved_tensors
        table, ctx.table = ctx.table, None
        if table is None:
            raise RuntimeError("the gradient of these log-probabilities was taken before")
        slope = slope / ctx.temperature
        gradient = table.mul_(-slope[:, None])
        gradient.scatter_add_(1, targets[:, None], slope[:, None])
        return gradient.to(ctx.dtype), None, None


def token_entropy(logits: Float[Tensor, "N V"], temperature: float = 1.0) -> Float[Tensor, " N"]:
    """Entropy of softmax(logits / T), nats."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=1)
    return -(log_probs.exp() * log_probs).sum(1)


def sequence_sums(values: Float[Tensor, " N"], rows: Int[Tensor, " N"], sequences: int) -> Float[Tensor, " B"]:
    """Sum the tokens' values of each sequence; ``rows[n]`` is the sequence that token n belongs to."""
    return values.new_zeros(sequences).index_add(0, rows, values)
