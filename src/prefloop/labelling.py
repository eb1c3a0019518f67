"""The label stage: who judges the sampled answers, and how a run waits for people.

People are asked through the store's queue (`prefloop label` serves it): the run opens a batch of its answers, looks
now and then at what has come in, closes the batch when that is enough, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from heapq import merge
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from prefloop.config import LabelConfig
from prefloop.context import Context
from prefloop.dataset import GOLD, part_of
from prefloop.feedback.aggregate import Comparison, comparisons
from prefloop.feedback.assignment import Queue
from prefloop.feedback.formats import read_file
from prefloop.feedback.freezing import StoredSnapshot, freeze
from prefloop.feedback.pairs import pair_votes
from prefloop.feedback.priority import information
from prefloop.feedback.records import Completion, Judgement, Prompt, content_id
from prefloop.feedback.reliability import annotator_weights
from prefloop.feedback.store import AnyRecord
from prefloop.feedback.tasks import Item
from prefloop.labelers.simulated import PANEL, assign, judge
from prefloop.models.heads import RewardModel
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy
from prefloop.rewarding import is_path, member_scores
from prefloop.rollout.batch import Rollout
from prefloop.runs import StageWriter, read_json, read_lines, write_json
from prefloop.seeds import derive
from prefloop.training.loop import Metrics
from prefloop.training.online_dpo import PairJudge, Votes

POLL_SECONDS = 1.0
"""How often a run that waits looks whether somebody has judged."""
LEASE_SECONDS = 1800


class WaitingForPeopleError(Exception):
    """The run cannot go on before somebody has judged, and was told not to wait; the message says how."""


def label(context: Context, writer: StageWriter) -> None:
    """Let the sampled answers be judged, and freeze the judgements that the run learns from."""
    if context.recipe.label.by == "simulated":
        frozen = [_simulated(context)]
    else:
        frozen = judged_so_far(context) if context.judged is None else context.judged
    for one in frozen:
        _check_judged(one)
        one.write(writer.folder / snapshot_name(context, one.criterion))
    if context.recipe.label.weights == "reliability":
        write_json(writer.folder / "annotators.json", {one.criterion: _weighed(context, one) for one in frozen})
    hashes = [one.hash for one in frozen]
    writer.extra |= {
        "snapshot": hashes[0] if len(hashes) == 1 else content_id("snapshots", hashes),
        "judgements": sum(len(one.judgements) for one in frozen),
    }


def judged_so_far(
    context: Context, items: Sequence[tuple[Prompt, list[Completion]]] | None = None
) -> list[StoredSnapshot]:
    """What the run would learn from now, by each criterion; where people judge, what they said of its own answers."""
    if context.recipe.label.by != "human":
        return [freeze(context.store, name) for name in _asked(context)]
    items = items_to_judge(context) if items is None else items
    ids = [completion.id for _, completions in items for completion in completions]
    return [freeze(context.store, name, ids, lambda one: one.source == "human") for name in _asked(context)]


def snapshot_name(context: Context, criterion: str) -> str:
    """The file in the stage's folder with the judgements by a criterion."""
    return "snapshot.jsonl" if criterion == context.recipe.data.criterion else f"snapshot-{criterion}.jsonl"


def _asked(context: Context) -> tuple[str, ...]:
    """The criteria: what DPO learns from, and what the reward model does."""
    return tuple(dict.fromkeys((context.recipe.data.criterion, *context.recipe.criteria)))


def _check_judged(frozen: StoredSnapshot) -> None:
    if not frozen.judgements:
        raise ValueError(
            f"the store has no judgements by the criterion {frozen.criterion!r} (data.criterion, reward.criteria). "
            'Import comparisons, or let answers be judged (label.by = "human")'
        )


def items_to_judge(context: Context) -> list[tuple[Prompt, list[Completion]]]:
    """Sampled prompts with at least two different answers."""
    data = context.data
    answers: dict[str, list[Completion]] = {}
    for row in read_lines(context.run / "sample" / "completions.jsonl"):
        completion = Completion.model_validate(row)
        answers.setdefault(completion.prompt_id, []).append(completion)
    parts = chain(data.train, data.aside, data.heldout)
    prompts = {prompt.id: prompt for prompt in parts if prompt.id in answers}
    return [(prompts[key], found) for key, found in answers.items() if len(found) > 1]


