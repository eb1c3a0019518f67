"""Log-probabilities of tokens and of sequences."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def token_log_probs(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """log softmax(logits / T)[target], in float32 whatever the logits' precision.

    The target's logit minus the log-sum-exp: the N × V table of log-probabilities is never made.
    """
    scaled = logits.float() / temperature
    return scaled.gather(1, targets[:, None])[:, 0] - scaled.logsumexp(1)


def token_entropy(logits: Float[Tensor, "N V"], temperature: float = 1.0) -> Float[Tensor, " N"]:
    """Entropy of softmax(logits / T), nats."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=1)
    return -(log_probs.exp() * log_probs).sum(1)


def sequence_sums(values: Float[Tensor, " N"], rows: Int[Tensor, " N"], sequences: int) -> Float[Tensor, " B"]:
    """Sum the tokens' values of each sequence; ``rows[n]`` is the sequence that token n belongs to."""
    return values.new_zeros(sequences).index_add(0, rows, values)
