"""The search for garbage: off within, afterwards as it was."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from prefloop.garbage import uncollected


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
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


def test_what_was_made_within_counts_as_old_and_is_still_garbage_some_day() -> None:
    class Made:
        def __init__(self) -> None:
            self.itself = self

    with uncollected():
        made = Made()
    assert any(found is made for found in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0
    gone = weakref.ref(made)
    del made
    gc.collect(1)
    assert gone() is not None, "a look at what is young does not come by"
    gc.collect()
    assert gone() is None


def test_what_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with uncollected():
            pass
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()
