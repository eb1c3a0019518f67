"""Labelling, and comparisons that become groups, all at once and in memory: what the lazy way is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefloop.chat import Chat
from prefloop.context import Context
from prefloop.feedback.aggregate import Comparison, Ranking, Snapshot, read_snapshot, snapshot
from prefloop.feedback.assignment import Queue
from prefloop.feedback.pairs import pair_votes
from prefloop.feedback.records import Completion, Prompt
from prefloop.feedback.reliability import annotator_weights
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


# The label stage, with every judgement in memory


def eager_judged(
    context: Context, items: Sequence[tuple[Prompt, Sequence[Completion]]] | None = None
) -> list[Snapshot]:
    """What `labelling.judged_so_far` finds; ``items`` where people were asked about them."""
    names = dict.fromkeys((context.recipe.data.criterion, *context.recipe.criteria))
    if items is None:
        return [snapshot(context.store, name) for name in names]
    ids = [completion.id for _, completions in items for completion in completions]
    found = [snapshot(context.store, name, ids) for name in names]
    return [replace(one, judgements=tuple(j for j in one.judgements if j.source == "human")) for one in found]


def eager_weighed(context: Context, frozen: Snapshot) -> dict[str, Any]:
    """What annotators' votes weigh."""
    judges = {one.annotator for one in frozen.judgements}
    right = Queue(context.store).gold_ranks()
    known = {one.id for one in frozen.judgements}
    tested = [
        one
        for one in context.store.judgements(frozen.criterion)
        if one.id in right and one.annotator in judges and one.id not in known
    ]
    completions = [*frozen.completions, *context.store.completions({one.prompt_id: None for one in tested})]
    judgements = sorted([*frozen.judgements, *tested], key=lambda one: one.created)
    found = annotator_weights(pair_votes(judgements, completions, right))
    mean = sum(found[one.annotator][0] for one in frozen.judgements if one.annotator in found)
    mean /= len(frozen.judgements)
    return {
        name: {"weight": weight / (mean or 1.0), "reliability": eta}
        for name, (weight, eta) in sorted(found.items())
        if name in judges
    }
