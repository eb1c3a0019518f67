"""Comparisons as tokens: votes, places, what is too long, and groups that stay together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import byte_tokenizer, user

from prefloop.chat import Chat, Rendered
from prefloop.feedback.aggregate import Comparison
from prefloop.feedback.records import Prompt
from prefloop.training.comparisons import PreferenceGroup, encode, flatten, group_micro_batches

CHAT = Chat(byte_tokenizer())
CPU = torch.device("cpu")


def comparison(texts: tuple[str, ...], *wins: tuple[int, int, float], prompt: str = "q") -> Comparison:
    return Comparison(Prompt.of(prompt), texts, texts, wins)


def group(*lengths: int, pairs: tuple[tuple[int, int, float, float], ...] = ((0, 1, 1.0, 0.0),)) -> PreferenceGroup:
    return PreferenceGroup(tuple(Rendered([5] * n, [False] + [True] * (n - 1)) for n in lengths), pairs)


def test_line_22_both_directions_of_a_pair_are_one_row_of_votes() -> None:
    item = comparison(("a", "b", "c"), (0, 1, 2.0), (1, 0, 1.0), (2, 0, 0.5), (0, 2, 0.5), (2, 1, 1.0))
    [found], cut, left_out = encode(CHAT, [item], 100, 10)
    assert found.pairs == ((0, 1, 2.0, 1.0), (0, 2, 0.5, 0.5), (1, 2, 0.0, 1.0))
    assert found.votes == 5.0
    assert (cut, left_out) == (0, 0)
    assert [CHAT.text(s.ids[s.mask.index(True) :]) for s in found.sequences] == ["a", "b", "c"]


def test_line_23_answers_are_rendered_as_the_policys_are() -> None:
    [found], _, _ = encode(CHAT, [comparison(("yes", "no"), (0, 1, 1.0))], 100, 10)
    assert found.sequences == tuple(CHAT.answered(Prompt.of("q"), text) for text in ("yes", "no"))


def test_an_answer_that_is_too_long_is_left_out_and_counted_and_the_others_keep_their_places() -> None:
    item = comparison(("a", "much too long", "c", "d"), (0, 1, 1.0), (2, 0, 1.0), (1, 3, 1.0), (3, 2, 1.0))
    lonely = comparison(("x", "much too long"), (0, 1, 1.0))
    groups, _, left_out = encode(CHAT, [item, lonely], 100, 3)
    assert left_out == 2
    [found] = groups
    assert [CHAT.text(s.ids[s.mask.index(True) :]) for s in found.sequences] == ["a", "c", "d"]
    assert found.pairs == ((0, 1, 0.0, 1.0), (1, 2, 0.0, 1.0))


def test_the_limit_counts_the_eos() -> None:
    item = comparison(("abc", "x"), (0, 1, 1.0))
    size = CHAT.answered(item.prompt, "abc").response_tokens
    assert size == len(" abc") + 1
    assert encode(CHAT, [item], 100, size)[2] == 0
    assert encode(CHAT, [item], 100, size - 1)[2] == 1


def test_line_09_long_prompts_are_cut_as_the_policys_are() -> None:
    prompt = Prompt(messages=(user("first line\nlast"),))
    item = Comparison(prompt, ("a", "b"), ("a", "b"), ((0, 1, 1.0),))
    limit = len(CHAT.prompt_ids([user("last")]))
    short = comparison(("a", "b"), (0, 1, 1.0))
    [found, _], cut, left_out = encode(CHAT, [item, short], limit, 10)
    assert (cut, left_out) == (1, 0)
    assert found.sequences[0] == CHAT.answered(Prompt.of("last"), "a")


def test_line_22_flattening_moves_the_pairs_with_their_sequences() -> None:
    first = group(3, 4, pairs=((0, 1, 1.0, 0.0),))
    second = group(5, 6, 7, pairs=((0, 2, 0.5, 0.5), (1, 2, 2.0, 1.0)))
    sequences, pairs = flatten([first, second], CPU)
    assert [len(s) for s in sequences] == [3, 4, 5, 6, 7]
    assert pairs.first.tolist() == [0, 2, 3]
    assert pairs.second.tolist() == [1, 4, 4]
    assert pairs.wins.tolist() == [1.0, 0.5, 2.0]
    assert pairs.losses.tolist() == [0.0, 0.5, 1.0]


@given(st.lists(st.lists(st.integers(2, 40), min_size=2, max_size=5), max_size=12), st.integers(1, 400))
def test_line_22_groups_stay_whole_and_fit(shapes: list[list[int]], max_tokens: int) -> None:
    groups = [group(*lengths) for lengths in shapes]
    batches = list(group_micro_batches(groups, max_tokens))
    assert sorted(id(g) for batch in batches for g in batch) == sorted(id(g) for g in groups)
    for batch in batches:
        sequences = [s for g in batch for s in g.sequences]
        padded = len(sequences) * max(map(len, sequences))
        assert padded <= max_tokens or len(batch) == 1


def test_a_large_group_does_not_make_the_small_ones_lonely() -> None:
    """A prompt with many answers must not cost all others their company."""
    groups = [group(10, 10) for _ in range(20)] + [group(*[10] * 50)]
    assert len(list(group_micro_batches(groups, 500))) == 2


def test_no_pairs_no_group() -> None:
    assert encode(CHAT, [comparison(("a", "much too long"), (0, 1, 1.0))], 100, 3) == ([], 0, 1)


def test_a_prompt_that_cannot_be_cut_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens allows 5"):
        encode(CHAT, [comparison(("a", "b"), (0, 1, 1.0))], 5, 10)