def _weighed(context: Context, frozen: StoredSnapshot) -> dict[str, Any]:
    """What each annotator's votes weigh, and the reliability behind it, whose level gold items fix.

    The votes that the run learns from weigh 1 on average.
    """
    right = Queue(context.store).gold_ranks() if context.recipe.label.by != "simulated" else {}
    tested = _tested(context, frozen, right)
    completions = chain(frozen.completions, context.store.completions({one.prompt_id: None for one in tested}))
    judgements = merge(frozen.by_time(), tested, key=lambda one: one.created)
    found = annotator_weights(pair_votes(judgements, completions, right))
    judges = frozen.annotator.names
    cast = (found[judges[number]][0] for number in frozen.annotator.number.tolist() if judges[number] in found)
    mean = sum(cast) / len(frozen.judgements)
    return {
        name: {"weight": weight / (mean or 1.0), "reliability": eta}
        for name, (weight, eta) in sorted(found.items())
        if name in judges
    }


def _tested(context: Context, frozen: StoredSnapshot, right: Collection[str]) -> list[Judgement]:
    """What those who judged said about gold items beside what is frozen, the earliest first."""
    judges, places = frozen.annotator.names, frozen.judgements.places
    found = [
        (place, one)
        for place, one in (context.store.placed_judgements(frozen.criterion) if right else ())
        if one.id in right and one.annotator in judges
    ]
    beside = ~np.isin([place for place, _ in found], places)
    return sorted((one for (_, one), new in zip(found, beside, strict=True) if new), key=lambda one: one.created)


# People


def check_label(label: LabelConfig) -> None:
    """Raise ValueError for files of the recipe that cannot be used, before anything is trained."""
    if label.by != "human":
        return
    if label.gold and not any(isinstance(record, Judgement) for record in read_file(label.gold)):
        raise ValueError(f"label.gold: {label.gold} has no comparisons, so it tests nobody")
    if is_path(label.reward_model) and not Path(label.reward_model).is_dir():
        raise ValueError(f"label.reward_model: there is no folder {label.reward_model}")


def ask_people(context: Context) -> list[StoredSnapshot]:
    """Put the sampled answers into the queue, come back when enough judgements are there, and return them.

    Raises:
        WaitingForPeopleError: there are not enough, and ``context.wait`` is False.
        ValueError: so many can never be there.
    """
    items, queue, name = items_to_judge(context), Queue(context.store), _batch_name(context)
    seen, frozen = context.store.newest_judgement(), judged_so_far(context, items)
    if missing := _missing(context, items, frozen):
        _check_possible(context, items)
        _open_batch(context, queue, name, items, missing)
    told = False
    while missing := _missing(context, items, frozen):
        _ask_for(queue, name, missing)
        found = _votes_in(frozen)
        context.line({"progress": found / (found + missing), "votes": found, "wanted": found + missing})
        waiting = _waiting(context, items, found, found + missing)
        if not context.wait:
            raise WaitingForPeopleError(
                f"{waiting}\nThen give the command that brought you here once more: the run goes on where it stopped."
            )
        if not told:
            context.note(f"{waiting}\nThis run goes on by itself when they are there.")
            told = True
        while context.store.newest_judgement() == seen:
            time.sleep(POLL_SECONDS)
        seen, frozen = context.store.newest_judgement(), judged_so_far(context, items)
    found = _votes_in(frozen)
    context.line({"progress": 1.0, "votes": found, "wanted": found})
    _close(queue, context.recipe.name)
    return frozen


def _check_possible(context: Context, items: Sequence[tuple[Prompt, list[Completion]]]) -> None:
    config = context.recipe.label
    if len(items) * config.overlap < config.minimum:
        raise ValueError(
            f"label.minimum = {config.minimum} cannot be reached: {len(items)} prompts have two different answers, "
            f"and label.overlap = {config.overlap} people judge each. Lower it, or raise sample.prompts"
        )


