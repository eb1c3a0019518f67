"""Identifiers as 16 bytes each, and numbers by group, in arrays: of a million, Python's own objects would take seven
times as much."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.bytes_]
"""Identifiers, 16 bytes each."""


def as_array(keys: bytes | bytearray) -> Keys:
    return np.frombuffer(keys, "S16")


def ordered(keys: bytes | bytearray) -> tuple[Keys, Ints]:
    """The keys sorted, and where each of them was."""
    found = as_array(keys)
    order = np.argsort(found, kind="stable")
    return found[order], order


def find(keys: Keys, wanted: bytes | bytearray) -> Ints:
    """Where each of the wanted keys is among the sorted ones; -1 where it is not."""
    asked = as_array(wanted)
    if not len(keys):
        return np.full(len(asked), -1)
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, places, -1)


def key_of(id: str) -> bytes:
    """An identifier as 16 bytes; of what is none, something that no identifier is."""
    try:
        found = bytes.fromhex(id)
    except ValueError:
        found = b""
    return found if len(found) == 16 else bytes(16)


def id_of(keys: Keys, number: int) -> str:
    """NumPy leaves out the zeros at the end."""
    return bytes(keys[number]).ljust(16, b"\0").hex()


def ids_of(keys: Keys) -> Iterator[str]:
    return (id_of(keys, number) for number in range(len(keys)))


class Grouped:
    """Numbers of rows or lines, by the group (a prompt, say) that each belongs to."""

    def __init__(self, numbers: Ints, group: Ints, groups: int) -> None:
        """``group``: each number's; -1 where it is not known, and the number is left out."""
        order = np.argsort(group, kind="stable")[np.count_nonzero(group < 0) :]
        self._numbers = numbers[order]
        self.counts: Ints = np.bincount(group[order], minlength=groups)
        """Of each group."""
        self._ends = self.counts.cumsum()

    def __getitem__(self, group: int) -> Ints:
        return self._numbers[self._ends[group - 1] if group else 0 : self._ends[group]]
