"""Feedback in and out through the API: nothing is left out in silence, and what is said stays within its bounds."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from tests.web.world import World

from prefloop.feedback.records import CANNOT_JUDGE, Completion, Judgement, Prompt, content_id
from prefloop.web.schemas import EXPORTED, MOST_REJECTED, REJECTED_CHARACTERS, Exported, Imported


def judged(world: World, question: str, ranks: Sequence[int], criterion: str = "overall", flag: str = "") -> None:
    prompt = Prompt.of(question)
    answers = [Completion(prompt_id=prompt.id, text=f"answer {i}", origin="policy") for i in range(len(ranks))]
    said = Judgement(
        id=content_id(question, criterion),
        prompt_id=prompt.id,
        annotator="ann",
        source="human",
        shown=tuple(answer.id for answer in answers),
        ranks=tuple(ranks),
        criterion=criterion,
        flags=(flag,) if flag else (),
    )
    world.store.add([prompt, *answers, said])


def exported(world: World, **query: str) -> tuple[Exported, int]:
    """What the header says, and how many rows there are."""
    answer = world.script("boss", "admin").get("/api/export", params=query)
    assert answer.status_code == 200
    return Exported.model_validate_json(answer.headers[EXPORTED]), len(answer.text.splitlines())


def test_an_export_says_what_was_left_out(world: World) -> None:
    judged(world, "pair", [1, 2])
    judged(world, "tie", [1, 1])
    judged(world, "three", [1, 2, 2])
    judged(world, "nobody knows", [1, 2], flag=CANNOT_JUDGE)
    judged(world, "other", [1, 2], "harmless")
    told, rows = exported(world, format="comparison")
    assert told == Exported(
        format="comparison",
        rows=3,
        left_out={"a tie": 2, "nobody could judge": 1, "by the criterion 'harmless'; name it with --criterion": 1},
        noted={"a ranking of more than two answers is written as pairs": 1},
    )
    assert rows == 3
    whole, rows = exported(world)
    assert (whole.left_out, whole.noted, whole.rows) == ({}, {}, rows)


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie: x=1", "Höflichkeit 🙂", '"\\', "\ud7ff\ue000"])
def test_a_criterion_of_any_name_breaks_no_header(world: World, name: str) -> None:
    judged(world, "pair", [1, 2], name)
    told, rows = exported(world, format="comparison")
    assert rows == told.rows == 0
    (reason,) = told.left_out
    assert reason.startswith(f"by the criterion {name!r:.40}")
    told, _ = exported(world, format="comparison", criterion=name)
    assert (told.rows, told.left_out) == (1, {})


def test_a_thousand_reasons_have_room_in_a_header(world: World) -> None:
    for number in range(300):
        judged(world, f"pair {number % 100}", [1, 2], f"{'🙂' * 30} {number % 100} of {number // 100}")
    for number in range(7):
        judged(world, f"more {number}", [1, 2], "the most frequent")
    answer = world.script("boss", "admin").get("/api/export", params={"format": "comparison"})
    assert len(answer.headers[EXPORTED]) < 1_500
    told = Exported.model_validate_json(answer.headers[EXPORTED])
    assert max(told.left_out.values()) == told.left_out["other reasons"]
    assert told.left_out["by the criterion 'the most frequent'; name it with --criterion"] == 7
    assert sum(told.left_out.values()) == 307


def test_the_header_is_described_as_it_comes(world: World) -> None:
    openapi = world.stranger().get("/api/openapi.json").json()
    header = openapi["paths"]["/api/export"]["get"]["responses"]["200"]["headers"][EXPORTED]
    assert header["required"]
    described = header["schema"]["contentSchema"]["properties"]
    told = json.loads(world.script("boss", "admin").get("/api/export").headers[EXPORTED])
    assert described.keys() == told.keys()
    html = world.stranger().get("/api/docs").text
    assert EXPORTED in html


GOOD = '{"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "extra": 1}'
HOSTILE = [
    '{"prompt": NaN, "chosen": -Infinity}',
    r'{"prompt": "a", "chosen": "\ud800", "rejected": "b"}',
    r'{"\ud800": 1, "\udfff": "x"}',
    '{"a": 1, "a": 2}',
    '{"prompt": ' + "9" * 5000 + "}",
    '{"prompt": ' + "[" * 5000 + "]" * 5000 + "}",
    "[1]",
    "{",
    "\x1b[2J\\",
]


def imported(world: World, lines: Sequence[str], **query: str | bool) -> Imported:
    answer = world.script("boss", "admin").post(
        "/api/import",
        params={"name": "file.jsonl"} | query,
        content="\n".join(lines).encode(),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 200, answer.text
    return Imported.model_validate_json(answer.content)


def test_an_import_returns_what_it_left_out(world: World) -> None:
    told = imported(world, [GOOD, '{"prompt": "Why?", "chosen": 7, "rejected": "No."}', "", "?", GOOD], skip_bad=True)
    assert (told.rows, told.judgements, told.unit, told.rejected_more) == (4, 2, "line", 0)
    assert told.noted == {"field 'extra' is not used": 2}
    assert told.skipped == {"field 'chosen' is a number": 1, "not valid JSON": 1}
    assert [(row.number, json.loads(row.row)) for row in told.rejected] == [
        (2, {"prompt": "Why?", "chosen": 7, "rejected": "No."}),
        (4, "?"),
    ]
    assert told.rejected[0].reason.startswith("field 'chosen' is a number: expected")
    assert imported(world, [GOOD]).rejected == []


@pytest.mark.parametrize("format", ["comparison", "unpaired", "prefloop", "oasst", "alpaca"])
@pytest.mark.parametrize("end", ["", " "], ids=["file", "large file"])
def test_rows_that_are_no_text_come_back_as_text(
    world: World, format: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if end:  # read by a process of its own
        monkeypatch.setattr("prefloop.feedback.formats.apart._LARGE", 1)
    told = imported(world, [f"{row}{end}" for row in HOSTILE], format=format, skip_bad=True)
    assert [row.number for row in told.rejected] == list(range(1, len(HOSTILE) + 1))
    assert all(row.row.isascii() and row.reason for row in told.rejected)
    assert told.rejected[2].row == HOSTILE[2]


def test_what_comes_back_is_bounded(world: World) -> None:
    told = imported(world, [GOOD, *[f'{{"bad": {n}, "x": "{"ü" * 20_000}"}}' for n in range(130)]], skip_bad=True)
    assert (len(told.rejected), told.rejected_more) == (MOST_REJECTED, 30)
    assert {len(row.row) for row in told.rejected} == {REJECTED_CHARACTERS}
    assert len(told.model_dump_json()) < 2 * MOST_REJECTED * REJECTED_CHARACTERS


def test_a_sheet_that_comes_again_says_what_it_corrects(world: World) -> None:
    judged(world, "pair", [1, 2])
    (said,) = world.store.judgements()
    row = {"prompt_id": said.prompt_id, "answers": [{"id": key} for key in said.shown], "annotator": "bo"}
    assert imported(world, [json.dumps(row | {"choice": "1"})], format="sheet").corrected == 0
    again = imported(world, [json.dumps(row | {"choice": "2"}), json.dumps(row | {"choice": ""})], format="sheet")
    assert (again.corrected, again.judgements, again.skipped) == (1, 1, {"not judged": 1})
