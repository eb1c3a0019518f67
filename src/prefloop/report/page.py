"""The page: one HTML file that needs nothing else, written from a run folder's files alone."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefloop.report import stages
from prefloop.report.bars import whisker
from prefloop.report.entries import Interval
from prefloop.report.read import DIRECT, ON_POLICY, Evaluation, Manifest, Run, Sample, read_run
from prefloop.report.samples import Answer, Group, compared, folded, select, visible
from prefloop.report.scale import duration, interval_text, memory, number, percent
from prefloop.report.sections import Section, over_optimisation, win_rates
from prefloop.report.words import left_out, listed, score_name, stage_name, title, tone, verdicts

MOST_SAMPLES = 60


def write_report(run: Path) -> Path:
    """Writes `run/report.html` and returns its path. The same files give the same bytes.

    Raises ValueError when `run` is no run folder, or when one of its files is broken.
    """
    target = run / "report.html"
    html = render(read_run(run))
    descriptor, name = tempfile.mkstemp(dir=run, prefix=".report.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(html)
        Path(name).chmod(0o644)  # mkstemp makes it private; a report is there to be shared
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def render(run: Run) -> str:
    environment = Environment(
        loader=PackageLoader("prefloop.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    css, script = _static("charts.css") + _static("report.css"), _static("report.js")
    sections = [section for section in _sections(run) if section]
    page = environment.get_template("report.html").render(
        run=run,
        css=Markup(css),
        script=Markup(script),
        policy=_security_policy(css, script),
        verdicts=verdicts(run),
        about=_about(run),
        left_out=left_out(run),
        tiles=[_tile(evaluation, tone(evaluation.name, i)) for i, evaluation in enumerate(run.evaluations)],
        alarms=_alarms(run, sections),
        quiet=all(evaluation.alarms == [] for evaluation in run.evaluations),
        sections=sections,
        absent=_absent(run),
        samples=list(_shown_samples(run)),
        provenance=_provenance(run),
    )
    # A lone surrogate cannot be written as UTF-8. `visible` spells out those of model texts.
    return page.encode("utf-8", "replace").decode("utf-8")


def _static(name: str) -> str:
    return files("prefloop.report").joinpath("static", name).read_text(encoding="utf-8")


def _security_policy(css: str, script: str) -> str:
    """Nothing may be loaded, and no style or script may run but the two that stand in the page."""

    def source(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {source(css)}; script-src {source(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sections(run: Run) -> Iterator[Section | None]:
    yield win_rates(run)
    for name in ON_POLICY:
        yield over_optimisation(run, name)
        yield stages.on_policy_health(run, name)
    yield stages.reward_model(run, "reward")
    yield stages.reward_model(run, "judge")
    for name in DIRECT:
        yield stages.direct(run, name)
    yield stages.language_model(run, "sft")
    yield stages.language_model(run, "pretrain")


def _about(run: Run) -> list[str]:
    finished = sorted(m.finished for m in _manifests(run) if m.finished)
    said = [finished[-1].replace("T", " ")[:16]] if finished else []
    if run.seed is not None:
        said.append(f"seed {run.seed}")
    if run.seconds is not None:
        said.append(f"{duration(run.seconds)} in all")
    if run.peak_memory_mb is not None:
        said.append(f"{memory(run.peak_memory_mb)} at most")
    return said


def _manifests(run: Run) -> list[Manifest]:
    return [stage.manifest for stage in run.stages.values() if stage.manifest]


@dataclass(frozen=True)
class Tile:
    """One policy's headline figures. Rows are (name, before, after), `before` empty for a single figure."""

    name: str
    tone: str
    against: str
    win_rate: Interval | None
    share: str
    interval: str
    bar: Markup
    rows: list[tuple[str, str, str]]


