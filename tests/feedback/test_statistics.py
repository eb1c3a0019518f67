"""The whole tree of figures, from a store: counts by hand, simulated annotators of known faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.feedback.queues import fill as fill_queue
from tests.feedback.queues import given, send

from prefloop.feedback.assignment import Queue
from prefloop.feedback.pairs import pair_votes
from prefloop.feedback.records import CANNOT_JUDGE, Completion, Judgement, Prompt
from prefloop.feedback.reliability import annotator_weights
from prefloop.feedback.statistics import Statistics, statistics
from prefloop.feedback.store import Store
from prefloop.labelers.simulated import Annotator, assign, judge

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as opened:
        yield opened


def worth(_: str, answer: str) -> float:
    return float(answer.split()[0])


def questions(n: int, seed: int = 0) -> list[tuple[Prompt, list[Completion]]]:
    """Each answer says what it is worth; lengths have nothing to do with it."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        prompt = Prompt.of(f"question {number}")
        texts = [f"{rng.uniform(0, 0.4) + 0.05 * k:.4f}" + " word" * int(rng.integers(5, 60)) for k in range(2)]
        found.append((prompt, [Completion(prompt_id=prompt.id, text=t, origin=f"m{k}") for k, t in enumerate(texts)]))
    return found


PANEL = (
    Annotator("careful", reliability=0.98, temperature=0.05),
    Annotator("average", reliability=0.92, temperature=0.1),
    Annotator("likes-long", reliability=0.95, temperature=0.1, length_bias=4.0),
    Annotator("likes-left", reliability=0.95, temperature=0.1, position_bias=2.0),
    Annotator("clicks", reliability=0.0, words_per_minute=5000),
)


def fill(store: Store, n: int, overlap: int, seed: int = 0) -> list[Judgement]:
    items = questions(n, seed)
    store.add([record for prompt, answers in items for record in (prompt, *answers)])
    said = [judge(one, p, answers, worth, seed) for (p, answers), one in assign(items, PANEL, overlap, seed)]
    store.add(said)
    return said


def test_a_panel_of_known_faults_is_seen_through(tmp_path: Path) -> None:
    found_leanings, false_leanings = 0, 0
    for seed in range(4):
        with Store.open(tmp_path / f"{seed}.db") as store:
            said = fill(store, 600, 3, seed)
            (found,) = statistics(store).criteria
            weights = annotator_weights(pair_votes(said, list(store.completions())))
        assert (found.name, found.judgements, found.votes, found.pairs) == ("overall", 1800, 1800, 600)
        assert found.shared == 600
        by_name = {one.name: one for one in found.annotators}
        assert [name for name, one in by_name.items() if one.suspicions] == ["clicks"]
        reasons = [reason.split(":")[0] for reason in by_name["clicks"].suspicions]
        assert reasons == ["answers like a coin", "too fast to read"]
        assert by_name["clicks"].weight < 0.5 < 1.0 < by_name["careful"].weight
        assert found.agreement.alpha is not None
        assert {name: one.weight for name, one in by_name.items()} == pytest.approx(
            {name: weight for name, (weight, _) in weights.items()}
        )
        found_leanings += any("first" in text for text in by_name["likes-left"].leanings)
        found_leanings += any("longer" in text for text in by_name["likes-long"].leanings)
        false_leanings += bool(by_name["careful"].leanings)
    # What 95 % intervals say is now and then wrong, and an effect now and then missed.
    assert found_leanings >= 6
    assert false_leanings <= 1


def test_the_question_between_two_origins(store: Store) -> None:
    fill(store, 200, 2)
    (question,) = statistics(store).criteria[0].questions
    assert (question.one, question.other) == ("m0", "m1")
    assert question.win_rate["n"] == 400
    assert question.win_rate["value"] < 0.5  # m1's answers are worth 0.05 more
    assert question.needed.answered == (question.win_rate["high"] < 0.5)


def pair(number: int) -> tuple[Prompt, Completion, Completion]:
    prompt = Prompt.of(f"p{number}")
    return prompt, *(Completion(prompt_id=prompt.id, text=t, origin="o") for t in (f"good {number}", f"bad {number}"))


def say(id: str, shown: tuple[Completion, Completion], ranks: tuple[int, int], **fields: Any) -> Judgement:
    base: dict[str, Any] = {"annotator": "ann", "source": "human", "created": NOON}
    ids = tuple(completion.id for completion in shown)
    return Judgement(id=id, prompt_id=shown[0].prompt_id, shown=ids, ranks=ranks, **(base | fields))


def small(store: Store) -> Statistics:
    """Three prompts, two people, two criteria, a correction, a tie and somebody who could not judge."""
    prompts = [pair(k) for k in range(3)]
    store.add([record for trio in prompts for record in trio])
    (_, a, b), (_, c, d), (_, e, f) = prompts
    store.add(
        [
            say("1", (a, b), (1, 2), seconds=10.0),
            say("2", (b, a), (2, 1), annotator="bo", seconds=20.0, created=NOON + timedelta(days=1)),
            say("3", (c, d), (1, 1), flags=("unsafe",), seconds=30.0),
            say("4", (c, d), (2, 1), annotator="bo"),
            say("5", (c, d), (1, 2), annotator="bo", supersedes="4"),
            say("6", (e, f), (1, 2), flags=(CANNOT_JUDGE, "unsafe")),
            say("7", (a, b), (1, 2), criterion="tone"),
        ]
    )
    gold = {"1": (1, 2), "2": (1, 2), "3": (1, 2)}
    return statistics(store, gold=gold, skips={"bo": 4})


