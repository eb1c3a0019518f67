"""The label stage: who judges the sampled answers, and how a run waits for people.

People are asked through the store's queue (`prefloop label` serves it): the run opens a batch of its answers, looks
now and then at what has come in, closes the batch when that is enough, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

from prefloop.context import Context
from prefloop.feedback.aggregate import Comparison, Snapshot, comparisons, snapshot
from prefloop.feedback.assignment import Queue
from prefloop.feedback.formats import read_file
from prefloop.feedback.pairs import pair_votes
from prefloop.feedback.priority import information
from prefloop.feedback.records import CANNOT_JUDGE, Completion, Judgement, Prompt, content_id
from prefloop.feedback.reliability import annotator_weights
from prefloop.feedback.tasks import Item
from prefloop.labelers.simulated import PANEL, assign, judge
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy
from prefloop.rewarding import member_scores
from prefloop.rollout.batch import Rollout
from prefloop.runs import StageWriter, read_json, read_lines, write_json
from prefloop.seeds import derive
from prefloop.training.loop import Metrics
from prefloop.training.online_dpo import PairJudge, Votes

POLL_SECONDS = 1.0
"""How often a run that waits looks whether somebody has judged."""


class WaitingForPeopleError(Exception):
    """The run cannot go on before somebody has judged, and was told not to wait; the message says how."""


def label(context: Context, writer: StageWriter) -> None:
    """Let the sampled answers be judged, and freeze the judgements that the run learns from."""
    if context.recipe.label.by == "simulated":
        frozen = [_simulated(context)]
    else:
        frozen = judged_so_far(context)
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


def judged_so_far(context: Context) -> list[Snapshot]:
    """What the run would learn from now, by each criterion; where people judge, what they said of its own answers."""
    if context.recipe.label.by != "human":
        return [snapshot(context.store, name) for name in _asked(context)]
    ids = [completion.id for _, completions in items_to_judge(context) for completion in completions]
    found = [snapshot(context.store, name, ids) for name in _asked(context)]
    return [_only(one, [j for j in one.judgements if j.source == "human"]) for one in found]


def _only(frozen: Snapshot, judgements: Sequence[Judgement]) -> Snapshot:
    return replace(frozen, judgements=tuple(judgements))


def snapshot_name(context: Context, criterion: str) -> str:
    """The file in the stage's folder with the judgements by a criterion."""
    return "snapshot.jsonl" if criterion == context.recipe.data.criterion else f"snapshot-{criterion}.jsonl"


def _asked(context: Context) -> tuple[str, ...]:
    """The criteria: what DPO learns from, and what the reward model does."""
    return tuple(dict.fromkeys((context.recipe.data.criterion, *context.recipe.criteria)))


def _check_judged(frozen: Snapshot) -> None:
    if not frozen.judgements:
        raise ValueError(
            f"the store has no judgements by the criterion {frozen.criterion!r} (data.criterion, reward.criteria). "
            'Import comparisons, or let answers be judged (label.by = "human")'
        )


def items_to_judge(context: Context) -> list[tuple[Prompt, list[Completion]]]:
    """Sampled prompts with at least two different answers."""
    data = context.data
    prompts = {prompt.id: prompt for prompt in [*data.train, *data.aside, *data.heldout]}
    answers: dict[str, list[Completion]] = {}
    for row in read_lines(context.run / "sample" / "completions.jsonl"):
        completion = Completion.model_validate(row)
        answers.setdefault(completion.prompt_id, []).append(completion)
    return [(prompts[key], found) for key, found in answers.items() if len(found) > 1]


def _weighed(context: Context, frozen: Snapshot) -> dict[str, Any]:
    """What each annotator's votes weigh, and the reliability behind it, whose level gold items fix."""
    right = Queue(context.store).gold_ranks()
    tested = [one for one in context.store.judgements(frozen.criterion) if one.id in right]
    completions = [*frozen.completions, *context.store.completions({one.prompt_id: None for one in tested})]
    found = annotator_weights(pair_votes([*frozen.judgements, *tested], completions, right))
    judges = {one.annotator for one in frozen.judgements}
    return {name: {"weight": w, "reliability": eta} for name, (w, eta) in sorted(found.items()) if name in judges}


# People


