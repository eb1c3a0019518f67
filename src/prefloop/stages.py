"""What each stage does: read the folders of earlier stages, call the loop, write its own folder."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import count
from typing import Any

from prefloop.chat import Rendered
from prefloop.config import (
    DIRECT,
    POLICY_GRADIENTS,
    DirectConfig,
    DirectName,
    PolicyGradientConfig,
    PolicyGradientName,
    ScoreConfig,
)
from prefloop.context import Context, note_cut, sample_responses
from prefloop.dataset import Pair, judged_pairs
from prefloop.evaluation.reward_quality import evaluate_reward
from prefloop.feedback.aggregate import Comparison, Snapshot, comparisons, read_snapshot, snapshot
from prefloop.feedback.formats import write_sheet
from prefloop.feedback.pairs import pair_votes
from prefloop.feedback.records import Completion, Judgement, Message, Prompt, content_id
from prefloop.feedback.reliability import annotator_weights
from prefloop.judging import answers_of, choose_judge, judged
from prefloop.labelers.simulated import PANEL, assign, judge
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy, load_policy
from prefloop.rewarding import rewards_of
from prefloop.rollout.batch import Rollout
from prefloop.runs import StageWriter, folder_hash, read_json, read_lines, write_json, write_lines
from prefloop.seeds import derive
from prefloop.training.comparisons import PreferenceGroup, encode_criteria
from prefloop.training.direct import train_direct
from prefloop.training.loop import Metrics
from prefloop.training.on_policy import Observer
from prefloop.training.online_dpo import PairJudge, Votes, judge_by_reward, train_online_dpo
from prefloop.training.policy_gradient import train_policy_gradient
from prefloop.training.pretrain import make_policy, train_pretrain
from prefloop.training.reward import make_reward
from prefloop.training.sft import train_sft


class WaitingForPeopleError(Exception):
    """The run cannot go on before somebody has judged; the message says how."""


def pretrain(context: Context, writer: StageWriter) -> None:
    recipe, data, seed = context.recipe, context.data, context.seed("pretrain")
    policy = make_policy(data.documents, recipe.model, seed)
    with context.log(writer) as log:
        writer.extra |= train_pretrain(policy, data.documents, data.heldout_documents, recipe.pretrain, seed, log)
    policy.save(writer.folder / "model")


def sft(context: Context, writer: StageWriter) -> None:
    recipe, data = context.recipe, context.data
    policy = context.base_policy()
    recipe.check_context(policy.context)
    train, heldout = (_render(policy, pairs, context) for pairs in (data.demonstrations, data.heldout_demonstrations))
    with context.log(writer) as log:
        writer.extra |= train_sft(policy, train, heldout, recipe.sft, context.seed("sft"), log)
    policy.save(writer.folder / "model")


def sample_answers(context: Context, writer: StageWriter) -> None:
    """K answers to training prompts, to learn from, and to held-out ones, to measure the reward model on."""
    recipe, config = context.recipe, context.recipe.sample
    policy = load_policy(context.run / "sft" / "model")
    data, for_judge = context.data, round(config.prompts * recipe.judge.fraction)
    learnt = [*data.train[: config.prompts - for_judge], *data.aside[:for_judge]]
    prompts = [*learnt, *data.heldout[: config.heldout]]
    rollout = sample_responses(context, policy, prompts, config, "sample", config.answers)
    origin = f"runs/{recipe.name}/sft@{folder_hash(context.run / 'sft' / 'model')}"
    completions = [
        Completion(
            prompt_id=prompts[row // config.answers].id,
            text=policy.chat.text(ids),
            origin=origin,
            metadata={"temperature": config.temperature, "sample": row % config.answers, "seed": recipe.seed},
        )
        for row, ids in enumerate(rollout.responses)
    ]
    # The same text drawn twice for a prompt is one completion.
    unique = list({completion.id: completion for completion in completions}.values())
    write_lines(writer.folder / "completions.jsonl", (c.model_dump(mode="json") for c in unique))
    context.store.add(unique)
    writer.extra |= {"prompts": len(prompts), "completions": len(unique)}


def label(context: Context, writer: StageWriter) -> None:
    """Let the sampled answers be judged, and freeze the judgements that the run learns from."""
    recipe = context.recipe
    ids: list[str] | None = None
    if recipe.label.by == "none":
        frozen = snapshot(context.store, recipe.data.criterion)
    else:
        items = _items_to_judge(context)
        made = None
        if recipe.label.by == "simulated":
            made = {one.id for _, one in _simulate(context, list(enumerate(items)), context.seed("label"))}
        ids = [completion.id for _, completions in items for completion in completions]
        frozen = snapshot(context.store, recipe.data.criterion, ids)
        if made is not None:  # not what an earlier run with other settings let be said about the same answers
            frozen = replace(frozen, judgements=tuple(j for j in frozen.judgements if j.id in made))
        if recipe.label.by == "human" and len(frozen.judgements) < recipe.label.minimum:
            raise _waiting(context, items, len(frozen.judgements))
    others = [snapshot(context.store, name, ids) for name in recipe.criteria if name != recipe.data.criterion]
    for one in (frozen, *others):
        _check_judged(one)
        one.write(writer.folder / _snapshot_name(context, one.criterion))
    if recipe.label.weights == "reliability":
        write_json(writer.folder / "annotators.json", {one.criterion: _weighed(one) for one in (frozen, *others)})
    hashes = [one.hash for one in (frozen, *others)]
    writer.extra |= {
        "snapshot": content_id("snapshots", hashes) if others else frozen.hash,
        "judgements": sum(len(one.judgements) for one in (frozen, *others)),
    }


def reward(context: Context, writer: StageWriter) -> None:
    train, heldout, _ = _judged_by_criterion(context)
    _train_reward(context, writer, train, heldout, context.recipe.reward, "reward")


def judge_model(context: Context, writer: StageWriter) -> None:
    _, heldout, aside = _judged_by_criterion(context)
    _train_reward(context, writer, aside, heldout, context.recipe.judge, "judge")


def policy_gradient(name: PolicyGradientName, context: Context, writer: StageWriter) -> None:
    """PPO or one of the policy gradients without a critic."""
    recipe = context.recipe
    config: PolicyGradientConfig = getattr(recipe, name)
    policy = load_policy(context.run / "sft" / "model")
    with context.log(writer) as log:
        critic = train_policy_gradient(
            policy,
            context.data.train,
            rewards_of(context, policy.chat, config.micro_batch_tokens),
            config,
            context.seed(name),
            log,
            max_prompt_tokens=recipe.data.max_prompt_tokens,
            observe=_observer(context),
        )
    policy.save(writer.folder / "model")
    if critic is not None:
        critic.save(writer.folder)


def online_dpo(context: Context, writer: StageWriter) -> None:
    recipe, config = context.recipe, context.recipe.online_dpo
    policy = load_policy(context.run / "sft" / "model")
    if config.judge == "annotators":
        judge_pairs = _annotators(context, policy)
    else:
        rewards = rewards_of(context, policy.chat, config.micro_batch_tokens)
        judge_pairs = judge_by_reward(rewards, config.missing_eos_penalty)
    with context.log(writer) as log:
        train_online_dpo(
            policy,
            context.data.train,
            judge_pairs,
            config,
            context.seed("online_dpo"),
            log,
            max_prompt_tokens=recipe.data.max_prompt_tokens,
            observe=_observer(context),
        )
    policy.save(writer.folder / "model")


def direct(name: DirectName, context: Context, writer: StageWriter) -> None:
    """DPO or one of its family."""
    recipe = context.recipe
    config: DirectConfig = getattr(recipe, name)
    policy = load_policy(context.run / "sft" / "model")
    train, heldout, _ = judged_pairs(recipe, _comparisons(context, recipe.data.criterion))
    groups, heldout_groups = (_encode(context, policy, [part]) for part in (train, heldout))
    with context.log(writer) as log:
        writer.extra |= train_direct(policy, groups, heldout_groups, config, context.seed(name), log)
    policy.save(writer.folder / "model")


def evaluation(context: Context, writer: StageWriter) -> None:
    """Every trained policy against the supervised one, on held-out prompts that no stage has trained on."""
    recipe = context.recipe
    prompts = context.data.heldout[: recipe.evaluate.prompts]
    referee = choose_judge(context)
    learned = load_reward_model(context.run / "reward" / "model") if "reward" in recipe.stages else None
    reference = load_policy(context.run / "sft" / "model")
    before = answers_of(context, reference, reference, prompts, referee.scores, learned)
    for algorithm in recipe.algorithms:
        policy = load_policy(context.run / algorithm / "model")
        after = answers_of(context, policy, reference, prompts, referee.scores, learned)
        report, samples = judged(algorithm, after, "sft", before, prompts, referee)
        write_json(writer.folder / f"{algorithm}.json", report)
        write_lines(writer.folder / f"{algorithm}.samples.jsonl", samples)


# Parts of stages


def _render(policy: Policy, pairs: Sequence[Pair], context: Context) -> list[Rendered]:
    """Demonstrations as token sequences; prompts cut to the limit, too long answers left out, both reported."""
    limits, result, cut = context.recipe.data, [], 0
    for prompt, answer in pairs:
        _, fitted = policy.chat.fitted_prompt_ids(prompt, limits.max_prompt_tokens)
        cut += fitted is not prompt
        rendered = policy.chat.answered(fitted, answer)
        if rendered.response_tokens > limits.max_response_tokens:
            continue
        if context.recipe.sft.loss_on == "all":
            rendered = policy.chat.render([*fitted.messages, Message(role="assistant", content=answer)], "all")
        result.append(rendered)
    note_cut(context, cut, len(pairs))
    if len(result) < len(pairs):
        context.note(
            f"{len(pairs) - len(result)} of {len(pairs)} demonstrations are longer than "
            f"{limits.max_response_tokens} tokens and were left out."
        )
    return result


def _encode(context: Context, policy: Policy, parts: Sequence[Sequence[Comparison]]) -> list[PreferenceGroup]:
    """``parts``: the comparisons by each criterion."""
    limits = context.recipe.data
    groups, cut, left_out = encode_criteria(policy.chat, parts, limits.max_prompt_tokens, limits.max_response_tokens)
    note_cut(context, cut, len({comparison.prompt.id for part in parts for comparison in part}))
    if left_out:
        context.note(
            f"{left_out} judged answers are longer than {limits.max_response_tokens} tokens and were left out."
        )
    return groups


def _train_reward(
    context: Context,
    writer: StageWriter,
    train: Sequence[Sequence[Comparison]],
    heldout: Sequence[Sequence[Comparison]],
    config: ScoreConfig,
    stage: str,
) -> None:
    """``train``, ``heldout``: the comparisons by each criterion."""
    policy = load_policy(context.run / "sft" / "model")
    groups, heldout_groups = (_encode(context, policy, parts) for parts in (train, heldout))
    criteria = context.recipe.reward.criteria
    with context.log(writer) as log:
        model = make_reward(policy, groups, heldout_groups, config, context.seed(stage), log, criteria)
    if any(wins != losses for group in heldout_groups for _, _, wins, losses in group.pairs):
        write_json(
            writer.folder / "evaluation.json",
            evaluate_reward(model, heldout_groups, config.micro_batch_tokens, config.random_answers),
        )
    else:
        context.note("No held-out comparison has a majority: the reward model's accuracy is not known.")
    writer.extra |= {"snapshot": _manifest(context, "label")["snapshot"], "comparisons": len(groups)}
    model.save(writer.folder / "model")


def _judged_by_criterion(context: Context) -> list[list[list[Comparison]]]:
    """Comparisons for training, for testing and for the held-out judge: of each, a list for every criterion."""
    recipe = context.recipe
    parts = [judged_pairs(recipe, _comparisons(context, name)) for name in recipe.criteria]
    return [list(part) for part in zip(*parts, strict=True)]


def _comparisons(context: Context, criterion: str) -> list[Comparison]:
    frozen = read_snapshot(context.run / "label" / _snapshot_name(context, criterion))
    if context.recipe.label.weights == "equal":
        return frozen.comparisons()
    annotators = read_json(context.run / "label" / "annotators.json")[criterion]
    return frozen.comparisons({name: figures["weight"] for name, figures in annotators.items()})


def _snapshot_name(context: Context, criterion: str) -> str:
    return "snapshot.jsonl" if criterion == context.recipe.data.criterion else f"snapshot-{criterion}.jsonl"


def _weighed(frozen: Snapshot) -> dict[str, Any]:
    """What each annotator's votes weigh, and the reliability behind it."""
    found = annotator_weights(pair_votes(frozen.judgements, frozen.completions))
    return {name: {"weight": weight, "reliability": eta} for name, (weight, eta) in sorted(found.items())}


