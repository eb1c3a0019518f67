"""Batched, cached sampling.

* Exactly from the distribution that is trained: softmax(logits / T), nothing cut off.
* Prompts are padded on the left; positions count real tokens. Rows of similar length are decoded together, and
  rows that have ended leave the batch.
* The K answers to a prompt share one pass over it.
* The random numbers of a sequence are a function of seed, prompt and sample index, so the batch that a sequence
  lands in does not matter (rounding aside).
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from prefloop.models.forward import head_logits
from prefloop.rollout.batch import Rollout

ValueFunction = Callable[[Tensor], Tensor]

# Rows leave the batch when this share of it has ended: leaving costs a copy of the cache.
COMPACT_AT = 0.25


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    eos_id: int,
    max_response_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    answers: int = 1,
    batch_size: int = 128,
    value_head: ValueFunction | None = None,
) -> Rollout:
    """Sample ``answers`` responses to each prompt.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids of each prompt.
        temperature: 0 takes the likeliest token.
        answers: K; the rows of the result are prompt 0's answers, then prompt 1's, …
        batch_size: sequences decoded together.
        value_head: V of hidden states, read off while decoding.

    Returns:
        A rollout of len(prompts)·K rows, in the order of the prompts.
    """
    rows, device = len(prompts) * answers, model.device
    uniforms = torch.from_numpy(_all_uniforms(seed, prompts, answers, max_response_tokens)).to(device)
    ids = torch.zeros(rows, max_response_tokens, dtype=torch.long, device=device)
    log_probs, entropy, values = (torch.zeros(rows, max_response_tokens, device=device) for _ in range(3))

    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    group_size = max(1, batch_size // answers)
    for start in range(0, len(prompts), group_size):
        group = by_length[start : start + group_size]
        alive = torch.tensor([i * answers + k for i in group for k in range(answers)], device=device)
        ended = torch.zeros(len(alive), dtype=torch.bool, device=device)
        decoder = Decoder(model, [prompts[i] for i in group], answers)
        for step in range(max_response_tokens):
            logits = head_logits(model, decoder.states)
            tokens, token_log_probs, token_entropy = draw(logits, uniforms[alive, step], temperature)
            ids[alive, step] = tokens
            log_probs[alive, step], entropy[alive, step] = token_log_probs, token_entropy
            if value_head is not None:
                values[alive, step] = value_head(decoder.states)
            ended |= tokens == eos_id
            share = float(ended.float().mean())
            if share == 1 or step == max_response_tokens - 1:
                break
            if share >= COMPACT_AT:
                running = (~ended).nonzero()[:, 0]
                decoder.keep(running)
                alive, tokens, ended = alive[running], tokens[running], ended[running]
            decoder.advance(tokens)

    # A row that has ended may have been decoded a little further beside others: cut after its first eos.
    is_eos = ids == eos_id
    mask = (is_eos.cumsum(1) - is_eos.long()) == 0
    longest = int(mask.sum(1).max())
    mask, is_eos = mask[:, :longest], is_eos[:, :longest]
    ids, log_probs, entropy, values = (t[:, :longest] * mask for t in (ids, log_probs, entropy, values))
    repeated = [prompt for prompt in prompts for _ in range(answers)]
    return Rollout(repeated, ids, mask, log_probs, entropy, values, (is_eos & mask).any(1))


def draw(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], temperature: float
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Draw from softmax(logits / T) by inverting its distribution function at ``uniforms`` in [0, 1).

    Returns:
        Tokens, their log-probabilities and the distribution's entropy (nats). With T = 0 the likeliest tokens, and
        log-probabilities and entropy at T = 1.
    """
    distribution = torch.log_softmax(logits.float() / (temperature or 1.0), dim=1)
    probabilities = distribution.exp()
    if temperature == 0:
        tokens = logits.argmax(1)
    else:
        cumulative = probabilities.cumsum(1)
        # Scaled by the sum, which rounding leaves a little off 1, and below 1 in float32 too, no uniform falls past
        # the last possible token.
        uniforms = uniforms.to(cumulative.dtype).clamp(max=1 - 2**-24)
        thresholds = uniforms[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, thresholds, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    entropy = -(probabilities * distribution).sum(1)
    return tokens, distribution.gather(1, tokens[:, None])[:, 0], entropy


class Decoder:
    """The cache of a group of rows, and their latest hidden states (one for each row)."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], answers: int) -> None:
        self._model = model
        # Models without attention (Mamba) call their cache so. A state that has read the prompt holds no padding any
        # more: such a model takes an attention mask with the prompts only, and misreads a longer one.
        self._recurrent = "cache_params" in inspect.signature(model.base_model.forward).parameters
        self.states: Float[Tensor, "B d"]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)
        lengths = torch.tensor([len(p) for p in prompts], device=model.device)
        places = torch.arange(longest, device=model.device)
        self._attention = (places >= longest - lengths[:, None]).long()
        self._cache: Any = DynamicCache(config=model.config)
        positions = (self._attention.cumsum(1) - 1).clamp(min=0)
        self._run(ids, {"attention_mask": self._attention, "position_ids": positions})
        if answers > 1:
            self._reorder(torch.arange(len(prompts), device=model.device).repeat_interleave(answers))

    def advance(self, tokens: Int[Tensor, " B"]) -> None:
        """Read one more token of each row."""
        self._attention = torch.cat([self._attention, self._attention.new_ones(len(tokens), 1)], dim=1)
        positions = self._attention.sum(1, keepdim=True) - 1
        where = {} if self._recurrent else {"attention_mask": self._attention, "position_ids": positions}
        self._run(tokens[:, None], where)

    def keep(self, rows: Int[Tensor, " b"]) -> None:
        """Forget all other rows."""
        self._reorder(rows)

    def _reorder(self, rows: Int[Tensor, " b"]) -> None:
        # Of a cache's ways to choose and repeat rows, this is the one that every kind of layer has.
        self._cache.reorder_cache(rows)
        self._attention, self.states = self._attention[rows], self.states[rows]

    def _run(self, ids: Int[Tensor, "B T"], where: dict[str, Tensor]) -> None:
        cache = {"cache_params" if self._recurrent else "past_key_values": self._cache}
        states = self._model.base_model(input_ids=ids, use_cache=True, **where, **cache).last_hidden_state
        self.states = states[:, -1]


def _all_uniforms(
    seed: int, prompts: Sequence[list[int]], answers: int, count: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers in [0, 1) for each row. A prompt that comes twice goes on counting its samples."""
    seen: Counter[tuple[int, ...]] = Counter()
    rows = []
    for prompt in prompts:
        for _ in range(answers):
            rows.append(_uniforms(seed, prompt, seen[tuple(prompt)], count))
            seen[tuple(prompt)] += 1
    return np.stack(rows)


def _uniforms(seed: int, prompt: Sequence[int], answer: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers in [0, 1) that belong to one sequence: a function of seed, prompt and sample index alone."""
    content = np.asarray([seed, answer, *prompt], dtype=np.int64).tobytes()
    key = int.from_bytes(hashlib.blake2b(content, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)
