"""Other people's feedback, one JSON object per line, read as records; and prefloop's own judging sheet.

A comparison becomes a prompt, two completions (origin ``file:NAME``) and one judgement (source ``imported``,
annotator ``file:NAME``). Every identifier follows from the content, so importing a file again adds nothing;
equal rows of one file count as that many votes. The order shown is drawn from the identifier: a reader that
always found the better answer first would learn the position.

``dialogue``
    ``chosen`` and ``rejected`` are whole conversations with ``\\n\\nHuman:`` and ``\\n\\nAssistant:``
    (hh-rlhf). The turns that both begin with are the prompt, and each must go on with exactly one answer;
    conversations that part earlier are refused, because the answers then belong to different prompts. White
    space around a turn is the format's and is dropped. A speaker who has two turns in a row wrote the marker
    into his text: it is one turn, with the marker in it. An empty answer is an answer (silence may be
    preferred), and is noted.
``comparison``
    ``prompt``, ``chosen`` and ``rejected``, each a text or a list of messages. Answers may repeat the
    prompt's messages, and without ``prompt`` the messages that both begin with are it. Texts are kept to the
    letter.
``demonstration``
    ``prompt`` with ``response`` or ``completion``, or ``messages`` that end with the assistant's; the last
    answer is the demonstration and what is before it the prompt.
``sheet``
    What `write_sheet` wrote, with the choices filled in; a row without a choice is counted as not judged.

All but the sheet may have ``split`` (``train`` or ``heldout``), the comparisons ``strength`` (1 to 4).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from .records import BEST_ONLY, Completion, Demonstration, Judgement, Message, Prompt, Role, Split, content_id
from .rows import (
    Row,
    RowError,
    Turns,
    field_of,
    messages_of,
    numbered_lines,
    parse,
    prompt_of,
    split_of,
    strength_of,
    text_of,
)
from .store import AnyRecord, Counts, Store

Format = Literal["dialogue", "comparison", "demonstration", "sheet"]


@dataclass
class ImportReport:
    """What became of a file's rows: every row was imported or is in ``skipped``."""

    format: Format | None = None
    """As given, or as the first rows show."""
    rows: int = 0
    added: Counts = field(default_factory=Counts)
    """Records that were not in the store before; filled by `import_file`."""
    skipped: dict[str, list[int]] = field(default_factory=dict)
    """Reason → numbers of the lines that were not imported."""
    noted: Counter[str] = field(default_factory=Counter)
    """What is unusual in rows that were imported, or not used of them → number of rows."""


def import_file(
    store: Store, path: str | Path, format: Format | None = None, *, skip_bad: bool = False
) -> ImportReport:
    """Add a file to the store in one transaction; errors as in `read_file` and `Store.add`."""
    report = ImportReport()
    report.added = store.add(read_file(path, format, skip_bad=skip_bad, report=report))
    return report


def read_file(
    path: str | Path,
    format: Format | None = None,
    *,
    skip_bad: bool = False,
    report: ImportReport | None = None,
) -> Iterator[AnyRecord]:
    """Records of a file in the order in which a store takes them, read as they are asked for.

    The first row in a known format decides for the file, unless ``format`` is given. ``report`` is filled as
    the reading goes on. A row that cannot be read raises ValueError with file, line and field; with
    ``skip_bad`` it is left out and counted in ``report.skipped``.
    """
    path = Path(path)
    report = ImportReport() if report is None else report
    report.format = _known_format(format)
    file = _File(path.name, report)
    for file.line, raw in numbered_lines(path):
        report.rows += 1
        try:
            row = parse(raw)
            if report.format is None:
                report.format = _detect(row)
            records = file.records(report.format, row)
        except RowError as problem:
            if not skip_bad:
                raise ValueError(f"{path}, line {file.line}: {problem}") from None
            file.skip(problem.reason)
            continue
        yield from records
    if report.rows == 0:
        raise ValueError(f"{path} is empty; expected one JSON object per line")
    if report.format is None:
        raise ValueError(f"{path}: none of its {report.rows} rows is in a known format; {_EXPECTED}")


