"""Batched, cached sampling.

* Exactly from the distribution that is trained: softmax(logits / T), nothing cut off.
* Prompts are padded on the left; positions count real tokens. Rows that have ended make room for waiting prompts, and
  leave the batch when none waits.
* The K answers to a prompt share one pass over it.
* The random numbers of a sequence are a function of seed, prompt and sample index, so the batch that a sequence
  lands in does not matter (rounding aside).
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prefloop.models.forward import head_logits
from prefloop.models.packing import few
from prefloop.rollout.batch import Rollout
from prefloop.rollout.decoder import Decoder, casting_once
from prefloop.rollout.draw import draw

ValueFunction = Callable[[Tensor], Tensor]

# Waiting prompts enter when this share of the rows has ended: entering costs a pass over the prompts.
ENTER_AT = 0.25
# Where nothing waits, rows leave the batch when this share of it has ended: leaving costs a copy of the cache.
COMPACT_AT = 0.15


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
    uniforms = torch.from_numpy(_all_uniforms(seed, prompts, answers, max_response_tokens)).to(model.device)
    # Longest first: newcomers then find as many columns in the cache as they need.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    drawn: list[tuple[Tensor, ...]] = []
    with casting_once(model):
        while waiting:
            batch = _Batch(model, prompts, answers, _take(waiting, max(1, batch_size // answers)))
            while True:
                states, places = batch.decoder.states, (batch.rows, batch.places)
                tokens, log_probs, entropy = draw(head_logits(model, states), uniforms[places], temperature)
                values = torch.zeros_like(log_probs) if value_head is None else value_head(states.float())
                drawn.append((batch.decoder.running, *places, tokens, log_probs, entropy, values))
                idle = batch.end((tokens == eos_id) | (batch.places == max_response_tokens - 1))
                if idle == len(tokens) and not (waiting and batch.decoder.takes_newcomers):
                    break
                batch.go_on(tokens, idle, waiting)
    return _rollout([prompt for prompt in prompts for _ in range(answers)], drawn, eos_id)


def _take(waiting: deque[int], most: int) -> list[int]:
    return [waiting.popleft() for _ in range(min(most, len(waiting)))]


class _Batch:
    """Responses that are decoded together: the row of the result that each belongs to, and its next token's place."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], answers: int, indices: list[int]) -> None:
        self._prompts, self._answers = prompts, answers
        self.decoder = Decoder(model, [prompts[i] for i in indices], answers)
        self.rows = self._rows_of(indices)
        self._size = len(self.rows)
        self.places = torch.zeros_like(self.rows)

    def _rows_of(self, indices: list[int]) -> Int[Tensor, " n"]:
        rows = [i * self._answers + k for i in indices for k in range(self._answers)]
        return torch.tensor(rows, device=self.decoder.states.device)

    def end(self, ends: Bool[Tensor, " B"]) -> int:
        """End those rows. How many have ended by now."""
        running = self.decoder.running = self.decoder.running & ~ends
        self.places = self.places + running
        return len(running) - int(running.sum())

    def go_on(self, tokens: Int[Tensor, " B"], idle: int, waiting: deque[int]) -> None:
        """To the states that the next tokens are drawn from. Rows leave and enter."""
        if waiting and self.decoder.takes_newcomers:
            self.decoder.advance(tokens)
            free = self._size - len(tokens) + idle  # of all the rows that there is room for
            if free >= max(self._answers, ENTER_AT * self._size):
                self._enter(_take(waiting, free // self._answers))
            return
        if idle >= COMPACT_AT * len(tokens):
            kept = self.decoder.running.int().argsort(descending=True, stable=True)[: few(len(tokens) - idle)]
            self.decoder.keep(kept)
            self.rows, self.places, tokens = self.rows[kept], self.places[kept], tokens[kept]
        self.decoder.advance(tokens)

    def _enter(self, indices: list[int]) -> None:
        running = self.decoder.running
        self.decoder.enter([self._prompts[i] for i in indices], self._answers)
        entering = self._rows_of(indices)
        self.rows = torch.cat([self.rows[running], entering])
        self.places = torch.cat([self.places[running], torch.zeros_like(entering)])


def _rollout(prompts: list[list[int]], drawn: list[tuple[Tensor, ...]], eos_id: int) -> Rollout:
    """What was drawn, step by step, in its places. Rows that had ended were decoded along: theirs is left out."""
    running, *columns = (torch.cat(column) for column in zip(*drawn, strict=True))
    rows, places, tokens, *numbers = (column[running] for column in columns)
    longest = int(places.max()) + 1

    def put(values: Tensor) -> Tensor:
        return values.new_zeros(len(prompts), longest).index_put((rows, places), values)

    ids, mask = put(tokens), put(torch.ones_like(tokens, dtype=torch.bool))
    log_probs, entropy, values = map(put, numbers)
    return Rollout(prompts, ids, mask, log_probs, entropy, values, ((ids == eos_id) & mask).any(1))


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
