"""The records that everything in prefloop is made of.

A *judgement* is the unit of everything: who said what about which completions of which prompt. People, AI
judges, simulated annotators, imported files and evaluations all produce the same record.

Records are immutable. Identifiers of prompts, completions and demonstrations are hashes of their content, so
writing the same thing twice writes it once; a judgement carries an identifier made by whoever gave it, so
sending it twice counts once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "heldout"]
Source = Literal["human", "ai", "simulated", "imported", "program"]

BEST_ONLY = "best only"
"""A judgement's flag: it picked the best of K > 2 and says nothing about the others, whose ranks tie."""
CANNOT_JUDGE = "cannot judge"
"""A judgement's flag: somebody looked and could not tell. Its ranks are no votes."""
FLAGS = ("unsafe", "personal data", "nonsense", CANNOT_JUDGE, "all bad")
"""What people may flag on the labelling page."""


# Made once: `json.dumps` makes an encoder for each call, which is most of the time that a short text takes.
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def content_id(*parts: Any) -> str:
    """A 128-bit hexadecimal hash of JSON-serialisable parts; equal parts, equal id, on every machine."""
    canonical = _canonical(parts)
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def content_id_of(*parts: Iterable[Any]) -> str:
    """``content_id`` of texts and lists, without the lists, for parts that are too long to hold."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in chain("[", _pieces(parts), "]"):
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _pieces(parts: Iterable[Iterable[Any]]) -> Iterator[str]:
    for number, part in enumerate(parts):
        if number:
            yield ","
        if isinstance(part, str):
            yield _canonical(part)
            continue
        yield "["
        for place, item in enumerate(part):
            yield f",{_canonical(item)}" if place else _canonical(item)
        yield "]"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Prompt(Record):
    """A conversation that waits for an answer; the last message is not the assistant's."""

    messages: tuple[Message, ...]
    split: Split | None = None
    """Where the data's owner put it; None lets the recipe's held-out fraction decide, by hash."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    id: str = ""
    """Hash of the messages; made when absent."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.messages:
            raise ValueError("a prompt needs at least one message")
        if self.messages[-1].role == "assistant":
            raise ValueError("a prompt must end with a message that the assistant answers (user or system)")
        made = content_id("prompt", [[m.role, m.content] for m in self.messages])
        return _with_id(self, made)

    @classmethod
    def of(cls, text: str, **fields: Any) -> Prompt:
        """A prompt of one user message."""
        return cls(messages=(Message(role="user", content=text),), **fields)

    @property
    def text(self) -> str:
        """The last message's text: what the answer answers."""
        return self.messages[-1].content


class Completion(Record):
    """One answer to a prompt, and where it came from."""

    prompt_id: str
    text: str
    origin: str
    """What wrote it: a policy (``runs/NAME/sft@HASH``), a file, a person."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """For a policy: sampling settings and sample index."""
    id: str = ""
    """Hash of prompt, text and origin; made when absent."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return _with_id(self, content_id("completion", self.prompt_id, self.text, self.origin))


class Judgement(Record):
    """What somebody said about K ≥ 2 completions of one prompt. A pair is K = 2."""

    id: str
    """Made by whoever gives the judgement, so that a repeated send counts once."""
    prompt_id: str
    annotator: str
    """Who: a person's name or key, ``sim-…``, a judge model, a file."""
    source: Source
    shown: tuple[str, ...]
    """Completion ids in the order in which they were shown, first = left = top."""
    ranks: tuple[int, ...]
    """One rank per shown completion: 1 is best, equal ranks tie. Dense: 1, 2, 2, 3."""
    strength: int | None = None
    """How clear the preference is, 1 (negligibly) to 4 (significantly better)."""
    criterion: str = "overall"
    flags: tuple[str, ...] = ()
    reason: str = ""
    seconds: float | None = None
    """How long it took, where that is known."""
    supersedes: str | None = None
    """The earlier judgement that this one corrects."""
    retracted: bool = False
    """With ``supersedes``: the earlier judgement is undone and nothing takes its place."""
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    guidelines: int | None = None
    """Version of the guidelines that the judge was shown, where there were any."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.id:
            raise ValueError("a judgement needs an id made by whoever gives it")
        if len(self.shown) < 2:
            raise ValueError(f"a judgement compares at least two completions; {len(self.shown)} given")
        if len(set(self.shown)) != len(self.shown):
            raise ValueError("a judgement shows each completion once; one id is there twice")
        if len(self.ranks) != len(self.shown):
            raise ValueError(f"{len(self.shown)} completions shown but {len(self.ranks)} ranks given")
        if set(self.ranks) != set(range(1, max(self.ranks) + 1)):
            raise ValueError(f"ranks must be dense from 1 (for example 1, 2, 2, 3); got {list(self.ranks)}")
        if self.strength is not None and not 1 <= self.strength <= 4:
            raise ValueError(f"strength is 1 to 4; got {self.strength}")
        if self.retracted and self.supersedes is None:
            raise ValueError("a retraction names the judgement that it undoes (supersedes)")
        if self.created.tzinfo is None:
            raise ValueError("created needs a time zone")
        return self


class Demonstration(Record):
    """An answer worth imitating."""

    prompt_id: str
    text: str
    origin: str
    """Who wrote it: a person, a file, an edit of a model's answer."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    judgement_id: str | None = None
    """The judgement that it was written with: when that is undone, so is this."""
    id: str = ""
    """Hash of prompt, text, origin and judgement; made when absent."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        with_it = () if self.judgement_id is None else (self.judgement_id,)
        return _with_id(self, content_id("demonstration", self.prompt_id, self.text, self.origin, *with_it))


def dense_ranks(values: Sequence[float]) -> tuple[int, ...]:
    """Ranks of ``values``, highest value = rank 1, equal values tie."""
    order = {value: rank for rank, value in enumerate(sorted(set(values), reverse=True), start=1)}
    return tuple(order[value] for value in values)


def _with_id(record: Any, made: str) -> Any:
    """Fill in the content hash, or refuse an id that does not belong to the content."""
    if record.id and record.id != made:
        raise ValueError(f"id {record.id} does not belong to this content (its hash is {made})")
    object.__setattr__(record, "id", made)
    return record
