"""What each stage does: read the folders of earlier stages, call the loop, write its own folder."""

from __future__ import annotations

import getpass
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prefloop.chat import Rendered
from prefloop.config import (
    DIRECT,
    DirectConfig,
    DirectName,
    EvaluateConfig,
    Recipe,
    SampleConfig,
    ScoreConfig,
)
from prefloop.dataset import Dataset, Pair, judged_pairs
from prefloop.demo.world import WORLDS, World
from prefloop.evaluation.reward_quality import evaluate_reward
from prefloop.evaluation.win_rate import Answers, Judge, compare
from prefloop.feedback.aggregate import Comparison, Snapshot, read_snapshot, snapshot
from prefloop.feedback.formats import write_sheet
from prefloop.feedback.records import Completion, Message, Prompt, content_id
from prefloop.feedback.store import Store
from prefloop.labelers.simulated import PANEL, assign, judge
from prefloop.models.forward import score_responses
from prefloop.models.heads import RewardModel
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy, load_policy
from prefloop.rollout.batch import Rollout
from prefloop.rollout.reward import model_scorer
from prefloop.rollout.sampler import sample
from prefloop.runs import StageWriter, folder_hash, read_json, read_lines, write_json, write_lines
from prefloop.seeds import derive
from prefloop.training.comparisons import PreferenceGroup, encode_criteria
from prefloop.training.direct import train_direct
from prefloop.training.loop import Log, Metrics
from prefloop.training.ppo import train_ppo
from prefloop.training.pretrain import make_policy, train_pretrain
from prefloop.training.reward import make_reward
from prefloop.training.sft import train_sft


class WaitingForPeopleError(Exception):
    """The run cannot go on before somebody has judged; the message says how."""


@dataclass
class Context:
    """What a stage may look at."""

    recipe: Recipe
    run: Path
    data: Dataset
    store: Store
    line: Callable[[Metrics], None] = field(default=lambda _: None)
    """Shows a line of metrics to whoever watches."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Tells whoever watches something worth knowing."""

    @property
    def world(self) -> World | None:
        return WORLDS[self.recipe.data.world] if self.recipe.data.world else None

    def seed(self, stage: str) -> int:
        return derive(self.recipe.seed, stage)

    def base_policy(self) -> Policy:
        """What supervised fine-tuning starts from."""
        return load_policy(self.recipe.model.path or self.run / "pretrain" / "model")

    @contextmanager
    def log(self, writer: StageWriter) -> Iterator[Log]:
        """Write metrics to the stage's folder, line by line, and show them."""
        with (writer.folder / "metrics.jsonl").open("w", encoding="utf-8") as file:

            def log(metrics: Metrics) -> None:
                file.write(json.dumps(metrics, allow_nan=False) + "\n")
                file.flush()
                self.line(metrics)

            yield log


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
    rollout = _sample(policy, prompts, context, config, "sample", config.answers)
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
        made = _simulate(context, items) if recipe.label.by == "simulated" else None
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


def ppo(context: Context, writer: StageWriter) -> None:
    recipe = context.recipe
    policy = load_policy(context.run / "sft" / "model")
    reward_model = load_reward_model(context.run / "reward" / "model")
    with context.log(writer) as log:
        value_head = train_ppo(
            policy,
            context.data.train,
            model_scorer(reward_model, recipe.ppo.micro_batch_tokens),
            recipe.ppo,
            context.seed("ppo"),
            log,
            max_prompt_tokens=recipe.data.max_prompt_tokens,
            observe=_observer(context),
        )
    policy.save(writer.folder / "model")
    save_file(value_head.state_dict(), writer.folder / "model" / "value_head.safetensors")


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
    name, judge_answers = choose_judge(context)
    learned = load_reward_model(context.run / "reward" / "model")
    reference = load_policy(context.run / "sft" / "model")
    before = answers_of(context, reference, reference, prompts, judge_answers, learned)
    for algorithm in recipe.algorithms:
        policy = load_policy(context.run / algorithm / "model")
        after = answers_of(context, policy, reference, prompts, judge_answers, learned)
        report, samples = judged(algorithm, after, "sft", before, prompts, name)
        write_json(writer.folder / f"{algorithm}.json", report)
        write_lines(writer.folder / f"{algorithm}.samples.jsonl", samples)


MAX_TOKENS = 8192
"""Of one forward pass where nothing is trained, padding included."""

TRAINED_JUDGE = "the trained reward model itself"
NO_JUDGE = (
    "The judge is the reward model that the policy was trained on, so these figures show how well it was optimised, "
    "not whether the answers are better. Set judge.fraction to keep comparisons for an independent one."
)


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
    _note_cut(context, cut, len(pairs))
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
    _note_cut(context, cut, len({comparison.prompt.id for part in parts for comparison in part}))
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
    return read_snapshot(context.run / "label" / _snapshot_name(context, criterion)).comparisons()


def _snapshot_name(context: Context, criterion: str) -> str:
    return "snapshot.jsonl" if criterion == context.recipe.data.criterion else f"snapshot-{criterion}.jsonl"


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


