"""Drawing tokens from softmax(logits / T), in few passes over the vocabulary.

The logits are read once for their maximum, subtracted, exponentiated, summed by blocks, and multiplied by their
exponentials for the entropy. Nothing is sorted, cut off or cumulated over the whole vocabulary: a draw looks for its
block in the totals of about √V blocks, and for its token in that one block, in float64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOWEST = -1e4
"""Stands for the logarithm of a probability of 0. Times that 0 it is 0, which minus infinity is not."""
PART = 2**22
"""Logits that are worked on at once, about. More do not stay in a processor's cache and cost fresh memory."""

Drawn = tuple[Int[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]


def draw(logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], temperature: float) -> Drawn:
    """Draw from softmax(logits / T) by inverting its distribution function at ``uniforms`` in [0, 1).

    Returns:
        Tokens, their log-probabilities and the distribution's entropy (nats). With T = 0 the likeliest tokens, and
        log-probabilities and entropy at T = 1.
    """
    most = max(1, PART // logits.shape[1])
    if len(logits) <= most:
        return _draw(logits, uniforms, temperature)
    parts = zip(logits.split(most), uniforms.split(most), strict=True)
    tokens, log_probs, entropy = zip(*(_draw(*part, temperature) for part in parts), strict=True)
    return torch.cat(tokens), torch.cat(log_probs), torch.cat(entropy)


def _draw(logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], temperature: float) -> Drawn:
    logits = logits.float()
    below = logits - logits.amax(1, keepdim=True)
    if temperature not in (0, 1):
        below /= temperature
    rows, vocabulary = logits.shape
    block = 2 ** round(math.log2(vocabulary) / 2)
    padded = below.new_zeros(rows, -(-vocabulary // block) * block)
    weights = torch.exp(below, out=padded[:, :vocabulary])
    blocks = padded.unflatten(1, (-1, block))
    totals = blocks.sum(2)
    total = totals.sum(1)
    entropy = total.log() - torch.linalg.vecdot(weights, below.clamp_(min=LOWEST)) / total
    tokens = logits.argmax(1) if temperature == 0 else _invert(blocks, totals, uniforms)
    return tokens, below.gather(1, tokens[:, None])[:, 0] - total.log(), entropy


def _invert(
    blocks: Float[Tensor, "B n m"], totals: Float[Tensor, "B n"], uniforms: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """The first place whose cumulative weight exceeds ``uniforms`` of the whole. One of weight 0 it never is."""
    upper = totals.double().cumsum(1)
    block = _first_above(upper, uniforms.double() * upper[:, -1])
    rest = uniforms.double() * upper[:, -1] - (upper - totals).gather(1, block[:, None])[:, 0]
    chosen = blocks[torch.arange(len(blocks), device=blocks.device), block]
    return block * blocks.shape[2] + _first_above(chosen.double().cumsum(1), rest)


def _first_above(cumulative: Float[Tensor, "B n"], thresholds: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The first place whose value exceeds the threshold: of thresholds that rounding left too high, the last that
    adds anything."""
    highest = cumulative[:, -1:]
    thresholds = thresholds[:, None].minimum(torch.nextafter(highest, torch.zeros_like(highest)))
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0]
