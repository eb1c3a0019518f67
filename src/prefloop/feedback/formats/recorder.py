"""What the rows of one file say becomes records.

An answer's origin is ``file:NAME`` and so is the annotator of a comparison (source ``imported``), unless the row
names them. Every identifier follows from the content, so importing a file again adds nothing; equal rows of one file
count as that many votes. The order shown is drawn from the identifier: a reader that always found the better answer
first would learn the position.

A label says of one answer whether it is desirable. It is kept in the completion's metadata, ``{"label": true}``. When
a prompt has answers of both labels, the first desirable one and the first of the others make a judgement, then the
second ones, and so on: each label counts once. Such a judgement has the flag ``from labels``. An answer that is
labelled twice is two completions, the second one of the origin ``file:NAME (2)``: labels may contradict each other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring as _quoted
from typing import Any, TypeVar

from ..records import Completion, Demonstration, Judgement, Prompt, Split, content_id
from ..store import AnyRecord
from .items import FROM_LABELS, Answer, Asked, Demonstrated, Labelled, Ranked
from .rows import RowError, Turns
from .sheet import Chosen
from .table import Read

SAME = "chosen and rejected are the same"
EMPTY = "an answer is empty"
UNMATCHED = "a label without an opposite one for the same prompt: kept, but nothing is learnt from it"


class Recorder:
    """Turns what the rows of one file say into records."""

    def __init__(self, name: str, noted: Counter[str]) -> None:
        self._noted = noted
        self._origin = f"file:{name}"
        self._created = datetime.now(UTC)
        self._defaults = {name: field.get_default() for name, field in Judgement.model_fields.items()}
        self._defaults["created"] = self._created
        # Hash of the content → times seen, to tell equal rows apart. 64 bits of it keep a million rows small, and
        # a collision would do no more than number a row as if it were a repetition.
        self._seen: dict[int, int] = {}
        self._unmatched: dict[str, list[tuple[bool, str, int]]] = {}

    def records(self, said: Sequence[Read]) -> list[AnyRecord]:
        """The records of a row, in the order in which a store takes them. RowError leaves nothing behind."""
        for item in said:
            if isinstance(item, Ranked | Labelled | Demonstrated | Asked):
                _check(item)
        return [record for item in said for record in self._of(item)]

    def unmatched(self) -> int:
        """Labels that have no opposite."""
        return sum(map(len, self._unmatched.values()))

    def _of(self, item: Read) -> Iterator[AnyRecord]:
        if isinstance(item, Ranked):
            yield from self._ranked(item)
        elif isinstance(item, Labelled):
            yield from self._labelled(item)
        elif isinstance(item, Demonstrated):
            yield (prompt := _prompt(item.turns, item.split))
            yield Demonstration(prompt_id=prompt.id, text=item.text, origin=self._origin)
        elif isinstance(item, Asked):
            yield (prompt := _prompt(item.turns, item.split))
            if item.answer is not None:
                yield self._completion(prompt, item.answer)
        elif isinstance(item, Chosen):
            yield self._chosen(item)
        elif isinstance(item, str):
            self._noted[item] += 1
        else:
            yield item

    def _completion(self, prompt: Prompt, answer: Answer) -> Completion:
        return _completion(prompt.id, answer, self._origin if answer.origin is None else answer.origin)

    def _ranked(self, item: Ranked) -> Iterator[AnyRecord]:
        if not all(answer.text.strip() for answer in item.answers):
            self._noted[EMPTY] += 1
        yield (prompt := _prompt(item.turns, item.split))
        # Best first: what follows does not depend on the order in which the row has them.
        best_first = sorted(range(len(item.answers)), key=lambda i: item.ranks[i])
        completions = [self._completion(prompt, item.answers[i]) for i in best_first]
        yield from completions
        yield self._judgement(item, prompt, completions, [item.ranks[i] for i in best_first])

    def _judgement(self, item: Ranked, prompt: Prompt, best_first: list[Completion], ranks: list[int]) -> Judgement:
        said = [completion.id for completion in best_first]
        if ranks != [1, 2]:
            said += map(str, ranks)
        if item.annotator is not None or item.criterion != "overall":
            said += (item.annotator or "", item.criterion)
        key = self._number("imported", *said)
        shown, places = _mixed(key, tuple(completion.id for completion in best_first), tuple(ranks))
        fields = {
            "id": key,
            "prompt_id": prompt.id,
            "annotator": item.annotator or self._origin,
            "source": "imported",
            "shown": shown,
            "ranks": places,
            "strength": item.strength,
            "criterion": item.criterion,
        }
        return _made(Judgement, self._defaults | fields)

    def _labelled(self, item: Labelled) -> Iterator[AnyRecord]:
        yield (prompt := _prompt(item.turns, item.split))
        times = self._times((prompt.id, item.answer.text))
        origin = f"{self._origin} ({times + 1})" if times else self._origin
        answer = Answer(item.answer.text, origin, {"label": item.label})
        yield (completion := self._completion(prompt, answer))
        waiting = self._unmatched.setdefault(prompt.id, [])
        text = hash(item.answer.text)
        for place, (label, key, other) in enumerate(waiting):
            if label != item.label and other != text:
                del waiting[place]
                if not waiting:
                    del self._unmatched[prompt.id]
                pair = [completion.id, key] if item.label else [key, completion.id]
                yield self._from_labels(prompt, pair)
                return
        waiting.append((item.label, completion.id, text))

    def _from_labels(self, prompt: Prompt, pair: list[str]) -> Judgement:
        key = content_id(FROM_LABELS, *pair)
        shown, ranks = _mixed(key, tuple(pair), (1, 2))
        return Judgement(
            id=key,
            prompt_id=prompt.id,
            annotator=self._origin,
            source="imported",
            shown=shown,
            ranks=ranks,
            flags=(FROM_LABELS,),
            created=self._created,
        )

    def _chosen(self, item: Chosen) -> Judgement:
        return Judgement(
            # Without the choice: a sheet that comes again with another choice is noticed, not counted twice.
            id=self._number("sheet", *item.shown, item.annotator, item.criterion),
            prompt_id=item.prompt_id,
            annotator=item.annotator,
            source="human",
            shown=item.shown,
            ranks=item.ranks,
            criterion=item.criterion,
            flags=item.flags,
            created=self._created,
        )

    def _number(self, kind: str, *content: str) -> str:
        """An identifier for the content and how often it came before in this file."""
        return _hash(f"[{','.join(map(_quoted, (kind, *content)))},{self._times(content)}]")

    def _times(self, content: tuple[str, ...]) -> int:
        key = hash(content)
        times = self._seen.get(key, 0)
        self._seen[key] = times + 1
        return times


def _mixed(key: str, best_first: tuple[str, ...], ranks: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Answers and their ranks in the order shown, which is drawn from the judgement's identifier."""
    if len(best_first) == 2:
        step = -1 if int(key[-1], 16) % 2 else 1
        return best_first[::step], ranks[::step]
    order = sorted(range(len(best_first)), key=lambda i: content_id(key, best_first[i]))
    return tuple(best_first[i] for i in order), tuple(ranks[i] for i in order)


