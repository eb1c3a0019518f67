"""``prefloop`` as a person calls it, with tiny models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.runs import MODEL

from prefloop import cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A function of the words after ``prefloop``."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["prefloop", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


def settings(*more: str) -> list[str]:
    """MODEL as --set options."""
    chosen = [f"{section}.{key}={value}" for section, table in MODEL.items() for key, value in table.items()]
    return [part for one in [*chosen, *more] for part in ("--set", one)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ok(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    return outcome.out
