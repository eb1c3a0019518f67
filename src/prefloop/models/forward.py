"""Forward passes over whole sequences: hidden states where they are needed, the head only there.

Sequences are packed end to end where the architecture allows it (`packing`), else padded on the right. Either way a
sequence's result does not depend on its neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefloop.algorithms.likelihood import token_log_probs
from prefloop.chat import Rendered
from prefloop.models.packing import Layout, Stem, few, grain, lay_out, longest_packed, packed
from prefloop.models.precision import autocast

Result = TypeVar("Result")


ROWS_AT = 0.97
"""Sequences stay in rows of their own where packing saves less than the rest of this share of the tokens."""
PART = 2**22
"""Logits that are held at once, about: tokens of a part times the vocabulary."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences as a model reads them, and where in its states to look. Places count through all rows (R·T)."""

    ids: Int[Tensor, "R T"]
    positions: Int[Tensor, "R T"] | None
    """Of each token in its sequence; None where rows are sequences, padded on the right."""
    layout: Layout | None
    """Of the one row; None where rows are sequences."""
    predicting: Int[Tensor, " N"]
    """The places of the states that the response tokens are predicted from, sequence by sequence."""
    targets: Int[Tensor, " N"]
    """The response tokens, sequence by sequence."""
    rows: Int[Tensor, " N"]
    """The sequence that each response token belongs to."""
    last: Int[Tensor, " B"]
    """The place of each sequence's last token."""


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


def arrange(sequences: Sequence[Rendered], *models: Any) -> TokenBatch:
    """A batch of sequences in the layout that costs least of those that all of the models can read.

    Neighbours that begin with the same prompt share one pass over it.
    """
    device, longest = models[0].device, max(map(len, sequences))
    if longest > min(map(longest_packed, models), default=0):
        return pad(sequences, device)
    found = pack(sequences, device)
    # Rows of one length are read side by side, which is a little quicker than one after the other.
    return found if found.ids.numel() < ROWS_AT * longest * len(sequences) else pad(sequences, device)


def pad(sequences: Sequence[Rendered], device: torch.device) -> TokenBatch:
    """A row for each sequence. The ids at padded places mean nothing: they come after the tokens, which cannot see
    them."""
    longest = max(map(len, sequences))
    ids = [s.ids + [0] * (longest - len(s)) for s in sequences]
    places = [range(row * longest, row * longest + len(s)) for row, s in enumerate(sequences)]
    return TokenBatch(torch.tensor(ids, device=device), None, None, **_looked_at(sequences, places, device))


def pack(sequences: Sequence[Rendered], device: torch.device) -> TokenBatch:
    """One row: `packing`'s layout, and a few tokens behind it that are nobody's."""
    ids: list[int] = []
    positions: list[int] = []
    layout: list[Stem] = []
    places: list[Sequence[int]] = []
    for start, same in groupby(sequences, key=lambda s: s.ids[: _prompt(s)]):
        stem, found = [*same], len(ids)
        if len(stem) == 1 or not start:
            for one in stem:
                places.append(range(len(ids), len(ids) + len(one)))
                layout.append(Stem(len(one)))
                ids += one.ids
                positions += range(len(one))
            continue
        ids += start
        positions += range(len(start))
        for one in stem:
            branch = one.ids[len(start) :]
            places.append([*range(found, found + len(start)), *range(len(ids), len(ids) + len(branch))])
            ids += branch
            positions += range(len(start), len(one))
        layout.append(Stem(len(start), tuple(len(one) - len(start) for one in stem)))
    filler = few(len(ids)) - len(ids)
    row, where = (torch.tensor([part + [0] * filler], device=device) for part in (ids, positions))
    return TokenBatch(row, where, lay_out(layout, device, filler), **_looked_at(sequences, places, device))


def _prompt(sequence: Rendered) -> int:
    """Tokens before the first response token; of a sequence without any, all but the last."""
    return sequence.mask.index(True) if True in sequence.mask else len(sequence) - 1


def _looked_at(
    sequences: Sequence[Rendered], places: Sequence[Sequence[int]], device: torch.device
) -> dict[str, Int[Tensor, " N"]]:
    """Where to look, given the places of each sequence's tokens."""
    found = [
        (row, places[row][at - 1], one.ids[at])
        for row, one in enumerate(sequences)
        for at in range(1, len(one))
        if one.mask[at]
    ]
    columns = zip(*found, strict=True) if found else ((), (), ())
    rows, predicting, targets = (torch.tensor(column, dtype=torch.long, device=device) for column in columns)
    last = torch.tensor([of[-1] for of in places], device=device)
    return {"predicting": predicting, "targets": targets, "rows": rows, "last": last}


