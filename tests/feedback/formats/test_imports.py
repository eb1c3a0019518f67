"""Importers: every row of a file becomes records or is named with the reason why not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.feedback.formats import Format, ImportReport, import_file, read_file, write_sheet
from prefloop.feedback.records import BEST_ONLY, Completion, Demonstration, Judgement, Message, Prompt, content_id
from prefloop.feedback.store import AnyRecord, Counts, Store

HH = Path(__file__).parents[3] / "../shared/data/hh-rlhf-harmless.jsonl"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "feedback.db") as store:
        yield store


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path: Path, *rows: Any, format: Format | None = None) -> list[AnyRecord]:
    return list(read_file(lines(tmp_path / "rows.jsonl", *rows), format))


def one_pair(records: list[AnyRecord]) -> tuple[Prompt, str, str]:
    """The prompt, the better and the worse text of one comparison."""
    prompt, one, other, judgement = records
    assert isinstance(prompt, Prompt)
    assert isinstance(one, Completion)
    assert isinstance(other, Completion)
    assert isinstance(judgement, Judgement)
    assert sorted(judgement.shown) == sorted([one.id, other.id])
    text = {one.id: one.text, other.id: other.text}
    best, worst = sorted(judgement.shown, key=lambda id: judgement.ranks[judgement.shown.index(id)])
    return prompt, text[best], text[worst]


def turns(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# Dialogues


def dialogue(*parts: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {part}" for i, part in enumerate(parts))


def test_dialogue(tmp_path: Path) -> None:
    row = {"chosen": dialogue("Hi", "Yes?", "Why?", "So."), "rejected": dialogue("Hi", "Yes?", "Why?", "No.")}
    prompt, better, worse = one_pair(read(tmp_path, row))
    assert turns(prompt) == [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    assert (better, worse) == ("So.", "No.")


def test_dialogue_a_marker_that_the_speaker_wrote_stays_in_the_text(tmp_path: Path) -> None:
    chosen = dialogue("Hi", "A poem:\n\nAssistant: Roses. Human: no")
    prompt, better, worse = one_pair(read(tmp_path, {"chosen": chosen, "rejected": dialogue("Hi", "A poem:")}))
    assert turns(prompt) == [("user", "Hi")]
    assert (better, worse) == ("A poem:\n\nAssistant: Roses. Human: no", "A poem:")


def test_dialogue_an_empty_answer_is_noted(tmp_path: Path) -> None:
    path = lines(tmp_path / "x", {"chosen": "\n\nHuman: Hi\n\nAssistant: ", "rejected": dialogue("Hi", "Boo")})
    report = ImportReport()
    _, better, worse = one_pair(list(read_file(path, report=report)))
    assert (better, worse) == ("", "Boo")
    assert report.noted == {"an answer is empty": 1}


WORDS = st.text("ab \n:é\u2028", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1), WORDS, WORDS)
def test_dialogue_round_trip(tmp_path_factory: Any, shared: list[str], better: str, worse: str) -> None:
    if better == worse:
        return
    path = tmp_path_factory.mktemp("dialogue") / "rows.jsonl"
    lines(path, {"chosen": dialogue(*shared, better), "rejected": dialogue(*shared, worse)})
    prompt, *texts = one_pair(list(read_file(path)))
    assert [message.content for message in prompt.messages] == shared
    assert texts == [better, worse]


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

PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}
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


# Judging sheets


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


# The real file


def test_every_dialogue_is_read_to_the_letter(tmp_path: Path) -> None:
    """Made ones; and the real file's, where it lies beside the project."""
    made = tmp_path / "made.jsonl"
    begin = "\n\nHuman: Hi \n\nAssistant: Yes?\n\nHuman: What of "
    rows = [
        {"chosen": f"{begin}{i}?\n\nAssistant: A {i}", "rejected": f"{begin}{i}?\n\nAssistant: B"} for i in range(9)
    ]
    made.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with Store.open(tmp_path / "made.db") as store:
        assert import_file(store, made).rows == 9
        check_to_the_letter(store, made)
    if HH.exists():
        with Store.open(tmp_path / "hh.db") as store:
            report = import_file(store, HH)
            assert (report.format, report.rows, report.skipped) == ("dialogue", 2312, {})
            assert report.added == Counts(prompts=2310, completions=4624, judgements=2312)
            assert report.noted == {"an answer is empty": 4}
            check_to_the_letter(store, HH)


def check_to_the_letter(store: Store, path: Path) -> None:
    # Every dialogue is there to the letter, white space around turns aside.
    texts = {completion.id: completion.text for completion in store.completions()}
    prompts = {prompt.id: prompt for prompt in store.prompts()}
    names = {"user": "Human", "assistant": "Assistant"}
    with path.open(encoding="utf-8") as file:
        for line, judgement in zip(file, store.judgements(), strict=True):
            row = json.loads(line)
            context = "".join(f"\n\n{names[r]}: {c}" for r, c in turns(prompts[judgement.prompt_id]))
            for key, rank in zip(judgement.shown, judgement.ranks, strict=True):
                original = row["chosen" if rank == 1 else "rejected"]
                assert squeezed(f"{context}\n\nAssistant: {texts[key]}") == squeezed(original)


def squeezed(text: str) -> str:
    return "".join(text.split())