def _missing(
    context: Context, items: Sequence[tuple[Prompt, list[Completion]]], frozen: Sequence[StoredSnapshot]
) -> int:
    """Votes to wait for: as many as the recipe says, and one at least for each part that something is learnt from."""
    parts = {prompt.id: part_of(context.recipe, prompt) for prompt, _ in items}
    without = max(len(set(parts.values()) - {parts[id] for id, _ in one.voted_about()}) for one in frozen)
    return max(context.recipe.label.minimum - _votes_in(frozen), without)


def _votes_in(frozen: Sequence[StoredSnapshot]) -> int:
    """Votes by the criterion that has the fewest."""
    return min(int(one.is_vote.sum()) for one in frozen)


def _batch_name(context: Context) -> str:
    """The run's batch; other answers, or other criteria, another batch."""
    sampled = read_json(context.run / "sample" / "manifest.json")["key"]
    return f"{context.recipe.name}/{content_id(sampled, _asked(context))[:8]}"


def _open_batch(
    context: Context, queue: Queue, name: str, items: Sequence[tuple[Prompt, list[Completion]]], missing: int
) -> None:
    config = context.recipe.label
    before = next((batch for batch in queue.batches() if batch.name == name), None)
    # What was chosen when the batch was made stays: asking the reward model again would tell the same.
    found = _priorities(context, items) if before is None else [0.0] * len(items)
    _close(queue, context.recipe.name)  # the batches of answers that this run has no use for any more
    queue.open_batch(
        name,
        criteria=_asked(context),
        overlap=config.overlap,
        target=(before.done if before else 0) + missing,
        gold_share=config.gold_share if config.gold else 0.0,
        control_share=config.control_share,
        lease_seconds=before.lease_seconds if before else LEASE_SECONDS,
    )
    queue.add_items(
        name,
        [
            Item(prompt.id, tuple(completion.id for completion in completions), priority)
            for (prompt, completions), priority in zip(items, found, strict=True)
        ],
    )
    queue.add_items(name, _gold(context))


def _ask_for(queue: Queue, name: str, missing: int) -> None:
    """Let the batch hand out what is missing: some sends bring no vote, and some votes are imported."""
    if not queue.left(name):
        raise ValueError(
            f"every answer has been judged, and {missing} votes are missing: some could not be judged. Lower "
            "label.minimum, raise label.overlap, or raise sample.prompts, and run again"
        )
    batch = next(batch for batch in queue.batches() if batch.name == name)
    if batch.target != batch.done + missing:
        queue.set_target(name, batch.done + missing)


def _close(queue: Queue, run: str) -> None:
    for batch in queue.batches():
        if batch.name.startswith(f"{run}/") and not batch.closed:
            queue.close_batch(batch.name)


def _priorities(context: Context, items: Sequence[tuple[Prompt, list[Completion]]]) -> list[float]:
    """How much a judgement of each item would teach the reward model that the recipe names."""
    config = context.recipe.label
    if not config.reward_model:
        return [0.0] * len(items)
    return priorities(load_reward_model(config.reward_model), items, context.recipe.data.max_prompt_tokens)


def priorities(
    model: RewardModel, items: Sequence[tuple[Prompt, Sequence[Completion]]], max_prompt_tokens: int
) -> list[float]:
    """How much a judgement of each item would teach a reward model, in bits (`feedback.priority`)."""
    pairs = [(prompt, completion.text) for prompt, completions in items for completion in completions]
    scores = member_scores(model, [p for p, _ in pairs], [text for _, text in pairs], max_prompt_tokens)
    found, start = [], 0
    for _, completions in items:
        found.append(information([member[start : start + len(completions)] for member in scores]))
        start += len(completions)
    return found


