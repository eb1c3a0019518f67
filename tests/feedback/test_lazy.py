"""Records that stay in the store until somebody asks for them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from prefloop.feedback import elsewhere
from prefloop.feedback.elsewhere import chosen
from prefloop.feedback.keys import Ints
from prefloop.feedback.lazy import answers_at, demonstrations_at, ids_of, prompts_at, texts_of
from prefloop.feedback.records import Completion, Demonstration, Judgement, Message, Prompt
from prefloop.feedback.store import Store


def filled(store: Store, count: int) -> list[tuple[Prompt, str]]:
    """Prompts of all kinds, each with a demonstration."""
    prompts = [
        Prompt(
            messages=(Message(role="system", content="Be \0 brief."), Message(role="user", content=f"Why {i}?")),
            split="train" if i % 2 else None,
            metadata={"number": i},
        )
        for i in range(count)
    ]
    pairs = [(prompt, f"Because\0 {i}.") for i, prompt in enumerate(prompts)]
    store.add(prompts)
    store.add(Demonstration(prompt_id=prompt.id, text=text, origin="me") for prompt, text in pairs)
    return pairs


def shuffled(pages: Any, seed: int) -> tuple[list[int], Ints]:
    """An order, and the places of rows in it."""
    places = [row[0] for page in pages for row in page]
    order = random.Random(seed).sample(range(len(places)), len(places))
    return order, np.array(places)[order]


@pytest.mark.parametrize("seed", range(2))
def test_records_come_in_the_order_that_is_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(elsewhere, "AT_ONCE", 7)
    pairs = filled(store, 40)
    order, places = shuffled(store.prompt_rows(), seed)
    prompts, wanted = prompts_at(store, places), [pairs[i][0] for i in order]
    assert list(prompts) == list(prompts) == wanted
    assert (prompts[3], prompts[-1], len(prompts)) == (wanted[3], wanted[-1], 40)
    assert list(prompts[5:30:2]) == wanted[5:30:2]
    assert list(prompts[:0]) == []
    assert list(chosen(prompts, range(39, -1, -3))) == list(chosen(wanted, range(39, -1, -3))) == wanted[::-3]
    assert list(chosen(prompts, [])) == []
    assert list(ids_of(prompts)) == list(ids_of(wanted)) == [prompt.id for prompt in wanted]
    with pytest.raises(IndexError):
        prompts[40]

    order, places = shuffled(store.demonstration_rows(), seed)
    found, shown = demonstrations_at(store, places), [pairs[i] for i in order]
    assert list(found) == shown
    assert list(texts_of(found)) == list(texts_of(shown)) == [(prompt.id, text) for prompt, text in shown]

    store.add(Completion(prompt_id=prompt.id, text=f"So {text}", origin="x") for prompt, text in pairs)
    order, places = shuffled(store.completion_rows(), seed)
    found, shown = answers_at(store, places), [(pairs[i][0], f"So {pairs[i][1]}") for i in order]
    assert list(found) == shown
    assert list(texts_of(found)) == [(prompt.id, text) for prompt, text in shown]
    ids = [id for page in store.completion_rows() for _, id, *_ in page]
    assert [store.completion_places(ids)[ids[i]] for i in order] == places.tolist()


def test_what_comes_later_changes_nothing(store: Store) -> None:
    pairs = filled(store, 5)
    _, places = shuffled(store.prompt_rows(), 0)
    prompts = prompts_at(store, places)
    before = list(prompts)
    filled(store, 9)
    assert list(prompts) == before
    assert len(before) == len(pairs)


def test_rows_name_the_prompt_of_each_demonstration(store: Store) -> None:
    pairs = filled(store, 5)
    store.add([Demonstration(prompt_id=pairs[2][0].id, text="another", origin="me")])
    number = {row[1]: row[0] for page in store.prompt_rows() for row in page}
    rows = [tuple(row) for page in store.demonstration_rows() for row in page]
    asked = [*(prompt.id for prompt, _ in pairs), pairs[2][0].id]
    assert [row[1:] for row in rows] == [(id, number[id], None) for id in asked]


def test_what_was_undone_is_not_among_the_rows(store: Store) -> None:
    prompt = filled(store, 1)[0][0]
    answers = [Completion(prompt_id=prompt.id, text=text, origin="x") for text in "ab"]
    said = Judgement(
        id="one",
        prompt_id=prompt.id,
        annotator="me",
        source="human",
        shown=tuple(answer.id for answer in answers),
        ranks=(1, 2),
    )
    edit = Demonstration(prompt_id=prompt.id, text="edited", origin="me", judgement_id="one")
    store.add([*answers, said, edit])
    assert [row[3] for page in store.demonstration_rows() for row in page] == [None, "one"]
    store.add([said.model_copy(update={"id": "two", "supersedes": "one", "retracted": True})])
    assert [row[3] for page in store.demonstration_rows() for row in page] == [None]
