"""Records of a store as sequences: a number each in memory, and the record read when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import sqlalchemy as sa

from .elsewhere import Elsewhere
from .keys import Ints
from .records import Completion, Judgement, Message, Prompt, Split
from .store import Store
from .stored import to_completion, to_judgement, to_prompt
from .tables import COMPLETIONS, DEMONSTRATIONS, JUDGEMENTS, PROMPTS

Pair = tuple[Prompt, str]
"""A prompt and an answer to it."""
Dialogue = list[Message]
T = TypeVar("T")
Other = TypeVar("Other")


@dataclass(frozen=True)
class View(Generic[T]):
    """What is read of a row, and what is made of it."""

    table: sa.Table
    """Whose rows they are."""
    query: sa.Select[*tuple[Any, ...]]
    """What is read, the row's place (``seq``) among it."""
    make: Callable[[sa.RowMapping], T]


class Stored(Elsewhere[T]):
    """Records at some places of a table (``seq``), in the order of the places.

    Rows never change, so these are always the same records. Whoever needs them again and again makes a list.
    """

    def __init__(self, store: Store, places: Ints, view: View[T]) -> None:
        super().__init__(places)
        self.store, self.view = store, view

    def at(self, places: Ints) -> Self:
        return type(self)(self.store, places, self.view)

    def read(self, places: Ints) -> list[T]:
        wanted: list[int] = places.tolist()
        with self.store.database.reading() as db:
            rows = db.execute(self.view.query.where(self.view.table.c.seq.in_(wanted))).mappings()
            found = {row["seq"]: self.view.make(row) for row in rows}
        return [found[one] for one in wanted]

    def seen_as(self, view: View[Other]) -> Stored[Other]:
        """Another look at the same rows."""
        return Stored(self.store, self.places, view)


def _dialogue(row: sa.RowMapping) -> Dialogue:
    turns = [*row["messages"], ("assistant", row["text"])]
    return [Message(role=role, content=content) for role, content in turns]


def _dialogues(answers: sa.Table) -> View[Dialogue]:
    what = sa.select(answers.c.seq, answers.c.text, PROMPTS.c.messages)
    return View(answers, what.join(PROMPTS, PROMPTS.c.id == answers.c.prompt_id), _dialogue)


def _pairs(answers: sa.Table) -> View[Pair]:
    c = PROMPTS.c
    what = sa.select(answers.c.seq, answers.c.text, c.id, c.messages, c.split, c.metadata)
    what = what.join(PROMPTS, c.id == answers.c.prompt_id)
    return View(answers, what, lambda row: (to_prompt(row), row["text"]))


def _texts(answers: sa.Table) -> View[tuple[str, str]]:
    what = sa.select(answers.c.seq, answers.c.prompt_id, answers.c.text)
    return View(answers, what, lambda row: (row["prompt_id"], row["text"]))


_PROMPTS = View(PROMPTS, sa.select(PROMPTS), to_prompt)
_COMPLETIONS = View(COMPLETIONS, sa.select(COMPLETIONS), to_completion)
_JUDGEMENTS = View(JUDGEMENTS, sa.select(JUDGEMENTS), to_judgement)
_JUDGEMENT_IDS: View[str] = View(JUDGEMENTS, sa.select(JUDGEMENTS.c.seq, JUDGEMENTS.c.id), lambda row: row["id"])
_IDS: View[str] = View(PROMPTS, sa.select(PROMPTS.c.seq, PROMPTS.c.id), lambda row: row["id"])
_DEMONSTRATED, _ANSWERED = _pairs(DEMONSTRATIONS), _pairs(COMPLETIONS)
_ASKED: View[tuple[str, Split | None]] = View(
    PROMPTS, sa.select(PROMPTS.c.seq, PROMPTS.c.id, PROMPTS.c.split), lambda row: (row["id"], row["split"])
)


def prompts_at(store: Store, places: Ints) -> Stored[Prompt]:
    return Stored(store, places, _PROMPTS)


def asked_at(store: Store, places: Ints) -> Stored[tuple[str, Split | None]]:
    """Id and split of prompts."""
    return Stored(store, places, _ASKED)


def completions_at(store: Store, places: Ints) -> Stored[Completion]:
    return Stored(store, places, _COMPLETIONS)


def judgements_at(store: Store, places: Ints) -> Stored[Judgement]:
    return Stored(store, places, _JUDGEMENTS)


def judgement_ids_at(store: Store, places: Ints) -> Stored[str]:
    """Nothing else of them is read."""
    return Stored(store, places, _JUDGEMENT_IDS)


def demonstrations_at(store: Store, places: Ints) -> Stored[Pair]:
    """Demonstrations, each a prompt and the answer to it."""
    return Stored(store, places, _DEMONSTRATED)


def answers_at(store: Store, places: Ints) -> Stored[Pair]:
    """Completions, each with its prompt."""
    return Stored(store, places, _ANSWERED)


def dialogues_at(store: Store, places: Ints) -> Stored[Dialogue]:
    """Demonstrations, each as the last turn of its conversation."""
    return Stored(store, places, _dialogues(DEMONSTRATIONS))


def answered_at(store: Store, places: Ints) -> Stored[Dialogue]:
    """Completions, each as the last turn of its conversation."""
    return Stored(store, places, _dialogues(COMPLETIONS))


def ids_of(prompts: Sequence[Prompt]) -> Iterable[str]:
    """The prompts' ids; where they are in the store, nothing else of them is read."""
    return prompts.seen_as(_IDS) if isinstance(prompts, Stored) else (prompt.id for prompt in prompts)


def texts_of(pairs: Sequence[Pair]) -> Iterable[tuple[str, str]]:
    """(the prompt's id, the answer) of each pair; where they are in the store, the prompts are not read."""
    if isinstance(pairs, Stored):
        return pairs.seen_as(_texts(pairs.view.table))
    return ((prompt.id, text) for prompt, text in pairs)
