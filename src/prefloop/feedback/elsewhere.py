"""Sequences whose items lie in a store or in a file until somebody asks for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Elsewhere(Sequence[T]):
    """Items that are read one by one, or page by page."""

    @abstractmethod
    def chosen(self, indices: Sequence[int]) -> Sequence[T]:
        """Some of them, in this order; none is read."""


def chosen(items: Sequence[T], indices: Sequence[int]) -> Sequence[T]:
    """Some of the items; those that lie elsewhere are not read for it."""
    return items.chosen(indices) if isinstance(items, Elsewhere) else [items[index] for index in indices]
