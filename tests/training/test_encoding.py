"""Groups that are made when they are asked for are those that were once made all at once."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.eager import eager_groups
from tests.feedback.test_frozen import said
from tests.toys import byte_tokenizer

from prefloop.chat import Chat
from prefloop.feedback.aggregate import Comparison, Ranking, comparisons
from prefloop.feedback.records import Completion, Judgement, Prompt, content_id
from prefloop.tokens import cached_tokens
from prefloop.training.comparisons import Each, PreferenceGroup, in_memory, with_margins
from prefloop.training.encoding import Asked, Kept, Make, encode, encode_criteria, in_lists

CHAT = Chat(byte_tokenizer())
LIMITS = [(100, 100), (100, 7), (40, 7)]


def judged(seed: int) -> list[Comparison]:
    records = [*said(seed)]
    kinds: list[Any] = [[one for one in records if isinstance(one, kind)] for kind in (Prompt, Completion, Judgement)]
    found = comparisons(*kinds, {"ann": 0.3})
    draw = random.Random(seed)
    bare = [Comparison(one.prompt, one.texts, one.completion_ids, one.wins) for one in found]
    return [draw.choice(pair) for pair in zip(found, bare, strict=True)]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_the_same_as_all_at_once(seed: int, limits: tuple[int, int]) -> None:
    found = judged(seed)
    wanted = eager_groups(CHAT, [found], *limits)
    assert encode(CHAT, found, *limits) == wanted
    assert listed(encode_criteria(CHAT, [found], *limits)) == wanted
    assert wanted[2] > 0 or limits[1] == 100


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("seed", range(3))
def test_several_criteria_are_the_same_as_all_at_once(seed: int, limits: tuple[int, int]) -> None:
    """Criteria speak of some of the same prompts and answers, in other orders, and one of nothing."""
    draw = random.Random(seed)
    found = judged(seed)
    parts = [found[10:], draw.sample(found, 12), [], judged(seed + 1)[:20]]
    wanted = eager_groups(CHAT, parts, *limits)
    assert listed(encode_criteria(CHAT, parts, *limits)) == wanted
    assert max(len(group.pairs) for group in wanted[0]) > 2


def test_comparisons_of_one_prompt_stay_apart_where_they_are_given_apart() -> None:
    one, other = judged(0)[:2]
    again = Comparison(one.prompt, other.texts, other.completion_ids, other.wins)
    assert len(encode(CHAT, [one, other, again], 100, 100)[0]) == 3
    assert len(encode_criteria(CHAT, [[one, other, again]], 100, 100)[0]) == 2


def test_sequences_may_lie_on_disk(tmp_path: Path) -> None:
    found, asked = judged(2), list[Asked]()

    def keep(what: Asked, make: Make) -> Kept:
        asked.append(what)
        tokens = cached_tokens(tmp_path, {"answers": what.hash, "limit": cut}, make)
        return Kept(tokens, tokens.response_tokens(), tokens.counts["cut"])

    for limit in (100, 7):
        for cut in (100, 40):
            groups = encode_criteria(CHAT, [found], cut, limit, keep)
            assert listed(groups) == eager_groups(CHAT, [found], cut, limit)
    assert {one.prompts for one in asked} == {len(found)}
    assert {one.hash for one in asked} == {content_id([[one.prompt.id, one.texts] for one in found])}


def test_nothing_is_tokenised_where_everything_is_kept() -> None:
    found = judged(0)
    made = in_lists(Asked(0, ""), lambda counts: _all_answered(found, counts))

    def keep(_: Asked, make: Make) -> Kept:
        return made

    groups, cut, _ = encode_criteria(CHAT, [found], 100, 100, keep)
    assert (list(groups), cut) == eager_groups(CHAT, [found], 100, 100)[:2]


def _all_answered(found: Sequence[Comparison], counts: Counter[str]) -> Any:
    counts["cut"] = 0
    return (CHAT.answered(one.prompt, text) for one in found for text in one.texts)


def test_margins_come_with_the_rankings() -> None:
    texts = ("a", "b")
    made = [
        Comparison(Prompt.of(str(margin)), texts, texts, ((0, 1, 1.0),), (Ranking(((0,), (1,)), margin=margin),))
        for margin in (0.0, 0.7)
    ]
    for some, outright in ((made, True), (made[:1], False)):
        groups, _, _ = encode_criteria(CHAT, [some], 100, 100)
        assert groups.outright is outright
        assert [group.margins for group in with_margins(groups, 0.0)] == [(0.0,), (0.7,)][: len(some)]


def test_memory_grows_by_numbers_alone() -> None:
    """Of a pair there are some 120 bytes, however long its texts and sequences are."""
    texts = ("a" * 500, "b" * 500)
    prompts = [Prompt.of(f"Why {number}? " + "why " * 500) for number in range(1000)]
    found = [Comparison(prompt, texts, texts, ((0, 1, 1.0),)) for prompt in prompts]
    [one] = [CHAT.answered(Prompt.of("q"), "a")]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        groups, _, _ = encode_criteria(CHAT, [found], 100, 100, lambda *_: Kept([one] * 2000, [2] * 2000, 0))
        assert tracemalloc.get_traced_memory()[1] - before < 400 * len(found)
    finally:
        tracemalloc.stop()
    assert len(groups) == 1000


def test_groups_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.training.comparisons.AT_ONCE", 3)
    groups = encode(CHAT, judged(1)[:8], 100, 100)[0]
    lazy = Each(8, lambda number: groups[number])
    for some in (groups, lazy):
        parts = [*in_memory(some)]
        assert [len(part) for part in parts] == [3, 3, 2]
        assert [one for part in parts for one in part] == groups
    assert (lazy[-1], lazy[6:2:-2]) == (groups[7], groups[6:2:-2])
    with pytest.raises(IndexError):
        lazy[8]


def listed(found: tuple[Sequence[PreferenceGroup], int, int]) -> tuple[list[PreferenceGroup], int, int]:
    return list(found[0]), *found[1:]
