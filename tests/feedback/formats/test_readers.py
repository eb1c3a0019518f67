"""Rows as other tools write them, one by one."""

from pathlib import Path
from typing import Any

import pytest
from tests.feedback.formats.files import read

from prefloop.feedback.formats import Format, ImportReport
from prefloop.feedback.formats.items import FROM_LABELS
from prefloop.feedback.records import Completion, Demonstration, Judgement, Prompt
from prefloop.feedback.store import AnyRecord

Told = tuple[list[tuple[str, str]], list[tuple[str, int]]]


def told(records: list[AnyRecord]) -> list[Told]:
    """Of each judgement its conversation and its answers with their ranks, best first."""
    texts = {record.id: record.text for record in records if isinstance(record, Completion)}
    asked = {record.id: record for record in records if isinstance(record, Prompt)}
    return [
        (
            [(message.role, message.content) for message in asked[record.prompt_id].messages],
            sorted(
                ((texts[key], rank) for key, rank in zip(record.shown, record.ranks, strict=True)),
                key=lambda x: (x[1], x[0]),
            ),
        )
        for record in records
        if isinstance(record, Judgement)
    ]


def one(records: list[AnyRecord], kind: type[Any]) -> Any:
    (found,) = (record for record in records if isinstance(record, kind))
    return found


def speech(name: str, value: str) -> dict[str, str]:
    return {"from": name, "value": value}


CONVERSATION = [("user", "Hi"), ("assistant", "Yes?"), ("user", "So?")]
SPEECHES = [speech("human", "Hi"), speech("gpt", "Yes?"), speech("human", "So?")]
MESSAGES = [{"role": role, "content": content} for role, content in CONVERSATION]
ALPACA = {"instruction": "So?", "input": "", "history": [["Hi", "Yes?"]]}


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"conversations": SPEECHES, "chosen": speech("gpt", "A"), "rejected": speech("gpt", "B")}, False),
        ({"conversations": SPEECHES, "chosen": [speech("gpt", "A")], "rejected": [speech("gpt", "B")]}, False),
        ({"conversations": SPEECHES, "chosen": "A", "rejected": "B", "system": "S"}, True),
        ({"conversations": [speech("system", "S"), *SPEECHES], "chosen": "A", "rejected": "B", "system": "T"}, True),
        (ALPACA | {"chosen": "A", "rejected": "B"}, False),
        (ALPACA | {"chosen": "A", "rejected": "B", "system": "S"}, True),
        ({"prompt": MESSAGES, "chosen": "A", "rejected": "B"}, False),
    ],
)
def test_comparisons(tmp_path: Path, row: dict[str, Any], system: bool) -> None:
    conversation = [("system", "S")] * system + CONVERSATION
    assert told(read(tmp_path, row)) == [(conversation, [("A", 1), ("B", 2)])]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [*SPEECHES, speech("gpt", "A")]},
        ALPACA | {"output": "A"},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "A"}]},
    ],
)
@pytest.mark.parametrize("tag", [None, "kto_tag", "label"])
def test_demonstrations_and_labels(tmp_path: Path, row: dict[str, Any], tag: str | None) -> None:
    records = read(tmp_path, row | ({tag: False} if tag else {}))
    assert [(message.role, message.content) for message in one(records, Prompt).messages] == CONVERSATION
    answer = one(records, Completion if tag else Demonstration)
    assert (answer.text, answer.metadata) == ("A", {"label": False} if tag else {})


def test_an_instruction_with_its_input(tmp_path: Path) -> None:
    records = read(tmp_path, {"instruction": "Add", "input": "1 2", "output": "3", "history": None, "system": ""})
    assert [message.content for message in one(records, Prompt).messages] == ["Add\n1 2"]


def test_a_plain_pair_without_prompt(tmp_path: Path) -> None:
    report = ImportReport()
    records = read(tmp_path, {"chosen": "The sky is blue.", "rejected": "The sky is black."}, report=report)
    assert told(records) == [([("user", "The sky is")], [(" blue.", 1), (" black.", 2)])]
    assert report.noted == {"the prompt is the words that both texts begin with": 1}
    with pytest.raises(ValueError, match="field 'prompt' is missing: and 'chosen' and 'rejected' have no first word"):
        read(tmp_path, {"chosen": "Blue.", "rejected": "Black."})


