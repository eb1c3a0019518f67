"""Sequences whose items lie in a store or in a file until somebody asks for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from .aggregate import Comparison
from .records import Split

T = TypeVar("T")


class Elsewhere(Sequence[T]):
    """Items that are read one by one, or page by page."""

    @abstractmethod
    def chosen(self, indices: Sequence[int]) -> Sequence[T]:
        """Some of them, in this order; none is read."""


class Compared(Elsewhere[Comparison]):
    """Comparisons, of whose prompts the ids and splits are known without reading what was said."""

    @abstractmethod
    def asked(self) -> Iterator[tuple[str, Split | None]]:
        """Id and split of each comparison's prompt."""


def prompts_of(found: Iterable[Comparison]) -> Iterator[tuple[str, Split | None]]:
    """Id and split of each comparison's prompt; where comparisons lie elsewhere, none is read."""
    if isinstance(found, Compared):
        return found.asked()
    return ((one.prompt.id, one.prompt.split) for one in found)


def chosen(items: Sequence[T], indices: Sequence[int]) -> Sequence[T]:
    """Some of the items; those that lie elsewhere are not read for it."""
    return items.chosen(indices) if isinstance(items, Elsewhere) else [items[index] for index in indices]
