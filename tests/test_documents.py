"""Text that is read when somebody asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefloop.documents import Documents, TextFiles


def test_parts_lie_end_to_end() -> None:
    found, wanted = Documents(str, range(3), [], range(10, 15)), ["0", "1", "2", "10", "11", "12", "13", "14"]
    assert list(found) == list(found) == wanted
    assert (len(found), bool(found), bool(Documents(str, [], []))) == (8, True, False)
    assert [found[i] for i in range(-8, 8)] == [*wanted, *wanted]
    assert (found[1:6:2], found[::-3], found[7:2]) == (wanted[1:6:2], wanted[::-3], [])
    for place in (8, -9):
        with pytest.raises(IndexError):
            found[place]


def test_a_text_is_made_when_it_is_asked_for() -> None:
    asked: list[int] = []

    def text(number: int) -> str:
        asked.append(number)
        return str(number)

    found = Documents(text, range(5), range(5, 10))
    assert (len(found), asked) == (10, [])
    assert (found[7], next(iter(found)), found[2:4]) == ("7", "0", ["2", "3"])
    assert asked == [7, 0, 2, 3]


def test_files_are_documents_in_their_order(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes(f"{name} é\r\nend".encode())
    assert list(TextFiles(["b.txt", "a.txt", "b.txt"], tmp_path)) == ["b é\nend", "a é\nend", "b é\nend"]


def written_over(path: Path) -> None:
    path.write_text("longer than it was", encoding="utf-8")


def written_at_another_time(path: Path) -> None:
    path.write_text("Text", encoding="utf-8")
    os.utime(path, ns=(1, 1))


def replaced_by_one_as_old(path: Path) -> None:
    """As ``cp -p`` and ``rsync -t`` do it."""
    before, other = path.stat(), path.with_suffix(".new")
    other.write_text("Text", encoding="utf-8")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [written_over, written_at_another_time, replaced_by_one_as_old])
def test_a_file_that_is_changed_meanwhile_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    found = TextFiles(["a.txt"], tmp_path)
    assert found[0] == "text"
    change(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"pretrain\.files: a\.txt was changed while the run read it"):
        list(found)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"pretrain\.files: cannot read a\.txt"):
        list(found)
