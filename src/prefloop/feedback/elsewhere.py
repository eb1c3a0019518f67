"""Sequences whose items lie in a store or in a file until somebody asks for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, TypeVar, overload

import numpy as np

from .aggregate import Comparison
from .keys import Ints
from .records import Split

T = TypeVar("T")
AT_ONCE = 1000
"""Items of a page: so many that a page's cost vanishes, few enough for memory."""


class Elsewhere(Sequence[T]):
    """Items that are read one by one, or page by page. A slice of them is another such sequence."""

    def __init__(self, places: Ints) -> None:
        """``places``: where each item lies, which is all that is in memory."""
        self.places = places

    @abstractmethod
    def at(self, places: Ints) -> Self:
        """The same, of what lies at other places."""

    @abstractmethod
    def read(self, places: Ints) -> list[T]:
        """The items at these places, in their order."""

    def pages(self) -> Iterable[Ints]:
        """Places of what is read at once."""
        return (self.places[start : start + AT_ONCE] for start in range(0, len(self), AT_ONCE))

    def chosen(self, indices: Sequence[int]) -> Self:
        """Some of them, in this order; none is read."""
        return self.at(self.places[np.asarray(indices, np.int64)])

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from self.read(page)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> T | Self:
        return self.at(self.places[index]) if isinstance(index, slice) else self.read(self.places[[index]])[0]


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
