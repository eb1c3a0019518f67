"""How each stage of training went: PPO and its relatives, the reward model, SFT, pretraining, DPO."""

from __future__ import annotations

import math

from prefloop.report.bars import Part, Row, forest, reliability, shares
from prefloop.report.charts import NORMAL, SMALL, Options, Series, line_chart
from prefloop.report.entries import Interval
from prefloop.report.read import Metrics, Quality, Run
from prefloop.report.scale import drawable, duration, finite, number, percent, wilson
from prefloop.report.sections import Figure, Section, figure
from prefloop.report.words import title

# key, title, caption, and how it is drawn: s = a share, z = the axis starts at zero, l = logarithmic
_HEALTH = (
    ("kl", "KL from the reference", "Nats per response. Should climb, then level off.", "z"),
    ("kl_coef", "KL coefficient", "The price of distance. Rises when the policy outruns its target.", "z"),
    ("entropy", "Entropy", "Nats per token. A collapse towards 0 means one answer for everything.", "z"),
    ("response_tokens", "Response length", "Tokens. A steady drift means length is what is rewarded.", ""),
    ("ended", "Ended by itself", "Share of answers with an end sign. The rest were cut off.", "s"),
    ("clip_fraction", "Clipped", "Share of tokens at the clip. Above 30 %: steps are too large.", "s"),
    ("approx_kl", "Step size", "KL to the policy that sampled. Spikes come before instability.", "z"),
    ("explained_variance", "Explained variance", "Of the returns, by the value head. 1 is all, 0 none.", ""),
    ("kl_loss", "KL in the loss", "Nats per token, of the policy in training. Small, and level.", "z"),
    ("value_loss", "Value loss", "Should fall and stay low; a jump follows a jump in reward.", "z"),
    ("grad_norm", "Gradient norm", "Before clipping. Look for spikes that do not come back.", "z"),
    ("ratio_error", "Ratio error", "Sampler against trainer before the first step: rounding only.", "l"),
)


# What training warns of while it runs (training/on_policy.py). The report may not import it, for it would need torch.
RATIO_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
NATS_A_TOKEN = 2.0
CHANCE = 1e-4  # of a KL this far below 0 by luck; with normal log-ratios that takes 4.3 standard errors or more


def on_policy_health(run: Run, name: str) -> Section | None:
    metrics = run.metrics(name)
    if metrics is None:
        return None
    figures: list[Figure] = []
    tolerance = _tolerance(run, name)
    for key, label, caption, how in _HEALTH:
        series = [Series(label, metrics.series(key), "blue", smooth="l" not in how)]
        options = Options(
            x_label="",
            size=SMALL,
            zero="z" in how,
            share="s" in how,
            log="l" in how,
            y_range=_floor(metrics, key),
            rules=((tolerance, "tolerance"),) if key == "ratio_error" else (),
        )
        figures += figure(label, caption, line_chart(label, series, options), _shown(metrics, key, how))
    figures += _seconds(metrics)
    lead = f"{len(metrics.rows)} iterations, left to right. The figure beside each title is the last value."
    warnings = [
        *_ratio_error(metrics, tolerance),
        *_negative_kl(metrics, run.episodes.get(name, 1)),
        *_runaway(metrics, name),
    ]
    return Section(name, f"{title(name)}’s health", lead, figures, warnings=warnings, compact=True)


def _tolerance(run: Run, name: str) -> float:
    manifest = run.stages[name].manifest
    return RATIO_TOLERANCE["bfloat16" if manifest and "bfloat16" in manifest.precision else "float32"]


def _ratio_error(metrics: Metrics, tolerance: float) -> list[str]:
    found = [(error, x) for x, error in finite(metrics.series("ratio_error")) if error > tolerance]
    if not found:
        return []
    error, at = max(found)
    return [
        f"Sampling and training disagreed in {_of(len(found), metrics)}: a token’s probability differed by up to "
        f"{number(error)} (relative, {metrics.axis} {number(at)}) before any update, and rounding explains no more "
        f"than {tolerance:g}. The policy gradient is biased."
    ]