def test_everything_is_counted_as_by_hand(store: Store) -> None:
    found = small(store)
    totals = found.totals
    assert (totals.prompts, totals.completions, totals.events, totals.judgements, totals.annotators) == (
        3,
        6,
        7,
        6,
        2,
    )
    assert found.flags == {CANNOT_JUDGE: 1, "unsafe": 2}
    days = [(day.date, day.annotator, day.sends) for day in found.days]
    # "1" and "7" were said of the same answers in the same moment, by two criteria.
    assert days == [("2026-01-01", "ann", 3), ("2026-01-01", "bo", 1), ("2026-01-02", "bo", 1)]
    overall, tone = found.criteria
    assert (overall.name, tone.name, tone.judgements) == ("overall", "tone", 1)
    assert (overall.judgements, overall.cannot_judge, overall.votes, overall.pairs, overall.shared) == (5, 1, 4, 2, 2)
    assert overall.ties == 0.25
    ann, bo = overall.annotators
    assert (ann.name, ann.judgements, ann.skips, ann.seconds, ann.ties) == ("ann", 3, 0, 20.0, 0.5)
    assert (bo.judgements, bo.skips, bo.seconds) == (2, 4, 20.0)
    assert ann.words_per_minute == pytest.approx((60 * 4 / 10 + 60 * 4 / 30) / 2)
    assert ann.gold is not None
    assert bo.gold is not None
    assert (ann.gold["value"], ann.gold["n"]) == (0.75, 2)
    assert (bo.gold["value"], bo.gold["n"]) == (0.0, 1)  # the right answer is the other one
    assert ann.agreement is not None
    assert (ann.agreement["value"], ann.agreement["n"]) == (0.75, 2)
    assert bo.left is not None
    assert (bo.left["value"], bo.left["n"]) == (0.5, 2)
    assert overall.agreement.raw is not None
    assert overall.agreement.raw["value"] == 0.5
    assert any("2 pairs were judged by two" in text for text in overall.advice)


def test_a_send_by_two_criteria_counts_once(store: Store) -> None:
    items = fill_queue(store, 3)
    queue = Queue(store)
    queue.open_batch("batch", criteria=("overall", "tone"))
    queue.add_items("batch", items)
    for number in range(2):
        send(queue, "ana", given(queue, "ana"), flags=("unsafe", "nonsense")[: 1 + number])
    prompt, a, b = pair(9)  # without a task; twice the same in one moment, by one criterion
    store.add([prompt, a, b, *(say(id, (a, b), (1, 2), flags=("unsafe",)) for id in ("1", "2"))])
    store.add([say("3", (a, b), (1, 2), criterion="tone"), say("4", (b, a), (1, 2), criterion="tone")])
    found = statistics(store)
    assert (found.totals.judgements, found.totals.sends) == (8, 5)
    assert found.flags == {"nonsense": 1, "unsafe": 4}
    assert sorted((day.annotator, day.sends) for day in found.days) == [("ana", 2), ("ann", 3)]
    assert [one.judgements for one in found.criteria] == [4, 4]
    assert [one.annotators[0].seconds for one in found.criteria] == [2.0, 2.0]
    tone = statistics(store, "tone")
    assert (tone.totals.sends, tone.flags) == (4, {"nonsense": 1, "unsafe": 2})


def test_the_figures_are_json(store: Store) -> None:
    found = small(store)
    read = json.loads(found.to_json())
    assert read["criteria"][0]["annotators"][0]["name"] == "ann"
    assert read["criteria"][1]["agreement"]["alpha"] is None
    assert read["criteria"][0]["bias"]["position"].keys() == {"value", "low", "high", "n"}


def test_one_criterion_and_none(store: Store) -> None:
    small(store)
    assert [one.name for one in statistics(store, "tone").criteria] == ["tone"]
    with pytest.raises(ValueError, match="no judgements by the criterion 'tune'"):
        statistics(store, "tune")


def test_an_empty_store_and_one_in_which_nobody_could_judge(store: Store) -> None:
    found = statistics(store)
    assert (found.totals.judgements, found.criteria, found.days) == (0, (), ())
    prompt, a, b = pair(0)
    store.add([prompt, a, b, say("1", (a, b), (1, 2), flags=(CANNOT_JUDGE,))])
    (one,) = statistics(store).criteria
    assert (one.votes, one.ties, one.bias, one.spread, one.questions) == (0, None, None, None, ())
    assert one.annotators[0].weight == 1.0
    json.loads(statistics(store).to_json())


def test_what_was_sampled_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 100, 2)
    assert statistics(store).criteria[0].sampled == ()
    monkeypatch.setattr("prefloop.feedback.statistics.MOST_VOTES", 100)
    monkeypatch.setattr("prefloop.feedback.reliability.MOST_VOTES", 120)
    told = statistics(store).criteria[0].sampled
    assert [text.split(":")[0] for text in told] == ["bias", "reliability"]
    assert all(text.endswith("of 200 votes") for text in told)
