"""How much there is to learn from, and how long it is: from the store or the world, else from the recipe's limits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from prefloop.chat import Chat
from prefloop.dataset import Dataset, judged_pairs, prepare
from prefloop.feedback.aggregate import Comparison
from prefloop.feedback.database import place_of
from prefloop.feedback.freezing import freeze
from prefloop.feedback.lazy import Pair
from prefloop.feedback.store import Store
from prefloop.models.loading import load_tokenizer
from prefloop.recipes import Recipe
from prefloop.training.pretrain import train_tokenizer

T = TypeVar("T")

LOOKED_AT = 300
"""Sequences whose lengths are measured; a world is asked for as many prompts."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers."""

    prompt: float
    answer: float
    longest_prompt: int
    """Of those that were looked at."""
    longest_answer: int

    @property
    def whole(self) -> float:
        return self.prompt + self.answer

    @property
    def longest(self) -> int:
        return self.longest_prompt + self.longest_answer

    def within(self, answer: int, prompt: int | None = None) -> Lengths:
        """With answers and prompts of so many tokens at most."""
        prompt = self.longest_prompt if prompt is None else prompt
        return Lengths(
            min(self.prompt, prompt),
            min(self.answer, answer),
            min(self.longest_prompt, prompt),
            min(self.longest_answer, answer),
        )


@dataclass(frozen=True)
class Amounts:
    """What a run learns from."""

    source: str
    """Where the figures are from, in words."""
    demonstrations: int
    heldout_demonstrations: int
    prompts: int
    heldout: int
    groups: int
    """Training prompts with judged answers."""
    heldout_groups: int
    judge_groups: int
    answers: float
    """Judged answers of each of them."""
    heldout_text: float
    """Tokens of the text that pretraining is measured on."""
    demonstrated: Lengths
    judged: Lengths
    rendering: float = 0.0
    """Seconds that it takes to tokenise a prompt and its answer."""

    def within(self, recipe: Recipe) -> Amounts:
        """As a recipe with other limits would read them."""
        limits = recipe.data.max_response_tokens, recipe.data.max_prompt_tokens
        return replace(self, demonstrated=self.demonstrated.within(*limits), judged=self.judged.within(*limits))


