"""What the policies achieved, and whether the reward was over-optimised: the first two sections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefloop.report.bars import Change, Part, Row, dumbbell, forest, histogram, shares
from prefloop.report.charts import Mark, Options, Series, line_chart
from prefloop.report.read import Evaluation, Metrics, Points, Run
from prefloop.report.samples import change
from prefloop.report.scale import THIN, finite, number, percent, rolling
from prefloop.report.svg import Chart
from prefloop.report.words import counts, has_true_scores, judge, score_name, title, tone


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    chart: Chart
    value: str = ""


@dataclass(frozen=True)
class Section:
    """`facts` are figures worth a large type; `compact` sets the figures three to a row."""

    id: str
    title: str
    lead: str = ""
    figures: list[Figure] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    compact: bool = False
    short: str = ""


def figure(name: str, caption: str, chart: Chart | None, value: str = "") -> list[Figure]:
    """A list of one figure, or of none where there was nothing to draw."""
    return [Figure(name, caption, chart, value)] if chart else []


def win_rates(run: Run) -> Section | None:
    if not run.evaluations:
        return None
    figures = [*_forest(run.evaluations), *_counts(run.evaluations)]
    for i, evaluation in enumerate(run.evaluations):
        figures += _parts(evaluation, tone(evaluation.name, i))
        figures += _changes(evaluation, tone(evaluation.name, i))
    return Section(
        "win-rates",
        "Win rates",
        "The same held-out prompts answered by both policies, judged pair by pair. A tie counts one half.",
        figures,
    )


def _forest(evaluations: Sequence[Evaluation]) -> list[Figure]:
    rows = []
    for i, one in enumerate(evaluations):
        shade, versus = tone(one.name, i), f"{title(one.name)} over {title(one.against)}"
        if one.win_rate:
            rows.append(Row(versus, one.win_rate, shade))
        if one.length_controlled:
            rows.append(Row(f"{title(one.name)}, at equal length", one.length_controlled, shade, hollow=True))
    caption = (
        "Right of the line is better than before. An interval that crosses it shows no clear difference. "
        "If the hollow dot lies far to the left of the full one, longer answers explain part of the win."
    )
    return figure("How often the new answer is preferred", caption, forest("win rates", rows))


def _counts(evaluations: Sequence[Evaluation]) -> list[Figure]:
    rows = []
    for one in evaluations:
        parts = [
            Part(name, one.counts.get(name, 0), str(one.counts.get(name, 0)), shade)
            for name, shade in (("wins", "blue"), ("ties", "grey"), ("losses", "orange"))
        ]
        rows.append((f"{title(one.name)}: {counts(one)}", parts))
    return figure(
        "Wins, ties and losses",
        "Many ties mean that training left most answers as they were; look at the losses among the samples below.",
        shares("wins, ties and losses", rows),
    )


def _parts(evaluation: Evaluation, shade: str) -> list[Figure]:
    changes = [Change(title(name), before, after, shade) for name, (before, after) in evaluation.parts.items()]
    name = title(evaluation.name)
    return figure(
        f"What changed in {name}’s answers",
        "A real improvement moves every part to the right, or leaves it. One part bought at the price of "
        "another is the first sign that the reward asks for the wrong thing.",
        dumbbell(f"parts of {name}", changes),
    )


def _changes(evaluation: Evaluation, shade: str) -> list[Figure]:
    values = [
        difference
        for sample in evaluation.samples
        if (difference := change(sample.true_before, sample.true_after)) is not None
    ]
    name, score = title(evaluation.name), score_name(evaluation)
    shade = "blue" if shade == "orange" else shade  # orange is what the bars below zero are drawn in
    return figure(
        f"Change in {score} per prompt, {name}",
        "A win rate hides how large the wins are. A long tail on the left means that a few answers "
        "became much worse.",
        histogram(f"change in {score}", values, f"{score}, after minus before", shade),
    )


@dataclass(frozen=True)
class Peak:
    """Where a smoothed curve was highest, and how it ended. `noise`: standard error of the difference."""

    at: float
    value: float
    end: float
    end_value: float
    noise: float

    @property
    def past(self) -> bool:
        """The end lies below the peak by more than noise explains.

        Three standard errors rather than two: the highest of many means is high by luck alone.
        """
        return self.at < self.end and self.value - self.end_value > 3 * self.noise


def find_peak(points: Points) -> Peak | None:
    """The highest mean over a tenth of the run, against the mean over its last tenth."""
    points = finite(points)
    window = max(3, len(points) // 10 | 1)
    half = window // 2
    if len(points) < 2 * window:
        return None
    means = rolling(points, window)[half : len(points) - half]  # only where the window is whole
    scatter = [y - mean for (_, y), (_, mean) in zip(points[half:], means, strict=False)]
    # A point is part of its own mean, which hides 1/window of the variance.
    variance = sum(d * d for d in scatter) / len(scatter) * window / (window - 1)
    at, value = max(means, key=lambda point: point[1])
    end, end_value = points[-1][0], means[-1][1]
    return Peak(end if at == means[-1][0] else at, value, end, end_value, math.sqrt(2 * variance / window))


def over_optimisation(run: Run, name: str) -> Section | None:
    metrics = run.metrics(name)
    if metrics is None or not metrics.series("reward"):
        return None
    true = metrics.series("true_reward")
    peak = find_peak(true)
    return Section(
        f"over-optimisation-{name}",
        f"Over-optimisation: {title(name)}",
        "The learned reward is a proxy. Pushed far enough, it keeps rising while the answers get worse. "
        "The distance √KL says how far the policy has gone from where it started.",
        [*_trajectory(metrics), *_curves(metrics, peak)],
        warnings=[_peak_sentence(metrics, peak)] if peak and peak.past else [],
        facts=_facts(metrics, true, peak, run, name),
    )


def _distance(metrics: Metrics, key: str) -> Points:
    return [
        (math.sqrt(row["kl"]), row[key])
        for row in metrics.rows
        if key in row and row.get("kl", -1.0) >= 0 and math.isfinite(row["kl"])
    ]


def _gain(points: Points) -> Points:
    """The change since the start, the largest as 1: two rewards of different units on one axis."""
    start = points[0][1]
    reach = max(abs(y - start) for _, y in points) or 1.0
    return [(x, (y - start) / reach) for x, y in points]


def _smoothed(points: Points) -> Points:
    """Reward against distance, both averaged over neighbouring iterations: the path without its jitter."""
    points = finite(points)
    window = max(3, len(points) // 15 | 1)
    xs = rolling([(i, x) for i, (x, _) in enumerate(points)], window)
    ys = rolling([(i, y) for i, (_, y) in enumerate(points)], window)
    return [(x, y) for (_, x), (_, y) in zip(xs, ys, strict=True)]


def _trajectory(metrics: Metrics) -> list[Figure]:
    learned, true = _smoothed(_distance(metrics, "reward")), _smoothed(_distance(metrics, "true_reward"))
    if len(learned) < 2:
        return []
    series = [Series("learned reward", learned, "purple")]
    caption = "Each point is an iteration. A curve that bends down while √KL grows has passed its best."
    if true:
        series = [
            Series("learned reward", _gain(learned), "purple", values=[number(y) for _, y in learned]),
            Series("true reward", _gain(true), "green", dashed=True, values=[number(y) for _, y in true]),
        ]
        caption = (
            "Both rewards as a share of their own largest gain. While the two curves stay together the proxy "
            "is honest; where the dashed one turns down and the other does not, the policy exploits the "
            "reward model."
        )
    marks = []
    if true:
        top = max(_gain(true), key=lambda point: point[1])
        marks = [Mark(*top, "best true reward", "green")]
    chart = line_chart(
        "reward against distance", series, Options(x_label="√KL from the reference", free=True, marks=marks)
    )
    return figure("Reward against distance from the reference", caption, chart)


def _curves(metrics: Metrics, peak: Peak | None) -> list[Figure]:
    """Learned above true, on one time axis: their units differ, so each has its own scale."""
    learned, true = metrics.series("reward"), metrics.series("true_reward")
    if len(learned) < 2:
        return []
    size = (470.0, 172.0) if len(true) > 1 else (470.0, 262.0)
    upper = line_chart(
        "learned reward",
        [Series("learned reward", learned, "purple", smooth=True)],
        Options(x_label="" if len(true) > 1 else metrics.axis, size=size, heading="learned reward"),
    )
    marks = (
        [Mark(peak.at, peak.value, f"highest at {number(peak.at)}", "green")] if peak and peak.at < peak.end else []
    )
    lower = line_chart(
        "true reward",
        [Series("true reward", true, "green", smooth=True)],
        Options(x_label=metrics.axis, size=size, marks=marks, heading="true reward"),
    )
    if upper is None or lower is None:
        caption = "Learned reward should rise and flatten. It says nothing about whether the answers are better."
        return figure("Reward over the iterations", caption, upper, f"{_last(learned)} learned")
    both = Chart(upper.svg + lower.svg, note=" ".join(note for note in (upper.note, lower.note) if note))
    caption = (
        "PPO is trained on the learned reward and never on the true one. If the lower curve falls while the "
        "upper one rises, stop earlier or raise the KL penalty."
    )
    return figure("Reward over the iterations", caption, both, f"{_last(learned)} learned, {_last(true)} true")


def _last(points: Points) -> str:
    return number(points[-1][1]) if points else ""


def _peak_sentence(metrics: Metrics, peak: Peak) -> str:
    distances = dict(rolling([(row[metrics.axis], row.get("kl", math.nan)) for row in metrics.rows], 3))
    kl = distances.get(peak.at, math.nan)
    at = f" (√KL {math.sqrt(kl):.1f})" if kl >= 0 else ""
    return (
        f"The true reward was highest at iteration {number(peak.at)}{at}, at {number(peak.value)}, and ended "
        f"at {number(peak.end_value)} at iteration {number(peak.end)}: training went past the peak."
    )


def _facts(metrics: Metrics, true: Points, peak: Peak | None, run: Run, name: str) -> list[tuple[str, str]]:
    facts = []
    if peak and not peak.past:
        said = (
            "still at its highest at the end"
            if peak.at == peak.end
            else f"highest at iteration {number(peak.at)}; the end is within noise of it"
        )
        facts.append(("True reward", said))
    if not true:
        said = "unknown in this run: watch the win rate, the length and the entropy for the signs"
        facts.append(("True reward", said))
    elif peak is None:
        facts.append(("True reward", f"{_last(true)} at the end; too few iterations to look for a peak"))
    kl = finite(metrics.series("kl"))
    if kl:
        facts.append(("Distance at the end", f"√KL {math.sqrt(max(kl[-1][1], 0)):.1f}"))
    judged = next((e for e in run.evaluations if e.name == name and not has_true_scores(e)), None)
    if judged and judged.win_rate:
        facts.append((f"Judged by {judge(judged)}", f"win rate {percent(judged.win_rate.value)}"))
    return [(label, value.replace(" %", f"{THIN}%")) for label, value in facts]