def write_sheet(
    path: str | Path,
    items: Iterable[tuple[Prompt, Sequence[Completion]]],
    *,
    annotator: str = "",
    criterion: str = "overall",
) -> int:
    """Write prompts with K ≥ 2 answers each for somebody to judge in an editor; return the number of rows.

    The judge fills in ``choice``: the number of the best answer (``1`` is the first one), ``tie``, or a
    ranking such as ``2>1=3``; nothing for an item that is not judged. What wrote an answer is not in the
    sheet, and the order of the answers is drawn from their identifiers and the annotator's name. A sheet that
    exists is not overwritten.
    """
    rows = 0
    with Path(path).open("x", encoding="utf-8", newline="\n") as file:
        for prompt, completions in items:
            if len(completions) < 2 or any(answer.prompt_id != prompt.id for answer in completions):
                raise ValueError(f"prompt {prompt.id} needs two or more completions, all of them its own")
            plain = len(prompt.messages) == 1 and prompt.messages[0].role == "user"
            order = sorted(completions, key=lambda answer: content_id("sheet", annotator, answer.id))
            row = {
                "prompt_id": prompt.id,
                "prompt": prompt.text if plain else [dict(message) for message in prompt.messages],
                "answers": [{"id": answer.id, "text": answer.text} for answer in order],
                "criterion": criterion,
                "annotator": annotator,
                "choice": "",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows += 1
    return rows


# Lines and rows

_EXPECTED = (
    "expected the fields chosen and rejected (with or without prompt), prompt with response or completion, "
    "messages, or a judging sheet (prompt_id, answers, choice)"
)


def _known_format(format: Format | None) -> Format | None:
    if format is not None and format not in get_args(Format):
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(get_args(Format))}")
    return format


def _detect(row: Row) -> Format:
    has = row.keys()
    if {"answers", "choice"} <= has:
        return "sheet"
    if {"chosen", "rejected"} <= has:
        texts = isinstance(row["chosen"], str) and isinstance(row["rejected"], str)
        return "dialogue" if texts and "prompt" not in has else "comparison"
    if "messages" in has or ("prompt" in has and ("response" in has or "completion" in has)):
        return "demonstration"
    raise RowError("not in a known format", f"{_EXPECTED}; found {', '.join(map(repr, list(has)[:8])) or 'none'}")


# Conversations

_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def _dialogue(text: str, name: str) -> Turns:
    """Turns of a conversation in one text; speakers alternate (see the module's docstring)."""
    marks = list(_MARKER.finditer(text))
    if not marks or marks[0].start() != 0:
        raise RowError(f"field {name!r} does not begin with 'Human:'", "expected '\\n\\nHuman: …\\n\\nAssistant: …'")
    starts = [mark for i, mark in enumerate(marks) if i == 0 or mark[1] != marks[i - 1][1]]
    ends = [mark.start() for mark in starts[1:]] + [len(text)]
    return tuple(
        Message(role=_ROLES[mark[1]], content=text[mark.end() : end].strip())
        for mark, end in zip(starts, ends, strict=True)
    )


def _common(chosen: Turns, rejected: Turns) -> Turns:
    """The messages that both begin with."""
    length = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        length += 1
    return chosen[:length]


def _answer(turns: Turns, prompt: Turns, name: str) -> str:
    """The text of the one answer by which ``turns`` goes on from ``prompt``."""
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(rest) != 1 or rest[0].role != "assistant":
        raise RowError(
            f"field {name!r} is not the prompt and one answer",
            f"after the prompt's {len(prompt)} messages come {len(rest)}; expected one, the assistant's. "
            "Conversations that part before their last answer do not answer the same prompt",
        )
    return rest[0].content


