"""The comparisons of a snapshot's file: numbers are kept in memory, what was said is read when it is asked for."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from .aggregate import (
    Comparison,
    check_hash,
    checked_weights,
    comparisons,
    missing_record,
    read_header,
    read_line,
    said_key,
    snapshot_hash,
    tells_apart,
)
from .elsewhere import Compared
from .keys import Grouped, Ints, Keys, find, id_of, ids_of, key_of, ordered
from .pairs import Codes
from .records import Judgement, Prompt, Split

AT_ONCE = 1000
"""Judgements that are records at a time."""
_SPLITS: tuple[Split | None, ...] = (None, "train", "heldout")
_JUDGEMENT = b'{"judgement":'


class FrozenComparisons(Compared):
    """Those of some prompts of a snapshot's file, made when they are asked for."""

    def __init__(self, frozen: Frozen, prompts: Ints, weights: Mapping[str, float]) -> None:
        super().__init__(prompts)
        self._frozen, self._weights = frozen, weights

    def at(self, places: Ints) -> Self:
        return type(self)(self._frozen, places, self._weights)

    def read(self, places: Ints) -> list[Comparison]:
        return [self._frozen.comparison(prompt, self._weights) for prompt in places.tolist()]

    def pages(self) -> Iterator[Ints]:
        """Reading several at once saves nothing."""
        return (self.places[[index]] for index in range(len(self)))

    def asked(self) -> Iterator[tuple[str, Split | None]]:
        return map(self._frozen.prompt, self.places.tolist())


class Frozen:
    """A file that `Snapshot.write` wrote, read once to see that it is whole.

    In memory are the places of its lines, identifiers, and who judged; no texts.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError as `read_snapshot` does."""
        self._lines = _Lines(path)
        wanted, self.criterion = read_header(path, self._lines[0] if len(self._lines) else b"")
        found = self._sorted_by_kind()
        self._prompt_ids, order = ordered(found.ids["prompt"])
        self._prompts, self._splits = found.lines["prompt"][order], np.array(found.splits, np.int8)[order]
        self._completions = Grouped(found.lines["completion"], find(self._prompt_ids, found.prompt_ids), len(order))
        check_hash(path, self._read_judgements(found), wanted)

    def comparisons(self, weights: Mapping[str, float] | None = None) -> FrozenComparisons:
        """As `Snapshot.comparisons`."""
        weights = checked_weights(weights or {})
        heavy = np.array([weights.get(name, 1.0) > 0 for name in self._annotators], bool)
        said = np.zeros(len(self._prompts), bool)
        said[self._about[self._votes & heavy[self._annotator]]] = True
        return FrozenComparisons(self, np.flatnonzero(said), weights)

    def prompt(self, number: int) -> tuple[str, Split | None]:
        """Id and split."""
        return id_of(self._prompt_ids, number), _SPLITS[self._splits[number]]

    def comparison(self, number: int, weights: Mapping[str, float]) -> Comparison:
        """What was said about a prompt's answers, where anything was."""
        read = self._lines.record
        prompt: Prompt = read(self._prompts[number])
        answers, said = (map(read, lines[number].tolist()) for lines in (self._completions, self._judgements))
        (found,) = comparisons([prompt], answers, said, weights)
        return found

    def _sorted_by_kind(self) -> _Found:
        """Goes through all lines."""
        found = _Found()
        for number in range(1, len(self._lines)):
            if self._lines[number].startswith(_JUDGEMENT):
                found.lines_of["judgement"].append(number)
            else:
                found.add(number, *self._lines.kind_and_record(number))
        return found

    def _read_judgements(self, found: _Found) -> str:
        """Who judged what; returns the hash of all that was said."""
        completion_ids, order = ordered(found.ids["completion"])
        completions = found.lines["completion"][order]
        annotators, keys = Codes(), bytearray()
        about, annotator, casts = array("q"), array("q"), bytearray()
        judgements = found.lines_of["judgement"]
        for start in range(0, len(judgements), AT_ONCE):
            page: list[Judgement] = [*map(self._lines.record, judgements[start : start + AT_ONCE])]
            prompts = self._known(self._prompt_ids, [one.prompt_id for one in page])
            places = iter(self._known(completion_ids, [id for one in page for id in one.shown]))
            for one, prompt in zip(page, prompts, strict=True):
                texts = {id: self._lines.text(completions[next(places)]) for id in one.shown}
                keys += bytes.fromhex(said_key(one, _SPLITS[self._splits[prompt]], [*texts.values()]))
                casts.append(tells_apart(one, texts))
                annotator.append(annotators[one.annotator])
            about.extend(prompts)
        self._annotators, self._annotator = tuple(annotators), np.array(annotator, np.int64)
        self._about, self._votes = np.array(about, np.int64), np.array(casts, bool)
        self._judgements = Grouped(found.lines["judgement"], self._about, len(self._prompts))
        return snapshot_hash(self.criterion, ids_of(ordered(keys)[0]))

    def _known(self, keys: Keys, ids: Sequence[str]) -> list[int]:
        numbers = find(keys, b"".join(map(key_of, ids)))
        if (numbers < 0).any():
            raise missing_record(self._lines.path, ids[int(np.argmin(numbers))])
        found: list[int] = numbers.tolist()
        return found


class _Found:
    """What a snapshot's lines are, by kind."""

    def __init__(self) -> None:
        self.lines_of = {name: array("q") for name in ("prompt", "completion", "judgement")}
        self.ids = {name: bytearray() for name in ("prompt", "completion")}
        self.splits, self.prompt_ids = bytearray(), bytearray()

    @property
    def lines(self) -> dict[str, Ints]:
        return {name: np.array(lines, np.int64) for name, lines in self.lines_of.items()}

    def add(self, number: int, kind: str, record: Any) -> None:
        self.lines_of[kind].append(number)
        if kind != "judgement":
            self.ids[kind] += key_of(record.id)
        if kind == "prompt":
            self.splits.append(_SPLITS.index(record.split))
        elif kind == "completion":
            self.prompt_ids += key_of(record.prompt_id)


class _Lines:
    """A file's lines, read when they are asked for. (Of a memory map, what was read would stay in memory.)"""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        starts, end = array("q", [0]), 0
        with path.open("rb") as file:
            for line in file:
                starts.append(end := end + len(line))
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> bytes:
        start = self._starts[number]
        return os.pread(self._file, self._starts[number + 1] - start, start)

    def kind_and_record(self, number: int) -> tuple[str, Any]:
        return read_line(self.path, number + 1, self[number])

    def record(self, number: int) -> Any:
        return self.kind_and_record(number)[1]

    def text(self, number: int) -> str:
        """A completion's, which was read before."""
        found: str = json.loads(self[number])["completion"]["text"]
        return found
