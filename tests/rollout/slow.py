"""A slow sampler: no cache, one row, float64. And what is sampled from."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from prefloop.rollout.batch import Rollout

EOS = 1
PROMPTS = [[5, 6, 7], [9], [3, 3, 8, 12, 4, 9, 2, 11, 6], [7, 5], [4, 4, 4, 4, 4]]


def frequent_eos(model: Any) -> Any:
    """So that responses end at different lengths, and rows leave the batch: eos is likely whatever came before."""
    head = model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[EOS] = 1.0
    head.bias = torch.nn.Parameter(bias)
    return model


def slow_sample(
    model: Any, prompt: list[int], uniforms: np.ndarray[Any, Any], temperature: float, eos_id: int = EOS
) -> list[int]:
    """One row: the whole sequence through the model for every token, the distribution inverted by a loop."""
    ids: list[int] = []
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            cumulative = itertools.accumulate(torch.softmax(logits / temperature, 0).tolist())
            token = next(place for place, total in enumerate(cumulative) if uniform < total)
        ids.append(token)
        if token == eos_id:
            break
    return ids


def rows(rollout: Rollout) -> list[list[int]]:
    return [rollout.responses[row] for row in range(len(rollout))]


def many_prompts(count: int, seed: int) -> list[list[int]]:
    numbers = np.random.default_rng(seed)
    return [numbers.integers(2, 16, length).tolist() for length in numbers.integers(1, 20, count)]
