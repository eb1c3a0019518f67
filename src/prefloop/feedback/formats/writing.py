"""Rows into files: JSON lines, a JSON array, CSV, Parquet, or a folder for `datasets`. OUT's ending says which."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .containers import FORMULA
from .rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "integer", "number", "flag", "messages", "speeches", "speech", "rounds"]
"""What a column holds: messages are {role, content}, speeches {from, value}, rounds [question, answer]."""
Columns = Mapping[str, Kind]
_BATCH = 500


def write_rows(rows: Iterable[Row], out: Path, columns: Columns | None) -> int:
    """Write ``rows`` and return how many they were. Nothing is left when it fails.

    ``columns`` are those of a table; None for rows that are none (trees). ValueError when OUT is there, has an ending
    that means nothing here, or is to be a table of what is none.
    """
    write = _writer(out)
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} is there already and was left as it is; name another file")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")
    if columns is None and write not in (_lines, _array):
        raise ValueError(f"{out}: this format has no columns; name a .jsonl or .json file")
    with _beside(out) as partial:
        return write(rows, partial, columns or {})


def _writer(out: Path) -> Callable[[Iterable[Row], Path, Columns], int]:
    writers = {".jsonl": _lines, ".json": _array, ".csv": _csv, ".parquet": _parquet, "": _folder}
    if out.suffix not in writers:
        raise ValueError(
            f"{out}: {out.suffix} is no ending of a file that can be written; "
            "expected .jsonl, .json, .csv, .parquet, or none for a datasets folder"
        )
    return writers[out.suffix]


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A place beside OUT that is renamed to OUT when all is written."""
    partial = out.with_name(f".{out.name}.partial")
    _remove(partial)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _lines(rows: Iterable[Row], out: Path, _: Columns) -> int:
    with out.open("w", encoding="utf-8", newline="\n") as file:
        return sum(file.write(_encode(row) + "\n") > 0 for row in rows)


def _array(rows: Iterable[Row], out: Path, _: Columns) -> int:
    count = 0
    with out.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for count, row in enumerate(rows, start=1):
            file.write((",\n" if count > 1 else "\n") + _encode(row))
        file.write("\n]\n")
    return count


def _csv(rows: Iterable[Row], out: Path, columns: Columns) -> int:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        return sum(writer.writerow([_cell(row.get(name)) for name in columns]) > 0 for row in rows)


def _cell(value: Any) -> str:
    """A cell that a spreadsheet shows and does not run; `containers` reads it back."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if FORMULA.match(value) else value
    return _encode(value)


def _parquet(rows: Iterable[Row], out: Path, columns: Columns) -> int:
    import pyarrow.parquet as pq

    schema = _schema(columns)
    with pq.ParquetWriter(out, schema) as writer:
        return _in_batches(rows, schema, writer.write_batch)


def _folder(rows: Iterable[Row], out: Path, columns: Columns) -> int:
    """One Arrow stream and the two descriptions that `datasets.load_from_disk` looks for."""
    import pyarrow as pa

    out.mkdir()
    name, schema = "data-00000-of-00001.arrow", _schema(columns)
    with pa.OSFile(str(out / name), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        count = _in_batches(rows, schema, stream.write_batch)
    with (out / name).open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    state: Row = {
        "_data_files": [{"filename": name}],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    for file_name, value in (("state.json", state), ("dataset_info.json", info)):
        (out / file_name).write_text(json.dumps(value, indent=2), encoding="utf-8")
    return count


def _schema(columns: Columns) -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    speech = pa.struct([("from", text), ("value", text)])
    types: dict[Kind, Any] = {
        "text": text,
        "integer": pa.int64(),
        "number": pa.float64(),
        "flag": pa.bool_(),
        "messages": pa.list_(message),
        "speeches": pa.list_(speech),
        "speech": speech,
        "rounds": pa.list_(pa.list_(text)),
    }
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])


def _in_batches(rows: Iterable[Row], schema: pa.Schema, write: Callable[[pa.RecordBatch], None]) -> int:
    import pyarrow as pa

    count, waiting = 0, iter(rows)
    while batch := list(islice(waiting, _BATCH)):
        write(pa.RecordBatch.from_pylist(batch, schema=schema))
        count += len(batch)
    return count
