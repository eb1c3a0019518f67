"""Rows out of files, as they are asked for: JSON lines, a JSON array, CSV, Parquet, a folder that `datasets` saved.

What a file is shows in its first bytes; CSV by its name. Any of the text files may be compressed with gzip.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from .rows import Row, RowError, checked, parse, scan_once

Numbered = tuple[int, Row | RowError]
"""A row's number, as the file's `Source.unit` counts, and the row or what is wrong with it."""

LARGEST = 4 * 2**20
"""Bytes of a row at most. A larger one is another kind of file; parsed, it may take thirty times as much."""
_CHUNK = 2**20
_BATCH = 256


@dataclass(frozen=True)
class Source:
    """The rows of a file, and what they are called by: ``line`` 3, ``item`` 3, ``row`` 3."""

    unit: str
    rows: Iterator[Numbered]


def open_rows(path: Path) -> Source:
    """The rows of a file or of a `datasets` folder.

    A row with a fault comes as `RowError` and the next one follows. ValueError where nothing can follow: a JSON array
    that breaks off, a Parquet file that is none, a folder without data.
    """
    if path.is_dir():
        return Source("row", _numbered(_folder(path)))
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return Source("row", _numbered(_parquet(path)))
    if path.name.removesuffix(".gz").endswith(".csv"):
        return Source("line", _csv(path))
    with _bytes(path) as file, _whole(path):
        first = file.read(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return Source("item", _array(path)) if first == b"[" else Source("line", _lines(path))


def _bytes(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path)) if zipped else path.open("rb")


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Around reading: what gzip says of a damaged file is told of the file."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _raw_lines(path: Path) -> Iterator[bytes]:
    """Lines without a byte order mark, in pieces where they are too long to be one."""
    with _bytes(path) as file, _whole(path):
        first = True
        while raw := file.readline(LARGEST):
            yield raw.removeprefix(codecs.BOM_UTF8) if first else raw
            first = False


def _lines(path: Path) -> Iterator[Numbered]:
    """Lines that are not blank. Only a line feed ends one: JSON strings may hold U+2028."""
    for number, raw in enumerate(_raw_lines(path), start=1):
        if stripped := raw.strip(b" \t\r\n"):
            try:
                yield number, parse(stripped)
            except RowError as fault:
                yield number, fault


# A JSON array


class _Text:
    """The part of a file's text that is not used up."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def grow(self) -> None:
        """Read as much again as is there, so that a long item is not tried over and over."""
        self.text, self.at = self.text[self.at :], 0
        with _whole(self._path):
            raw = self._file.read(max(_CHUNK, len(self.text)))
        self.ended = not raw
        try:
            self.text += self._decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path}: not UTF-8 text: {error.reason}; save as UTF-8") from None

    def next(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            found = _SPACE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.grow()


_SPACE = re.compile(r"[ \t\r\n]*")
_plain_decode = json.JSONDecoder().raw_decode


def _array(path: Path) -> Iterator[Numbered]:
    with _bytes(path) as file:
        text, number = _Text(path, file), 0
        text.next()
        text.at += 1
        while (char := text.next()) != "]":
            number += 1
            if number > 1 and char == ",":
                text.at += 1
                char = text.next()
            elif number > 1:
                raise _broken(path, number, "there is no comma before it" if char else "the array is not closed")
            value = _value(text, path, number)
            try:
                yield number, value if isinstance(value, RowError) else checked(value, "item")
            except RowError as fault:
                yield number, fault
        text.at += 1
        if text.next():
            raise ValueError(f"{path}: something follows the JSON array's end")


def _value(text: _Text, path: Path, number: int) -> Any:
    """The next value, or the RowError of an object with a field that is there twice."""
    while (found := _whole_value(text, path, number)) is None:
        if len(text.text) - text.at > LARGEST:
            raise _broken(path, number, f"it is longer than {LARGEST // 2**20} MiB")
        text.grow()
    value, text.at = found
    return value


def _whole_value(text: _Text, path: Path, number: int) -> tuple[Any, int] | None:
    """A value and its end; None where more has to be read to know."""
    try:
        value, end = scan_once(text.text, text.at)
    except RowError as fault:
        fault.row, end = _plain_decode(text.text, text.at)
        value = fault
    except json.JSONDecodeError as error:
        unfinished = error.msg.startswith("Unterminated") or error.pos > len(text.text) - 64
        if unfinished and not text.ended:
            return None
        raise _broken(path, number, error.msg) from None
    except (ValueError, RecursionError):
        raise _broken(path, number, "a number is too long, or it is nested too deeply") from None
    return (value, end) if text.ended or end < len(text.text) else None


def _broken(path: Path, number: int, how: str) -> ValueError:
    return ValueError(f"{path}, item {number}: not valid JSON: {how}; what follows cannot be read")


# CSV. Cells are texts: these columns are something else, or are nothing when they are empty.

_OPTIONAL = {
    *("split", "strength", "criterion", "label", "kto_tag", "preference", "annotator", "model"),
    *("generator_1", "generator_2", "system", "input", "history"),
}
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
FORMULA = re.compile(r"'*[=+\-@\t\r\[{]")
"""Cells that a spreadsheet would run, or that this reader would take for JSON: written with a ``'`` before them."""


def _csv(path: Path) -> Iterator[Numbered]:
    csv.field_size_limit(LARGEST)
    lines = (raw.decode("utf-8", "surrogateescape") for raw in _raw_lines(path))
    reader = csv.reader(lines, strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line 1: two columns have the same name; expected a header with each name once")
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, RowError("not valid CSV", str(error))
            continue
        if cells:
            yield number, _cells(header, cells)


def _cells(header: list[str], cells: list[str]) -> Row | RowError:
    if len(cells) != len(header):
        return RowError("another number of cells than in the header", f"{len(cells)}, not {len(header)}", cells)
    if any("\udc80" <= char <= "\udcff" for cell in cells if not cell.isascii() for char in cell):
        return RowError("not UTF-8 text", "save as UTF-8", cells)
    pairs = zip(header, cells, strict=True)
    return {name: _cell(name, cell) for name, cell in pairs if cell or name not in _OPTIONAL}


def _cell(name: str, cell: str) -> Any:
    if name in ("label", "kto_tag"):
        return _FLAGS.get(cell.strip().lower(), cell)
    if name in ("strength", "preference"):
        return _number(cell)
    if cell[:1] in ("[", "{"):
        return _json(cell)
    return cell[1:] if cell[:1] == "'" and FORMULA.match(cell) else cell


def _number(cell: str) -> Any:
    try:
        number = float(cell)
    except ValueError:
        return cell
    return int(number) if number.is_integer() else number


def _json(cell: str) -> Any:
    """Messages and the like; a text that merely looks like them at its beginning is a text."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, dict) or all(isinstance(item, dict | list) for item in value) else cell


# Arrow


def _numbered(rows: Iterable[Row]) -> Iterator[Numbered]:
    return ((number, row) for number, row in enumerate(rows, start=1))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from map(_without_nulls, batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {error}") from None


def _folder(path: Path) -> Iterator[Row]:
    """Rows of `Dataset.save_to_disk`, or of each split of a `DatasetDict`."""
    if not (path / "dataset_dict.json").exists():
        yield from _dataset(path)
        return
    for name in _inside(path, _json_file(path / "dataset_dict.json"), "splits"):
        split = _owner_split(name)
        for row in _dataset(path / name):
            yield {"split": split} | row if split else row


def _owner_split(name: str) -> str | None:
    """``train…`` is trained on; what is called a test or a validation is held out."""
    held = ("test", "valid", "dev", "eval", "heldout")
    return "train" if name.startswith("train") else "heldout" if name.startswith(held) else None


def _dataset(folder: Path) -> Iterator[Row]:
    import pyarrow as pa

    state = _json_file(folder / "state.json")
    files = state.get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files or []]
    for name in _inside(folder, {"_data_files": names}, "_data_files"):
        try:
            with pa.memory_map(str(folder / name)) as mapped, pa.ipc.open_stream(mapped) as stream:
                for batch in stream:
                    for start in range(0, batch.num_rows, _BATCH):
                        yield from map(_without_nulls, batch.slice(start, _BATCH).to_pylist())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{folder / name} is not an Arrow file that can be read: {error}") from None


def _json_file(path: Path) -> dict[str, Any]:
    try:
        return checked(json.loads(path.read_bytes()), "file")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path.parent} is not a folder that datasets' save_to_disk wrote: {path.name}: {error}; "
            "name a file, or a folder with dataset_info.json and state.json"
        ) from None


def _inside(folder: Path, found: dict[str, Any], key: str) -> list[str]:
    """Names of what lies in the folder itself; a saved dataset has no reason to point elsewhere."""
    names = found.get(key)
    if not isinstance(names, list) or not names:
        raise ValueError(f"{folder}: no data is named in it ({key})")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
            raise ValueError(f"{folder}: {name!r:.60} in {key} is not a name inside the folder")
    return names


def _without_nulls(value: Any) -> Any:
    """A column has every field in every row; where a row has none it is null."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