def _gold(context: Context) -> list[Item]:
    """Items whose answer is known, from the recipe's file; their answers go to the store, their judgements do not."""
    name = context.recipe.label.gold
    if not name:
        return []
    records = [_marked(record) for record in read_file(name)]
    context.store.add(record for record in records if not isinstance(record, Judgement))
    return [Item(j.prompt_id, j.shown, gold=j.ranks) for j in records if isinstance(j, Judgement)]


def _marked(record: AnyRecord) -> AnyRecord:
    """A gold prompt is no prompt to learn from (`dataset`)."""
    return record.model_copy(update={"metadata": {GOLD: True}}) if isinstance(record, Prompt) else record


def _waiting(context: Context, items: Sequence[tuple[Prompt, list[Completion]]], found: int, wanted: int) -> str:
    project = context.run.parents[1].resolve()
    return (
        f"The answers to {len(items)} prompts wait for somebody's judgement "
        f"({found} of {wanted} votes so far).\n"
        + (f"Open {context.page}" if context.page else f"In {project}: prefloop label")
    )


# Simulated annotators


def _simulated(context: Context) -> StoredSnapshot:
    """The panel's judgements of the sampled answers; not what an earlier run let be said about the same answers."""
    items = items_to_judge(context)
    made = {one.id for _, one in _simulate(context, list(enumerate(items)), context.seed("label"))}
    ids = [completion.id for _, completions in items for completion in completions]
    return freeze(context.store, context.recipe.data.criterion, ids, lambda one: one.id in made)


def _simulate(
    context: Context, items: Sequence[tuple[int, tuple[Prompt, list[Completion]]]], seed: int
) -> list[tuple[int, Judgement]]:
    """The panel's judgements of numbered items, with the number of what each is about. They go to the store.

    Args:
        seed: decides who is asked; how they answer belongs to the run.
    """
    world = context.world
    assert world is not None, "checked by the recipe"
    utility = cache(world.utility)  # several annotators look at the same answer
    made = [
        (number, judge(annotator, prompt, completions, utility, context.seed("label")))
        for (number, (prompt, completions)), annotator in assign(items, PANEL, context.recipe.label.overlap, seed)
    ]
    context.store.add(judgement for _, judgement in made)
    return made


def annotators(context: Context, policy: Policy) -> PairJudge:
    """The simulated annotators, asked while a policy learns: their judgements go to the store like anybody's."""
    batches = count(1)

    def ask(asked: Sequence[Prompt], rollout: Rollout, answers: int) -> tuple[list[list[Votes]], Metrics]:
        batch = next(batches)
        origin = f"runs/{context.recipe.name}/online_dpo@{batch}"
        items: list[tuple[Prompt, list[Completion]]] = []
        places: list[dict[str, int]] = []  # where each text stands among the prompt's answers; twice is one answer
        for start in range(0, len(asked), answers):
            found = {policy.chat.text(rollout.responses[start + k]): k for k in reversed(range(answers))}
            made = [Completion(prompt_id=asked[start].id, text=text, origin=origin) for text in sorted(found)]
            items.append((asked[start], made))
            places.append(found)
        context.store.add(completion for _, made in items for completion in made)
        # A prompt may come twice in a batch: what was said stays with the answers that it was said of.
        said: dict[int, list[Judgement]] = {}
        several = [item for item in enumerate(items) if len(item[1][1]) > 1]
        for number, judgement in _simulate(context, several, derive(context.seed("label"), batch)):
            said.setdefault(number, []).append(judgement)
        votes: list[list[Votes]] = [[] for _ in items]
        for number, judgements in said.items():
            prompt, completions = items[number]
            for comparison in comparisons([prompt], completions, judgements):
                votes[number] = _votes(comparison, places[number])
        return votes, {"judgements": sum(map(len, said.values()))}

    return ask


def _votes(comparison: Comparison, places: Mapping[str, int]) -> list[Votes]:
    """A comparison's votes by the answers' places."""
    wins = {(i, j): count for i, j, count in comparison.wins}
    return [
        (places[comparison.texts[i]], places[comparison.texts[j]], wins.get((i, j), 0.0), wins.get((j, i), 0.0))
        for i, j in sorted({(min(pair), max(pair)) for pair in wins})
    ]