def _check(item: Ranked | Labelled | Demonstrated | Asked) -> None:
    if isinstance(item, Ranked) and len({answer[:2] for answer in item.answers}) < len(item.answers):
        raise RowError(SAME)
    if isinstance(item, Demonstrated) and not item.text.strip():
        raise RowError("the row has an empty answer", "nothing to imitate")
    if not item.turns:
        raise RowError("there is no prompt", "the answers have no message in common that comes before them")
    if item.turns[-1].role == "assistant":
        raise RowError("the prompt ends with the assistant's message", "expected one that waits for an answer")


# Records without validation: the readers have checked what they are made of, and a million rows are four million
# records. The tests compare them with validated ones.

_Record = TypeVar("_Record", Prompt, Completion, Judgement)


def _made(kind: type[_Record], fields: dict[str, Any]) -> _Record:
    """What ``kind.model_construct`` makes, in a quarter of its time."""
    record = object.__new__(kind)
    for name, value in (("__dict__", fields), *_SET[kind]):
        object.__setattr__(record, name, value)
    return record


_SET: dict[type[Any], tuple[tuple[str, Any], ...]] = {
    kind: (
        ("__pydantic_fields_set__", set(kind.model_fields)),
        ("__pydantic_extra__", None),
        ("__pydantic_private__", None),
    )
    for kind in (Prompt, Completion, Judgement)
}


def _prompt(turns: Turns, split: Split | None) -> Prompt:
    messages = ",".join(f'["{turn.role}",{_quoted(turn.content)}]' for turn in turns)
    return _made(Prompt, {"messages": turns, "split": split, "metadata": {}, "id": _hash(f'["prompt",[{messages}]]')})


def _completion(prompt_id: str, answer: Answer, origin: str) -> Completion:
    key = _hash(f'["completion","{prompt_id}",{_quoted(answer.text)},{_quoted(origin)}]')
    fields = {"prompt_id": prompt_id, "text": answer.text, "origin": origin, "metadata": dict(answer.metadata)}
    return _made(Completion, fields | {"id": key})


def _hash(canonical: str) -> str:
    """`content_id` of what is canonical JSON already."""
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
