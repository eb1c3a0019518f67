"""Judged answers as token sequences and pairs: what the reward model and DPO learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefloop.chat import Chat, Rendered
from prefloop.feedback.aggregate import Comparison


@dataclass(frozen=True)
class PreferenceGroup:
    """All judged answers to one prompt. They stay together in a batch: each is read once, however many pairs it
    is part of, and pairs of one prompt do not come back as fresh data [Ouyang et al. 2022, §3.5]."""

    sequences: tuple[Rendered, ...]
    pairs: tuple[tuple[int, int, float, float], ...]
    """(i, j, votes for i, votes for j); a tie is half a vote for each."""
    ref_log_probs: Float[Tensor, " K"] | None = None
    """log π_ref of each answer, summed over its tokens; methods with a reference fill it in."""
    mismatched: Rendered | None = None
    """This prompt with an answer to another; KTO estimates its reference point from such."""
    ref_mismatched: Float[Tensor, ""] | None = None
    """log π_ref of that answer, summed over its tokens."""

    @property
    def all_sequences(self) -> tuple[Rendered, ...]:
        return self.sequences if self.mismatched is None else (*self.sequences, self.mismatched)

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
) -> tuple[list[PreferenceGroup], int, int]:
    """Tokenise comparisons; returns the groups, how many prompts were cut, and how many answers were too long."""
    groups, cut, left_out = [], 0, 0
    for comparison in comparisons:
        _, prompt = chat.fitted_prompt_ids(comparison.prompt, max_prompt_tokens)
        cut += prompt is not comparison.prompt
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
    return groups, cut, left_out


def with_mismatched(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Each group with the first answer of the group before it, as if it answered this prompt.

    Raises:
        ValueError: there is one prompt only.
    """
    if len(groups) == 1:
        raise ValueError("KTO compares answers with those to other prompts; there is only one prompt")
    return [
        replace(group, mismatched=_answer_to(group.sequences[0], other.sequences[0]))
        for group, other in zip(groups, [*groups[-1:], *groups[:-1]], strict=True)
    ]


def _answer_to(asked: Rendered, other: Rendered) -> Rendered:
    """The prompt of ``asked`` with the answer of ``other``."""
    here, there = asked.mask.index(True), other.mask.index(True)
    return Rendered(asked.ids[:here] + other.ids[there:], asked.mask[:here] + other.mask[there:])


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
    """Cut groups into micro-batches of at most ``max_tokens`` tokens (padding included), groups kept whole.

    A group larger than that is a micro-batch of its own. Groups of similar length come together.
    """
    batch: list[PreferenceGroup] = []
    answers = 0
    for group in sorted(groups, key=_longest):
        if batch and (answers + len(group.sequences)) * _longest(group) > max_tokens:
            yield batch
            batch, answers = [], 0
        batch.append(group)
        answers += len(group.sequences)
    if batch:
        yield batch


def _longest(group: PreferenceGroup) -> int:
    return max(map(len, group.sequences))