def test_prompts_and_chats(tmp_path: Path) -> None:
    assert one(read(tmp_path, {"prompt": "Q", "split": "train"}), Prompt).split == "train"
    ended = {
        "messages": [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}],
        "model": "m-1",
    }
    records = read(tmp_path, ended, format="chat")
    assert (one(records, Prompt).text, one(records, Completion).text, one(records, Completion).origin) == (
        *("So?", "A"),
        "m-1",
    )
    open_end = {"messages": [{"role": "developer", "content": "S"}, *MESSAGES]}
    (prompt,) = read(tmp_path, open_end, format="chat")
    assert isinstance(prompt, Prompt)
    assert prompt.messages[0].role == "system"
    picture = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
    with pytest.raises(ValueError, match="is not only text"):
        read(tmp_path, picture, format="chat")


# Labels


def test_labels_of_one_prompt_make_pairs(tmp_path: Path) -> None:
    said = [("a", True), ("b", True), ("c", False), ("a", False), ("d", True)]
    rows = [{"prompt": "Q", "completion": text, "label": label} for text, label in said]
    report = ImportReport()
    records = read(tmp_path, *rows, {"prompt": "R", "completion": "e", "label": False}, report=report)
    judgements = [record for record in records if isinstance(record, Judgement)]
    assert [pair for _, pair in told(records)] == [[("a", 1), ("c", 2)], [("b", 1), ("a", 2)]]
    assert {judgement.flags for judgement in judgements} == {(FROM_LABELS,)}
    labelled = [record for record in records if isinstance(record, Completion)]
    assert [answer.metadata["label"] for answer in labelled] == [label for _, label in [*said, ("e", False)]]
    assert len({answer.id for answer in labelled}) == 6, "an answer that is labelled twice is there twice"
    assert sum(report.noted.values()) == 2, "d and e have no opposite"


# AlpacaEval

EVALUATED = {"instruction": "Q", "output_1": "A", "generator_1": "gpt", "output_2": "B", "generator_2": "me"}


@pytest.mark.parametrize(
    ("preference", "ranks", "strength"),
    [
        *((1, (1, 2), None), (2.0, (2, 1), None), (1.5, (1, 1), None), (0, (1, 1), None)),
        *((1.499, (1, 2), 1), (1.62, (2, 1), 1), (1.63, (2, 1), 2), (1.01, (1, 2), 4), (1.76, (2, 1), 3)),
    ],
)
def test_alpacaeval(tmp_path: Path, preference: float, ranks: tuple[int, int], strength: int | None) -> None:
    records = read(tmp_path, EVALUATED | {"preference": preference, "annotator": "judge"})
    judgement = one(records, Judgement)
    assert dict(told(records)[0][1]) == {"A": ranks[0], "B": ranks[1]}
    assert (judgement.annotator, judgement.strength, judgement.source) == ("judge", strength, "imported")
    assert {r.text: r.origin for r in records if isinstance(r, Completion)} == {"A": "gpt", "B": "me"}


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_alpacaeval_without_a_preference(tmp_path: Path, nothing: Any) -> None:
    report = ImportReport()
    assert read(tmp_path, EVALUATED | {"preference": nothing}, report=report) == []
    assert report.skipped == {"not judged": [1]}


# Open-Assistant


