"""A run folder, read into typed values: what is missing is None or empty, what is broken is a ValueError.

The folder's contract is docs/run-folder.md. Every complaint names the file, the line and the remedy.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from prefloop.report.entries import Entry, Interval, read_object, read_objects, read_text

DIRECT = ("dpo", "ipo", "kto", "orpo", "simpo")
"""Algorithms that learn from comparisons without a reward model."""
ON_POLICY = ("ppo", "reinforce", "rloo", "grpo", "reinforce_pp", "online_dpo")
"""Algorithms that sample from the policy as it learns."""
STAGE_ORDER = ("pretrain", "sft", "sample", "label", "reward", "judge", *ON_POLICY, *DIRECT, "evaluation")
VERDICTS = ("win", "tie", "loss")
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Metrics:
    """The lines of one metrics.jsonl; `axis` is `step` or `iteration`."""

    axis: str
    rows: list[dict[str, float]]

    def series(self, key: str) -> Points:
        return [(row[self.axis], row[key]) for row in self.rows if key in row]

    def last(self, key: str) -> float | None:
        values = self.series(key)
        return values[-1][1] if values else None


@dataclass(frozen=True)
class Manifest:
    """`inputs`: the earlier stages that this one was made from, each with the key that it had then."""

    stage: str
    key: str | None
    inputs: dict[str, str]
    seed: int | None
    seconds: float | None
    peak_memory_mb: float | None
    finished: str | None
    snapshot: str | None
    judgements: int | None
    versions: dict[str, str]
    precision: list[str] = field(default_factory=list)
    """What models were trained in."""


@dataclass(frozen=True)
class Quality:
    """reward/evaluation.json: how far a reward model can be trusted on held-out prompts."""

    accuracy: Interval | None
    numbers: dict[str, float]
    reliability: list[dict[str, float]]
    by_margin: list[dict[str, float]]
    by_agreement: list[dict[str, float]]
    by_disagreement: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    prompt: str
    before: str
    after: str
    verdict: str
    true_before: float | None
    true_after: float | None
    learned_before: float | None
    learned_after: float | None


@dataclass(frozen=True)
class Evaluation:
    name: str
    against: str
    judge: str | None
    win_rate: Interval | None
    length_controlled: Interval | None
    counts: dict[str, int]
    numbers: dict[str, float]
    parts: dict[str, tuple[float, float]]
    alarms: list[str] | None  # None: nobody looked
    samples: list[Sample]


@dataclass(frozen=True)
class Stage:
    name: str
    metrics: Metrics | None = None
    manifest: Manifest | None = None
    quality: Quality | None = None


@dataclass(frozen=True)
class LeftOut:
    """A stage that is on disk and not shown.

    It was made from other versions of `changed` than the folder holds, and from `gone`, which are not there at
    all. Where both are empty, the summary of the last complete run does not name it.
    """

    stage: str
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def stale(self) -> bool:
        return bool(self.changed or self.gone)


@dataclass(frozen=True)
class Run:
    """What belongs together in a run folder: the stages of one recipe, each made from the others."""

    path: Path
    name: str
    seed: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    recipe: str | None = None
    episodes: dict[str, int] = field(default_factory=dict)  # responses of an iteration, by algorithm
    stages: dict[str, Stage] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def metrics(self, stage: str) -> Metrics | None:
        return self.stages[stage].metrics if stage in self.stages else None


def read_run(path: Path) -> Run:
    """Reads everything that a report shows. ValueError: this is no run folder, or a file is broken."""
    folders = {folder.name: folder for folder in _stage_folders(path)}
    remedy = "Run `prefloop run` again to write it anew."
    summary = read_object(path / "summary.json", remedy) or Entry({}, "", "")
    manifests = {name: _manifest(folder / "manifest.json") for name, folder in folders.items()}
    left_out = _left_out(manifests, summary.entry("stages"))
    kept = folders.keys() - {one.stage for one in left_out}
    # The summary is of the last complete run: beside stages of an unfinished one, its totals are another run's.
    totals = Entry({}, "", "") if any(one.stale for one in left_out) else summary
    recipe = _recipe(path / "recipe.toml")
    return Run(
        path=path,
        name=summary.text("name") or path.resolve().name,
        seed=totals.count("seed"),
        seconds=totals.number("seconds"),
        peak_memory_mb=totals.number("peak_memory_mb"),
        recipe=recipe,
        episodes=_episodes(recipe),
        stages={name: _stage(folder, manifests[name]) for name, folder in folders.items() if name in kept},
        evaluations=_evaluations(folders["evaluation"], summary.entry("evaluation")) if "evaluation" in kept else [],
        left_out=left_out,
    )


def _left_out(manifests: dict[str, Manifest | None], named: Entry | None) -> list[LeftOut]:
    """The stages of another recipe, which a new run does not touch, and those made from what has changed since."""
    stale = _stale(manifests)
    others = {name: LeftOut(name) for name in manifests if named and name not in named.values}
    found = stale | others
    return [found[name] for name in manifests if name in found]


def _stale(manifests: dict[str, Manifest | None]) -> dict[str, LeftOut]:
    """Manifests come in the order of the stages: what was made from a stale one is stale for the same reasons."""
    found: dict[str, LeftOut] = {}
    for name, manifest in manifests.items():
        changed, gone = dict[str, None](), dict[str, None]()  # as sets, but in order
        for source, key in manifest.inputs.items() if manifest else ():
            upstream = manifests.get(source)
            if source in found:
                changed |= dict.fromkeys(found[source].changed)
                gone |= dict.fromkeys(found[source].gone)
            elif source not in manifests:
                gone[source] = None
            elif upstream is None or upstream.key != key:
                changed[source] = None
        if changed or gone:
            found[name] = LeftOut(name, tuple(changed), tuple(gone))
    return found


def _stage_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder. Give the folder of one run, such as runs/NAME.")
    known = [path / name for name in STAGE_ORDER]
    others = [
        folder
        for folder in sorted(path.iterdir())
        if folder.is_dir() and folder not in known and not folder.name.startswith(".")
    ]
    marks = ("manifest.json", "metrics.jsonl")
    found = [folder for folder in known if folder.is_dir()]
    found += [folder for folder in others if any((folder / mark).is_file() for mark in marks)]
    if not (path / "recipe.toml").is_file() and not (path / "summary.json").is_file():
        looks_like_parent = any((folder / "recipe.toml").is_file() for folder in others)
        hint = f"It holds runs: give one of them, such as {others[0]}." if looks_like_parent else ""
        raise ValueError(
            f"{path}: this is no run folder, for it has neither recipe.toml nor summary.json. "
            + (hint or "Give the folder of one run, such as runs/NAME.")
        )
    return found


def _stage(folder: Path, manifest: Manifest | None) -> Stage:
    return Stage(folder.name, _metrics(folder / "metrics.jsonl"), manifest, _quality(folder))


def _remedy(folder: Path) -> str:
    return f"Delete the folder {folder} and run `prefloop run` again: it repeats that stage alone."


def _recipe(path: Path) -> str | None:
    if not path.is_file():
        return None
    remedy = "Restore the file, or run `prefloop run` again to write it anew."
    text = read_text(path, remedy)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML ({error}). {remedy}") from None
    return text


def _episodes(recipe: str | None) -> dict[str, int]:
    table = tomllib.loads(recipe or "")
    sections = {name: table.get(name) for name in ON_POLICY}
    values = {name: section.get("episodes") for name, section in sections.items() if isinstance(section, dict)}
    return {name: max(1, value) for name, value in values.items() if isinstance(value, int)}


def _metrics(path: Path) -> Metrics | None:
    rows: list[dict[str, float]] = []
    axis = ""
    for entry in read_objects(path, _remedy(path.parent)):
        axis = axis or ("iteration" if "iteration" in entry.values else "step")
        if entry.number(axis) is None:
            raise entry.complain(axis, "a number (every line has its `step` or `iteration`)")
        rows.append({key: value for key in entry.values if (value := entry.number(key)) is not None})
    return Metrics(axis, rows) if rows else None


def _manifest(path: Path) -> Manifest | None:
    entry = read_object(path, _remedy(path.parent))
    if entry is None:
        return None
    return Manifest(
        stage=entry.text("stage") or path.parent.name,
        key=entry.text("key"),
        inputs=_texts(entry, "inputs"),
        seed=entry.count("seed"),
        seconds=entry.number("seconds"),
        peak_memory_mb=entry.number("peak_memory_mb"),
        finished=entry.text("finished"),
        snapshot=entry.text("snapshot"),
        judgements=entry.count("judgements"),
        versions=_texts(entry, "versions"),
        precision=entry.texts("precision"),
    )


def _texts(entry: Entry, key: str) -> dict[str, str]:
    inner = entry.entry(key)
    return {name: inner.required_text(name) for name in inner.values} if inner else {}


def _quality(folder: Path) -> Quality | None:
    entry = read_object(folder / "evaluation.json", _remedy(folder))
    if entry is None:
        return None
    scalars = ("loss", "ece", "brier", "length_correlation", "pairs")
    return Quality(
        accuracy=entry.interval("accuracy"),
        numbers=_numbers(entry, scalars),
        reliability=_rows(entry, "reliability", ("predicted", "observed", "n")),
        by_margin=_rows(entry, "by_margin", ("low", "high", "accuracy", "n")),
        by_agreement=_rows(entry, "by_agreement", ("agreement", "accuracy", "n")),
        by_disagreement=_rows(entry, "by_disagreement", ("low", "high", "accuracy", "n")),
    )


def _numbers(entry: Entry, keys: tuple[str, ...]) -> dict[str, float]:
    return {key: value for key in keys if (value := entry.number(key)) is not None}


def _rows(entry: Entry, key: str, fields: tuple[str, ...]) -> list[dict[str, float]]:
    """A list of number rows. An empty bin may leave a field null or NaN: such a row has nothing to draw.

    Each has `effective_n` besides, how many independent observations its `n` are worth; `n` where it does not say.
    """
    rows = [_numbers(item, (*fields, "effective_n")) for item in entry.entries(key)]
    rows = [row for row in rows if {*fields} <= row.keys() and all(math.isfinite(row[field]) for field in fields)]
    for row in rows:
        worth = row.get("effective_n", math.nan)
        row["effective_n"] = worth if 1e-3 < worth <= row["n"] else row["n"]
    return [row for row in rows if row["n"] > 0]


def _evaluations(folder: Path, named: Entry | None) -> list[Evaluation]:
    """The comparisons in the folder, of those that the summary names where there is one."""
    names = sorted(path.stem for path in folder.glob("*.json") if path.name != "manifest.json")
    names = [name for name in names if named is None or name in named.values]
    names.sort(key=lambda name: STAGE_ORDER.index(name) if name in STAGE_ORDER else len(STAGE_ORDER))
    return [_evaluation(folder, name) for name in names]


_COMPARED = ("true_reward", "learned_reward", "response_tokens")


def _evaluation(folder: Path, name: str) -> Evaluation:
    entry = read_object(folder / f"{name}.json", _remedy(folder))
    assert entry is not None
    parts = entry.entry("parts")
    keys = (*(f"{key}_{when}" for key in _COMPARED for when in ("before", "after")), "kl")
    counts = {key: value for key in ("wins", "ties", "losses") if (value := entry.count(key)) is not None}
    return Evaluation(
        name=entry.text("name") or name,
        against=entry.text("against") or "sft",
        judge=entry.text("judge"),
        win_rate=entry.interval("win_rate"),
        length_controlled=entry.interval("length_controlled_win_rate"),
        counts=counts,
        numbers=_numbers(entry, keys),
        parts={key: _part(parts, key) for key in parts.values} if parts else {},
        alarms=entry.texts("alarms") if "alarms" in entry.values else None,
        samples=[_sample(line) for line in read_objects(folder / f"{name}.samples.jsonl", _remedy(folder))],
    )


def _part(parts: Entry, key: str) -> tuple[float, float]:
    entry = parts.entry(key)
    before, after = (entry.number("before"), entry.number("after")) if entry else (None, None)
    if before is None or after is None:
        raise parts.complain(key, 'an object {"before", "after"} of two numbers')
    return before, after


def _sample(entry: Entry) -> Sample:
    verdict = entry.required_text("verdict")
    if verdict not in VERDICTS:
        raise entry.complain("verdict", "`win`, `tie` or `loss`")
    return Sample(
        prompt=entry.required_text("prompt"),
        before=entry.required_text("before"),
        after=entry.required_text("after"),
        verdict=verdict,
        true_before=entry.number("true_before"),
        true_after=entry.number("true_after"),
        learned_before=entry.number("learned_before"),
        learned_after=entry.number("learned_after"),
    )