def micro_batches(sequences: Sequence[Rendered], max_tokens: int, *models: Any) -> Iterator[list[int]]:
    """Cut sequences into groups of at most ``max_tokens`` tokens, padding included where the models need it.

    Those of one prompt stay together, and so do those of similar length. A sequence longer than ``max_tokens`` is a
    group of its own. The order is a function of the sequences alone.
    """
    lengths = [len(one) for one in sequences]
    packs = max(lengths, default=0) <= min(map(longest_packed, models), default=0)
    if packs:
        order = sorted(range(len(sequences)), key=lambda i: (sequences[i].ids[: _prompt(sequences[i])], i))
    else:
        order = sorted(range(len(sequences)), key=lambda i: (lengths[i], i))
    group: list[int] = []
    total = 0
    for index in order:
        total += lengths[index]
        if group and (total if packs else (len(group) + 1) * lengths[index]) > max_tokens:
            yield group
            group, total = [], lengths[index]
        group.append(index)
    if group:
        yield group


def hidden_states(model: Any, batch: TokenBatch) -> Float[Tensor, "P d"]:
    """Last hidden states, after the final norm and before any head, row after row. At padding they mean nothing."""
    # No attention mask: with the padding behind it, a causal model's real token never sees any. That keeps attention
    # on its fast path.
    where = {} if batch.positions is None else {"position_ids": batch.positions}
    ours = batch.layout is not None or batch.ids.shape[1] <= longest_packed(model)
    with autocast(model), packed(model, batch.layout) if ours else nullcontext():
        states: Tensor = model.base_model(input_ids=batch.ids, use_cache=False, **where).last_hidden_state
    return states.flatten(0, 1)


def in_parts(
    states: Float[Tensor, "N d"], counts: Sequence[int], of: Callable[[Float[Tensor, "n d"], slice], Result]
) -> Iterator[Result]:
    """``of`` each part of the states and its place, so that logits of one part are held at a time.

    Whoever takes a result calls backward on it before the next one. The gradient stops at the states; when all parts
    are through, it goes on through the model once.
    """
    places = [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]
    if not (states.requires_grad and torch.is_grad_enabled()):
        yield from (of(states[place], place) for place in places)
        return
    leaves = [part.requires_grad_() for part in states.detach().split(list(counts))]
    for leaf, place in zip(leaves, places, strict=True):
        yield of(leaf, place)
    if all(leaf.grad is None for leaf in leaves):  # nothing was asked of it
        return
    states.backward(torch.cat([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]))


def token_parts(model: Any, tokens: int) -> list[int]:
    """Tokens of each part of about `PART` logits at most; of few lengths."""
    most, parts = _most(model), list[int]()
    while tokens:
        parts.append(min(most, tokens - tokens % grain(tokens)))
        tokens -= parts[-1]
    return parts


def _most(model: Any) -> int:
    return max(1, PART // model.get_output_embeddings().weight.shape[0])


def whole_parts(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Indices of neighbouring items of these many tokens, grouped into parts of about `PART` logits."""
    most = _most(model)
    parts: list[list[int]] = []
    total = most
    for index, length in enumerate(lengths):
        if not parts or total + length > most:
            parts.append([])
            total = 0
        parts[-1].append(index)
        total += length
    return parts


def head_logits(model: Any, states: Float[Tensor, "N d"]) -> Float[Tensor, "N V"]:
    """The language-model head and what the architecture does after it (Gemma's soft cap, Cohere's scale)."""
    with autocast(model):
        logits: Tensor = model.get_output_embeddings()(states)
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


def predicting_states(model: Any, batch: TokenBatch) -> Float[Tensor, "N d"]:
    """The states that the response tokens are predicted from."""
    return hidden_states(model, batch)[batch.predicting]


@torch.no_grad()
def log_probs_of(
    model: Any, states: Float[Tensor, "N d"], targets: Int[Tensor, " N"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """Log-probabilities of tokens, given the states that they are predicted from; without gradients."""
    most = _most(model)
    parts = zip(states.split(most), targets.split(most), strict=True)
    return torch.cat([token_log_probs(head_logits(model, part), aim, temperature) for part, aim in parts])


@torch.no_grad()
def score_responses(
    model: Any, sequences: Sequence[Rendered], max_tokens: int, temperature: float = 1.0
) -> list[Tensor]:
    """Log-probabilities of every sequence's response tokens, without gradients; one tensor for each."""
    result: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group in micro_batches(sequences, max_tokens, model):
        batch = arrange([sequences[i] for i in group], model)
        values = log_probs_of(model, predicting_states(model, batch), batch.targets, temperature)
        counts = [sequences[i].response_tokens for i in group]
        for index, value in zip(group, values.split(counts), strict=True):
            result[index] = value
    return result
