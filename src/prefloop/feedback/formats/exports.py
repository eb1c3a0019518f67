"""Exporting: what a store holds today, in a format that others read. What a format has no place for is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any, TypeVar, get_args

from ..aggregate import votes
from ..format_names import ExportFormat
from ..records import BEST_ONLY, Completion, Demonstration, Judgement, Prompt
from ..store import Store
from . import alpacaeval, dialogue, llamafactory, oasst, trl, whole
from .items import FROM_LABELS, Answer, Asked, Demonstrated, Item, Labelled, NotCarriedError, Ranked, pair_of
from .rows import Row
from .writing import Columns, Kind, write_rows

_BATCH = 500
_T = TypeVar("_T")
_Said = TypeVar("_Said", Judgement, Demonstration, Completion)


@dataclass
class ExportReport:
    """What became of what the store holds."""

    format: ExportFormat
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Why → how many judgements (pairs of one, where a ranking is written as pairs), demonstrations or answers."""
    noted: Counter[str] = field(default_factory=Counter)
    """What was written otherwise than it was said → how many."""


def export_file(store: Store, format: ExportFormat, out: str | Path, *, criterion: str = "overall") -> ExportReport:
    """Write what a format can carry; OUT's ending says into what (`writing.write_rows`).

    Judgements are those that count today, by one criterion; of ``prefloop``, all. The result is written beside its
    place and renamed. ValueError for an unknown format, for an OUT that is there or is of no known kind.
    """
    if format not in get_args(ExportFormat):
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(get_args(ExportFormat))}")
    report = ExportReport(format)
    if format == "prefloop":
        report.rows = write_rows(whole.write_whole(store), Path(out), None)
        return report
    plain = all(trl.is_plain(prompt.messages) for prompt in store.prompts()) if format in _TRL else True
    source = _source(store, format, criterion, report)
    report.rows = write_rows(_rows(source, _writer(format, plain), report), Path(out), _columns(format, plain))
    if format in _OF_A_CRITERION:
        _count_other_criteria(store, criterion, report)
    return report


_TRL = {"comparison", "unpaired", "demonstration", "prompt"}
_OF_JUDGEMENTS = {"dialogue", "comparison", "sharegpt-comparison", "alpaca-comparison", "alpacaeval", "oasst"}
_OF_A_CRITERION = _OF_JUDGEMENTS | {"unpaired", "sharegpt-unpaired", "alpaca-unpaired"}


def _writer(format: str, plain: bool) -> Callable[[Any], Row]:
    if format in _TRL:
        write: dict[str, Callable[[Any, bool], Row]] = {
            "comparison": trl.write_comparison,
            "unpaired": trl.write_unpaired,
            "demonstration": trl.write_demonstration,
            "prompt": trl.write_prompt,
        }
        return lambda item: write[format](item, plain)
    others: dict[str, Callable[[Any], Row]] = {
        "dialogue": dialogue.write_dialogue,
        "sharegpt": llamafactory.write_sharegpt,
        "alpaca": llamafactory.write_alpaca,
        "alpacaeval": alpacaeval.write_alpacaeval,
        "oasst": oasst.write_oasst,
    }
    return others[format.split("-")[0]]


def _columns(format: str, plain: bool) -> Columns | None:
    said: Kind = "text" if plain else "messages"
    pair: Columns = {"chosen": "text", "rejected": "text"}
    instruction: Columns = {"instruction": "text", "input": "text", "system": "text", "history": "rounds"}
    ranked: Columns = {"strength": "integer", "criterion": "text"}
    tables: dict[str, Columns] = {
        "comparison": {"prompt": said, "chosen": said, "rejected": said, **ranked},
        "unpaired": {"prompt": said, "completion": said, "label": "flag"},
        "demonstration": {"prompt": said, "completion": said},
        "prompt": {"prompt": said},
        "dialogue": {**pair, **ranked},
        "sharegpt-comparison": {"conversations": "speeches", "chosen": "speech", "rejected": "speech", **ranked},
        "sharegpt-unpaired": {"conversations": "speeches", "kto_tag": "flag"},
        "sharegpt-demonstration": {"conversations": "speeches"},
        "alpaca-comparison": {**instruction, **pair, **ranked},
        "alpaca-unpaired": {**instruction, "output": "text", "kto_tag": "flag"},
        "alpaca-demonstration": {**instruction, "output": "text"},
        "alpacaeval": {
            "instruction": "text",
            "output_1": "text",
            "generator_1": "text",
            "output_2": "text",
            "generator_2": "text",
            "annotator": "text",
            "preference": "number",
            **ranked,
        },
    }
    return {**tables[format], "split": "text"} if format in tables else None


