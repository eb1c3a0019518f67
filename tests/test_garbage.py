"""The search for garbage: off within, afterwards as it was."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from types import ModuleType

import pytest

from prefloop.garbage import uncollected


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """A command that another test ran has frozen what there was."""
    gc.unfreeze()
    yield
    gc.enable()


def test_one_within_another() -> None:
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_switches_it_on_again() -> None:
    with pytest.raises(ValueError, match="no model"), uncollected():
        raise ValueError("no model")
    assert gc.isenabled()


def test_who_had_it_off_keeps_it_off() -> None:
    gc.disable()
    with uncollected():
        assert not gc.isenabled()
    assert not gc.isenabled()


class Made:
    def __init__(self) -> None:
        self.itself = self


def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_up", ModuleType("made_up"))


def test_after_an_import_what_there_is_counts_as_old_and_is_still_garbage_some_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with uncollected():
        imported(monkeypatch)
        made = Made()
    assert any(found is made for found in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0
    gone = weakref.ref(made)
    del made
    gc.collect(1)
    assert gone() is not None, "a look at what is young does not come by"
    gc.collect()
    assert gone() is None


def test_without_an_import_what_is_young_stays_young() -> None:
    with uncollected():
        gone = weakref.ref(Made())
    gc.collect(1)
    assert gone() is None


def test_what_somebody_froze_stays_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with uncollected():
            imported(monkeypatch)
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()