def ask_people(context: Context) -> None:
    """Put the sampled answers into the queue and come back when enough judgements are there.

    Raises:
        WaitingForPeopleError: there are not enough, and ``context.wait`` is False.
        ValueError: so many can never be there.
    """
    config, items = context.recipe.label, items_to_judge(context)
    if len(items) * config.overlap < config.minimum:
        raise ValueError(
            f"label.minimum = {config.minimum} cannot be reached: {len(items)} prompts have two different answers, "
            f"and label.overlap = {config.overlap} people judge each. Lower it, or raise sample.prompts"
        )
    queue, name, told = Queue(context.store), _open_batch(context, items), False
    while True:
        seen = context.store.newest_judgement()
        found = min(_votes_in(frozen) for frozen in judged_so_far(context))
        context.line({"progress": min(1.0, found / config.minimum), "votes": found, "wanted": config.minimum})
        if found >= config.minimum:
            queue.close_batch(name)
            return
        _ask_for(context, queue, name, config.minimum - found)
        if not context.wait:
            raise WaitingForPeopleError(
                f"{_waiting(context, items, found)}\n"
                "Then give the command that brought you here once more: the run goes on where it stopped."
            )
        if not told:
            context.note(f"{_waiting(context, items, found)}\nThis run goes on by itself when they are there.")
            told = True
        while context.store.newest_judgement() == seen:
            time.sleep(POLL_SECONDS)


def _votes_in(frozen: Snapshot) -> int:
    return sum(CANNOT_JUDGE not in judgement.flags for judgement in frozen.judgements)


def _open_batch(context: Context, items: Sequence[tuple[Prompt, list[Completion]]]) -> str:
    """The run's batch; other answers, another batch."""
    name = f"{context.recipe.name}/{read_json(context.run / 'sample' / 'manifest.json')['key'][:8]}"
    queue = Queue(context.store)
    _ask_for(context, queue, name, context.recipe.label.minimum)
    priorities = _priorities(context, items)
    queue.add_items(
        name,
        [
            Item(prompt.id, tuple(completion.id for completion in completions), priority)
            for (prompt, completions), priority in zip(items, priorities, strict=True)
        ],
    )
    queue.add_items(name, _gold(context))
    return name


def _ask_for(context: Context, queue: Queue, name: str, missing: int) -> None:
    """Let the batch hand out what is missing: some sends bring no vote, and some votes are imported."""
    config = context.recipe.label
    done = next((batch.done for batch in queue.batches() if batch.name == name), 0)
    queue.open_batch(
        name,
        criteria=_asked(context),
        overlap=config.overlap,
        target=done + missing,
        gold_share=config.gold_share if config.gold else 0.0,
        control_share=config.control_share,
    )


def _priorities(context: Context, items: Sequence[tuple[Prompt, list[Completion]]]) -> list[float]:
    """How much a judgement of each item would teach the reward model that the recipe names."""
    config = context.recipe.label
    if not config.reward_model:
        return [0.0] * len(items)
    return priorities(config.reward_model, items, context.recipe.data.max_prompt_tokens)


def priorities(
    reward_model: str, items: Sequence[tuple[Prompt, Sequence[Completion]]], max_prompt_tokens: int
) -> list[float]:
    """How much a judgement of each item would teach a reward model, in bits (`feedback.priority`)."""
    model = load_reward_model(reward_model)
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
    records = list(read_file(name))
    context.store.add(record for record in records if not isinstance(record, Judgement))
    return [Item(j.prompt_id, j.shown, gold=j.ranks) for j in records if isinstance(j, Judgement)]


def _waiting(context: Context, items: Sequence[tuple[Prompt, list[Completion]]], found: int) -> str:
    project = context.run.parents[1].resolve()
    return (
        f"The answers to {len(items)} prompts wait for somebody's judgement "
        f"({found} of {context.recipe.label.minimum} votes so far).\n"
        + (f"Open {context.page}" if context.page else f"In {project}: prefloop label")
    )


# Simulated annotators


def _simulated(context: Context) -> Snapshot:
    """The panel's judgements of the sampled answers; not what an earlier run let be said about the same answers."""
    items = items_to_judge(context)
    made = {one.id for _, one in _simulate(context, list(enumerate(items)), context.seed("label"))}
    ids = [completion.id for _, completions in items for completion in completions]
    frozen = snapshot(context.store, context.recipe.data.criterion, ids)
    return _only(frozen, [one for one in frozen.judgements if one.id in made])


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
