"""Judged answers as token sequences and pairs: what the reward model and DPO learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefloop.chat import Chat, Rendered
from prefloop.feedback.aggregate import Comparison
from prefloop.models.forward import micro_batches


@dataclass(frozen=True)
class PreferenceGroup:
    """All judged answers to one prompt. They stay together in a batch: each is read once, however many pairs it
    is part of, and pairs of one prompt do not come back as fresh data [Ouyang et al. 2022, §3.5]."""

    sequences: tuple[Rendered, ...]
    pairs: tuple[tuple[int, int, float, float], ...]
    """(i, j, votes for i, votes for j); a tie is half a vote for each."""
    ref_log_probs: Float[Tensor, " K"] | None = None
    """log π_ref of each answer, summed over its tokens; only DPO fills it in."""

    @property
    def votes(self) -> float:
        return sum(wins + losses for _, _, wins, losses in self.pairs)


@dataclass(frozen=True)
class Pairs:
    """The pairs of several groups, over the groups' sequences laid end to end."""

    first: Int[Tensor, " P"]
    second: Int[Tensor, " P"]
    wins: Float[Tensor, " P"]
    losses: Float[Tensor, " P"]


def encode(
    chat: Chat, comparisons: Sequence[Comparison], max_prompt_tokens: int, max_response_tokens: int
) -> tuple[list[PreferenceGroup], int]:
    """Tokenise comparisons; returns the groups and the number of answers left out because they are too long."""
    groups, left_out = [], 0
    for comparison in comparisons:
        _, prompt = chat.fitted_prompt_ids(comparison.prompt, max_prompt_tokens)
        rendered = [chat.answered(prompt, text) for text in comparison.texts]
        kept = [i for i, sequence in enumerate(rendered) if sequence.response_tokens <= max_response_tokens]
        left_out += len(rendered) - len(kept)
        votes = dict[tuple[int, int], float]()
        for i, j, count in comparison.wins:
            if i in kept and j in kept:
                votes[i, j] = votes.get((i, j), 0.0) + count
        place = {old: new for new, old in enumerate(kept)}
        pairs = tuple(
            (place[i], place[j], votes.get((i, j), 0.0), votes.get((j, i), 0.0))
            for i, j in sorted({(min(pair), max(pair)) for pair in votes})
        )
        if pairs:
            groups.append(PreferenceGroup(tuple(rendered[i] for i in kept), pairs))
    return groups, left_out


def flatten(groups: Sequence[PreferenceGroup], device: torch.device) -> tuple[list[Rendered], Pairs]:
    """The sequences of all groups end to end, and their pairs."""
    sequences: list[Rendered] = []
    rows: list[tuple[int, int, float, float]] = []
    for group in groups:
        start = len(sequences)
        rows += [(i + start, j + start, wins, losses) for i, j, wins, losses in group.pairs]
        sequences += group.sequences
    return sequences, Pairs(*(torch.tensor(column, device=device) for column in zip(*rows, strict=True)))


def group_micro_batches(groups: Sequence[PreferenceGroup], max_tokens: int) -> Iterator[list[PreferenceGroup]]:
    """Cut groups into micro-batches of at most ``max_tokens`` tokens (padding included), groups kept whole."""
    # Every group is taken for one of the most answers, so that groups of similar length come together and fit.
    answers = max((len(g.sequences) for g in groups), default=0)
    sizes = [answers * max(map(len, g.sequences)) for g in groups]
    for rows in micro_batches(sizes, max_tokens):
        yield [groups[i] for i in rows]