def _rows(items: Iterable[Item], write: Callable[[Any], Row], report: ExportReport) -> Iterator[Row]:
    for item in items:
        try:
            row = write(item)
        except NotCarriedError as why:
            report.left_out[str(why)] += 1
            continue
        if isinstance(item, Ranked):
            row |= {"strength": item.strength} if item.strength else {}
            row |= {"criterion": item.criterion} if item.criterion != "overall" else {}
        yield row | ({"split": item.split} if item.split else {})


# Items out of the store


def _source(store: Store, format: str, criterion: str, report: ExportReport) -> Iterator[Item]:
    if format == "oasst":
        return _ranked(store, criterion, report)
    if format in _OF_JUDGEMENTS:
        return _pairs(store, criterion, report)
    if format.endswith("unpaired"):
        return _labelled(store, criterion, report)
    return _demonstrated(store) if format.endswith("demonstration") else _asked(store)


def _judged(
    store: Store, criterion: str, report: ExportReport
) -> Iterator[tuple[Judgement, Prompt, list[Completion]]]:
    """Judgements that say something, with their prompt and the completions in the order shown."""
    for batch, prompts in _with_prompts(store, store.judgements(criterion)):
        answers = {answer.id: answer for answer in store.completions(sorted(prompts))}
        for judgement in batch:
            if next(votes(judgement), None) is None:
                report.left_out["nobody could judge"] += 1
            else:
                yield judgement, prompts[judgement.prompt_id], [answers[key] for key in judgement.shown]


def _ranked(store: Store, criterion: str, report: ExportReport) -> Iterator[Ranked]:
    for judgement, prompt, answers in _judged(store, criterion, report):
        if BEST_ONLY in judgement.flags:
            report.left_out["only the best of several was chosen"] += 1
        else:
            yield _item(judgement, prompt, answers, judgement.ranks)


def _pairs(store: Store, criterion: str, report: ExportReport, labels: bool = True) -> Iterator[Ranked]:
    """All pairs of each judgement; without ``labels``, not of those that labels make."""
    for judgement, prompt, answers in _judged(store, criterion, report):
        if FROM_LABELS in judgement.flags and not labels:
            continue
        if len(answers) > 2:
            report.noted["a ranking of more than two answers is written as pairs"] += 1
        for i, j in combinations(range(len(answers)), 2):
            ranks = judgement.ranks[i], judgement.ranks[j]
            if answers[i].text == answers[j].text:
                report.left_out["two answers with the same text"] += 1
            elif ranks[0] != ranks[1] or BEST_ONLY not in judgement.flags:
                order = (1, 2) if ranks[0] < ranks[1] else (2, 1) if ranks[0] > ranks[1] else (1, 1)
                yield _item(judgement, prompt, [answers[i], answers[j]], order)


def _item(judgement: Judgement, prompt: Prompt, answers: list[Completion], ranks: tuple[int, ...]) -> Ranked:
    return Ranked(
        prompt.messages,
        tuple(Answer(answer.text, answer.origin, answer.metadata) for answer in answers),
        ranks,
        prompt.split,
        judgement.strength,
        judgement.criterion,
        judgement.annotator,
    )


def _labelled(store: Store, criterion: str, report: ExportReport) -> Iterator[Labelled]:
    """Every pair as a desirable and an undesirable answer, as KTO learns from it; then every label."""
    for item in _pairs(store, criterion, report, labels=False):
        try:
            better, worse = pair_of(item)
        except NotCarriedError as why:
            report.left_out[str(why)] += 1
            continue
        yield Labelled(item.turns, better, True, item.split)
        yield Labelled(item.turns, worse, False, item.split)
    for batch, prompts in _with_prompts(store, store.completions()):
        for answer in batch:
            if type(label := answer.metadata.get("label")) is bool:
                prompt = prompts[answer.prompt_id]
                yield Labelled(prompt.messages, Answer(answer.text), label, prompt.split)


def _demonstrated(store: Store) -> Iterator[Demonstrated]:
    for batch, prompts in _with_prompts(store, store.demonstrations()):
        for shown in batch:
            prompt = prompts[shown.prompt_id]
            yield Demonstrated(prompt.messages, shown.text, prompt.split)


def _asked(store: Store) -> Iterator[Asked]:
    return (Asked(prompt.messages, None, prompt.split) for prompt in store.prompts())


def _with_prompts(store: Store, records: Iterator[_Said]) -> Iterator[tuple[list[_Said], dict[str, Prompt]]]:
    """Records in batches, with the prompts that they are about by id."""
    while batch := list(islice(records, _BATCH)):
        yield batch, {prompt.id: prompt for prompt in store.prompts(ids={record.prompt_id for record in batch})}


def _count_other_criteria(store: Store, criterion: str, report: ExportReport) -> None:
    everything = Counter(judgement.criterion for judgement in store.judgements())
    for name, count in everything.items():
        if name != criterion:
            report.left_out[f"by the criterion {name!r:.40}; name it with --criterion"] = count
