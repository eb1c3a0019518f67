"""JSON objects that know where they came from: every complaint names the file, the line and the remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast


@dataclass(frozen=True)
class Interval:
    """A share or a mean with its 95 % interval; `n` is the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Entry:
    """One JSON object together with the place it came from."""

    values: dict[str, object]
    where: str
    remedy: str

    def complain(self, key: str, expected: str) -> ValueError:
        found = json.dumps(self.values.get(key))
        shown = found if len(found) <= 60 else found[:57] + "..."
        return ValueError(f"{self.where}: `{key}` should be {expected}, but it is {shown}. {self.remedy}")

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.complain(key, "a number")
        try:
            return float(value)
        except OverflowError:
            raise self.complain(key, "a number that fits a float") from None

    def count(self, key: str) -> int | None:
        value = self.number(key)
        if value is None:
            return None
        if not math.isfinite(value) or value != int(value):
            raise self.complain(key, "a whole number")
        return int(value)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.complain(key, "a text")
        return value

    def required_text(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise self.complain(key, "a text")
        return value

    def entry(self, key: str) -> Entry | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.complain(key, "an object")
        return Entry(cast("dict[str, object]", value), f"{self.where}, `{key}`", self.remedy)

    def entries(self, key: str) -> list[Entry]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.complain(key, "a list of objects")
        return [Entry(item, f"{self.where}, `{key}[{i}]`", self.remedy) for i, item in enumerate(value)]

    def texts(self, key: str) -> list[str]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.complain(key, "a list of texts")
        return list(value)

    def interval(self, key: str) -> Interval | None:
        inner = self.entry(key)
        if inner is None:
            return None
        if not {"value", "low", "high"} <= inner.values.keys():
            raise self.complain(key, 'an interval: {"value", "low", "high", "n"}')
        value, low, high = (inner.number(name) for name in ("value", "low", "high"))
        if value is None or low is None or high is None or not math.isfinite(value + low + high):
            return None  # nothing was observed
        return Interval(value, low, high, inner.count("n") or 0)


def read_text(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: this is not UTF-8 text. {remedy}") from None


def parse_object(text: str, where: str, remedy: str, first_line: int | None = None) -> Entry:
    """Parses one object. Without `first_line` the text is a whole file, and the error finds its own line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = error.lineno if first_line is None else first_line
        raise ValueError(
            f"{where}, line {line}: not valid JSON ({error.msg}, column {error.colno}). {remedy}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}, line {first_line or 1}: not valid JSON ({error}). {remedy}") from None
    place = where if first_line is None else f"{where}, line {first_line}"
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(value).__name__}. {remedy}")
    return Entry(cast("dict[str, object]", value), place, remedy)


def read_object(path: Path, remedy: str) -> Entry | None:
    return parse_object(read_text(path, remedy), str(path), remedy) if path.is_file() else None


def read_objects(path: Path, remedy: str) -> Iterator[Entry]:
    if not path.is_file():
        return
    # Not splitlines(): a JSON text may hold U+2028 and its like, which are no ends of lines in JSONL.
    for number, line in enumerate(read_text(path, remedy).split("\n"), start=1):
        if line.strip():
            yield parse_object(line, str(path), remedy, number)
