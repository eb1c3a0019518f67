"""Comparisons become groups all at once, everything in memory: what the lazy way is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefloop.chat import Chat
from prefloop.feedback.aggregate import Comparison, Ranking, read_snapshot
from prefloop.training.comparisons import PreferenceGroup

Pairs = list[tuple[int, int, float, float]]


class EagerSnapshot:
    """A snapshot's file, all of it in memory."""

    def __init__(self, path: Path) -> None:
        self._read = read_snapshot(path)

    def comparisons(self, weights: Mapping[str, float] | None = None) -> list[Comparison]:
        return self._read.comparisons(weights)


def eager_groups(
    chat: Chat, parts: Sequence[Sequence[Comparison]], max_prompt_tokens: int, max_response_tokens: int, *_: Any
) -> tuple[list[PreferenceGroup], int, int]:
    """The groups, how many prompts were cut, and how many answers were too long."""
    said: dict[str, list[tuple[int, Comparison]]] = {}
    for criterion, part in enumerate(parts):
        for comparison in part:
            said.setdefault(comparison.prompt.id, []).append((criterion, comparison))
    groups, cut, left_out = list[PreferenceGroup](), 0, 0
    for everything in said.values():
        prompt = everything[0][1].prompt
        _, fitted = chat.fitted_prompt_ids(prompt, max_prompt_tokens)
        cut += fitted is not prompt
        texts = list(dict.fromkeys(text for _, one in everything for text in one.texts))
        rendered = {text: chat.answered(fitted, text) for text in texts}
        kept = [text for text in texts if rendered[text].response_tokens <= max_response_tokens]
        left_out += len(texts) - len(kept)
        pairs, rankings = Pairs(), list[Ranking]()
        for criterion, one in everything:
            place = {
                old: kept.index(text) * len(parts) + criterion for old, text in enumerate(one.texts) if text in kept
            }
            pairs += _pairs(one, place)
            rankings += _rankings(one, place)
        if pairs:
            sequences = tuple(rendered[text] for text in kept)
            groups.append(PreferenceGroup(sequences, tuple(pairs), tuple(rankings), len(parts)))
    return groups, cut, left_out


def _pairs(comparison: Comparison, place: Mapping[int, int]) -> Pairs:
    votes = {(i, j): count for i, j, count in comparison.wins}
    both = sorted({(min(i, j), max(i, j)) for i, j in votes if i in place and j in place})
    return [(place[i], place[j], votes.get((i, j), 0.0), votes.get((j, i), 0.0)) for i, j in both]


def _rankings(comparison: Comparison, place: Mapping[int, int]) -> Iterable[Ranking]:
    bare = (Ranking(((i,), (j,)), count) for i, j, count in comparison.wins)
    for ranking in comparison.rankings or bare:
        tiers = tuple(tuple(place[i] for i in tier if i in place) for tier in ranking.tiers)
        if sum(map(len, tiers)) > 1 and (tiers[0] or not ranking.best_only):
            yield replace(ranking, tiers=tiers)