def _tile(evaluation: Evaluation, shade: str) -> Tile:
    rate, numbers = evaluation.win_rate, evaluation.numbers
    rows = []
    if evaluation.length_controlled:
        rows.append(("at equal length", "", percent(evaluation.length_controlled.value)))
    if "kl" in numbers:
        rows.append(("KL from the reference", "", f"{number(numbers['kl'])} nats"))
    names = {
        "true_reward": score_name(evaluation),
        "learned_reward": "learned reward",
        "response_tokens": "length in tokens",
    }
    for key, name in names.items():
        if f"{key}_before" in numbers and f"{key}_after" in numbers:
            rows.append((name, number(numbers[f"{key}_before"]), number(numbers[f"{key}_after"])))
    return Tile(
        title(evaluation.name),
        shade,
        title(evaluation.against),
        rate,
        percent(rate.value) if rate else "",
        interval_text(rate) if rate else "",
        whisker(rate, shade) if rate else Markup(""),
        rows,
    )


def _alarms(run: Run, sections: list[Section]) -> list[tuple[str, str]]:
    """What the evaluation found, what the curves show, and figures that are no numbers."""
    found = [(title(e.name), alarm) for e in run.evaluations for alarm in e.alarms or []]
    found += [(section.short or section.title, warning) for section in sections for warning in section.warnings]
    for name, stage in run.stages.items():
        rows = stage.metrics.rows if stage.metrics else []
        keys = sorted({key for row in rows for key, value in row.items() if not math.isfinite(value)})
        if keys:
            found.append((title(name), f"Not every value is a finite number: {', '.join(keys)}."))
    return found


def _absent(run: Run) -> str:
    """A short sentence about what a reader may look for in vain."""
    there = {*run.stages} if run.evaluations else {*run.stages} - {"evaluation"}
    there |= {one.stage for one in run.left_out if one.stale}
    missing = [stage_name(name) for name in ("sft", "reward", "ppo", "dpo", "evaluation") if name not in there]
    return f"Not part of this run, and so not on this page: {listed(missing)}." if missing else ""


@dataclass(frozen=True)
class Card:
    verdict: str
    prompt: Answer
    first_line: Markup
    before: Answer
    after: Answer
    scores: list[tuple[str, str, str, str]]  # name, before, after, direction


@dataclass(frozen=True)
class Shown:
    name: str
    against: str
    judge: str
    groups: list[tuple[Group, list[Card]]]


def _shown_samples(run: Run) -> Iterator[Shown]:
    judged = [evaluation for evaluation in run.evaluations if evaluation.samples]
    for evaluation in judged:
        groups = select(evaluation.samples, MOST_SAMPLES // len(judged))
        cards = [(group, [_card(sample, evaluation) for sample in group.samples]) for group in groups]
        yield Shown(title(evaluation.name), title(evaluation.against), score_name(evaluation), cards)


def _card(sample: Sample, evaluation: Evaluation) -> Card:
    before, after = compared(sample.before, sample.after)
    first = " ".join(sample.prompt[:400].split())
    scores = [
        *_score(score_name(evaluation), sample.true_before, sample.true_after),
        *_score("learned reward", sample.learned_before, sample.learned_after),
    ]
    return Card(sample.verdict, folded(sample.prompt), visible(first[:140]), before, after, scores)


def _score(name: str, before: float | None, after: float | None) -> list[tuple[str, str, str, str]]:
    if before is None or after is None:
        return []
    direction = "up" if after > before else "down" if after < before else "same"
    return [(name, number(before), number(after), direction)]


@dataclass(frozen=True)
class Provenance:
    rows: list[tuple[str, str, str, str, str]]  # stage, seconds, memory, seed, key
    versions: str
    snapshot: str
    judgements: str
    recipe: str


def _provenance(run: Run) -> Provenance:
    manifests = [(name, stage.manifest) for name, stage in run.stages.items() if stage.manifest]
    rows = [
        (
            name,
            "" if m.seconds is None else duration(m.seconds),
            "" if m.peak_memory_mb is None else memory(m.peak_memory_mb),
            "" if m.seed is None else str(m.seed),
            m.key or "",
        )
        for name, m in manifests
    ]
    used: dict[str, list[str]] = {}
    for _, m in manifests:
        for package, version in m.versions.items():
            if version not in used.setdefault(package, []):
                used[package].append(version)
    label = next((m for _, m in manifests if m.snapshot), None)
    return Provenance(
        rows,
        ", ".join(f"{package} {' and '.join(versions)}" for package, versions in used.items()),
        (label.snapshot or "") if label else "",
        str(label.judgements) if label and label.judgements is not None else "",
        run.recipe or "",
    )
