"""Judging sheets: written for people to fill in, read back, mended by importing them again."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.formats.files import lines, say

from prefloop.feedback.formats import import_file, write_sheet
from prefloop.feedback.records import BEST_ONLY, Completion, Message, Prompt
from prefloop.feedback.store import Counts, Store


@pytest.fixture
def items(store: Store) -> list[tuple[Prompt, list[Completion]]]:
    talk = Prompt(
        messages=tuple(
            Message.model_validate(say(r, c)) for r, c in [("user", "a"), ("assistant", "b"), ("user", "c")]
        )
    )
    made = [
        (
            prompt,
            [Completion(prompt_id=prompt.id, text=f"{i}\n\u2028{n}", origin="policy-7") for n in range(k)],
        )
        for i, (prompt, k) in enumerate([(Prompt.of("Q1"), 2), (Prompt.of("Q2"), 3), (talk, 2), (Prompt.of("Q4"), 4)])
    ]
    for prompt, answers in made:
        store.add([prompt, *answers])
    return made


def fill(path: Path, choices: list[Any], annotator: str = "Ann") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row, choice in zip(rows, choices, strict=True):
        row |= {"choice": choice, "annotator": annotator}
    lines(path, *rows)
    return rows


def test_sheet_round_trip(tmp_path: Path, store: Store, items: list[tuple[Prompt, list[Completion]]]) -> None:
    path = tmp_path / "sheet.jsonl"
    assert write_sheet(path, items, criterion="harm") == 4
    assert "policy-7" not in path.read_text(encoding="utf-8"), "judges do not see what wrote an answer"
    rows = fill(path, ["2", "3", "", "4 > 1=2 > 3"])
    report = import_file(store, path)
    assert (report.format, report.rows, report.skipped) == ("sheet", 4, {"not judged": [3]})
    judged = list(store.judgements("harm"))
    assert [j.ranks for j in judged] == [(2, 1), (2, 2, 1), (2, 2, 3, 1)]
    assert [j.flags for j in judged] == [(), (BEST_ONLY,), ()]
    assert [list(j.shown) for j in judged] == [[a["id"] for a in rows[i]["answers"]] for i in (0, 1, 3)]
    assert {(j.source, j.annotator) for j in judged} == {("human", "Ann")}
    assert import_file(store, path).added == Counts()


def test_sheet_ties_and_numbers(tmp_path: Path, store: Store, items: list[tuple[Prompt, list[Completion]]]) -> None:
    write_sheet(path := tmp_path / "sheet.jsonl", items)
    fill(path, [1, " Tie", "tie", "1=2=3=4"])
    import_file(store, path)
    assert [j.ranks for j in store.judgements()] == [(1, 2), (1, 1, 1), (1, 1), (1, 1, 1, 1)]


@pytest.mark.parametrize("choice", ["5", "0", "a", "1>2", "1>2>2>3", ">", "1>2>3>5"])
def test_sheet_a_choice_that_is_none(
    tmp_path: Path, store: Store, items: list[tuple[Prompt, list[Completion]]], choice: str
) -> None:
    write_sheet(path := tmp_path / "sheet.jsonl", items)
    fill(path, ["1", "", "", choice])
    with pytest.raises(ValueError, match=rf"line 4: field 'choice' is not understood: '{choice}'; expected a number"):
        import_file(store, path)


def test_sheet_needs_a_name(tmp_path: Path, store: Store, items: list[tuple[Prompt, list[Completion]]]) -> None:
    write_sheet(path := tmp_path / "sheet.jsonl", items[:1])
    fill(path, ["1"], annotator=" ")
    with pytest.raises(ValueError, match="line 1: field 'annotator' is empty"):
        import_file(store, path)


def test_a_slip_in_a_sheet_is_mended_by_importing_it_again(
    tmp_path: Path, store: Store, items: list[tuple[Prompt, list[Completion]]]
) -> None:
    """As often as wanted, back to what was said first too; what did not change is not said again."""

    def told(*choices: Any) -> tuple[int, int, list[tuple[int, ...]]]:
        fill(path, list(choices))
        report = import_file(store, path)
        return report.added.judgements, report.corrected, [judgement.ranks for judgement in store.judgements()]

    write_sheet(path := tmp_path / "sheet.jsonl", items[:2])
    assert told("1", "2") == (2, 0, [(1, 2), (2, 1, 2)])
    assert told("2", "2") == (1, 1, [(2, 1, 2), (2, 1)])
    assert told("2", "2") == (0, 0, [(2, 1, 2), (2, 1)])
    assert told("1", "1=2=3") == (2, 2, [(1, 2), (1, 1, 1)])
    assert told("2", "2>1=3") == (2, 2, [(2, 1), (2, 1, 2)])
    assert told("2", "2") == (1, 1, [(2, 1), (2, 1, 2)]), "the best alone is not the same as two that tie behind it"
    assert told("", "2") == (0, 0, [(2, 1), (2, 1, 2)]), "an empty choice takes nothing back"
    assert len(list(store.judgements(effective=False))) == 8


def test_a_choice_that_was_undone_may_be_made_again(
    tmp_path: Path, store: Store, items: list[tuple[Prompt, list[Completion]]]
) -> None:
    write_sheet(path := tmp_path / "sheet.jsonl", items[:1])
    fill(path, ["1"])
    import_file(store, path)
    (said,) = store.judgements()
    store.add([said.model_copy(update={"id": "undone", "supersedes": said.id, "retracted": True})])
    assert import_file(store, path).corrected == 1
    assert [judgement.ranks for judgement in store.judgements()] == [(1, 2)]


def test_sheet_is_not_overwritten_and_its_items_are_checked(
    tmp_path: Path, items: list[tuple[Prompt, list[Completion]]]
) -> None:
    write_sheet(path := tmp_path / "sheet.jsonl", items)
    with pytest.raises(FileExistsError):
        write_sheet(path, items)
    with pytest.raises(ValueError, match="all of them its own"):
        write_sheet(tmp_path / "other.jsonl", [(items[0][0], items[1][1])])