def _negative_kl(metrics: Metrics, episodes: int) -> list[str]:
    """The stretch of iterations whose KL lies furthest below what chance can do.

    With S the sum of log(π/π_ref) over all tokens sampled in a stretch, E[exp(−S)] = 1 whatever the policies are, so
    that S ≤ −s has a chance of exp(−s) at most (Markov's inequality). A mean over episodes is S divided by their
    number, and no variance need be known.
    """
    points = finite(metrics.series("kl"))
    lowest, total, start, found = math.log(CHANCE), 0.0, 0, range(0)
    for i, (_, kl) in enumerate(points):
        if total >= 0:
            total, start = 0.0, i
        total += episodes * kl
        if total < lowest:
            lowest, found = total, range(start, i + 1)
    if not found:
        return []
    first, last = (number(points[i][0]) for i in (found[0], found[-1]))
    when = f"at {metrics.axis} {first}" if len(found) == 1 else f"on average over {metrics.axis}s {first} to {last}"
    mean = lowest / episodes / len(found)
    return [
        f"The KL from the reference was {number(mean)} nats {when}, below 0 by more than sampling explains. The "
        "responses were not drawn from the distribution whose log-probabilities are used."
    ]


def _runaway(metrics: Metrics, name: str) -> list[str]:
    rows = [row for row in metrics.rows if row.get("response_tokens", 0.0) > 0 and drawable(row.get("kl", math.nan))]
    found = [(row["kl"] / row["response_tokens"], row[metrics.axis]) for row in rows]
    found = [(nats, x) for nats, x in found if nats > NATS_A_TOKEN]
    if not found:
        return []
    nats, at = max(found)
    return [
        f"The KL from the reference was above {NATS_A_TOKEN:g} nats a token in {_of(len(found), metrics)}, at most "
        f"{number(nats)} ({metrics.axis} {number(at)}): the policy has left the language of the reference. "
        f"{_more_kl(name)} or lower {name}.learning_rate."
    ]


def _more_kl(name: str) -> str:
    return "Raise online_dpo.beta" if name == "online_dpo" else f"Raise {name}.kl_coef, set {name}.kl_target"


def _of(count: int, metrics: Metrics) -> str:
    return f"{count} of {len(metrics.rows)} iterations"


def _floor(metrics: Metrics, key: str) -> tuple[float, float] | None:
    """Explained variance can start at minus a hundred; below −1 the picture has nothing to teach."""
    values = [y for _, y in metrics.series(key) if math.isfinite(y)]
    return (-1.0, 1.0) if key == "explained_variance" and values and min(values) < -1 else None


def _shown(metrics: Metrics, key: str, how: str) -> str:
    last = metrics.last(key)
    return "" if last is None else percent(last) if "s" in how else number(last)


def _seconds(metrics: Metrics) -> list[Figure]:
    kinds = (("sample", "blue"), ("score", "purple"), ("update", "orange"))
    totals = {name: _total(metrics, f"{name}_seconds") for name, _ in kinds}
    whole = sum(totals.values())
    if not whole > 0:
        return []
    parts = [Part(name, totals[name], percent(totals[name] / whole, 0), shade) for name, shade in kinds]
    said = ", ".join(f"{name} {duration(totals[name])}" for name, _ in kinds)
    return figure(
        "Where the seconds went",
        f"{said[0].upper()}{said[1:]}. Scores include the reference’s log-probabilities.",
        shares("seconds", [(f"{duration(whole)} in all", parts)], width=SMALL[0]),
    )


def _total(metrics: Metrics, key: str) -> float:
    return sum(y for _, y in metrics.series(key) if math.isfinite(y) and y > 0)


