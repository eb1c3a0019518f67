"""Plain text to pretrain on, read when somebody asks for it: the conversations of a store, or text files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar, overload

from prefloop.chat import plain_text
from prefloop.feedback.lazy import Dialogue

T = TypeVar("T")


class Documents(Sequence[str], Generic[T]):
    """What is made of things that lie end to end, each time anew. A slice of them is a list."""

    def __init__(self, text: Callable[[T], str], *parts: Sequence[T]) -> None:
        self._text, self._parts = text, parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[str]:
        return map(self._text, chain.from_iterable(self._parts))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(len(self))[index]
        return self._at(numbers) if isinstance(numbers, int) else [self._at(number) for number in numbers]

    def _at(self, number: int) -> str:
        for part in self._parts:
            if number < len(part):
                return self._text(part[number])
            number -= len(part)
        raise IndexError(number)


class Dialogues(Documents[Dialogue]):
    """Conversations as plain text."""

    def __init__(self, *parts: Sequence[Dialogue]) -> None:
        super().__init__(plain_text, *parts)


class TextFiles(Documents["_File"]):
    """Files of UTF-8 text; each is one document."""

    def __init__(self, names: Iterable[str], folder: Path) -> None:
        """Raises ValueError where one cannot be read."""
        super().__init__(_File.read, [_File(name, folder / name) for name in names])


class _File:
    """A file that stays as it is: its hash is taken when it is read first, and what is kept is named by that."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self._stamp = self._stamped()[1]

    def read(self) -> str:
        text, stamp = self._stamped()
        if stamp != self._stamp:
            raise ValueError(f"pretrain.files: {self._name} was changed while the run read it. Run again")
        return text

    def _stamped(self) -> tuple[str, tuple[int, ...]]:
        """The text, and what changes when it does."""
        try:
            text, found = self._path.read_text(encoding="utf-8"), self._path.stat()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"pretrain.files: cannot read {self._name} as UTF-8 text: {error}") from None
        return text, (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
