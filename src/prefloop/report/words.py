"""The sentences of a report: what the figures say, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefloop.report.read import Evaluation, Run
from prefloop.report.scale import THIN, interval_text, number, percent

POLICY_TONES = {
    "ppo": "blue",
    "dpo": "orange",
    "ipo": "green",
    "kto": "purple",
    "orpo": "grey",
    "simpo": "rose",
    "reinforce": "orange",
    "rloo": "green",
    "grpo": "purple",
    "reinforce_pp": "rose",
    "online_dpo": "grey",
}
_UPPER = {"ppo", "dpo", "sft", "kl", "rlhf", "ipo", "kto", "orpo", "reinforce", "rloo", "grpo"}
_MIXED = {"simpo": "SimPO", "reinforce_pp": "REINFORCE++", "online_dpo": "Online DPO"}


def title(name: str) -> str:
    """`ppo` → PPO, `pretrain` → Pretrain."""
    if name in _MIXED:
        return _MIXED[name]
    return name.upper() if name.lower() in _UPPER else name[:1].upper() + name[1:]


def tone(name: str, index: int = 0) -> str:
    return POLICY_TONES.get(name, ("green", "purple", "grey")[index % 3])


def judge(evaluation: Evaluation) -> str:
    name = evaluation.judge or "an unnamed judge"
    return name if name.split(" ")[0] in ("the", "a", "an") else f"the {name}"


def has_true_scores(evaluation: Evaluation) -> bool:
    return evaluation.judge == "true preference"


def score_name(evaluation: Evaluation) -> str:
    """What the judge's score is called: only a true preference gives a true reward."""
    return "true reward" if has_true_scores(evaluation) else "judge’s score"


@dataclass(frozen=True)
class Verdict:
    """`claim` and the evidence in brackets: together one sentence."""

    claim: str
    evidence: str


def verdict(evaluation: Evaluation) -> Verdict:
    after, before = title(evaluation.name), title(evaluation.against)
    rate = evaluation.win_rate
    if rate is None:
        return Verdict(f"{after} was compared with {before}, but no win rate was written.", "")
    share = percent(rate.value, 0)
    if rate.low > 0.5:
        claim = f"{after}’s answers are preferred to {before}’s {share} of the time"
    elif rate.high < 0.5:
        claim = f"{after}’s answers are worse than {before}’s: preferred only {share} of the time"
    else:
        claim = f"No clear difference: {after}’s answers are preferred to {before}’s {share} of the time"
    interval = f"{100 * rate.low:.0f}–{100 * rate.high:.0f}"
    prompts = f"{rate.n} held-out prompts, " if rate.n else ""
    return Verdict(claim, f"(95{THIN}% interval {interval}, {prompts}judged by {judge(evaluation)}).")


def verdicts(run: Run) -> list[Verdict]:
    if run.evaluations:
        return [verdict(evaluation) for evaluation in run.evaluations]
    reward = run.stages.get("reward")
    if reward and reward.quality and reward.quality.accuracy:
        accuracy = reward.quality.accuracy
        claim = f"The reward model agrees with {percent(accuracy.value, 0)} of held-out comparisons"
        return [Verdict(claim, f"(95{THIN}% interval {interval_text(accuracy)}). No policy has been judged yet.")]
    for stage in ("sft", "pretrain"):
        metrics = run.metrics(stage)
        losses = metrics.series("eval_loss") if metrics else []
        if len(losses) > 1:
            first, last = number(losses[0][1]), number(losses[-1][1])
            claim = f"{title(stage)} took the held-out loss from {first} to {last} nats per token"
            return [Verdict(claim + ".", "No policy has been judged yet.")]
    return [Verdict("No policy has been judged in this run yet.", "")]


_SPOKEN = {
    "pretrain": "pretraining",
    "sample": "the sampled answers",
    "label": "the judgements",
    "reward": "the reward model",
    "judge": "the judge",
    "evaluation": "the evaluation",
}


def stage_name(name: str) -> str:
    """A stage inside a sentence."""
    return _SPOKEN.get(name, title(name) if name in _UPPER or name in _MIXED else name)


def left_out(run: Run) -> list[str]:
    """What is on disk and not on the page, and why: one sentence for each reason."""
    reasons: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for one in run.left_out:
        reasons.setdefault((one.changed, one.gone), []).append(stage_name(one.stage))
    return [_left_out(names, changed, gone) for (changed, gone), names in reasons.items()]


def _left_out(names: list[str], changed: tuple[str, ...], gone: tuple[str, ...]) -> str:
    one = len(names) == 1
    said = f"Not shown: {listed(names)}."
    if not changed and not gone:
        return f"{said} The last complete run did not have {'this stage' if one else 'these stages'}."
    sources = [f"an earlier version of {listed([stage_name(name) for name in changed])}"] if changed else []
    sources += [f"{listed([stage_name(name) for name in gone])}, no longer in this folder"] if gone else []
    return (
        f"{said} {'It was' if one else 'They were'} made from {', and from '.join(sources)}; run the recipe to the "
        f"end to make {'it' if one else 'them'} anew."
    )


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counts(evaluation: Evaluation) -> str:
    named = {"wins": ("win", "wins"), "ties": ("tie", "ties"), "losses": ("loss", "losses")}
    said = []
    for key, (one, many) in named.items():
        if key in evaluation.counts:
            amount = evaluation.counts[key]
            said.append(f"{amount} {one if amount == 1 else many}")
    return ", ".join(said)
