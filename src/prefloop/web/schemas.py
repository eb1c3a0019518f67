"""What the API takes and gives. Requests are strict: unknown fields are refused, every length has a bound."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from prefloop.feedback.people import Role
from prefloop.feedback.tasks import Why

MOST_ANSWERS = 50
MOST_CRITERIA = 20
MOST_ITEMS = 5_000
DRAFT_BYTES = 1_000_000
TEXT_CHARACTERS = 200_000
MOST_REJECTED = 100
REJECTED_CHARACTERS = 10_000
"""Of each bad row that an import returns, and of its reason."""
EXPORTED = "Prefloop-Export"
"""The header of an export that has an `Exported` in it."""

_NO_NUL = r"^[^\x00]*$"
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w@+][\w @.+-]*$", examples=["ana"])]
"""A person: letters, digits, space and ``_ @ . + -``; nothing that breaks an address."""
BatchName = Annotated[str, Field(min_length=1, max_length=200, pattern=_NO_NUL)]
Secret = Annotated[str, Field(min_length=16, max_length=200, pattern=r"^[A-Za-z0-9_-]*$")]
Identifier = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]*$")]
Label = Annotated[str, Field(max_length=100, pattern=_NO_NUL)]
Criterion = Annotated[str, Field(min_length=1, max_length=100, pattern=_NO_NUL)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1, le=MOST_ANSWERS)]
Ranks = Annotated[list[Rank], Field(min_length=2, max_length=MOST_ANSWERS)]
Flag = Literal["unsafe", "personal data", "nonsense", "cannot judge", "all bad"]


def _small(draft: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(draft, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise ValueError("has text that is not valid Unicode") from None
    except (ValueError, RecursionError):
        raise ValueError("has a number or a nesting that JSON does not allow") from None
    if size > DRAFT_BYTES:
        raise ValueError(f"is longer than {DRAFT_BYTES} bytes")
    return draft


Draft = Annotated[dict[str, Any], AfterValidator(_small)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class _Answer(BaseModel):
    """Read by clients too, for which a field that is new is no fault."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


# Requests


class KeySignIn(_Request):
    """With the key that `prefloop label` printed, or with a token of one's own."""

    key: Secret


class InviteSignIn(_Request):
    """With an invite link's secret; whoever accepts it says their name."""

    invite: Secret
    name: Name


class DraftIn(_Request):
    draft: Draft


class VerdictIn(_Request):
    criterion: Criterion
    ranks: Ranks
    """One rank for each answer in the order shown: 1 is best, equal ranks tie, no rank is left out."""
    strength: Annotated[int, Field(ge=1, le=4)] | None = None
    """How clear the preference is, from 1 (negligible) to 4 (significant)."""


class DemonstrationIn(_Request):
    answer: Annotated[int, Field(ge=0, lt=MOST_ANSWERS)] | None = None
    """The place, counted from 0, of the answer that was edited; null for an answer of one's own."""
    text: Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS, pattern=_NO_NUL)]


class SubmissionIn(_Request):
    """A judgement of all criteria of a task."""

    id: Identifier
    """Made by the sender, a new one for each judgement: what is sent twice under one id counts once."""
    verdicts: Annotated[list[VerdictIn], Field(min_length=1, max_length=MOST_CRITERIA)]
    flags: Annotated[list[Flag], Field(max_length=5)] = Field(default_factory=list)
    reason: Annotated[str, Field(max_length=10_000, pattern=_NO_NUL)] = ""
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None
    """How long it took, pauses left out."""
    demonstration: DemonstrationIn | None = None


class PersonIn(_Request):
    name: Name
    role: Role


class InviteIn(_Request):
    role: Role
    name: Name | Literal[""] = ""
    """Whom it is for, where only one name will do."""
    days: Annotated[int, Field(ge=1, le=365)] = 7


class TokenIn(_Request):
    name: Name
    """Whose token it is."""
    label: Label = ""
    """What it is for."""
    days: Annotated[int, Field(ge=1, le=3650)] | None = None
    """null: until it is dropped."""


class GuidelinesIn(_Request):
    text: Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS, pattern=_NO_NUL)]
    """Markdown."""


class BatchIn(_Request):
    """A batch that is there already keeps its items and takes these settings."""

    name: BatchName
    criteria: Annotated[list[Criterion], Field(min_length=1, max_length=MOST_CRITERIA)] = Field(
        default_factory=lambda: ["overall"]
    )
    overlap: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many people judge each item."""
    target: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """How many judgements are enough; null: all that the items allow."""
    gold_share: Share = 0.0
    """Share of tasks whose right answer is known."""
    control_share: Share = 0.1
    """Share of tasks that are drawn at random, not by priority."""
    lease_seconds: Annotated[int, Field(ge=60, le=604_800)] = 1800
    """After so long, a task that was not sent goes to somebody else."""


class ItemIn(_Request):
    prompt_id: Identifier
    completions: Annotated[list[Identifier], Field(min_length=2, max_length=MOST_ANSWERS)]
    priority: Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)] = 0.0
    """Higher is asked earlier."""
    gold: Ranks | None = None
    """The right ranks of the completions, for an item that measures annotators."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gold is not None and len(self.gold) != len(self.completions):
            raise ValueError(f"gold has {len(self.gold)} ranks for {len(self.completions)} completions")
        return self


