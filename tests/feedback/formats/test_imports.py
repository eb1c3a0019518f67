"""Importers: every row of a file becomes records or is named with the reason why not."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.formats.files import PAIR, dialogue, lines, one_pair, read, say, turns

from prefloop.feedback.formats import import_file, read_file
from prefloop.feedback.records import Completion, Demonstration, Judgement, Prompt, content_id
from prefloop.feedback.store import Counts, Store

# Comparisons and demonstrations


@pytest.mark.parametrize(
    ("row", "context"),
    [
        ({"prompt": "Q", "chosen": " A ", "rejected": "B"}, [("user", "Q")]),
        ({"prompt": [say("system", "S"), say("user", "Q")], "chosen": " A ", "rejected": "B"}, None),
        (
            {
                "prompt": [say("user", "Q")],
                "chosen": [say("assistant", " A ")],
                "rejected": [say("assistant", "B")],
            },
            [("user", "Q")],
        ),
        (
            {
                "prompt": "Q",
                "chosen": [say("user", "Q"), say("assistant", " A ")],
                "rejected": [say("user", "Q"), say("assistant", "B")],
            },
            [("user", "Q")],
        ),
        (
            {
                "chosen": [say("system", "S"), say("user", "Q"), say("assistant", " A ")],
                "rejected": [say("system", "S"), say("user", "Q"), say("assistant", "B")],
            },
            None,
        ),
    ],
)
def test_comparison(tmp_path: Path, row: dict[str, Any], context: list[tuple[str, str]] | None) -> None:
    prompt, better, worse = one_pair(read(tmp_path, row))
    assert turns(prompt) == (context or [("system", "S"), ("user", "Q")])
    assert (better, worse) == (" A ", "B"), "texts are kept to the letter"


def test_comparison_fields(tmp_path: Path) -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "split": "heldout", "strength": 3}
    prompt, best, _, judgement = read(tmp_path, row)
    assert isinstance(judgement, Judgement)
    assert isinstance(prompt, Prompt)
    assert isinstance(best, Completion)
    assert (prompt.split, judgement.strength, judgement.source) == ("heldout", 3, "imported")
    assert best.origin == judgement.annotator == "file:rows.jsonl"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "response": "A"},
        {"prompt": [say("user", "Q")], "completion": [say("assistant", "A")]},
        {"messages": [say("user", "Q"), say("assistant", "A")]},
    ],
)
def test_demonstration(tmp_path: Path, row: dict[str, Any]) -> None:
    prompt, demonstration = read(tmp_path, row)
    assert isinstance(prompt, Prompt)
    assert isinstance(demonstration, Demonstration)
    assert turns(prompt) == [("user", "Q")]
    assert (demonstration.text, demonstration.origin) == ("A", "file:rows.jsonl")


# What is wrong with a row

DIALOGUE = {"chosen": dialogue("Q", "A"), "rejected": dialogue("Q", "B")}


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (PAIR, {"prompt": "Q", "chosen": "A"}, "field 'rejected' is missing"),
        (
            PAIR,
            PAIR | {"chosen": 3},
            "field 'chosen' is a number: expected text or a list of messages",
        ),
        (PAIR, PAIR | {"rejected": "A"}, "chosen and rejected are the same"),
        (PAIR, PAIR | {"prompt": " "}, "field 'prompt' is empty"),
        (PAIR, PAIR | {"prompt": []}, "field 'prompt' is empty"),
        (PAIR, PAIR | {"prompt": [say("assistant", "Q")]}, "prompt ends with the assistant's message"),
        (
            PAIR,
            PAIR | {"prompt": [say("bot", "Q")]},
            r"'prompt\[0\].role' is not a role: 'bot'; expected one of system",
        ),
        (PAIR, PAIR | {"prompt": [say("user", "Q") | {"content": None}]}, r"'prompt\[0\].content' is a null"),
        (PAIR, PAIR | {"split": "test"}, "'test'; expected one of train, heldout"),
        (PAIR, PAIR | {"strength": 7}, "'strength' is out of range: 7"),
        (PAIR, PAIR | {"strength": True}, "'strength' is out of range: True"),
        (PAIR, PAIR | {"chosen": "\ud800"}, r"'chosen' has a lone surrogate: \\ud800 at character 1"),
        (PAIR, PAIR | {"chosen": [say("user", "x"), say("assistant", "A")]}, "not the prompt and one answer"),
        (PAIR, [1], "the line is a JSON list"),
        (DIALOGUE, DIALOGUE | {"chosen": "Q and A"}, "field 'chosen' does not begin with 'Human:'"),
        (DIALOGUE, DIALOGUE | {"chosen": "x" + dialogue("Q", "A")}, "does not begin"),
        (DIALOGUE, DIALOGUE | {"chosen": dialogue("Q2", "A")}, "'chosen' is not the prompt and one answer"),
        (DIALOGUE, DIALOGUE | {"chosen": dialogue("Q", "A", "B", "C")}, "'chosen' is not the prompt and one"),
        (DIALOGUE, DIALOGUE | {"chosen": dialogue("Q")}, "'chosen' is not the prompt and one answer"),
        (DIALOGUE, {"chosen": "\n\nAssistant: A", "rejected": "\n\nAssistant: B"}, "there is no prompt"),
        (DIALOGUE, DIALOGUE | {"rejected": dialogue("Q", "A  ")}, "chosen and rejected are the same"),
        ({"prompt": "Q", "response": "A"}, {"prompt": "Q", "response": " "}, "empty answer"),
        (
            {"messages": [say("user", "Q"), say("assistant", "A")]},
            {"messages": [say("user", "Q")]},
            "one answer",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, store: Store, good: dict[str, Any], bad: Any, message: str) -> None:
    path = lines(tmp_path / "rows.jsonl", good, bad, good)
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: .*({message})"):
        import_file(store, path)
    assert store.counts() == Counts(), "all or nothing"
    report = import_file(store, path, skip_bad=True)
    assert report.rows == 3
    assert list(report.skipped.values()) == [[2]]
    assert report.added.prompts == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "Q", "chosen": }', "not valid JSON: Expecting value at column 27"),
        (b'{"prompt": "Q", "chosen": "A"', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "not valid JSON: a number is too long"),
        (b'{"prompt": "\xff"}', "not UTF-8 text: byte 13 is 0xff"),
        (b'{"prompt": "Q", "prompt": "R"}', "field 'prompt' is there twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, store: Store, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"line 3: {message}"):
        import_file(store, path)
    assert list(import_file(store, path, skip_bad=True).skipped.values()) == [[3]]


def test_bytes_that_editors_leave(tmp_path: Path) -> None:
    text = "two\u2028lines\x85 and \u2029 more"
    row = json.dumps(PAIR | {"chosen": text}, ensure_ascii=False)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + row.encode() + b"\r\n  \r\n")
    assert one_pair(list(read_file(path)))[1] == text


def test_files_without_rows(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n\n")
    with pytest.raises(ValueError, match="is empty; expected one JSON object per line"):
        import_file(store, path)
    lines(path, {"question": "Q", "answer": "A"})
    with pytest.raises(ValueError, match=r"line 1: not in a known format: expected .* found 'question', 'answer'"):
        import_file(store, path)
    with pytest.raises(ValueError, match="none of its 1 rows is in a known format"):
        import_file(store, path, skip_bad=True)
    with pytest.raises(ValueError, match="unknown format 'csv'; expected one of dialogue"):
        list(read_file(path, "csv"))  # type: ignore[arg-type]


def test_fields_that_are_not_used_are_noted(tmp_path: Path, store: Store) -> None:
    talk = {"messages": [say("user", "Q") | {"name": "Bo"}, say("assistant", "A")], "score": 1}
    report = import_file(store, lines(tmp_path / "rows.jsonl", talk))
    assert report.noted == {"field 'messages[].name' is not used": 1, "field 'score' is not used": 1}


# Identifiers


def test_importing_again_adds_nothing_and_equal_rows_are_votes(tmp_path: Path, store: Store) -> None:
    path = lines(tmp_path / "a.jsonl", PAIR, PAIR, PAIR | {"chosen": "C"})
    assert import_file(store, path).added == Counts(prompts=1, completions=3, judgements=3)
    assert import_file(store, path).added == Counts()
    same = lines(tmp_path / "b.jsonl", PAIR)
    assert import_file(store, same).added == Counts(completions=2, judgements=1), "another file, another voice"


def test_the_better_answer_is_not_always_shown_first(tmp_path: Path, store: Store) -> None:
    rows = [PAIR | {"prompt": f"Q{i}"} for i in range(400)]
    import_file(store, lines(tmp_path / "rows.jsonl", *rows))
    first = sum(judgement.ranks[0] == 1 for judgement in store.judgements())
    assert 150 < first < 250  # 5 standard deviations of a fair coin
    again = {j.id: j.shown for j in read(tmp_path, *rows) if isinstance(j, Judgement)}
    assert again == {j.id: j.shown for j in store.judgements()}


# Rows that are left out


def test_rejected_rows_are_written_beside_the_file(tmp_path: Path, store: Store) -> None:
    path = lines(tmp_path / "rows.jsonl", PAIR, PAIR | {"rejected": "A"}, PAIR | {"prompt": "R"})
    with path.open("ab") as file:
        file.write(b'{"prompt": \xff}\n')
    report = import_file(store, path, skip_bad=True)
    assert report.rejected == tmp_path / "rows.jsonl.rejected.jsonl"
    rows = [json.loads(line) for line in report.rejected.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"line": 2, "reason": "chosen and rejected are the same", "row": PAIR | {"rejected": "A"}},
        {"line": 4, "reason": "not UTF-8 text: byte 12 is 0xff; save as UTF-8", "row": '{"prompt": \\xff}'},
    ]
    assert report.added.judgements == 2


def test_nothing_is_rejected_of_an_import_that_fails(tmp_path: Path, store: Store) -> None:
    store.add([Prompt.of("S", split="heldout")])
    path = lines(tmp_path / "rows.jsonl", PAIR | {"rejected": "A"}, PAIR | {"prompt": "S", "split": "train"})
    with pytest.raises(ValueError, match="cannot be put in the split 'train' too"):
        import_file(store, path, skip_bad=True)
    assert import_file(store, lines(tmp_path / "good.jsonl", PAIR), skip_bad=True).rejected is None
    assert not list(tmp_path.glob("*reject*")) + list(tmp_path.glob(".*"))


# Records that are made without validation


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        PAIR | {"prompt": [say("system", '"\\\u0001\u2028é'), say("user", "/")], "split": "train", "strength": 2},
        {"prompt": "Q", "completion": "A", "label": True},
        DIALOGUE | {"rejected": dialogue("Q", " B")},
        {"instruction": "Q", "output_1": "A", "output_2": "B", "preference": 1.5, "annotator": "Ann"},
    ],
)
def test_records_are_what_validation_would_have_made(tmp_path: Path, row: dict[str, Any]) -> None:
    for record in read(tmp_path, row, row):
        assert isinstance(record, Prompt | Completion | Judgement)
        again = type(record).model_validate({name: getattr(record, name) for name in type(record).model_fields})
        assert record == again
        assert (repr(record), record.model_dump_json()) == (repr(again), again.model_dump_json())
        assert record.model_copy(update={"id": "x"}) == again.model_copy(update={"id": "x"})


def test_identifiers_stay_as_they_were(tmp_path: Path) -> None:
    """A file that was imported by an earlier prefloop adds nothing."""
    prompt, best, other, judgement = read(tmp_path, PAIR)
    assert isinstance(prompt, Prompt)
    assert isinstance(best, Completion)
    assert isinstance(other, Completion)
    assert isinstance(judgement, Judgement)
    assert prompt == Prompt.of("Q")
    assert best == Completion(prompt_id=prompt.id, text="A", origin="file:rows.jsonl")
    assert judgement.id == content_id("imported", best.id, other.id, 0)
