"""Comparisons as tokens: votes, places, what is too long, and groups that stay together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import byte_tokenizer, user

from prefloop.chat import Chat, Rendered
from prefloop.feedback.aggregate import Comparison, Ranking
from prefloop.feedback.records import Prompt
from prefloop.training.comparisons import (
    PreferenceGroup,
    flatten,
    flatten_choices,
    group_micro_batches,
    with_choices,
    with_margins,
)
from prefloop.training.encoding import encode, encode_criteria

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


# Rankings, margins, choices, criteria


def ranked(*rankings: Ranking, answers: int = 4) -> PreferenceGroup:
    return PreferenceGroup(group(*[3] * answers).sequences, (), rankings)


def test_rankings_lose_what_is_left_out_and_keep_their_distances() -> None:
    texts = ("a", "much too long", "c", "d")
    item = Comparison(
        Prompt.of("q"),
        texts,
        texts,
        ((0, 2, 1.0), (0, 3, 1.0)),
        (
            Ranking(((0,), (1,), (2, 3)), 2.0, strength=4),
            Ranking(((1,), (0, 2, 3)), best_only=True),
            Ranking(((3,), (0, 1, 2)), best_only=True),
            Ranking(((1,), (2,))),
        ),
    )
    [found], _, _ = encode(CHAT, [item], 100, 3)
    assert found.rankings == (
        Ranking(((0,), (), (1, 2)), 2.0, strength=4),
        Ranking(((2,), (0, 1)), best_only=True),
    )
    [margins] = with_margins([found], 1.0)
    assert margins.pairs[0] == (0, 1, 2.0, 0.0)
    assert margins.margins[0] == 3.0


def test_line_22_margins_follow_strength_and_distance_and_ties_have_none() -> None:
    """Strength 4 is three points above "negligibly"; of three tiers, neighbours have half of it."""
    made = ranked(
        Ranking(((2,), (0, 1), (3,)), 2.0, strength=4),
        Ranking(((1,), (2,)), strength=1),
        Ranking(((3,), (2,))),
        Ranking(((0,), (1, 2, 3)), strength=2, best_only=True),
        Ranking(((0,), (1,)), margin=0.7),
    )
    [found] = with_margins([made], 0.5)
    assert list(zip(found.pairs, found.margins, strict=True)) == [
        ((0, 1, 1.0, 1.0), 0.0),  # a tie of two judgements
        ((0, 1, 1.0, 0.0), 0.5),
        ((0, 1, 1.0, 0.0), 0.7),  # said outright
        ((0, 2, 1.0, 0.0), 0.5),
        ((0, 2, 0.0, 2.0), 0.75),
        ((0, 3, 1.0, 0.0), 0.5),
        ((0, 3, 2.0, 0.0), 0.75),
        ((1, 2, 1.0, 0.0), 0.0),
        ((1, 2, 0.0, 2.0), 0.75),
        ((1, 3, 2.0, 0.0), 0.75),
        ((2, 3, 0.0, 1.0), 0.0),
        ((2, 3, 2.0, 0.0), 1.5),
    ]
    _, pairs = flatten([PreferenceGroup(made.sequences, ((0, 1, 1.0, 0.0),)), found], CPU)
    assert pairs.margin.tolist() == pytest.approx([0.0, *found.margins])
    assert pairs.first.tolist()[:3] == [0, 4, 4]


def test_without_strengths_the_rows_are_the_votes() -> None:
    texts = ("a", "b", "c")
    said = (Ranking(((0,), (1, 2)), 2.0, strength=3), Ranking(((2,), (0,))), Ranking(((1,), (0, 2)), best_only=True))
    wins = {(0, 1): 2.0, (0, 2): 2.0, (1, 2): 2.0, (2, 1): 1.0, (2, 0): 1.0, (1, 0): 1.0}
    item = Comparison(Prompt.of("q"), texts, texts, tuple(sorted((*pair, n) for pair, n in wins.items())), said)
    groups, _, _ = encode(CHAT, [item], 100, 10)
    assert with_margins(groups, 0.0)[0].pairs == groups[0].pairs


def test_votes_alone_are_rankings_of_two() -> None:
    bare = PreferenceGroup(group(3, 3, 3).sequences, ((0, 1, 2.0, 1.0), (1, 2, 0.5, 0.5)))
    [made] = with_choices([bare])
    assert made.choices == (((0, 1), 1, 2.0), ((1, 2), 1, 0.5), ((1, 0), 1, 1.0), ((2, 1), 1, 0.5))
    assert sum(weight for _, _, weight in made.choices) == bare.votes


def test_equal_choices_are_one_and_choices_move_with_their_sequences() -> None:
    first = ranked(Ranking(((1,), (0,)), 2.0), Ranking(((1,), (0,)), 0.5, strength=3), answers=2)
    second = ranked(Ranking(((2,), (0, 1)), 1.0), answers=3)
    made = with_choices([first, second])
    assert made[0].choices == (((1, 0), 1, 2.5),)
    found = flatten_choices(made, CPU)
    assert found.places.tolist() == [[1, 0, 0], [4, 2, 3], [2, 3, 0]]
    assert found.shown.tolist() == [[True, True, False], [True, True, True], [True, True, False]]
    assert found.chosen.tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    assert found.weights.tolist() == [2.5, 1.0, 1.0]


def test_criteria_share_the_answers_of_a_prompt() -> None:
    """Scores are laid out answer by answer: place = answer · 2 + criterion."""
    helpful = [comparison(("a", "b"), (0, 1, 1.0)), comparison(("x", "y"), (1, 0, 1.0), prompt="only here")]
    texts = ("b", "c")
    harmless = [Comparison(Prompt.of("q"), texts, texts, ((1, 0, 2.0),), (Ranking(((1,), (0,)), 2.0),))]
    (both, one), _, _ = encode_criteria(CHAT, [helpful, harmless], 100, 10)
    assert [CHAT.text(s.ids[s.mask.index(True) :]) for s in both.sequences] == ["a", "b", "c"]
    assert both.pairs == ((0, 2, 1.0, 0.0), (3, 5, 0.0, 2.0))
    assert both.rankings == (Ranking(((0,), (2,))), Ranking(((5,), (3,)), 2.0)), "of one only votes are known"
    assert one.pairs == ((0, 2, 0.0, 1.0),)
    _, pairs = flatten([one, both], CPU)
    assert pairs.first.tolist() == [0, 4, 7]
    assert pairs.second.tolist() == [2, 6, 9]
    alone, *counts = encode_criteria(CHAT, [helpful], 100, 10)
    assert (list(alone), *counts) == encode(CHAT, helpful, 100, 10)


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
