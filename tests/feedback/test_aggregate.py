"""Aggregation against a count by hand, and snapshots that say what they contain."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.feedback.aggregate import Comparison, Ranking, comparisons, read_snapshot, snapshot
from prefloop.feedback.frozen import Frozen
from prefloop.feedback.records import BEST_ONLY, Completion, Judgement, Prompt, dense_ranks
from prefloop.feedback.store import Store

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PROMPT = Prompt.of("Q")


def answer(text: str, origin: str = "o", prompt: Prompt = PROMPT) -> Completion:
    return Completion(prompt_id=prompt.id, text=text, origin=origin)


A, B, C = (answer(text) for text in "abc")


def judge(id: str, shown: tuple[Completion, ...], ranks: tuple[int, ...], **fields: Any) -> Judgement:
    base: dict[str, Any] = {
        "id": id,
        "prompt_id": shown[0].prompt_id,
        "annotator": "ann",
        "source": "human",
        "shown": tuple(completion.id for completion in shown),
        "ranks": ranks,
        "created": NOON,
    }
    return Judgement(**{**base, **fields})


def compare(*judgements: Judgement, weights: dict[str, float] | None = None) -> list[Comparison]:
    return comparisons([PROMPT], [A, B, C], judgements, weights)


def test_a_ranking_gives_all_its_pairs() -> None:
    (made,) = compare(judge("1", (C, A, B), (1, 2, 2)))
    assert made.texts == ("a", "b", "c")
    assert made.completion_ids == (A.id, B.id, C.id)
    assert made.wins == ((0, 1, 0.5), (1, 0, 0.5), (2, 0, 1.0), (2, 1, 1.0))


def test_the_best_of_three_says_nothing_about_the_others() -> None:
    (made,) = compare(judge("1", (C, A, B), (1, 2, 2), flags=(BEST_ONLY,)))
    assert made.wins == ((2, 0, 1.0), (2, 1, 1.0))


def test_who_finds_all_of_them_best_says_so_beside_others_votes() -> None:
    """No pair tells it, and answers that no pair tells of had no place."""
    all_best = judge("1", (C, A, B), (1, 1, 1), flags=(BEST_ONLY,))
    assert compare(all_best) == []
    (made,) = compare(all_best, judge("2", (A, B), (1, 2), annotator="Bo"))
    assert made.texts == ("a", "b", "c")
    assert made.wins == ((0, 1, 1.0),)
    assert made.rankings == (Ranking(((0,), (1,)), 1.0), Ranking(((0, 1, 2),), 1.0, best_only=True))


def test_votes_add_up_with_weights() -> None:
    said = [
        judge("1", (A, B), (1, 2)),
        judge("2", (B, A), (2, 1), annotator="Bo"),
        judge("3", (A, B), (2, 1), annotator="Cy"),
    ]
    (made,) = compare(*said)
    assert made.wins == ((0, 1, 2.0), (1, 0, 1.0))
    (made,) = compare(*said, weights={"Bo": 0.25, "Cy": 0.0})
    assert made.wins == ((0, 1, 1.25),)
    assert compare(said[2], weights={"Cy": 0}) == []


def test_a_judgement_weighs_what_it_and_its_annotator_weigh() -> None:
    said = [judge("1", (A, B), (1, 2)), judge("2", (A, B), (1, 2)), judge("3", (A, B), (2, 1), annotator="Bo")]
    made = comparisons([PROMPT], [A, B], said, {"ann": 0.5}, {"1": 3.0, "3": 0.25})
    assert made[0].wins == ((0, 1, 2.0), (1, 0, 0.25))
    assert made[0].rankings == (Ranking(((0,), (1,)), 2.0), Ranking(((1,), (0,)), 0.25))
    assert comparisons([PROMPT], [A, B], said[:1], None, {"1": 0.0}) == []
    with pytest.raises(ValueError, match="the weight of '2' is -1"):
        comparisons([PROMPT], [A, B], said, None, {"2": -1.0})


# Rankings


def test_what_was_said_is_kept_beside_the_votes() -> None:
    (made,) = compare(
        judge("1", (C, A, B), (1, 2, 2), strength=3),
        judge("2", (B, C), (1, 2)),
        judge("3", (A, C, B), (2, 1, 2), strength=3, annotator="Bo"),
        judge("4", (A, B, C), (2, 2, 1), flags=(BEST_ONLY,)),
        judge("5", (A, B), (1, 1), flags=(BEST_ONLY,)),
        weights={"Bo": 0.5},
    )
    assert made.rankings == (
        Ranking(((0, 1),), 1.0),  # of two, nothing is left unsaid
        Ranking(((1,), (2,)), 1.0),
        Ranking(((2,), (0, 1)), 1.0, best_only=True),
        Ranking(((2,), (0, 1)), 1.5, strength=3),
    )


def test_of_equal_texts_the_best_place_counts_in_a_ranking() -> None:
    again, other = answer("a", origin="again"), answer("a", origin="other")
    (made,) = comparisons([PROMPT], [A, B, C, again], [judge("1", (C, B, A, again), (1, 3, 2, 4))])
    assert [ranking.tiers for ranking in made.rankings] == [((2,), (0,), (1,))]
    assert comparisons([PROMPT], [A, again, other], [judge("1", (A, again, other), (1, 2, 3))]) == []


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[Completion], list[Judgement]]:
    texts = draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=6))
    pool = [answer(text, origin=str(i)) for i, text in enumerate(texts)]
    made = []
    for i in range(draw(st.integers(1, 5))):
        shown = draw(st.lists(st.sampled_from(pool), min_size=2, unique_by=lambda answer: answer.id))
        values = draw(st.lists(st.integers(0, 2), min_size=len(shown), max_size=len(shown)))
        annotator = draw(st.sampled_from(["x", "y"]))
        made.append(judge(str(i), tuple(shown), dense_ranks(values), annotator=annotator))
    return pool, made


@given(judged(), st.randoms(use_true_random=False))
def test_against_a_loop_over_everything(case: tuple[list[Completion], list[Judgement]], random: Any) -> None:
    pool, said = case
    weight = {"x": 0.3, "y": 1.0}
    text = {completion.id: completion.text for completion in pool}
    expected: dict[tuple[str, str], float] = {}
    for judgement in said:
        for i in range(len(judgement.shown)):
            for j in range(len(judgement.shown)):
                one, other = text[judgement.shown[i]], text[judgement.shown[j]]
                if one == other or judgement.ranks[i] > judgement.ranks[j]:
                    continue
                vote = 1.0 if judgement.ranks[i] < judgement.ranks[j] else 0.5
                expected[one, other] = expected.get((one, other), 0.0) + vote * weight[judgement.annotator]
    made = comparisons([PROMPT], pool, said, {"x": 0.3})
    if not expected:
        assert made == []
        return
    (only,) = made
    assert {(only.texts[i], only.texts[j]): votes for i, j, votes in only.wins} == pytest.approx(expected)
    assert len(set(only.texts)) == len(only.texts) >= 2
    assert [text[key] for key in only.completion_ids] == list(only.texts)
    for ranking in only.rankings:
        places = [place for tier in ranking.tiers for place in tier]
        assert len(set(places)) == len(places) >= 2
    shown = [{text[key] for key in judgement.shown} for judgement in said]
    weights = [weight[judgement.annotator] for judgement in said]
    assert sum(ranking.weight for ranking in only.rankings) == pytest.approx(
        sum(w for texts, w in zip(shown, weights, strict=True) if len(texts) > 1)
    )
    random.shuffle(said)
    random.shuffle(pool)
    assert comparisons([PROMPT], pool, said, {"x": 0.3}) == made, "the order of the records does not matter"


def test_one_comparison_for_each_prompt_in_the_order_of_ids() -> None:
    prompts = [Prompt.of(str(i)) for i in range(9)]
    answers = [answer(text, prompt=prompt) for prompt in prompts for text in "xy"]
    said = [judge(str(i), (answers[2 * i], answers[2 * i + 1]), (1, 2)) for i in range(1, 9)]
    made = comparisons(prompts, answers, said)
    assert [comparison.prompt for comparison in made] == sorted(prompts[1:], key=lambda prompt: prompt.id)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="criteria"):
        compare(judge("1", (A, B), (1, 2)), judge("2", (A, B), (1, 2), criterion="harm"))
    with pytest.raises(ValueError, match=r"shows completion .* missing"):
        comparisons([PROMPT], [A], [judge("1", (A, B), (1, 2))])
    with pytest.raises(ValueError, match="about prompt"):
        comparisons([], [A, B], [judge("1", (A, B), (1, 2))])
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight of 'ann'"):
            compare(weights={"ann": weight})


# Snapshots


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield store


SAID = [judge("1", (A, B), (1, 2), reason="é\u2028"), judge("2", (B, C, A), (1, 2, 2), seconds=2.5)]


def test_the_hash_is_of_what_was_said(store: Store, tmp_path: Path) -> None:
    store.add([PROMPT, A, B, C, *SAID, judge("harm", (A, B), (1, 2), criterion="harm")])
    frozen = snapshot(store, "overall")
    assert len(frozen.judgements) == 2
    # The same things said again in another order, at other times, with other ids, of other origin.
    a, b, c = (answer(text, origin="elsewhere") for text in "abc")
    again = [
        judge("y", (b, c, a), (1, 2, 2), seconds=9.0, created=NOON + timedelta(1)),
        judge("z", (a, b), (1, 2), reason="é\u2028"),
    ]
    with Store.open(tmp_path / "other.db") as other:
        other.add([PROMPT, c, b, a, *again])
        assert snapshot(other, "overall").hash == frozen.hash
        other.add([judge("more", (a, b), (1, 2))])
        assert snapshot(other, "overall").hash != frozen.hash


@pytest.mark.parametrize(
    "fields",
    [
        {"annotator": "x"},
        {"ranks": (2, 1)},
        {"strength": 2},
        {"flags": ("unsafe",)},
        {"source": "ai"},
        {"reason": ""},
    ],
)
def test_the_hash_follows_the_content(store: Store, fields: dict[str, Any]) -> None:
    store.add([PROMPT, A, B, C, *SAID])
    before = snapshot(store, "overall").hash
    store.add([SAID[0].model_copy(update={"id": "new", "supersedes": "1"})])
    assert snapshot(store, "overall").hash == before, "a correction that changes nothing"
    store.add([SAID[0].model_copy(update={"id": "newer", "supersedes": "new", **fields})])
    assert snapshot(store, "overall").hash != before


def test_only_some_completions(store: Store) -> None:
    store.add([PROMPT, A, B, C, *SAID])
    frozen = snapshot(store, "overall", completion_ids=[A.id, B.id])
    assert frozen.judgements == (SAID[0],)
    assert [completion.id for completion in frozen.completions] == sorted([A.id, B.id])
    assert snapshot(store, "nothing").judgements == ()


def test_written_and_read(store: Store, tmp_path: Path) -> None:
    store.add([PROMPT, A, B, C, *SAID])
    frozen = snapshot(store, "overall")
    frozen.write(path := tmp_path / "snapshot.jsonl")
    read = read_snapshot(path)
    assert read == frozen
    assert read.hash == frozen.hash
    assert read.comparisons() == comparisons([PROMPT], [A, B, C], SAID)


@pytest.mark.parametrize("read", [read_snapshot, Frozen])
def test_a_changed_file_is_noticed(store: Store, tmp_path: Path, read: Callable[[Path], Any]) -> None:
    store.add([PROMPT, A, B, C, *SAID])
    snapshot(store, "overall").write(path := tmp_path / "snapshot.jsonl")
    text = path.read_text(encoding="utf-8")
    for changed, message in [
        (text.replace('"ranks":[1,2]', '"ranks":[2,1]'), "was changed"),
        (text.replace('"text":"a"', '"text":"x"'), r"(?s)line 4.* does not belong"),
        (text[: text[:-1].rindex("\n") + 1], "was changed"),
        (text + text[text[:-1].rindex("\n") + 1 :], "was changed"),
        ("\n".join(line for line in text.split("\n") if '{"prompt":' not in line), "is missing"),
        (text[:-20], "not a record of a snapshot"),
        (text.replace('"snapshot": 1', '"snapshot": 2'), "format 2"),
        (text[text.index("\n") + 1 :], "not a snapshot"),
        ("", "not a snapshot"),
    ]:
        assert changed != text
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read(path)
