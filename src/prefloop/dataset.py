"""What a run learns from: prompts and their split, demonstrations, plain text; from a world or from the store."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from prefloop.chat import plain_text
from prefloop.demo.world import WORLDS, World
from prefloop.feedback.aggregate import Comparison, snapshot
from prefloop.feedback.formats import import_file
from prefloop.feedback.records import Completion, Demonstration, Message, Prompt, content_id
from prefloop.feedback.store import Store
from prefloop.recipes import Recipe
from prefloop.seeds import derive

GOLD = "gold"
"""In a prompt's metadata: it tests people, and nothing is learnt from it."""
Pair = tuple[Prompt, str]
"""A prompt and an answer to it."""


@dataclass(frozen=True)
class Dataset:
    """Prompts by split, demonstrations by split, and documents to pretrain on."""

    train: list[Prompt]
    heldout: list[Prompt]
    demonstrations: list[Pair]
    heldout_demonstrations: list[Pair]
    documents: list[str]
    heldout_documents: list[str]
    aside: list[Prompt] = field(default_factory=list)
    """Training prompts whose comparisons are for the held-out judge alone."""

    @cached_property
    def prompts_hash(self) -> str:
        return content_id(*([p.id for p in part] for part in (self.train, self.heldout, self.aside)))

    @cached_property
    def demonstrations_hash(self) -> str:
        pairs = [*self.demonstrations, *self.heldout_demonstrations]
        return content_id([[prompt.id, text] for prompt, text in pairs])

    @cached_property
    def documents_hash(self) -> str:
        return content_id(self.documents, self.heldout_documents)


def place(prompt: Prompt, heldout_fraction: float) -> str:
    """``train`` or ``heldout``: as the data's owner said, else by the prompt's hash."""
    return prompt.split or ("heldout" if _uniform(prompt, "heldout") < heldout_fraction else "train")


def for_judge(prompt: Prompt, fraction: float) -> bool:
    """Whether a training prompt's comparisons are set aside for the held-out judge; by the prompt's hash."""
    return _uniform(prompt, "judge") < fraction


def part_of(recipe: Recipe, prompt: Prompt) -> str:
    """What a prompt's comparisons are for: ``train``, ``heldout`` or ``judge``, the held-out judge's training."""
    where = place(prompt, recipe.data.heldout_fraction)
    return "judge" if where == "train" and for_judge(prompt, recipe.judge.fraction) else where


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


def judged_pairs(recipe: Recipe, found: Sequence[Comparison]) -> tuple[list[Comparison], ...]:
    """Comparisons for training, for testing and for the held-out judge; each prompt is in one of them."""
    parts: dict[str, list[Comparison]] = {"train": [], "heldout": [], "judge": []}
    for comparison in found:
        parts[part_of(recipe, comparison.prompt)].append(comparison)
    return parts["train"], parts["heldout"], parts["judge"]