def reward_model(run: Run, stage: str) -> Section | None:
    found = run.stages.get(stage)
    if found is None or (found.quality is None and found.metrics is None):
        return None
    figures = _quality(found.quality) if found.quality else []
    if found.metrics:
        figures += _training(found.metrics)
    heading = "Reward model" if stage == "reward" else "Judge (a second reward model)"
    lead = (
        "It turns comparisons into a score. What it gets wrong, training will find and exploit."
        if stage == "reward"
        else "Trained on other comparisons than the first, so that it does not share all of its mistakes."
    )
    facts = _quality_facts(found.quality) if found.quality else []
    return Section(stage, heading, lead, figures, facts, short="Judge" if stage == "judge" else "")


def _quality_facts(quality: Quality) -> list[tuple[str, str]]:
    facts = []
    if quality.accuracy:
        a = quality.accuracy
        interval = f"{100 * a.low:.1f}–{100 * a.high:.1f}"
        facts.append(("Held-out accuracy", f"{percent(a.value)} ({interval}, n = {a.n})"))
    names = {
        "loss": "Held-out loss",
        "ece": "Calibration error (ECE)",
        "brier": "Brier score",
        "length_correlation": "Score against length (Spearman)",
        "pairs": "Held-out pairs",
    }
    return facts + [(names[key], number(value)) for key, value in quality.numbers.items()]


def _quality(quality: Quality) -> list[Figure]:
    rows = [Row("All held-out pairs", quality.accuracy, "blue")] if quality.accuracy else []
    for row in quality.by_margin:
        label = f"|Δ| from {row['low']:.2g} to {row['high']:.2g}"
        rows.append(Row(label, _share(row), "purple", hollow=True))
    for row in quality.by_agreement:
        label = f"Annotators agree {percent(row['agreement'], 0)}"
        rows.append(Row(label, _share(row), "green", hollow=True))
    for row in quality.by_disagreement:
        label = f"Members differ by {row['low']:.2g} to {row['high']:.2g}"
        rows.append(Row(label, _share(row), "orange", hollow=True))
    figures = figure(
        "Accuracy, in all and by how clear the case is",
        "It should grow with the margin |Δ| between the two scores, and with the annotators’ agreement. "
        "Close to one half for small margins is honest: those pairs are nearly ties. The intervals allow for pairs "
        "of one prompt, which are not independent.",
        forest("accuracy", rows, rule="a coin"),
    )
    return figures + figure(
        "Calibration",
        "On the dashed line, a claimed 80 % comes true 80 % of the time. Below it, the model is too sure of "
        "itself. The larger the dot, the more votes.",
        reliability("reward model", quality.reliability),
    )


def _share(row: dict[str, float]) -> Interval:
    low, high = wilson(min(max(row["accuracy"], 0.0), 1.0), row["effective_n"])
    return Interval(row["accuracy"], low, high, int(row["n"]))


def _training(metrics: Metrics) -> list[Figure]:
    """Loss, and accuracy where the stage has one, on the training data and on what was held out."""
    axis = metrics.axis
    loss = line_chart(
        "loss",
        [
            Series("training", metrics.series("loss"), "blue", smooth=True),
            Series("held out", metrics.series("eval_loss"), "orange", dashed=True, dots=True),
        ],
        Options(x_label=axis, size=NORMAL),
    )
    figures = figure(
        "Loss",
        "Both should fall together. Held-out loss that turns up while the other falls is overfitting: stop there.",
        loss,
        _final(metrics, "eval_loss", "held out"),
    )
    accuracy = line_chart(
        "accuracy",
        [
            Series("training", metrics.series("accuracy"), "blue", smooth=True),
            Series("held out", metrics.series("eval_accuracy"), "orange", dashed=True, dots=True),
        ],
        Options(x_label=axis, size=NORMAL, share=True, rules=((0.5, "a coin"),)),
    )
    return figures + figure(
        "Accuracy, vote by vote",
        "The share of single votes that the model agrees with; where people differ, nobody can agree with all of "
        "them. The gap between the lines is what was learned by heart.",
        accuracy if metrics.series("accuracy") or metrics.series("eval_accuracy") else None,
        _final(metrics, "eval_accuracy", "held out", share=True),
    )


