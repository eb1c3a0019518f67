"""Importing: the rows of a file become records of a store, all of them or none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..records import Judgement, content_id
from ..store import AnyRecord, Counts, Store
from .containers import open_rows
from .oasst import trees
from .recorder import UNMATCHED, Recorder
from .rows import Row, RowError
from .table import EXPECTED, NOT_JUDGED, READERS, Format, detect, known_format, unused_fields

_BATCH = 500
_Reject = Callable[[str, int, RowError], None]
"""(unit, number, what is wrong with the row)."""


@dataclass
class ImportReport:
    """What became of a file's rows: every row was imported or is in ``skipped``."""

    format: Format | None = None
    """As given, or as the first rows show."""
    rows: int = 0
    added: Counts = field(default_factory=Counts)
    """Records that were not in the store before; filled by `import_file`."""
    corrected: int = 0
    """Judgements among them that take the place of what a judging sheet said before."""
    skipped: dict[str, list[int]] = field(default_factory=dict)
    """Reason → numbers of the rows that were not imported."""
    noted: Counter[str] = field(default_factory=Counter)
    """What is unusual in rows that were imported, or not used of them → number of rows."""
    unit: str = "line"
    """What the numbers count."""
    rejected: Path | None = None
    """The file of the bad rows that were left out."""


def import_file(
    store: Store, path: str | Path, format: Format | None = None, *, skip_bad: bool = False
) -> ImportReport:
    """Add a file, or a folder of `datasets`, to the store in one transaction.

    With ``skip_bad`` the bad rows are left out and written to ``FILE.rejected.jsonl``, each with its number, the
    reason and the row. Errors as in `read_file` and `Store.add`.
    """
    path, report = Path(path), ImportReport()
    with _Rejects(path.with_name(f"{path.name}.rejected.jsonl")) as rejects:
        reject = rejects.add if skip_bad else _refuse(path)
        records = _records(path, format, report, reject)
        report.added = store.add(_mended(store, records, report))
    report.rejected = rejects.written
    return report


def read_file(
    path: str | Path,
    format: Format | None = None,
    *,
    skip_bad: bool = False,
    report: ImportReport | None = None,
) -> Iterator[AnyRecord]:
    """Records of a file in the order in which a store takes them, read as they are asked for.

    The first row in a known format decides for the file, unless ``format`` is given. ``report`` is filled as
    the reading goes on. A row that cannot be read raises ValueError with file, line and field; with
    ``skip_bad`` it is left out and counted in ``report.skipped``.
    """
    path = Path(path)
    reject: _Reject = (lambda *_: None) if skip_bad else _refuse(path)
    return _records(path, format, ImportReport() if report is None else report, reject)


def _records(path: Path, format: Format | None, report: ImportReport, reject: _Reject) -> Iterator[AnyRecord]:
    known_format(format)
    report.format = format
    source = open_rows(path)
    report.unit = source.unit
    recorder = Recorder(path.name, report.noted)
    for number, row in trees(source.rows):
        report.rows += 1
        try:
            if isinstance(row, RowError):
                raise row
            yield from _of_row(row, number, recorder, report)
        except RowError as fault:
            if fault.row is None:
                fault.row = row
            reject(source.unit, number, fault)
            report.skipped.setdefault(fault.reason, []).append(number)
    _check_end(path, report)
    if unmatched := recorder.unmatched():
        report.noted[UNMATCHED] = unmatched


def _of_row(row: Row, number: int, recorder: Recorder, report: ImportReport) -> list[AnyRecord]:
    if report.format is None:
        report.format = detect(row)
    reader = READERS[report.format]
    said = reader.read(row)
    records = recorder.records(said)
    for name in unused_fields(row, reader.fields):
        report.noted[f"field {name!r:.60} is not used"] += 1
    if NOT_JUDGED in said:
        report.skipped.setdefault(NOT_JUDGED, []).append(number)
    return records


def _check_end(path: Path, report: ImportReport) -> None:
    if report.rows == 0:
        hint = "; expected one JSON object per line" if report.unit == "line" else ": there are no rows in it"
        raise ValueError(f"{path} is empty{hint}")
    if report.format is None:
        raise ValueError(f"{path}: none of its {report.rows} rows is in a known format; {EXPECTED}")


def _refuse(path: Path) -> _Reject:
    def refuse(unit: str, number: int, fault: RowError) -> None:
        raise ValueError(f"{path}, {unit} {number}: {fault}") from None

    return refuse


class _Rejects:
    """The file of rejected rows, beside its place until the import is done; there is none without a rejected row."""

    def __init__(self, path: Path) -> None:
        self.written: Path | None = None
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._file: IO[str] | None = None

    def __enter__(self) -> _Rejects:
        return self

    def add(self, unit: str, number: int, fault: RowError) -> None:
        if self._file is None:
            self._file = self._partial.open("w", encoding="utf-8", newline="\n")
        row = {unit: number, "reason": str(fault), "row": fault.row}
        # Escaped: a row may be bad because it is no Unicode.
        self._file.write(json.dumps(row, default=str) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            if error is None:
                self.written = self._partial.replace(self._path)
            else:
                self._partial.unlink()


# Judging sheets that come again


def _mended(store: Store, records: Iterator[AnyRecord], report: ImportReport) -> Iterator[AnyRecord]:
    """The records; what a sheet says otherwise than before supersedes what it said before."""
    while batch := list(islice(records, _BATCH)):
        yield from _corrected(store, batch, report) if report.format == "sheet" else batch


def _corrected(store: Store, batch: Iterable[AnyRecord], report: ImportReport) -> Iterator[AnyRecord]:
    said = [record for record in batch if isinstance(record, Judgement)]
    latest = store.latest(judgement.id for judgement in said)
    for judgement in said:
        before = latest.get(judgement.id)
        if before is None:
            yield judgement
        elif before.retracted or _content(before) != _content(judgement):
            report.corrected += 1
            key = content_id("correction", before.id, judgement.ranks, judgement.flags)
            yield judgement.model_copy(update={"id": key, "supersedes": before.id})


def _content(judgement: Judgement) -> Any:
    return dict(zip(judgement.shown, judgement.ranks, strict=True)), judgement.flags
