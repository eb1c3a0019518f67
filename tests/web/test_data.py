"""Feedback in and out through the API: nothing is left out in silence, and what is said stays within its bounds."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from tests.web.world import World

from prefloop.feedback.records import CANNOT_JUDGE, Completion, Judgement, Prompt, content_id
from prefloop.web.schemas import EXPORTED, Exported


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
