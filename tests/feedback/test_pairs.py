"""Judgements as pairs, against a reading by hand."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.feedback.aggregate import votes as aggregate_votes
from prefloop.feedback.pairs import PairVotes, pair_votes
from prefloop.feedback.records import BEST_ONLY, CANNOT_JUDGE, Completion, Judgement, Prompt, dense_ranks

PROMPT = Prompt.of("Q")
A, B, C = (Completion(prompt_id=PROMPT.id, text=text, origin="o") for text in "abc")
A2 = Completion(prompt_id=PROMPT.id, text="a", origin="another")


def judge(id: str, shown: tuple[Completion, ...], ranks: tuple[int, ...], **fields: Any) -> Judgement:
    base: dict[str, Any] = {"annotator": "ann", "source": "human", "created": datetime(2026, 1, 1, tzinfo=UTC)}
    ids = tuple(completion.id for completion in shown)
    return Judgement(id=id, prompt_id=PROMPT.id, shown=ids, ranks=ranks, **(base | fields))


def rows(votes: PairVotes) -> list[tuple[int, int, float, bool, int]]:
    columns = (votes.first, votes.second, votes.value, votes.first_left, votes.gold)
    return [tuple(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def test_a_ranking_is_its_pairs_and_a_pair_is_the_same_in_either_order() -> None:
    said = [judge("1", (C, A, B), (1, 2, 2)), judge("2", (A, C), (1, 2)), judge("3", (C, A), (1, 2))]
    votes = pair_votes(said, [A, B, C])
    assert rows(votes) == [
        (0, 2, 0.0, False, 0),
        (1, 2, 0.0, False, 0),
        (0, 1, 0.5, True, 0),
        (0, 2, 1.0, True, 0),
        (0, 2, 0.0, False, 0),
    ]
    assert votes.pair.tolist() == [1, 2, 0, 1, 1]
    assert votes.n_pairs == 3
    assert votes.judgement.tolist() == [0, 0, 0, 1, 2]
    assert votes.left.tolist() == [1.0, 1.0, 0.5, 1.0, 1.0]
    assert votes.shown.tolist() == [[2, 0], [2, 1], [0, 1], [0, 2], [2, 0]]


def test_the_same_text_is_one_answer_and_against_itself_none() -> None:
    votes = pair_votes([judge("1", (A, A2), (1, 2)), judge("2", (B, A2), (1, 2))], [A, B, A2])
    assert rows(votes) == [(0, 1, 0.0, False, 0)]
    assert votes.shown.tolist() == [[1, 2]]  # the completion that was shown, not the first with this text


def test_what_was_not_said_is_no_vote() -> None:
    best = judge("1", (C, A, B), (1, 2, 2), flags=(BEST_ONLY,))
    unsure = judge("2", (C, A, B), (1, 2, 3), flags=(CANNOT_JUDGE,))
    assert len(pair_votes([unsure], [A, B, C])) == 0
    assert rows(pair_votes([best, unsure], [A, B, C])) == [(0, 2, 0.0, False, 0), (1, 2, 0.0, False, 0)]


def test_gold_is_turned_with_the_pair() -> None:
    said = [judge("1", (C, A), (1, 2)), judge("2", (A, C), (1, 2))]
    votes = pair_votes(said, [A, B, C], gold={"1": (1, 2), "2": (2, 1)})
    assert votes.gold.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="2 answers and has 3 gold"):
        pair_votes(said, [A, B, C], gold={"1": (1, 2, 3)})


def test_a_completion_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=f"'1' shows completion '{C.id}'"):
        pair_votes([judge("1", (C, A), (1, 2))], [A, B])


def test_the_latest_vote_of_an_annotator_counts() -> None:
    said = [
        judge("1", (A, B), (1, 2)),
        judge("2", (A, B), (1, 2), annotator="Bo"),
        judge("3", (B, A), (1, 2)),
        judge("4", (A, C), (1, 2)),
    ]
    votes = pair_votes(said, [A, B, C]).latest()
    assert votes.judgement.tolist() == [1, 2, 3]
    assert votes.value.tolist() == [1.0, 0.0, 1.0]
    assert votes.rows(votes.judgement == 3).pair.tolist() == [0]


@given(st.lists(st.tuples(st.permutations([A, B, C, A2]), st.lists(st.integers(1, 3), min_size=4, max_size=4))))
def test_the_votes_are_those_that_training_counts(said: list[tuple[list[Completion], list[int]]]) -> None:
    judgements = [judge(str(k), tuple(shown), dense_ranks(ranks)) for k, (shown, ranks) in enumerate(said)]
    votes, texts = pair_votes(judgements, [A, B, C, A2]), {A.id: 0, B.id: 1, C.id: 2, A2.id: 0}
    expected = np.zeros((3, 3))
    for judgement in judgements:
        for winner, loser, count in aggregate_votes(judgement):
            if texts[winner] != texts[loser]:
                expected[texts[winner], texts[loser]] += count
    found = np.zeros((3, 3))
    np.add.at(found, (votes.first, votes.second), votes.value)
    np.add.at(found, (votes.second, votes.first), 1 - votes.value)
    assert np.array_equal(found, expected)


def test_a_completion_that_comes_again_keeps_its_number() -> None:
    said = [judge("1", (C, A), (1, 2)), judge("2", (A2, B), (1, 2))]
    votes = pair_votes(said, [B, A, B, C, A, A2])
    assert votes.shown.tolist() == [[2, 1], [3, 0]]
    assert rows(votes) == [(1, 2, 0.0, False, 0), (0, 1, 0.0, False, 0)]


@pytest.mark.parametrize("missing", [C.id, "no identifier"])
def test_a_completion_that_is_not_there(missing: str) -> None:
    odd = judge("odd", (A, C), (1, 2)).model_copy(update={"shown": (A.id, missing)})
    with pytest.raises(ValueError, match=rf"judgement 'odd' shows completion '{missing}', which is missing"):
        pair_votes([judge("fine", (A, B), (1, 2)), odd], [A, B])
    with pytest.raises(ValueError, match=f"'{A.id}', which is missing"):
        pair_votes([odd], [])


@pytest.mark.parametrize("ids", [("one", "two"), ("00" * 16, "")])
def test_prompts_have_any_names(ids: tuple[str, str]) -> None:
    """In the order in which they come; records that others made are not of a store."""
    said = [judge(str(n), (A, B), (1, 2)).model_copy(update={"prompt_id": ids[n % 2]}) for n in range(3)]
    assert pair_votes(said, [A, B]).prompt.tolist() == [0, 1, 0]


def test_the_same_texts_of_another_prompt_are_other_answers() -> None:
    other = Prompt.of("Another")
    a, b = (Completion(prompt_id=other.id, text=text, origin="o") for text in "ab")
    elsewhere = judge("2", (a, b), (1, 2)).model_copy(update={"prompt_id": other.id})
    votes = pair_votes([judge("1", (A, B), (1, 2)), elsewhere], [A, B, a, b])
    assert votes.pair.tolist() == [0, 1]
    assert votes.prompt.tolist() == [0, 1]