def _from_world(recipe: Recipe, world: World, store: Store, folder: Path) -> Dataset:
    seed = derive(recipe.seed, "world")
    train = world.prompts(recipe.data.world_prompts, "train", seed)
    heldout = world.prompts(recipe.data.world_heldout, "heldout", seed)
    rng = random.Random(derive(seed, "demonstrations"))
    pairs = [(prompt, world.demonstrate(prompt, rng)) for prompt in [*train, *heldout]]
    store.add([*train, *heldout])
    store.add(Demonstration(prompt_id=p.id, text=text, origin=f"world:{world.name}") for p, text in pairs)
    wanted = "pretrain" in recipe.stages
    documents = world.text(recipe.data.world_prompts, seed) if wanted else []
    return Dataset(
        train=train,
        heldout=heldout,
        demonstrations=pairs[: len(train)],
        heldout_demonstrations=pairs[len(train) :],
        documents=_files(recipe, folder) or documents[len(documents) // 20 :],
        heldout_documents=[] if recipe.pretrain.files else documents[: len(documents) // 20],
    )


def _from_store(recipe: Recipe, store: Store, folder: Path) -> Dataset:
    # By hash, not in the order of import: the first N are then of every file.
    prompts = sorted(store.prompts(), key=lambda prompt: content_id("order", prompt.id))
    prompts = [prompt for prompt in prompts if GOLD not in prompt.metadata]
    if not prompts:
        raise ValueError(
            "the store has no prompts. Import some (`prefloop import FILE`), name files in data.files, "
            "or choose an embedded world (data.world)"
        )
    fraction = recipe.data.heldout_fraction
    learnt = [p for p in prompts if place(p, fraction) == "train"]
    train = [p for p in learnt if not for_judge(p, recipe.judge.fraction)]
    heldout = [p for p in prompts if place(p, fraction) == "heldout"]
    if not train or not heldout:
        raise ValueError(
            f"of {len(prompts)} prompts {len(train)} are for training and {len(heldout)} held out; both need some. "
            "Import more, or change data.heldout_fraction"
        )
    pairs = _demonstrations(recipe, store, {prompt.id: prompt for prompt in prompts})
    train_ids, heldout_ids = {p.id for p in train}, {p.id for p in heldout}
    documents: list[str] = []
    if "pretrain" in recipe.stages and not recipe.pretrain.files:
        documents = _dialogues(recipe, store, train)
    return Dataset(
        train=train,
        heldout=heldout,
        demonstrations=[pair for pair in pairs if pair[0].id in train_ids],
        heldout_demonstrations=[pair for pair in pairs if pair[0].id in heldout_ids],
        documents=_files(recipe, folder) or documents,
        heldout_documents=[] if recipe.pretrain.files else _dialogues(recipe, store, heldout) if documents else [],
        aside=[p for p in learnt if for_judge(p, recipe.judge.fraction)],
    )


def _demonstrations(recipe: Recipe, store: Store, prompts: dict[str, Prompt]) -> list[Pair]:
    if recipe.sft.demonstrations == "written":
        return [(prompts[d.prompt_id], d.text) for d in _written(recipe, store) if d.prompt_id in prompts]
    given = [completion.id for completion in store.completions() if not _is_own(recipe, completion)]
    found = snapshot(store, recipe.data.criterion, given).comparisons()
    return [(comparison.prompt, _preferred(comparison)) for comparison in found]


def _is_own(recipe: Recipe, completion: Completion) -> bool:
    """Whether this run gave the answer. What people say of those comes after its demonstrations: if it were among
    them, the run would begin anew with every judgement."""
    return completion.origin.startswith(f"runs/{recipe.name}/")


def _written(recipe: Recipe, store: Store) -> list[Demonstration]:
    """The store's demonstrations, but for what people wrote while they judged this run's own answers."""
    asked = {completion.prompt_id for completion in store.completions() if _is_own(recipe, completion)}
    return [d for d in store.demonstrations() if d.judgement_id is None or d.prompt_id not in asked]


def _preferred(comparison: Comparison) -> str:
    """The answer with the most votes; of equals the first."""
    votes = [0.0] * len(comparison.texts)
    for winner, _, count in comparison.wins:
        votes[winner] += count
    return comparison.texts[votes.index(max(votes))]


def _dialogues(recipe: Recipe, store: Store, prompts: Sequence[Prompt]) -> list[str]:
    """Every conversation in the store about these prompts, as plain text; but no model's answers."""
    by_id = {prompt.id: prompt for prompt in prompts}
    answers: Iterable[Completion | Demonstration] = [
        *(c for c in store.completions(sorted(by_id)) if "sample" not in c.metadata),
        *(d for d in _written(recipe, store) if d.prompt_id in by_id),
    ]
    return [
        plain_text([*by_id[answer.prompt_id].messages, Message(role="assistant", content=answer.text)])
        for answer in answers
    ]


def _files(recipe: Recipe, folder: Path) -> list[str]:
    """The text files to pretrain on; each is one document."""
    documents = []
    for name in recipe.pretrain.files if "pretrain" in recipe.stages else ():
        try:
            documents.append((folder / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"pretrain.files: cannot read {name} as UTF-8 text: {error}") from None
    return documents


def _uniform(prompt: Prompt, purpose: str) -> float:
    return int(content_id(purpose, prompt.id), 16) / 2**128
