"""Reading a large file in a process of its own, which makes records of the next rows while this one writes.

The child is a plain interpreter, not one of `multiprocessing`'s: those run the caller's main module again, which a
script without a main guard, a notebook or a prompt does not survive. Over its standard output come pickles, in the
order of the rows: `_Batch`, `_Rejected`; and at the end an `ImportReport`, or the error that ended the reading.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Generator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..format_names import Format
from ..store import AnyRecord
from .reading import ImportReport, Reject, records
from .rows import RowError

_BATCH = 1000
_LARGE = 16 * 2**20
"""Bytes from which on a file is worth a process, which takes a second to start."""
_READ = ("format", "rows", "skipped", "noted", "unit")
"""What reading fills of a report; the rest is the importer's."""
_CHILD = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {} import main; main()"


class _Batch(NamedTuple):
    format: Format | None
    records: list[AnyRecord]


class _Rejected(NamedTuple):
    unit: str
    number: int
    fault: RowError


def is_large(path: Path) -> bool:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) >= _LARGE


def records_apart(path: Path, format: Format | None, report: ImportReport, reject: Reject) -> Generator[AnyRecord]:
    """As `reading.records`. The child ends at the latest when the iterator is closed."""
    command = [sys.executable, "-c", _CHILD.format(__name__), json.dumps(sys.path), str(path), format or ""]
    # In a session of its own: Ctrl-C is for this process, which then ends the child.
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, start_new_session=True) as child:
        try:
            yield from _received(child, path, report, reject)
        finally:
            child.kill()


def _received(
    child: subprocess.Popen[bytes], path: Path, report: ImportReport, reject: Reject
) -> Generator[AnyRecord]:
    while True:
        message = _message(child, path)
        if isinstance(message, _Batch):
            report.format = message.format
            yield from message.records
        elif isinstance(message, _Rejected):
            reject(*message)
        elif isinstance(message, ImportReport):
            for name in _READ:
                setattr(report, name, getattr(message, name))
            return
        else:
            raise message


def _message(child: subprocess.Popen[bytes], path: Path) -> Any:
    assert child.stdout is not None
    try:
        return pickle.load(child.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise RuntimeError(
            f"the process that read {path} was ended from outside (status {child.wait()}); is there enough memory? "
            "Nothing was imported"
        ) from None


# In the child


def main() -> None:
    path, format = sys.argv[2:]
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)  # what a library prints must not come between the pickles
        try:
            _send(Path(path), format or None, pipe)  # type: ignore[arg-type]
        except BrokenPipeError:
            os._exit(1)  # nobody reads any more; there is nothing to flush either


def _send(path: Path, format: Format | None, pipe: IO[bytes]) -> None:
    def send(message: object) -> None:
        pickle.dump(message, pipe, pickle.HIGHEST_PROTOCOL)
        pipe.flush()  # else the other one waits for its end until the next one is made

    def reject(unit: str, number: int, fault: RowError) -> None:
        send(_Rejected(unit, number, fault))

    report = ImportReport()
    try:
        made = records(path, format, report, reject)
        while batch := list(islice(made, _BATCH)):
            send(_Batch(report.format, batch))
        send(report)
    except (ValueError, OSError) as error:
        send(error)
    except Exception:
        send(RuntimeError(f"reading {path} failed:\n{traceback.format_exc()}"))