def _final(metrics: Metrics, key: str, said: str, share: bool = False) -> str:
    last = metrics.last(key)
    return "" if last is None else f"{percent(last) if share else number(last)} {said}"


_LANGUAGE = {
    "sft": (
        "Supervised fine-tuning",
        "The model learns from written answers. The later stages start from the result, and are held to it.",
    ),
    "pretrain": ("Pretraining", "The model learns the language of this world before it learns any task."),
}


def language_model(run: Run, stage: str) -> Section | None:
    metrics = run.metrics(stage)
    if metrics is None:
        return None
    heading, lead = _LANGUAGE[stage]
    figures = _training(metrics)
    gradient = line_chart(
        "gradient norm",
        [Series("gradient norm", metrics.series("grad_norm"), "grey", smooth=True)],
        Options(x_label=metrics.axis, zero=True),
    )
    caption = "Before clipping. Single spikes are harmless; growth is not."
    figures += figure("Gradient norm", caption, gradient, _shown(metrics, "grad_norm", ""))
    return Section(stage, heading, lead, figures)


FULL_NAMES = {
    "dpo": "Direct preference optimisation",
    "ipo": "Identity preference optimisation",
    "kto": "Kahneman–Tversky optimisation",
    "orpo": "Odds-ratio preference optimisation",
    "simpo": "Simple preference optimisation",
}
WITHOUT_REFERENCE = {"orpo", "simpo"}
HEADING_WITH_REFERENCE = "Chosen and rejected, against the reference"


def direct(run: Run, name: str) -> Section | None:
    """DPO or one of its family."""
    metrics = run.metrics(name)
    if metrics is None:
        return None
    axis = metrics.axis
    figures = _training(metrics)
    chosen, rejected = metrics.series("chosen_logp"), metrics.series("rejected_logp")
    chart = line_chart(
        "log-probabilities",
        [
            Series("chosen", chosen, "blue", smooth=True),
            Series("rejected", rejected, "orange", dashed=True, smooth=True),
        ],
        Options(x_label=axis, rules=() if name in WITHOUT_REFERENCE else ((0.0, "as the reference"),)),
    )
    figures += figure(
        "Chosen and rejected, mean of a token" if name in WITHOUT_REFERENCE else HEADING_WITH_REFERENCE,
        "The chosen line should hold or rise while the rejected one falls. Both falling is the known "
        "failure: the margin grows, yet the good answers become less likely too.",
        chart,
    )
    chart = line_chart(
        "margin",
        [Series("margin", metrics.series("margin"), "green", smooth=True)],
        Options(x_label=axis, rules=((0.0, "no preference"),)),
    )
    caption = "Implicit reward, chosen minus rejected. Should grow, then flatten; endless growth is overfitting."
    figures += figure("Margin", caption, chart, _shown(metrics, "margin", ""))
    return Section(
        name,
        FULL_NAMES[name],
        f"{title(name)} learns from the same comparisons without a reward model or sampling.",
        figures,
        warnings=[] if name in WITHOUT_REFERENCE else _falling(metrics),
        short=title(name),
    )


def _falling(metrics: Metrics) -> list[str]:
    """The mean of the last tenth, so that one step's pairs do not decide."""

    def tail(key: str) -> float | None:
        values = [y for _, y in metrics.series(key) if math.isfinite(y)]
        last = values[-max(1, len(values) // 10) :]
        return sum(last) / len(last) if last else None

    chosen, rejected = tail("chosen_logp"), tail("rejected_logp")
    if chosen is None or rejected is None or chosen >= 0 or rejected >= 0:
        return []
    return [
        f"Both log-probabilities fell against the reference: chosen {number(chosen)}, rejected "
        f"{number(rejected)} nats at the end. The chosen answers themselves became less likely."
    ]
