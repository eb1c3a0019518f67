"""Forward passes over whole sequences: hidden states where they are needed, the head only there.

Rows are padded on the right and attention is masked, so a row's result does not depend on its neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefloop.algorithms.likelihood import token_log_probs
from prefloop.chat import Rendered


@dataclass(frozen=True)
class TokenBatch:
    """Sequences side by side, padded on the right to the longest (T)."""

    ids: Int[Tensor, "B T"]
    attention: Bool[Tensor, "B T"]
    """True for real tokens."""
    response: Bool[Tensor, "B T"]
    """True for response tokens, whose log-probabilities count."""

    @property
    def targets(self) -> Int[Tensor, " N"]:
        """The response tokens of all rows, end to end."""
        return self.ids[:, 1:][self.response[:, 1:]]

    @property
    def rows(self) -> Int[Tensor, " N"]:
        """The row that each response token belongs to."""
        return self.response[:, 1:].nonzero()[:, 0]


def context_of(model: Any) -> int:
    """The longest sequence that the model can read, in tokens.

    Rotary frequencies of the type "longrope" are others for a whole batch once one of its sequences is longer than
    those that the model was first trained on, and the keys in a cache keep the old ones: a sequence's
    log-probabilities would depend on its neighbours and on the cache. Such a model is used up to that length.
    """
    config = model.config.get_text_config()
    limit = int(getattr(config, "max_position_embeddings", sys.maxsize))
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # one for all layers, or one for each kind of layer
        if isinstance(part, dict) and part.get("rope_type") == "longrope":
            limit = min(limit, int(part.get("original_max_position_embeddings", limit)))
    return limit


def width_of(model: Any) -> int:
    """The width of the last hidden states (OPT's may be other than ``hidden_size``)."""
    return int(model.get_output_embeddings().weight.shape[1])


def pad(sequences: Sequence[Rendered], device: torch.device) -> TokenBatch:
    """A batch of sequences. The ids at padded places mean nothing: the attention mask keeps them out."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([s.ids + [0] * (longest - len(s)) for s in sequences], device=device)
    response = torch.tensor([s.mask + [False] * (longest - len(s)) for s in sequences], device=device)
    lengths = torch.tensor([len(s) for s in sequences], device=device)
    return TokenBatch(ids, torch.arange(longest, device=device) < lengths[:, None], response)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Cut items into groups of similar length, each of at most ``max_tokens`` tokens with its padding.

    An item longer than that is a group of its own. The order is a function of the lengths alone.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and (len(group) + 1) * lengths[index] > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def hidden_states(model: Any, batch: TokenBatch) -> Float[Tensor, "B T d"]:
    """Last hidden states, after the final norm and before any head."""
    # No attention mask: with the padding behind it, a causal model's real token never sees any. That keeps attention
    # on its fast path. What the padded places hold is never read.
    states: Tensor = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return states


def predicting_states(states: Float[Tensor, "B T d"], batch: TokenBatch) -> Float[Tensor, "N d"]:
    """The states from which the response tokens are predicted: one place before each."""
    return states[:, :-1][batch.response[:, 1:]]


def last_states(states: Float[Tensor, "B T d"], batch: TokenBatch) -> Float[Tensor, "B d"]:
    """The state of each row's last real token, on whichever side the padding is."""
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    last = positions.where(batch.attention, positions.new_tensor(-1)).argmax(1)
    return states[torch.arange(len(states), device=last.device), last]


def head_logits(model: Any, states: Float[Tensor, "N d"]) -> Float[Tensor, "N V"]:
    """The language-model head and what the architecture does after it (Gemma's soft cap, Cohere's scale)."""
    logits: Tensor = model.get_output_embeddings()(states)
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


def response_log_probs(model: Any, batch: TokenBatch, temperature: float = 1.0) -> Float[Tensor, " N"]:
    """Log-probabilities of the batch's response tokens, rows end to end."""
    states = predicting_states(hidden_states(model, batch), batch)
    return token_log_probs(head_logits(model, states), batch.targets, temperature)


def read_states(
    model: Any, sequences: Sequence[Rendered], max_tokens: int
) -> Iterator[tuple[list[int], Float[Tensor, "N d"], TokenBatch]]:
    """The states that predict the response tokens, without gradients: for each group of sequences their indices,
    the states of their tokens end to end, and the batch."""
    for group in micro_batches([len(s) for s in sequences], max_tokens):
        batch = pad([sequences[i] for i in group], model.device)
        with torch.no_grad():
            states = predicting_states(hidden_states(model, batch), batch)
        yield group, states, batch


@torch.no_grad()
def score_responses(
    model: Any, sequences: Sequence[Rendered], max_tokens: int, temperature: float = 1.0
) -> list[Tensor]:
    """Log-probabilities of every sequence's response tokens, without gradients; one tensor for each."""
    result: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group in micro_batches([len(s) for s in sequences], max_tokens):
        batch = pad([sequences[i] for i in group], model.device)
        values = response_log_probs(model, batch, temperature)
        counts = [sequences[i].response_tokens for i in group]
        for index, value in zip(group, values.split(counts), strict=True):
            result[index] = value
    return result
