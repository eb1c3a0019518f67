"""What a row says, whatever its format: readers make these from rows, writers make rows from these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..records import Split
from .rows import Turns

FROM_LABELS = "from labels"
"""A judgement's flag: of two answers one was labelled desirable and one not; nobody compared them."""
_NOTHING: Mapping[str, Any] = {}


class Answer(NamedTuple):
    text: str
    origin: str | None = None
    """What wrote it; None for the file that it stands in."""
    metadata: Mapping[str, Any] = _NOTHING


class Ranked(NamedTuple):
    """K ≥ 2 answers with different texts, compared."""

    turns: Turns
    answers: tuple[Answer, ...]
    ranks: tuple[int, ...]
    """Dense from 1, the best; equal ranks tie."""
    split: Split | None = None
    strength: int | None = None
    criterion: str = "overall"
    annotator: str | None = None
    """Who compared them; None for the file."""


class Labelled(NamedTuple):
    """One answer, desirable or not (KTO)."""

    turns: Turns
    answer: Answer
    label: bool
    split: Split | None = None


class Demonstrated(NamedTuple):
    """An answer worth imitating."""

    turns: Turns
    text: str
    split: Split | None = None


class Asked(NamedTuple):
    """A prompt, perhaps with an answer that nobody judged."""

    turns: Turns
    answer: Answer | None = None
    split: Split | None = None


Item = Ranked | Labelled | Demonstrated | Asked


class NotCarriedError(ValueError):
    """A format has no place for this item; the message says why, the same for all items with that reason."""


def need(met: bool, otherwise: str) -> None:
    """Raise NotCarriedError with the reason ``otherwise`` unless ``met``."""
    if not met:
        raise NotCarriedError(otherwise)


def pair_of(item: Ranked) -> tuple[Answer, Answer]:
    """The better and the worse of two answers."""
    need(item.ranks[0] != item.ranks[1], "a tie")
    one, other = item.answers
    return (one, other) if item.ranks[0] < item.ranks[1] else (other, one)
