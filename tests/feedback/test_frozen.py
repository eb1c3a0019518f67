"""Comparisons that are read from a snapshot's file when they are asked for are those that it holds."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.memory import peak

from prefloop.feedback import frozen
from prefloop.feedback.aggregate import Snapshot, read_snapshot, snapshot
from prefloop.feedback.elsewhere import chosen, prompts_of
from prefloop.feedback.frozen import Frozen
from prefloop.feedback.records import BEST_ONLY, CANNOT_JUDGE, Completion, Judgement, Prompt, dense_ranks
from prefloop.feedback.store import AnyRecord, Store

ANNOTATORS = ("ann", "bob", "Zoë", "nobody")
WEIGHTS = ({}, {"ann": 0.3, "bob": 1.7}, {"ann": 0.0}, {"ann": 0.0, "bob": 0.0, "Zoë": 0.0, "nobody": 0.1})


def said(seed: int, prompts: int = 40, length: int = 3) -> Iterator[AnyRecord]:
    """Judgements of all kinds: ties, rankings, equal texts, several annotators, nothing to tell apart."""
    draw = random.Random(seed)
    for number in range(prompts):
        prompt = Prompt.of(
            "One more.\n" * draw.randint(0, 1) + f"Why {number}?\0\u2028",
            split=draw.choice((None, "train", "heldout")),
        )
        texts = [draw.choice(("a", "b", "c", "é", "d\n", "long")) * length for _ in range(draw.randint(2, 5))]
        answers = [
            Completion(prompt_id=prompt.id, text=text, origin=f"model {place}") for place, text in enumerate(texts)
        ]
        yield from (prompt, *answers)
        for which in range(draw.randint(0, 4)):
            shown = draw.sample(answers, draw.randint(2, len(answers)))
            flag = draw.choice(("", "", BEST_ONLY, CANNOT_JUDGE))
            liked = [place == 0 if flag == BEST_ONLY else draw.randint(1, 3) for place in range(len(shown))]
            yield Judgement(
                id=f"{seed}-{number}-{which}",
                prompt_id=prompt.id,
                annotator=draw.choice(ANNOTATORS),
                source="human",
                shown=tuple(answer.id for answer in shown),
                ranks=dense_ranks(liked),
                strength=draw.choice((None, 1, 4)),
                flags=(flag,) if flag else (),
            )


def written(store: Store, path: Path, seed: int, **how: int) -> Snapshot:
    store.add(said(seed, **how))
    found = snapshot(store, "overall")
    found.write(path)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_comparisons_are_those_of_the_snapshot_in_their_order(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(frozen, "AT_ONCE", 7)
    whole = written(store, path := tmp_path / "snapshot.jsonl", seed)
    read = Frozen(path)
    for weights in WEIGHTS:
        found, wanted = read.comparisons(weights), whole.comparisons(weights)
        assert [*found] == wanted
        assert len(found) == len(wanted) > 0
        assert list(prompts_of(found)) == [(one.prompt.id, one.prompt.split) for one in wanted]
        assert list(prompts_of(found)) == list(prompts_of(wanted))
    assert len({len(read.comparisons(weights)) for weights in WEIGHTS}) > 1


def test_some_of_them(store: Store, tmp_path: Path) -> None:
    wanted = written(store, path := tmp_path / "snapshot.jsonl", 0).comparisons()
    found = Frozen(path).comparisons()
    assert (found[3], found[-1]) == (wanted[3], wanted[-1])
    assert [*found[2:9:3]] == wanted[2:9:3]
    for some in ([5, 1, 1], []):
        assert [*chosen(found, some)] == chosen(wanted, some) == [wanted[index] for index in some]
        assert [*prompts_of(chosen(found, some))] == [(wanted[i].prompt.id, wanted[i].prompt.split) for i in some]
    with pytest.raises(IndexError):
        found[len(found)]


def test_the_order_of_the_lines_says_nothing(store: Store, tmp_path: Path) -> None:
    wanted = written(store, path := tmp_path / "snapshot.jsonl", 1).comparisons()
    header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    random.Random(0).shuffle(lines)
    path.write_text("\n".join([header, *lines]), encoding="utf-8")
    assert [*Frozen(path).comparisons()] == read_snapshot(path).comparisons() == wanted


def test_weights_are_checked(store: Store, tmp_path: Path) -> None:
    written(store, path := tmp_path / "snapshot.jsonl", 0)
    with pytest.raises(ValueError, match="the weight of 'ann' is -1"):
        Frozen(path).comparisons({"ann": -1.0})


def test_nobody_judged(store: Store, tmp_path: Path) -> None:
    snapshot(store, "overall").write(path := tmp_path / "snapshot.jsonl")
    assert [*Frozen(path).comparisons()] == [*prompts_of(Frozen(path).comparisons())] == []


def test_a_file_that_is_replaced_is_read_on(store: Store, tmp_path: Path) -> None:
    wanted = written(store, path := tmp_path / "snapshot.jsonl", 2).comparisons()
    found = Frozen(path).comparisons()
    path.unlink()
    path.write_text("something else", encoding="utf-8")
    assert [*found] == wanted


def test_the_file_is_closed_when_nobody_reads_it_any_more(store: Store, tmp_path: Path) -> None:
    written(store, path := tmp_path / "snapshot.jsonl", 3)

    def opened() -> int:
        gc.collect()
        return sum(one.resolve() == path.resolve() for one in Path("/proc/self/fd").iterdir() if one.exists())

    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not list what is open")
    found = Frozen(path).comparisons()
    assert opened() == 1
    del found
    assert opened() == 0


def test_no_texts_are_kept(store: Store, tmp_path: Path) -> None:
    """Peaks of texts of 3 and of 10,000 characters differ by some of the latter, not by the 1.5 million of all."""
    peaks = []
    for length in (1, 3, 10_000):
        path = tmp_path / f"{length}.jsonl"
        with Store.open(tmp_path / f"{length}.db") as own:
            written(own, path, 4, length=length)
        assert path.stat().st_size > 100 * length
        peaks.append(peak(lambda path=path: [len(one.wins) for one in Frozen(path).comparisons()]))
    assert peaks[2] < peaks[1] + 60 * 10_000
