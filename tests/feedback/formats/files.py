"""Files of rows, and what is read from them, for the tests of the formats."""

import json
from pathlib import Path
from typing import Any

from prefloop.feedback.formats import Format, ImportReport, read_file
from prefloop.feedback.records import Completion, Judgement, Prompt
from prefloop.feedback.store import AnyRecord

HH = Path(__file__).parents[3] / "../shared/data/hh-rlhf-harmless.jsonl"
"""Published dialogues; tests look at them where the file lies beside the project."""
PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(
    tmp_path: Path, *rows: Any, format: Format | None = None, report: ImportReport | None = None
) -> list[AnyRecord]:
    return list(read_file(lines(tmp_path / "rows.jsonl", *rows), format, report=report))


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


def dialogue(*parts: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {part}" for i, part in enumerate(parts))