def _answer_text(value: Any, prompt: Turns, name: str) -> str:
    """The answer in a field that is a text or messages."""
    return text_of(value, name) if isinstance(value, str) else _answer(messages_of(value, name), prompt, name)


class _File:
    """Turns the rows of one file into records."""

    def __init__(self, name: str, report: ImportReport) -> None:
        self.line = 0
        self._origin = f"file:{name}"
        self._report = report
        self._created = datetime.now(UTC)
        # Content → times seen, to tell equal rows apart. 64 bits of its hash keep a million rows small, and a
        # collision would do no more than number a row as if it were a repetition.
        self._seen: dict[int, int] = {}
        self._readers: dict[Format, tuple[Callable[[Row], list[AnyRecord]], frozenset[str]]] = {
            "dialogue": (self._dialogue, frozenset({"chosen", "rejected", "split", "strength"})),
            "comparison": (
                self._comparison,
                frozenset({"prompt", "chosen", "rejected", "split", "strength"}),
            ),
            "demonstration": (
                self._demonstration,
                frozenset({"prompt", "response", "completion", "messages", "split"}),
            ),
            "sheet": (
                self._sheet,
                frozenset({"prompt_id", "prompt", "answers", "criterion", "annotator", "choice"}),
            ),
        }

    def records(self, format: Format, row: Row) -> list[AnyRecord]:
        read, used = self._readers[format]
        records = read(row)
        unused = row.keys() - used
        for name in used & row.keys():
            if isinstance(items := row[name], list):
                unused |= {
                    f"{name}[].{key}" for item in items if isinstance(item, dict) for key in item.keys() - _ITEM
                }
        for name in unused:
            self._note(f"field {name!r:.60} is not used")
        return records

    def skip(self, reason: str) -> None:
        self._report.skipped.setdefault(reason, []).append(self.line)

    def _note(self, what: str) -> None:
        self._report.noted[what] += 1

    def _dialogue(self, row: Row) -> list[AnyRecord]:
        chosen = _dialogue(text_of(field_of(row, "chosen"), "chosen"), "chosen")
        rejected = _dialogue(text_of(field_of(row, "rejected"), "rejected"), "rejected")
        return self._implicit(row, chosen, rejected)

    def _comparison(self, row: Row) -> list[AnyRecord]:
        chosen, rejected = field_of(row, "chosen"), field_of(row, "rejected")
        if "prompt" not in row:
            return self._implicit(row, messages_of(chosen, "chosen"), messages_of(rejected, "rejected"))
        prompt = prompt_of(row["prompt"])
        texts = _answer_text(chosen, prompt, "chosen"), _answer_text(rejected, prompt, "rejected")
        return self._compared(row, prompt, *texts)

    def _implicit(self, row: Row, chosen: Turns, rejected: Turns) -> list[AnyRecord]:
        if chosen == rejected:
            raise RowError(_EQUAL)
        prompt = _common(chosen, rejected)
        texts = _answer(chosen, prompt, "chosen"), _answer(rejected, prompt, "rejected")
        return self._compared(row, prompt, *texts)

    def _compared(self, row: Row, turns: Turns, chosen: str, rejected: str) -> list[AnyRecord]:
        if chosen == rejected:
            raise RowError(_EQUAL)
        prompt, strength = _prompt(turns, split_of(row)), strength_of(row)
        # Nothing below fails: a bad row is neither noted nor numbered.
        if not chosen.strip() or not rejected.strip():
            self._note("an answer is empty")
        best = Completion(prompt_id=prompt.id, text=chosen, origin=self._origin)
        other = Completion(prompt_id=prompt.id, text=rejected, origin=self._origin)
        key = self._number("imported", best.id, other.id)
        flipped = int(key[-1], 16) % 2 == 1
        judgement = Judgement(
            id=key,
            prompt_id=prompt.id,
            annotator=self._origin,
            source="imported",
            shown=(other.id, best.id) if flipped else (best.id, other.id),
            ranks=(2, 1) if flipped else (1, 2),
            strength=strength,
            created=self._created,
        )
        return [prompt, best, other, judgement]

    def _demonstration(self, row: Row) -> list[AnyRecord]:
        if "messages" in row:
            messages = messages_of(row["messages"], "messages")
            turns, name, text = messages[:-1], "messages", _answer(messages, messages[:-1], "messages")
        else:
            name = "response" if "response" in row else "completion"
            turns = prompt_of(field_of(row, "prompt"))
            text = _answer_text(field_of(row, name), turns, name)
        if not text.strip():
            raise RowError(f"field {name!r} has an empty answer", "nothing to imitate")
        prompt = _prompt(turns, split_of(row))
        return [prompt, Demonstration(prompt_id=prompt.id, text=text, origin=self._origin)]

    def _sheet(self, row: Row) -> list[AnyRecord]:
        prompt_id = text_of(field_of(row, "prompt_id"), "prompt_id")
        answers = field_of(row, "answers")
        if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
            raise RowError("field 'answers' is not a list of objects", "expected [{id, text}, …]")
        shown = tuple(text_of(field_of(answer, "id"), "answers.id") for answer in answers)
        if len(shown) < 2 or len(set(shown)) < len(shown):
            raise RowError("field 'answers' does not hold two or more different answers")
        choice = field_of(row, "choice")
        # People who edit by hand write 1 for "1".
        choice = str(choice) if type(choice) is int else text_of(choice, "choice").strip().lower()
        if not choice:
            self.skip("not judged")
            return []
        annotator = text_of(field_of(row, "annotator"), "annotator").strip()
        if not annotator:
            raise RowError("field 'annotator' is empty", "expected the name of who made the choice")
        criterion = text_of(row.get("criterion", "overall"), "criterion")
        ranks, flags = _choice(choice, len(shown))
        judgement = Judgement(
            # Without the choice: a sheet that comes again with another choice is noticed, not counted twice.
            id=self._number("sheet", *shown, annotator, criterion),
            prompt_id=prompt_id,
            annotator=annotator,
            source="human",
            shown=shown,
            ranks=ranks,
            criterion=criterion,
            flags=flags,
            created=self._created,
        )
        return [judgement]

    def _number(self, kind: str, *content: str) -> str:
        """An identifier for the content and how often it came before in this file."""
        key = int(content_id(*content)[:16], 16)
        times = self._seen.get(key, 0)
        self._seen[key] = times + 1
        return content_id(kind, *content, times)


