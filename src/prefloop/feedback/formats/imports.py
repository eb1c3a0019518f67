"""Importing: the rows of a file become records of a store, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..format_names import Format
from ..records import Judgement, content_id
from ..store import AnyRecord, Store
from .apart import is_large, records_apart
from .reading import ImportReport, records, refuse
from .rows import RowError

_BATCH = 500


def import_file(
    store: Store, path: str | Path, format: Format | None = None, *, skip_bad: bool = False
) -> ImportReport:
    """Add a file, or a folder of `datasets`, to the store in one transaction.

    With ``skip_bad`` the bad rows are left out and written to ``FILE.rejected.jsonl``, each with its number, the
    reason and the row. Errors as in `read_file` and `Store.add`.
    """
    path, report = Path(path), ImportReport()
    with _Rejects(path.with_name(f"{path.name}.rejected.jsonl")) as rejects:
        read = records_apart if is_large(path) else records
        with closing(read(path, format, report, rejects.add if skip_bad else refuse(path))) as made:
            report.added = store.add(_mended(store, made, report))
    report.rejected = rejects.written
    return report


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


def _mended(store: Store, made: Iterator[AnyRecord], report: ImportReport) -> Iterator[AnyRecord]:
    """The records; what a sheet says otherwise than before supersedes what it said before."""
    while batch := list(islice(made, _BATCH)):
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
