"""A snapshot whose records stay in the store is the one that is made with all of them in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.memory import peak

from prefloop.feedback import elsewhere, freezing, stored
from prefloop.feedback import store as store_module
from prefloop.feedback.aggregate import Snapshot, read_snapshot, snapshot
from prefloop.feedback.elsewhere import chosen, prompts_of
from prefloop.feedback.freezing import StoredSnapshot, freeze
from prefloop.feedback.records import BEST_ONLY, CANNOT_JUDGE, Completion, Judgement, Prompt, dense_ranks
from prefloop.feedback.store import AnyRecord, Store

START = datetime(2026, 3, 1, tzinfo=UTC)


def everything(seed: int, prompts: int = 30) -> Iterator[AnyRecord]:
    """Judgements of all kinds, about answers some of which nobody looked at: rankings, ties, equal texts, flags,
    strengths, reasons, several criteria, sources and annotators, corrections and what was undone."""
    draw = random.Random(seed)
    for number in range(prompts):
        prompt = Prompt.of(
            f"Why {number} of {seed}?\0\u2028", split=draw.choice((None, "train", "heldout")), metadata={"n": 1}
        )
        texts = [draw.choice(("a", "b", "é", "d\n", "\U0001f600")) for _ in range(draw.randint(2, 5))]
        answers = [
            Completion(prompt_id=prompt.id, text=text, origin=f"model {place}") for place, text in enumerate(texts)
        ]
        yield from (prompt, *answers)
        made = [judgement(draw, f"{seed}-{number}-{which}", answers) for which in range(draw.randint(0, 4))]
        yield from made
        yield from (one.model_copy(update={"id": f"{n}{one.id}"}) for one in made[:1] for n in "b2a"[: number % 4])
        if len(made) > 2:
            yield made[1].model_copy(update={"id": f"later {made[1].id}", "supersedes": made[1].id, "reason": "no"})
            yield made[2].model_copy(update={"id": f"gone {made[2].id}", "supersedes": made[2].id, "retracted": True})


def judgement(draw: random.Random, id: str, answers: list[Completion]) -> Judgement:
    shown = draw.sample(answers, draw.randint(2, len(answers)))
    flag = draw.choice(("", "", BEST_ONLY, CANNOT_JUDGE))
    liked = [place == 0 if flag == BEST_ONLY else draw.randint(1, 3) for place in range(len(shown))]
    return Judgement(
        id=id,
        prompt_id=answers[0].prompt_id,
        annotator=draw.choice(("ann", "bob", "Zoë")),
        source=draw.choice(("human", "simulated", "imported")),
        shown=tuple(answer.id for answer in shown),
        ranks=dense_ranks(liked),
        strength=draw.choice((None, 1, 4)),
        criterion=draw.choice(("overall", "overall", "tone")),
        flags=(flag,) if flag else (),
        reason=draw.choice(("", "so")),
        created=START + timedelta(microseconds=draw.randint(0, 40), days=draw.randint(-30_000, 3) // 2),
    )


def same(found: StoredSnapshot, wanted: Snapshot, folder: Path) -> None:
    """In every respect, the file included."""
    assert (found.hash, found.criterion) == (wanted.hash, wanted.criterion)
    assert [*found.prompts] == [*wanted.prompts]
    assert [*found.completions] == [*wanted.completions]
    assert [*found.judgements] == [*wanted.judgements]
    assert [*found.by_time()] == sorted(wanted.judgements, key=lambda one: one.created)
    assert [found.annotator.names[k] for k in found.annotator.number] == [one.annotator for one in wanted.judgements]
    votes = [CANNOT_JUDGE not in one.flags for one in wanted.judgements]
    assert found.is_vote.tolist() == votes
    about = {one.prompt_id for one, vote in zip(wanted.judgements, votes, strict=True) if vote}
    assert [*found.voted_about()] == [(one.id, one.split) for one in wanted.prompts if one.id in about]
    compared = wanted.comparisons()
    assert [*found.comparisons()] == compared
    assert [*prompts_of(found.comparisons())] == [*prompts_of(compared)]
    for one, name in ((found, "found"), (wanted, "wanted")):
        one.write(folder / name)
    assert (folder / "found").read_bytes() == (folder / "wanted").read_bytes()
    assert read_snapshot(folder / "found") == wanted


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_is_made_with_everything_in_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    store.add(everything(seed))
    draw = random.Random(seed)
    some = [one.id for one in store.completions() if draw.random() < 0.8]
    for page in (7, 1000):
        for module in (elsewhere, freezing, store_module, stored):
            monkeypatch.setattr(module, "AT_ONCE", page)
        whole, part = snapshot(store, "overall"), snapshot(store, "overall", some)
        assert len(whole.judgements) > len(part.judgements) > 0
        same(freeze(store, "overall"), whole, tmp_path)
        same(freeze(store, "overall", some), part, tmp_path)
        same(freeze(store, "tone"), snapshot(store, "tone"), tmp_path)
    assert len({freeze(store, name).hash for name in ("overall", "tone")}) == 2
    keys = freeze(store, "overall").keys.tolist()
    assert len(keys) > len(set(keys)), "some say what others said, and are told apart by their ids"


@pytest.mark.parametrize("seed", range(4, 6))
def test_what_does_not_count_leaves_what_it_was_about(store: Store, tmp_path: Path, seed: int) -> None:
    store.add(everything(seed))
    wanted = snapshot(store, "overall")
    human = tuple(one for one in wanted.judgements if one.source == "human")
    found = freeze(store, "overall", counts=lambda one: one.source == "human")
    same_records = replace(wanted, judgements=human)
    assert 0 < len(found.judgements) < len(wanted.judgements)
    same(found, same_records, tmp_path)


def test_comparisons_are_made_when_they_are_asked_for(store: Store) -> None:
    """One by one, some of them, and in any order."""
    store.add(everything(10))
    found, wanted = freeze(store, "overall").comparisons(), snapshot(store, "overall").comparisons()
    assert len(found) == len(wanted) < len(freeze(store, "overall").prompts), "some say nothing"
    assert [found[k] for k in range(len(wanted))] == wanted
    assert [*found[3:9:2]] == wanted[3:9:2]
    some = random.Random(10).sample(range(len(wanted)), 7)
    assert [*chosen(found, some)] == [wanted[k] for k in some]
    assert [*prompts_of(chosen(found, some))] == [(wanted[k].prompt.id, wanted[k].prompt.split) for k in some]
    assert [*found[:0]] == [*chosen(found, [])] == []


def test_nobody_judged(store: Store, tmp_path: Path) -> None:
    store.add([Prompt.of("Why?")])
    same(freeze(store, "overall"), snapshot(store, "overall"), tmp_path)
    assert not freeze(store, "overall").judgements


def test_what_comes_later_is_not_in_it(store: Store, tmp_path: Path) -> None:
    """Nor is what is corrected later left out."""
    store.add(everything(7))
    wanted, found = snapshot(store, "overall"), freeze(store, "overall")
    first = wanted.judgements[0]
    store.add(everything(8))
    store.add([first.model_copy(update={"id": "gone", "supersedes": first.id, "retracted": True})])
    same(found, wanted, tmp_path)
    assert freeze(store, "overall").hash != found.hash


def used(frozen: StoredSnapshot | Snapshot, folder: Path) -> None:
    frozen.write(folder / "snapshot.jsonl")
    for _ in frozen.comparisons():
        pass


def test_few_bytes_of_a_judgement_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is frozen, written and compared; as records it costs some thousand."""
    for module in (elsewhere, freezing, store_module, stored):
        monkeypatch.setattr(module, "AT_ONCE", 50)
    peaks: list[int] = []
    judged: list[int] = []
    for prompts in (10, 100, 1000):
        with Store.open(tmp_path / f"{prompts}.db") as store:
            store.add(everything(9, prompts))
            judged.append(len(freeze(store, "overall").judgements))
            peaks.append(peak(lambda store=store: used(freeze(store, "overall"), tmp_path)))
            if prompts == 1000:
                records = peak(lambda store=store: used(snapshot(store, "overall"), tmp_path))
    assert judged[2] - judged[1] > 1000
    assert peaks[2] - peaks[1] < 400 * (judged[2] - judged[1]) < (records - peaks[1]) / 5
