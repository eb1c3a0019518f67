"""What a run learns from: prompts and their split, demonstrations, plain text; from a world or from the store."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from prefloop.demo.world import WORLDS, World
from prefloop.documents import Dialogues, TextFiles
from prefloop.feedback.aggregate import Comparison
from prefloop.feedback.elsewhere import chosen, prompts_of
from prefloop.feedback.formats import import_file
from prefloop.feedback.freezing import freeze
from prefloop.feedback.keys import Ints, ordered
from prefloop.feedback.lazy import (
    Pair,
    Stored,
    answered_at,
    answers_at,
    demonstrations_at,
    dialogues_at,
    ids_of,
    prompts_at,
    texts_of,
)
from prefloop.feedback.records import Demonstration, Prompt, Split, content_id, content_id_of
from prefloop.feedback.store import Store
from prefloop.feedback.stored import AT_ONCE
from prefloop.recipes import Recipe
from prefloop.seeds import derive

GOLD = "gold"
"""In a prompt's metadata: it tests people, and nothing is learnt from it."""
PARTS = ("train", "heldout", "judge")
"""What a prompt may be for."""


@dataclass(frozen=True)
class Dataset:
    """Prompts by split, demonstrations by split, and documents to pretrain on.

    What is in a store or in files stays there until somebody asks for it (`prefloop.feedback.lazy`,
    `prefloop.documents`).
    """

    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    demonstrations: Sequence[Pair]
    heldout_demonstrations: Sequence[Pair]
    documents: Sequence[str]
    heldout_documents: Sequence[str]
    aside: Sequence[Prompt] = field(default_factory=list)
    """Training prompts whose comparisons are for the held-out judge alone."""

    @cached_property
    def prompts_hash(self) -> str:
        return content_id_of(*map(ids_of, (self.train, self.heldout, self.aside)))

    @cached_property
    def demonstrations_hash(self) -> str:
        return content_id_of(chain(texts_of(self.demonstrations), texts_of(self.heldout_demonstrations)))

    @cached_property
    def documents_hash(self) -> str:
        return content_id_of(self.documents, self.heldout_documents)


def place(prompt: Prompt, heldout_fraction: float) -> str:
    """``train`` or ``heldout``: as the data's owner said, else by the prompt's hash."""
    return _place(prompt.id, prompt.split, heldout_fraction)


def for_judge(prompt: Prompt, fraction: float) -> bool:
    """Whether a training prompt's comparisons are set aside for the held-out judge; by the prompt's hash."""
    return _uniform(prompt.id, "judge") < fraction


def part_of(recipe: Recipe, prompt: Prompt) -> str:
    """What a prompt's comparisons are for: ``train``, ``heldout`` or ``judge``, the held-out judge's training."""
    return _part(recipe, prompt.id, prompt.split)


def prepare(recipe: Recipe, store: Store, folder: Path) -> Dataset:
    """Import the recipe's files, let its world write into the store, and gather what the run learns from.

    Args:
        folder: where relative paths of the recipe start.
    """
    for name in recipe.data.files:
        import_file(store, folder / name)
    if recipe.data.world:
        return _from_world(recipe, WORLDS[recipe.data.world], store, folder)
    return _from_store(recipe, store, folder)


def judged_pairs(recipe: Recipe, found: Sequence[Comparison]) -> tuple[Sequence[Comparison], ...]:
    """Comparisons for training, for testing and for the held-out judge; each prompt is in one of them."""
    places = {name: array("q") for name in PARTS}
    for number, (id, split) in enumerate(prompts_of(found)):
        places[_part(recipe, id, split)].append(number)
    return tuple(chosen(found, places[name]) for name in PARTS)


def _from_world(recipe: Recipe, world: World, store: Store, folder: Path) -> Dataset:
    seed = derive(recipe.seed, "world")
    train = world.prompts(recipe.data.world_prompts, "train", seed)
    heldout = world.prompts(recipe.data.world_heldout, "heldout", seed)
    rng = random.Random(derive(seed, "demonstrations"))
    pairs = [(prompt, world.demonstrate(prompt, rng)) for prompt in [*train, *heldout]]
    store.add([*train, *heldout])
    store.add(Demonstration(prompt_id=p.id, text=text, origin=f"world:{world.name}") for p, text in pairs)
    documents, heldout_documents = _world_text(recipe, world, seed, folder)
    return Dataset(
        train=train,
        heldout=heldout,
        demonstrations=pairs[: len(train)],
        heldout_demonstrations=pairs[len(train) :],
        documents=documents,
        heldout_documents=heldout_documents,
    )