def _check_judged(frozen: Snapshot) -> None:
    if not frozen.judgements:
        raise ValueError(
            f"the store has no judgements by the criterion {frozen.criterion!r} (data.criterion, reward.criteria). "
            'Import comparisons, or let answers be judged (label.by = "human")'
        )


def _manifest(context: Context, stage: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(context.run / stage / "manifest.json")
    return content


def _items_to_judge(context: Context) -> list[tuple[Prompt, list[Completion]]]:
    """Sampled prompts with at least two different answers."""
    data = context.data
    prompts = {prompt.id: prompt for prompt in [*data.train, *data.aside, *data.heldout]}
    answers: dict[str, list[Completion]] = {}
    for row in read_lines(context.run / "sample" / "completions.jsonl"):
        completion = Completion.model_validate(row)
        answers.setdefault(completion.prompt_id, []).append(completion)
    return [(prompts[key], found) for key, found in answers.items() if len(found) > 1]


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


def _waiting(context: Context, items: Sequence[tuple[Prompt, list[Completion]]], found: int) -> WaitingForPeopleError:
    # Other answers, another sheet: one that is half filled in is never overwritten, nor taken for theirs.
    sheet = (context.run / f"to-judge-{_manifest(context, 'sample')['key'][:8]}.jsonl").resolve()
    if not sheet.exists():
        # In an order by hash: whoever judges only the first rows judges prompts of every split.
        mixed = sorted(items, key=lambda item: content_id("sheet", item[0].id))
        write_sheet(sheet, mixed, annotator=user_name(), criterion=context.recipe.data.criterion)
    return WaitingForPeopleError(
        f"The answers to {len(items)} prompts wait for somebody's judgement ({found} judged so far, "
        f"{context.recipe.label.minimum} needed).\n"
        f'  1. Open {sheet} and set "choice" to "1", "2" or "tie" where you have an opinion.\n'
        f"  2. In {sheet.parents[2]}: prefloop import {sheet}\n"
        "  3. Give the command that brought you here once more, where you gave it.\n"
        "The run goes on where it stopped."
    )


def user_name() -> str:
    """Who fills in a judging sheet, unless another name is written into it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user's name
        return "somebody"


def _annotators(context: Context, policy: Policy) -> PairJudge:
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


def _observer(context: Context) -> Observer | None:
    """The true reward beside the learned one, for the report. Training never sees it."""
    world = context.world
    if world is None:
        return None
    return lambda prompts, texts: {
        "true_reward": sum(world.utility(p.text, t) for p, t in zip(prompts, texts, strict=True)) / len(texts)
    }


STAGES: dict[str, Callable[[Context, StageWriter], None]] = {
    "pretrain": pretrain,
    "sft": sft,
    "sample": sample_answers,
    "label": label,
    "reward": reward,
    "judge": judge_model,
    **{name: partial(policy_gradient, name) for name in POLICY_GRADIENTS},
    "online_dpo": online_dpo,
    **{name: partial(direct, name) for name in DIRECT},
    "evaluation": evaluation,
}