_EQUAL = "chosen and rejected are the same"
_ITEM = {"role", "content", "id", "text"}
"""Fields of messages and of a sheet's answers."""


def _prompt(turns: Turns, split: Split | None) -> Prompt:
    if not turns:
        raise RowError("there is no prompt", "the answers have no message in common that comes before them")
    if turns[-1].role == "assistant":
        raise RowError("the prompt ends with the assistant's message", "expected one that waits for an answer")
    return Prompt(messages=turns, split=split)


def _choice(choice: str, count: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ranks of ``count`` answers, and flags, from ``2``, ``tie`` or ``2>1=3``."""
    if choice == "tie":
        return (1,) * count, ()
    groups = [[part.strip() for part in group.split("=")] for group in choice.split(">")]
    named = [name for group in groups for name in group]
    numbers = [str(number) for number in range(1, count + 1)]
    if len(named) == 1 and named[0] in numbers:
        ranks = tuple(1 if number == named[0] else 2 for number in numbers)
        return ranks, (BEST_ONLY,) if count > 2 else ()
    if sorted(named) != sorted(numbers):
        raise RowError(
            "field 'choice' is not understood",
            f"{choice!r:.60}; expected a number from 1 to {count}, tie, a ranking of all answers such as "
            f"{'>'.join(numbers)}, or nothing",
        )
    place = {name: rank for rank, group in enumerate(groups, start=1) for name in group}
    return tuple(place[number] for number in numbers), ()
