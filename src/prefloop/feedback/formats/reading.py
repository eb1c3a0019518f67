"""Reading: the rows of a file become records, in the order in which a store takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..format_names import Format
from ..store import AnyRecord, Counts
from .containers import open_rows
from .oasst import trees
from .recorder import UNMATCHED, Recorder
from .rows import Row, RowError
from .table import EXPECTED, NOT_JUDGED, READERS, detect, known_format, unused_fields

Reject = Callable[[str, int, RowError], None]
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
    reject: Reject = (lambda *_: None) if skip_bad else refuse(path)
    return records(path, format, ImportReport() if report is None else report, reject)


def records(path: Path, format: Format | None, report: ImportReport, reject: Reject) -> Generator[AnyRecord]:
    """As `read_file`; ``reject`` is told of each bad row, and raises or goes on."""
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


def refuse(path: Path) -> Reject:
    def stop(unit: str, number: int, fault: RowError) -> None:
        raise ValueError(f"{path}, {unit} {number}: {fault}") from None

    return stop