def _simulate(context: Context, items: Sequence[tuple[Prompt, list[Completion]]]) -> set[str]:
    """Add the panel's judgements to the store; returns their ids."""
    world, seed = context.world, context.seed("label")
    assert world is not None, "checked by the recipe"
    utility = cache(world.utility)  # several annotators look at the same answer
    made = [
        judge(annotator, prompt, completions, utility, seed)
        for (prompt, completions), annotator in assign(items, PANEL, context.recipe.label.overlap, seed)
    ]
    context.store.add(made)
    return {judgement.id for judgement in made}


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


def _sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    context: Context,
    config: SampleConfig | EvaluateConfig,
    purpose: str,
    answers: int = 1,
) -> Rollout:
    limit = context.recipe.data.max_prompt_tokens
    fitted = [policy.chat.fitted_prompt_ids(prompt, limit) for prompt in prompts]
    _note_cut(
        context, sum(kept is not prompt for (_, kept), prompt in zip(fitted, prompts, strict=True)), len(prompts)
    )
    return sample(
        policy.model,
        [ids for ids, _ in fitted],
        eos_id=policy.chat.eos_id,
        max_response_tokens=config.max_response_tokens,
        temperature=config.temperature,
        seed=context.seed(purpose),
        answers=answers,
        batch_size=config.batch_size,
    )


def _note_cut(context: Context, cut: int, of: int) -> None:
    if cut:
        context.note(f"{cut} of {of} prompts were cut to {context.recipe.data.max_prompt_tokens} tokens.")


def _observer(context: Context) -> Callable[[Sequence[Prompt], Sequence[str]], Metrics] | None:
    """The true reward beside the learned one, for the report. Training never sees it."""
    world = context.world
    if world is None:
        return None
    return lambda prompts, texts: {
        "true_reward": sum(world.utility(p.text, t) for p, t in zip(prompts, texts, strict=True)) / len(texts)
    }


def choose_judge(context: Context, folder: str = "") -> tuple[str, Judge]:
    """Who decides an evaluation, by name and as a function.

    A reward model from ``folder``; else the world's true preference; else the run's held-out reward model; failing
    all, the trained reward model, with a warning, as whenever it is asked about a policy trained against it.
    """
    world, limit = context.world, context.recipe.data.max_prompt_tokens
    if world is not None and not folder:
        return "true preference", lambda prompts, texts: [
            world.judge(prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)
        ]
    independent = context.recipe.judge.fraction > 0
    place = Path(folder) if folder else context.run / ("judge" if independent else "reward") / "model"
    model = load_reward_model(folder or place)
    name = folder or "held-out reward model"
    if place.resolve() == (context.run / "reward" / "model").resolve():
        name = TRAINED_JUDGE
        warnings.warn(NO_JUDGE, stacklevel=2)
    return name, lambda prompts, texts: [{"score": one} for one in _scores(model, prompts, texts, limit)]


def judged(
    name: str, after: Answers, against: str, before: Answers, prompts: Sequence[Prompt], judge: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A comparison and its samples, with an alarm where the judge is no independent one."""
    report, samples = compare(name, after, against, before, prompts, judge)
    if judge == TRAINED_JUDGE:
        report["alarms"].insert(0, NO_JUDGE)
    return report, samples


def answers_of(
    context: Context,
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Prompt],
    judge_answers: Judge,
    learned: RewardModel | None,
) -> Answers:
    """One policy's answers, scored. Both sides of a comparison draw with the same random numbers."""
    config, limit = context.recipe.evaluate, context.recipe.data.max_prompt_tokens
    rollout = _sample(policy, prompts, context, config, "evaluation")
    texts = [policy.chat.text(ids) for ids in rollout.responses]
    kl = 0.0
    if policy is not reference:
        ref_log_probs = score_responses(reference.model, rollout.sequences, MAX_TOKENS, config.temperature)
        kl = float(rollout.log_probs[rollout.mask].sum() - torch.cat(ref_log_probs).sum())
    return Answers(
        texts=texts,
        tokens=rollout.lengths.tolist(),
        learned=_scores(learned, prompts, texts, limit) if learned else None,
        judged=judge_answers(prompts, texts),
        kl=kl / len(rollout),
    )


def _scores(
    model: RewardModel, prompts: Sequence[Prompt], texts: Sequence[str], max_prompt_tokens: int
) -> list[float]:
    sequences = [
        model.chat.answered(model.chat.fitted_prompt_ids(prompt, max_prompt_tokens)[1], text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    scores: list[float] = model.score(sequences, MAX_TOKENS).tolist()
    return scores


STAGES: dict[str, Callable[[Context, StageWriter], None]] = {
    "pretrain": pretrain,
    "sft": sft,
    "sample": sample_answers,
    "label": label,
    "reward": reward,
    "judge": judge_model,
    "ppo": ppo,
    **{name: partial(direct, name) for name in DIRECT},
    "evaluation": evaluation,
}