class ItemsIn(_Request):
    items: Annotated[list[ItemIn], Field(min_length=1, max_length=MOST_ITEMS)]


# Answers


class ErrorBody(_Answer):
    what: str
    remedy: str


class Error(_Answer):
    error: ErrorBody


class Me(_Answer):
    name: str
    role: Role


class Shown(_Answer):
    html: str
    """Made from the Markdown in ``text``, safe to put into a page."""
    text: str


class ShownMessage(Shown):
    role: str


class Task(_Answer):
    """What one person is asked. Nothing in it tells who wrote an answer, or why it is asked."""

    id: str
    criteria: list[str]
    messages: list[ShownMessage]
    answers: list[Shown]
    """In this annotator's order; ranks and places refer to it."""
    guidelines: int | None
    """Version of the guidelines that hold."""
    draft: dict[str, Any] | None
    expires: datetime
    """Until then nobody else is asked in this one's place; saving a draft puts it off."""
    number: int
    """This annotator's first, second, … task."""


class Progress(_Answer):
    done: int
    skipped: int
    remaining: int
    remaining_at_least: bool
    """Whether there are more than ``remaining`` says."""
    seconds_per_item: float | None
    collected: int
    target: int | None


class Next(_Answer):
    task: Task | None
    progress: Progress
    reason: Why
    """Why there is no task; empty where there is one, or will be when asked again."""


class Sent(_Answer):
    stored: int
    """How many judgements: one for each criterion."""


class Undone(_Answer):
    task: Task | None
    """null: there was nothing to undo."""
    progress: Progress


class Guidelines(_Answer):
    version: int | None
    """null: there are none yet."""
    html: str
    text: str


class GuidelinesVersion(_Answer):
    version: int
    text: str
    author: str
    created: datetime


class PersonOut(_Answer):
    name: str
    role: Role
    created: datetime
    revoked: datetime | None


class InviteOut(_Answer):
    id: str
    role: Role
    name: str
    """Whom it is meant for; empty where whoever accepts it chooses."""
    author: str
    created: datetime
    expires: datetime
    accepted_by: str | None
    ended: datetime | None
    """When it was accepted or withdrawn."""


class InviteMade(InviteOut):
    url: str
    """The link to pass on, once; it is not shown again."""
    secret: str


class TokenOut(_Answer):
    id: str
    person: str
    label: str
    created: datetime
    expires: datetime | None


class TokenMade(TokenOut):
    token: str
    """Shown once."""
    url: str
    """The same as a link, by which its person signs in with a browser."""


class BatchOut(_Answer):
    name: str
    criteria: list[str]
    overlap: int
    target: int | None
    gold_share: float
    control_share: float
    lease_seconds: int
    closed: bool
    done: int
    created: datetime


class ItemsAdded(_Answer):
    added: int
    """How many were not there before."""


class Rejected(_Answer):
    """A bad row that was left out."""

    number: int
    reason: str
    row: str
    """The row, as far as it could be read, as JSON in ASCII; of a longer one the first 10000 characters."""


class Imported(_Answer):
    format: str
    rows: int
    prompts: int
    completions: int
    judgements: int
    demonstrations: int
    """New ones, of each kind."""
    corrected: int
    """Judgements among them that take the place of what a judging sheet said before."""
    skipped: dict[str, int]
    """Reason → number of rows that were left out."""
    noted: dict[str, int]
    """What is unusual in rows that were imported, or not used of them → number of rows."""
    unit: str
    """What the numbers of rows count: lines, items of an array, rows of a table."""
    rejected: list[Rejected]
    """The first 100 bad rows, with ``skip_bad``."""
    rejected_more: int
    """How many more there were."""


class Exported(_Answer):
    """What became of what the store holds."""

    format: str
    rows: int
    left_out: dict[str, int]
    """Why → how many judgements (pairs of one, where a ranking is written as pairs), demonstrations or answers."""
    noted: dict[str, int]
    """What was written otherwise than it was said → how many."""


class Stats(_Answer):
    prompts: int
    completions: int
    judgements: int
    demonstrations: int


class Statistics(_Answer):
    figures: dict[str, Any]
    """What docs/feedback-statistics.md explains, by the names there; intervals as ``{value, low, high, n}``."""
    html: str
    """The same, drawn and explained."""