def message(text: str, role: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {"text": text, "role": role, **fields}


FIRST_REPLIES = [
    message("A", rank=1),
    message("B", rank=0, model_name="m"),
    message("C", rank=None),
    message("spam", rank=2, review_result=False),
    message("gone", rank=3, deleted=True),
]
FOLLOW_UP = message("And?", "prompter", replies=[message("X", rank=2), message("Y", rank=0), message("Z", rank=0)])
TREE = {
    "message_tree_id": "t",
    "prompt": message("Q", "prompter", replies=[FIRST_REPLIES[0] | {"replies": [FOLLOW_UP]}, *FIRST_REPLIES[1:]]),
}
SAID: list[Told] = [
    ([("user", "Q")], [("B", 1), ("A", 2)]),
    ([("user", "Q"), ("assistant", "A"), ("user", "And?")], [("Y", 1), ("Z", 1), ("X", 2)]),
]


def test_a_tree(tmp_path: Path) -> None:
    records = read(tmp_path, TREE)
    assert told(records) == SAID
    assert {r.text: r.origin for r in records if isinstance(r, Completion)}["B"] == "m"


def table(node: dict[str, Any], parent: str | None = None, path: str = "m") -> list[dict[str, Any]]:
    """A tree as the flat list that Open-Assistant publishes as well."""
    row = {name: value for name, value in node.items() if name != "replies"}
    row |= {"message_id": path, "parent_id": parent, "message_tree_id": "t"}
    replies = enumerate(node.get("replies", []))
    return [row, *(one for i, reply in replies for one in table(reply, path, f"{path}{i}"))]


def test_a_table_of_messages(tmp_path: Path) -> None:
    other = [
        row | {"message_id": f"o{row['message_id']}", "text": f"o{row['text']}"} for row in table(TREE["prompt"])
    ]  # type: ignore[arg-type]
    for row in other:
        row["parent_id"] = row["parent_id"] and f"o{row['parent_id']}"
    records = read(tmp_path, *table(TREE["prompt"]), *other)  # type: ignore[arg-type]
    assert told(records)[:2] == SAID
    assert len(told(records)) == 4
    with pytest.raises(ValueError, match=r"line 2: field 'parent_id' names no message before it in its tree: 'om'"):
        read(tmp_path, other[0] | {"message_id": "n"}, *other[1:])


def test_a_tree_without_ranks_is_a_prompt(tmp_path: Path) -> None:
    report = ImportReport()
    (prompt,) = read(
        tmp_path, {"prompt": message("Q", "prompter", replies=[message("A")]), "message_tree_id": "t"}, report=report
    )
    assert isinstance(prompt, Prompt)
    assert sum(report.noted.values()) == 1


# Faults


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"conversations": [], "chosen": "A", "rejected": "B"}, "field 'conversations' is empty: expected messages"),
        (
            {"conversations": [speech("tool", "x")], "chosen": "A", "rejected": "B"},
            r"field 'conversations\[0\].from' is not a speaker: 'tool'; expected one of human, gpt, system",
        ),
        ({"conversations": SPEECHES, "chosen": speech("human", "A"), "rejected": "B"}, "'chosen' is not the prompt"),
        ({"conversations": SPEECHES, "chosen": "A"}, "field 'rejected' is missing"),
        ({"conversations": SPEECHES}, "'conversations' is not the prompt and one answer"),
        ({"conversations": [*SPEECHES, speech("gpt", "A")], "kto_tag": 1}, "'kto_tag' is a number: expected true"),
        ({"instruction": " ", "output": "A"}, "field 'instruction' is empty"),
        (ALPACA | {"output": ""}, "the row has an empty answer: nothing to imitate"),
        (ALPACA | {"output": "A", "history": [["Hi"]]}, r"field 'history\[0\]' is not a round"),
        ({"prompt": "Q", "completion": "A", "label": "yes"}, "field 'label' is a text: expected true"),
        (EVALUATED | {"preference": 3}, "field 'preference' is out of range: 3; expected 1 to 2"),
        (EVALUATED | {"preference": "1"}, "field 'preference' is a text"),
        ({"prompt": {"role": "prompter"}, "message_tree_id": "t"}, "field 'text' is missing"),
        ({"prompt": message("Q", "user"), "message_tree_id": "t"}, "field 'prompt.role' is not a role: 'user'"),
        (
            {"prompt": message("Q", "prompter", replies=[message("A", rank="1")]), "message_tree_id": "t"},
            r"field 'prompt.replies\[0\].rank' is a text",
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "criterion": 3}, "field 'criterion' is a number"),
        ({"prefloop": 9}, "written by another prefloop, in format 9"),
        ({"completion": {"text": "A", "origin": "x"}}, "field 'completion.prompt_id' is not right: Field required"),
        ({"judgement": {}, "prompt": {}}, "not one record"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    format: Format | None = "prefloop" if "judgement" in row else "oasst" if "message_tree_id" in row else None
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 1: .*{fault}"):
        read(tmp_path, row, format=format)
