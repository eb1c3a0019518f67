"""What each stage does: read the folders of earlier stages, call the loop, write its own folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from prefloop.chat import Chat, Rendered
from prefloop.config import (
    DIRECT,
    POLICY_GRADIENTS,
    DataConfig,
    DirectConfig,
    DirectName,
    PolicyGradientConfig,
    PolicyGradientName,
    ScoreConfig,
)
from prefloop.context import Context, note_cut, sample_responses
from prefloop.dataset import judged_pairs
from prefloop.evaluation.reward_quality import evaluate_reward
from prefloop.feedback.aggregate import Comparison
from prefloop.feedback.frozen import Frozen, FrozenComparisons
from prefloop.feedback.lazy import Pair
from prefloop.feedback.records import Completion, Message
from prefloop.judging import answers_of, choose_judge, judged
from prefloop.labelling import annotators, label, snapshot_name
from prefloop.models.loading import load_reward_model
from prefloop.policy import Policy, load_policy
from prefloop.rewarding import rewards_of
from prefloop.runs import StageWriter, folder_hash, read_json, write_json, write_lines
from prefloop.tokens import Tokens, cached_tokens, tokenizer_hash
from prefloop.training.direct import train_direct
from prefloop.training.encoding import Asked, Kept, KeptGroups, Make, encode_criteria
from prefloop.training.on_policy import Observer
from prefloop.training.online_dpo import judge_by_reward, train_online_dpo
from prefloop.training.policy_gradient import train_policy_gradient
from prefloop.training.pretrain import blocks_of, make_policy, train_pretrain
from prefloop.training.reward import make_reward
from prefloop.training.sft import train_sft


def pretrain(context: Context, writer: StageWriter) -> None:
    recipe, data, seed = context.recipe, context.data, context.seed("pretrain")
    policy = make_policy(data.documents, recipe.model, seed)
    parts = {"train": data.documents, "heldout": data.heldout_documents}
    train, heldout = (_blocks(context, policy, part, documents) for part, documents in parts.items())
    with context.log(writer) as log:
        writer.extra |= train_pretrain(policy, train, heldout, recipe.pretrain, seed, log)
    policy.save(writer.folder / "model")


def sft(context: Context, writer: StageWriter) -> None:
    recipe, data = context.recipe, context.data
    policy = context.base_policy()
    recipe.check_context(policy.context)
    parts = {"train": data.demonstrations, "heldout": data.heldout_demonstrations}
    train, heldout = (_demonstrated(context, policy, part, pairs) for part, pairs in parts.items())
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
    settings = {
        "temperature": config.temperature,
        "max_response_tokens": config.max_response_tokens,
        "seed": recipe.seed,
    }
    completions = [
        Completion(
            prompt_id=prompts[row // config.answers].id,
            text=policy.chat.text(ids),
            origin=origin,
            metadata={**settings, "sample": row % config.answers},
        )
        for row, ids in enumerate(rollout.responses)
    ]
    # The same text drawn twice for a prompt is one completion.
    unique = list({completion.id: completion for completion in completions}.values())
    write_lines(writer.folder / "completions.jsonl", (c.model_dump(mode="json") for c in unique))
    context.store.add(unique)
    writer.extra |= {"prompts": len(prompts), "completions": len(unique)}


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
            rewards_of(context, policy.chat, config.scored_tokens),
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
        judge_pairs = annotators(context, policy)
    else:
        rewards = rewards_of(context, policy.chat, config.scored_tokens)
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
    prompts = list(context.data.heldout[: recipe.evaluate.prompts])
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


def _blocks(context: Context, policy: Policy, part: str, documents: Sequence[str]) -> Tokens:
    """A part of the text to pretrain on, tokenised once for all runs."""
    block = context.recipe.pretrain.block
    made_from = {
        "tokenizer": tokenizer_hash(policy.tokenizer),
        "documents": context.data.documents_hash,
        "part": part,
        "block": block,
    }
    return cached_tokens(context.tokens, made_from, lambda _: blocks_of(policy, documents, block))


def _demonstrated(context: Context, policy: Policy, part: str, pairs: Sequence[Pair]) -> Tokens:
    """A part of the demonstrations, tokenised once for all runs; tells what was cut or left out."""
    limits, loss_on = context.recipe.data, context.recipe.sft.loss_on
    made_from = {
        "tokenizer": tokenizer_hash(policy.tokenizer),
        "demonstrations": context.data.demonstrations_hash,
        "part": [part, len(pairs)],  # the hash is of both parts, end to end
        "max_prompt_tokens": limits.max_prompt_tokens,
        "max_response_tokens": limits.max_response_tokens,
        "loss_on": loss_on,
    }
    tokens = cached_tokens(context.tokens, made_from, partial(_render, policy.chat, pairs, limits, loss_on))
    note_cut(context, tokens.counts.get("cut", 0), len(pairs))
    if left_out := tokens.counts.get("left out"):
        context.note(
            f"{left_out} of {len(pairs)} demonstrations are longer than "
            f"{limits.max_response_tokens} tokens and were left out."
        )
    return tokens


def _render(
    chat: Chat, pairs: Iterable[Pair], limits: DataConfig, loss_on: Literal["all", "last"], counts: Counter[str]
) -> Iterator[Rendered]:
    """Demonstrations token by token; counts prompts cut to the limit and answers left out, as they are too long."""
    for prompt, answer in pairs:
        _, fitted = chat.fitted_prompt_ids(prompt, limits.max_prompt_tokens)
        counts["cut"] += fitted is not prompt
        rendered = chat.answered(fitted, answer)
        if rendered.response_tokens > limits.max_response_tokens:
            counts["left out"] += 1
        elif loss_on == "all":
            yield chat.render([*fitted.messages, Message(role="assistant", content=answer)], "all")
        else:
            yield rendered


def _encode(context: Context, policy: Policy, parts: Sequence[Sequence[Comparison]]) -> KeptGroups:
    """``parts``: the comparisons by each criterion."""
    limits = context.recipe.data
    groups, _, left_out = encode_criteria(
        policy.chat,
        parts,
        limits.max_prompt_tokens,
        limits.max_response_tokens,
        partial(_kept_answers, context, policy),
    )
    if left_out:
        context.note(
            f"{left_out} judged answers are longer than {limits.max_response_tokens} tokens and were left out."
        )
    return groups


def _kept_answers(context: Context, policy: Policy, asked: Asked, make: Make) -> Kept:
    """Judged answers, tokenised once for all stages and runs; tells how many prompts were cut."""
    made_from = {
        "tokenizer": tokenizer_hash(policy.tokenizer),
        "answers": asked.hash,
        "max_prompt_tokens": context.recipe.data.max_prompt_tokens,
    }
    tokens = cached_tokens(context.tokens, made_from, make)
    cut = tokens.counts.get("cut", 0)
    note_cut(context, cut, asked.prompts)
    return Kept(tokens, tokens.response_tokens(), cut)


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
            evaluate_reward(model, heldout_groups, config.scored_tokens, config.random_answers),
        )
    else:
        context.note("No held-out comparison has a majority: the reward model's accuracy is not known.")
    writer.extra |= {"snapshot": _manifest(context, "label")["snapshot"], "comparisons": len(groups)}
    model.save(writer.folder / "model")


def _judged_by_criterion(context: Context) -> list[list[Sequence[Comparison]]]:
    """Comparisons for training, for testing and for the held-out judge: of each, a list for every criterion."""
    recipe = context.recipe
    parts = [judged_pairs(recipe, _comparisons(context, name)) for name in recipe.criteria]
    return [list(part) for part in zip(*parts, strict=True)]


def _comparisons(context: Context, criterion: str) -> FrozenComparisons:
    frozen = Frozen(context.run / "label" / snapshot_name(context, criterion))
    if context.recipe.label.weights == "equal":
        return frozen.comparisons()
    annotators = read_json(context.run / "label" / "annotators.json")[criterion]
    return frozen.comparisons({name: figures["weight"] for name, figures in annotators.items()})


def _manifest(context: Context, stage: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(context.run / stage / "manifest.json")
    return content


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
