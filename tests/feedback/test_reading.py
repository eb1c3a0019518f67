"""Judgements as columns are what the records say, on both databases, whatever was corrected."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from prefloop.feedback.features import features
from prefloop.feedback.pairs import PairVotes, pair_votes
from prefloop.feedback.reading import Answers, read
from prefloop.feedback.records import BEST_ONLY, CANNOT_JUDGE, Completion, Judgement, Prompt, dense_ranks
from prefloop.feedback.store import Store

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def fill(store: Store, seed: int) -> list[Judgement]:
    """Rankings of up to four by two criteria; some flagged, some corrected, some taken back."""
    rng = np.random.default_rng(seed)
    said: list[Judgement] = []
    for number in range(40):
        prompt = Prompt.of(f"p\0{number}")
        answers = [
            Completion(prompt_id=prompt.id, text=f"{k}\n- ü\0", origin=f"o{(number + k) % 3}") for k in range(4)
        ]
        twin = Completion(prompt_id=prompt.id, text=answers[0].text, origin="o9")  # the same answer, by another
        answers[3:] = [twin] if number % 2 else answers[3:]
        store.add([prompt, *answers])
        for who in range(3):
            shown = tuple(answers[k].id for k in rng.permutation(4)[: rng.integers(2, 5)])
            flags = tuple(flag for flag in (BEST_ONLY, CANNOT_JUDGE, "unsafe") if rng.random() < 0.2)
            said.append(
                Judgement(
                    id=f"{number} {who}",
                    prompt_id=prompt.id,
                    annotator=f"annotator {who}",
                    source="human",
                    shown=shown,
                    ranks=dense_ranks(rng.integers(0, 3, len(shown)).tolist()),
                    criterion=("tone", "overall")[int(rng.integers(2))],
                    flags=flags,
                    seconds=None if rng.random() < 0.3 else float(rng.random()),
                    created=NOON + timedelta(hours=number),
                )
            )
            if rng.random() < 0.2:
                changes = {"id": said[-1].id + "'", "supersedes": said[-1].id, "retracted": bool(rng.random() < 0.5)}
                said.append(said[-1].model_copy(update=changes))
    store.add(said)
    return list(store.judgements())


def same(one: PairVotes, other: PairVotes) -> None:
    assert len(one) > 20
    for name, column in vars(one).items():
        assert np.array_equal(column, getattr(other, name)), name


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_what_the_records_say(store: Store, seed: int) -> None:
    judgements = fill(store, seed)
    assert any(one.supersedes for one in judgements)
    for criterion in (None, "tone"):
        rows = [row for page in store.judgement_rows(criterion) for row in page]
        there = [one for one in judgements if criterion in (None, one.criterion)]
        assert [row[1] for row in rows] == [one.id for one in there]
        for (_, _, *texts, seconds, created), one in zip(rows, there, strict=True):
            assert texts[:3] == [one.prompt_id, one.annotator, one.source]
            assert texts[5] == one.criterion
            assert [tuple(json.loads(texts[k])) for k in (3, 4, 6)] == [one.shown, one.ranks, one.flags]
            assert (seconds, datetime.fromisoformat(created)) == (one.seconds, one.created)
    completions = [tuple(row)[1:] for page in store.completion_rows() for row in page]
    assert completions == [(one.id, one.prompt_id, one.text, one.origin) for one in store.completions()]


@pytest.mark.parametrize("seed", [2, 3])
def test_the_votes_of_one_criterion_are_those_of_its_judgements_alone(store: Store, seed: int) -> None:
    judgements, completions = fill(store, seed), list(store.completions())
    gold = {one.id: one.ranks[::-1] for one in judgements[::3]}
    answers = Answers.read(store)
    said = read(store, answers, None, gold, {})
    assert len(said) == len(judgements)
    for number, name in enumerate(said.criterion.names):
        there = [one for one in judgements if one.criterion == name]
        mine = said.by(number)
        same(mine.votes(answers.numbered), pair_votes(there, completions, gold))
        words = {one.id: features(one.text)[0] for one in completions}
        assert mine.words(answers.words).tolist() == [sum(words[key] for key in one.shown) for one in there]
        assert np.isnan(mine.right()[[one.id not in gold for one in there]]).all()
        assert [mine.day.names[k] for k in mine.day.number] == [one.created.date().isoformat() for one in there]


def test_gold_that_does_not_fit_and_an_answer_that_is_missing_are_named(store: Store) -> None:
    judgements = fill(store, 0)
    wrong = judgements[3]
    with pytest.raises(ValueError, match=rf"judgement '{wrong.id}' shows {len(wrong.shown)} answers and has 9 gold"):
        read(store, Answers.read(store), None, {wrong.id: (1,) * 9}, {})
    with pytest.raises(ValueError, match=rf"judgement '{judgements[0].id}' shows completion .* missing"):
        read(store, Answers(), None, {}, {})