def _world_text(recipe: Recipe, world: World, seed: int, folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    """Documents to pretrain on, and held-out ones."""
    if "pretrain" not in recipe.stages:
        return [], []
    if recipe.pretrain.files:
        return TextFiles(recipe.pretrain.files, folder), []
    documents = world.text(recipe.data.world_prompts, seed)
    heldout = len(documents) // 20
    return documents[heldout:], documents[:heldout]


def _from_store(recipe: Recipe, store: Store, folder: Path) -> Dataset:
    places, part_at = _placed(recipe, store)
    count = sum(map(len, places.values()))
    if not count:
        raise ValueError(
            "the store has no prompts. Import some (`prefloop import FILE`), name files in data.files, "
            "or choose an embedded world (data.world)"
        )
    train, heldout, aside = (prompts_at(store, places[part]) for part in PARTS)
    if not train or not heldout:
        raise ValueError(
            f"of {count} prompts {len(train)} are for training and {len(heldout)} held out; both need some. "
            "Import more, or change data.heldout_fraction"
        )
    written = _written(recipe, store, part_at)
    shown = (
        {part: demonstrations_at(store, places) for part, places in written.items()}
        if recipe.sft.demonstrations == "written"
        else _preferred_pairs(recipe, store)
    )
    documents, heldout_documents = _store_text(recipe, store, folder, part_at, written)
    return Dataset(
        train=train,
        heldout=heldout,
        demonstrations=shown["train"],
        heldout_demonstrations=shown["heldout"],
        documents=documents,
        heldout_documents=heldout_documents,
        aside=aside,
    )


def _placed(recipe: Recipe, store: Store) -> tuple[dict[str, Ints], bytes]:
    """Where each part's prompts are in the table, and the number of the part of the prompt at each place of it."""
    places, parts, keys = array("q"), bytearray(), bytearray()
    for page in store.prompt_rows():
        for number, id, split, metadata in page:
            if GOLD not in metadata:
                places.append(number)
                parts.append(PARTS.index(_part(recipe, id, split)))
                keys += bytes.fromhex(content_id("order", id))
    at, part = np.array(places, np.int64), np.array(parts, np.uint8)
    part_at = np.full(at.max(initial=0) + 1, len(PARTS), np.uint8)
    part_at[at] = part
    _, order = ordered(keys)  # by hash, not in the order of import: the first N are then of every file
    return {name: at[order][part[order] == number] for number, name in enumerate(PARTS)}, part_at.tobytes()


def _written(recipe: Recipe, store: Store, part_at: bytes) -> dict[str, Ints]:
    """The places of the store's demonstrations by part, but for what people wrote while they judged this run's own
    answers."""
    asked = {prompt_id for _, prompt_id in _own_answers(recipe, store)}
    places = [array("q") for _ in range(len(PARTS) + 1)]
    for page in store.demonstration_rows():
        for number, prompt_id, prompt, judgement in page:
            if prompt < len(part_at) and (judgement is None or prompt_id not in asked):
                places[part_at[prompt]].append(number)
    return {name: np.array(at, np.int64) for name, at in zip(PARTS, places, strict=False)}


def _preferred_pairs(recipe: Recipe, store: Store) -> dict[str, Stored[Pair]]:
    """Of every judged prompt the answer with the most votes, by part."""
    own = {id for id, _ in _own_answers(recipe, store)}
    judged = freeze(store, recipe.data.criterion, counts=lambda one: own.isdisjoint(one.shown)).comparisons()
    liked = ((part_of(recipe, one.prompt), _preferred(one)) for one in judged if GOLD not in one.prompt.metadata)
    places = {name: array("q") for name in PARTS}
    while page := list(islice(liked, AT_ONCE)):
        place_of = store.completion_places(id for _, id in page)
        for part, id in page:
            places[part].append(place_of[id])
    return {part: answers_at(store, np.array(at, np.int64)) for part, at in places.items()}


def _own_answers(recipe: Recipe, store: Store) -> Iterator[tuple[str, str]]:
    """The ids of the answers that this run gave, and of their prompts. What people say of those comes after its
    demonstrations: if it were among them, the run would begin anew with every judgement."""
    return ((id, prompt_id) for page in store.rows_from(f"runs/{recipe.name}/") for _, id, prompt_id in page)


def _preferred(comparison: Comparison) -> str:
    """The id of the answer with the most votes; of equals the first."""
    votes = [0.0] * len(comparison.texts)
    for winner, _, count in comparison.wins:
        votes[winner] += count
    return comparison.completion_ids[votes.index(max(votes))]


def _store_text(
    recipe: Recipe, store: Store, folder: Path, part_at: bytes, written: dict[str, Ints]
) -> tuple[Sequence[str], Sequence[str]]:
    """Documents to pretrain on, and held-out ones: every conversation in the store, but no model's answers."""
    if "pretrain" not in recipe.stages:
        return [], []
    if recipe.pretrain.files:
        return TextFiles(recipe.pretrain.files, folder), []
    given = _given(store, part_at)
    train, heldout = (
        Dialogues(answered_at(store, given[part]), dialogues_at(store, written[part]))
        for part in ("train", "heldout")
    )
    return train, heldout


def _given(store: Store, part_at: bytes) -> dict[str, Ints]:
    """The places of the completions that no run has sampled, by part; sorted by their prompts' ids."""
    places, parts, keys = array("q"), bytearray(), bytearray()
    for page in store.given_rows():
        for number, prompt_id, prompt, metadata in page:
            if prompt < len(part_at) and "sample" not in metadata:
                places.append(number)
                parts.append(part_at[prompt])
                keys += bytes.fromhex(prompt_id)
    _, order = ordered(keys)
    at, part = np.array(places, np.int64)[order], np.array(parts, np.uint8)[order]
    return {name: at[part == number] for number, name in enumerate(PARTS)}


def _place(id: str, split: Split | None, heldout_fraction: float) -> str:
    return split or ("heldout" if _uniform(id, "heldout") < heldout_fraction else "train")


def _part(recipe: Recipe, id: str, split: Split | None) -> str:
    where = _place(id, split, recipe.data.heldout_fraction)
    return "judge" if where == "train" and _uniform(id, "judge") < recipe.judge.fraction else where


def _uniform(id: str, purpose: str) -> float:
    return int(content_id(purpose, id), 16) / 2**128
