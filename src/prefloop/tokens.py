"""Token sequences on disk: written once, found again by a hash of what they were made from, and mapped into memory.

    HASH/
      tokens.uint32   the ids of all sequences, end to end; the highest bit says that a token is trained on
      ends.int64      for each sequence the number of tokens up to its end
      manifest.json   what they were made from, what was counted meanwhile, checksums

A sequence becomes Python numbers when somebody asks for it: however many there are, they take no memory to speak of.
Files are little-endian. Each is written beside its place and renamed into it, the manifest last: what is cut off is
not there, and what does not fit its checksums is made again.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from prefloop.chat import Rendered
from prefloop.feedback.records import content_id
from prefloop.runs import file_hash, read_json, versions, write_json

FORMAT = 1
"""Counts on when `prefloop.chat` renders otherwise, or the files are laid out otherwise."""
TOKENS, ENDS, MANIFEST = "tokens.uint32", "ends.int64", "manifest.json"
TRAINED = 1 << 31
"""The bit of a token that is trained on."""
AT_ONCE = 10_000
"""Sequences that are counted at a time."""
CHUNK = 1 << 20
"""Bytes that are read at a time."""

Make = Callable[[Counter[str]], Iterable[Rendered]]
"""Makes the sequences, and counts on the way what a later run should hear of as well."""


class Tokens(Sequence[Rendered]):
    """The sequences of a folder. A slice of them is a list."""

    def __init__(self, folder: Path, counts: Mapping[str, int]) -> None:
        self.counts = counts
        self._folder = folder
        self._tokens = _mapped(folder / TOKENS, "<u4")
        self._ends = _mapped(folder / ENDS, "<i8")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Rendered: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rendered]: ...

    def __getitem__(self, index: int | slice) -> Rendered | list[Rendered]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]

    def response_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence that are trained on."""
        # Read, not mapped: what is mapped and looked at counts as the process's memory, and this looks at all of it.
        counts = [np.empty(0, np.int64)]
        for start in range(0, len(self), AT_ONCE):
            first, ends = self._ends[start - 1] if start else 0, self._ends[start : start + AT_ONCE]
            tokens = np.fromfile(self._folder / TOKENS, "<u4", ends[-1] - first, offset=first * 4)
            trained = np.concatenate([[0], np.cumsum(tokens >= TRAINED)])
            counts.append(np.diff(trained[ends - first], prepend=0))
        return np.concatenate(counts)

    def _at(self, place: int) -> Rendered:
        row = self._tokens[self._ends[place - 1] if place else 0 : self._ends[place]]
        return Rendered((row & (TRAINED - 1)).tolist(), (row >= TRAINED).tolist())


def cached_tokens(folder: Path, made_from: Mapping[str, Any], make: Make) -> Tokens:
    """The sequences that ``make`` gives: from ``folder`` where they are there, else made and kept.

    Whoever wants the same ones at the same time waits until they are there.

    Args:
        made_from: everything that they depend on, as JSON; its hash names them.
    """
    used = versions()
    parts = {
        "format": FORMAT,
        **{name: used[name] for name in ("prefloop", "transformers", "tokenizers")},
        **made_from,
    }
    place = folder / content_id(parts)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        counts = _counts_of(place)
        if counts is None:
            counts = _write(place, parts, make)
        return Tokens(place, counts)


def tokenizer_hash(tokenizer: Any) -> str:
    """128-bit hash of all that decides which ids a tokenizer gives: its files, special tokens and chat template."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return content_id([[str(path.relative_to(folder)), file_hash(path)] for path in files])


def _counts_of(place: Path) -> dict[str, int] | None:
    """What was counted when the sequences were made; None when they are not there, or damaged."""
    try:
        match read_json(place / MANIFEST):
            case {"counts": dict(counts), "checksums": dict(sums)} if sums == _checksums(place):
                return counts
    except (OSError, ValueError):
        pass
    return None


def _write(place: Path, parts: Mapping[str, Any], make: Make) -> dict[str, int]:
    counts = Counter[str]()
    end = 0
    with _beside(place / TOKENS) as tokens, _beside(place / ENDS) as ends:
        for sequence in make(counts):
            row = np.array(sequence.ids, "<u4")
            row[np.array(sequence.mask, bool)] |= TRAINED
            end += len(row)
            tokens.write(row.tobytes())
            ends.write(struct.pack("<q", end))
    manifest = {"made_from": parts, "counts": counts, "checksums": _checksums(place)}
    write_json(place / MANIFEST, manifest)
    return counts


@contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place when the block ends without an error, and else leaves nothing. Who reads
    the one that was there before goes on reading it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _checksums(place: Path) -> dict[str, int]:
    return {name: _checksum(place / name) for name in (TOKENS, ENDS)}


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _mapped(path: Path, kind: str) -> npt.NDArray[Any]:
    """A file as an array; nothing can be mapped of an empty one."""
    return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.empty(0, kind)
