"""What annotators are asked and what they answer, as plain values: batches, items, tasks, submissions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from .records import Completion, Prompt

Why = Literal["", "nothing to judge", "all judged", "enough collected", "paused"]
"""Why there is no task for somebody."""


class ConflictError(Exception):
    """What was sent contradicts what is there already; the message says what to do."""


@dataclass(frozen=True)
class Batch:
    """Items that are asked about in the same way."""

    name: str
    criteria: tuple[str, ...]
    overlap: int
    """How many different people judge each item."""
    target: int | None
    """How many sends are enough; None: all."""
    gold_share: float
    control_share: float
    """Of the items that are added from now on; of what each person is asked."""
    lease_seconds: int
    closed: bool
    done: int
    """Sends so far, without those about gold items."""
    created: datetime


@dataclass(frozen=True)
class Item:
    """A prompt and K ≥ 2 of its completions, by their ids."""

    prompt_id: str
    completions: tuple[str, ...]
    priority: float = 0.0
    """How much its judgement would teach; compared with the others' only."""
    gold: tuple[int, ...] | None = None
    """For an item whose answer is known: the ranks of ``completions``, by the first criterion."""


@dataclass(frozen=True)
class Task:
    """An item as one person sees it. Everything but ``prompt`` and ``shown`` may be told to them."""

    id: str
    batch: str
    criteria: tuple[str, ...]
    prompt: Prompt
    shown: tuple[Completion, ...]
    """In this person's order."""
    guidelines: int | None
    """The version that was the newest when the task was handed out."""
    draft: dict[str, Any] | None
    expires: datetime
    number: int
    """This person's first task, second task, …"""


@dataclass(frozen=True)
class Verdict:
    """What a send says by one criterion."""

    criterion: str
    ranks: tuple[int, ...]
    """In the order shown; dense, 1 is best, equal ranks tie."""
    strength: int | None = None


@dataclass(frozen=True)
class Submission:
    """What somebody says about a task."""

    id: str
    """Made by the sender, so that the same send twice counts once."""
    verdicts: tuple[Verdict, ...]
    flags: tuple[str, ...] = ()
    reason: str = ""
    seconds: float | None = None
    demonstration: tuple[int | None, str] | None = None
    """A better answer, and the place (from 0, in the order shown) of the one that it was made from."""


@dataclass(frozen=True)
class Progress:
    """Where one person stands."""

    done: int
    skipped: int
    remaining: int
    """Tasks that would be handed to this person now, one after the other."""
    remaining_at_least: bool
    """Whether there are more than were counted."""
    seconds_per_item: float | None
    """Median of the last twenty; None before the first."""
    collected: int
    """Everybody's sends in the batches that are open."""
    target: int | None
    """How many are wanted there; None when a batch wants all it can get."""