def amounts_of(recipe: Recipe, project: Path, folder: Path) -> Amounts:
    """Look at the recipe's world, at the project's store, or at the files that the recipe would import."""
    if recipe.data.world:
        small = _with_data(recipe, world_prompts=LOOKED_AT, world_heldout=LOOKED_AT // 3)
        with _own_store() as store:
            found = _looked_at(small, store, folder, f"the world {recipe.data.world!r}")
        whole = recipe.data.world_prompts
        scaled = replace(
            found,
            demonstrations=whole,
            heldout_demonstrations=recipe.data.world_heldout,
            prompts=whole,
            heldout=recipe.data.world_heldout,
            heldout_text=found.heldout_text * whole / LOOKED_AT,
        )
        return _to_be_judged(recipe, scaled)
    place = place_of(project)
    if isinstance(place, str) or place.exists():
        with Store.of_project(project, create=False) as store:
            if store.counts().prompts:
                found = _looked_at(_with_data(recipe, files=()), store, folder, "this project's store")
                return _to_be_judged(recipe, found)
    if recipe.data.files:
        with _own_store() as store:
            return _to_be_judged(recipe, _looked_at(recipe, store, folder, "data.files"))
    return _to_be_judged(recipe, _by_limits(recipe))


@contextmanager
def _own_store() -> Iterator[Store]:
    """What a plan reads is kept nowhere."""
    with TemporaryDirectory() as folder, Store.open(Path(folder) / "plan.db") as store:
        yield store


def _with_data(recipe: Recipe, **data: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def _looked_at(recipe: Recipe, store: Store, folder: Path, source: str) -> Amounts:
    data = prepare(recipe, store, folder)
    chat = Chat(_tokenizer(recipe, data))
    judged = _judged(recipe, store) if recipe.label.by == "none" else [[], [], []]
    step = _step(sum(map(len, judged)))
    some = [one for part in judged for one in part[::step]]
    answered = [(one.prompt, text) for one in some for text in one.texts]
    learnt = _some(data.demonstrations or answered)
    started = time.perf_counter()
    demonstrated = _lengths(recipe, chat, learnt)
    return Amounts(
        rendering=(time.perf_counter() - started) / max(1, len(learnt)),
        source=source,
        demonstrations=len(data.demonstrations),
        heldout_demonstrations=len(data.heldout_demonstrations),
        prompts=len(data.train) + len(data.aside),
        heldout=len(data.heldout),
        groups=len(judged[0]),
        heldout_groups=len(judged[1]),
        judge_groups=len(judged[2]),
        answers=len(answered) / max(1, len(some)),
        heldout_text=_tokens(chat, data.heldout_documents),
        demonstrated=demonstrated,
        judged=_lengths(recipe, chat, _some(answered)) if answered else demonstrated,
    )


def _judged(recipe: Recipe, store: Store) -> tuple[Sequence[Comparison], ...]:
    return judged_pairs(recipe, freeze(store, recipe.data.criterion).comparisons())


def _some(items: Sequence[T]) -> list[T]:
    """`LOOKED_AT` of them at most, evenly; nothing else is read."""
    return list(items[:: _step(len(items))])


def _step(count: int) -> int:
    return max(1, -(-count // LOOKED_AT))


def _tokenizer(recipe: Recipe, data: Dataset) -> Any:
    """The model's; of a model that is not there yet, one from some of the same text."""
    if recipe.model.path:
        return load_tokenizer(recipe.model.path)
    said = [f"{prompt.text}\n{answer}" for prompt, answer in data.demonstrations[:LOOKED_AT]]
    return train_tokenizer(
        [*data.documents[:LOOKED_AT], *said] or [p.text for p in data.train], recipe.model.vocabulary
    )


def _lengths(recipe: Recipe, chat: Chat, pairs: Sequence[Pair]) -> Lengths:
    """Of the answers that are short enough to be learnt from."""
    limits = recipe.data
    asked = [(chat.fitted_prompt_ids(prompt, limits.max_prompt_tokens)[1], answer) for prompt, answer in pairs]
    found = [(len(one), one.response_tokens) for one in (chat.answered(*pair) for pair in asked)]
    kept = [(whole, answer) for whole, answer in found if answer <= limits.max_response_tokens]
    if not kept:
        return _longest(recipe)
    return Lengths(
        prompt=fmean(whole - answer for whole, answer in kept),
        answer=fmean(answer for _, answer in kept),
        longest_prompt=max(whole - answer for whole, answer in kept),
        longest_answer=max(answer for _, answer in kept),
    )


def _tokens(chat: Chat, documents: Sequence[str]) -> float:
    some = _some(documents)
    counted = sum(len(ids) for ids in chat.tokenizer(some)["input_ids"]) if some else 0
    return counted * len(documents) / max(1, len(some))


def _to_be_judged(recipe: Recipe, found: Amounts) -> Amounts:
    """Where answers are sampled to be judged, how many there will be; as long as demonstrations are."""
    if recipe.label.by == "none":
        return found
    asked = min(recipe.sample.prompts, found.prompts)
    aside = round(asked * recipe.judge.fraction)
    return replace(
        found,
        groups=asked - aside,
        heldout_groups=min(recipe.sample.heldout, found.heldout),
        judge_groups=aside,
        answers=recipe.sample.answers,
        judged=found.demonstrated.within(recipe.sample.max_response_tokens),
    )


def _by_limits(recipe: Recipe) -> Amounts:
    """Nothing is there yet: as many as the recipe would sample, as long as it allows."""
    lengths, many, few = _longest(recipe), recipe.sample.prompts, recipe.sample.heldout
    return Amounts(
        source=f"no data: {many:,} demonstrations and comparisons (sample.prompts) are assumed, each as long as "
        "data.max_prompt_tokens and data.max_response_tokens allow",
        demonstrations=many,
        heldout_demonstrations=few,
        prompts=many,
        heldout=few,
        groups=many - round(many * recipe.judge.fraction),
        heldout_groups=few,
        judge_groups=round(many * recipe.judge.fraction),
        answers=2,
        heldout_text=0,
        demonstrated=lengths,
        judged=lengths,
    )


def _longest(recipe: Recipe) -> Lengths:
    prompt, answer = recipe.data.max_prompt_tokens, recipe.data.max_response_tokens
    return Lengths(prompt, answer, prompt, answer)
