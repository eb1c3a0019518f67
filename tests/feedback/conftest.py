"""A clock and a queue, for the tests of what people are asked."""

from typing import Any

import pytest
from tests.feedback.queues import Clock

from prefloop.feedback import assignment
from prefloop.feedback.assignment import Queue
from prefloop.feedback.store import Store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setattr(assignment.secrets, "token_hex", _counted())  # what is drawn is the same on every run
    return Queue(store, clock)


def _counted() -> Any:
    made = iter(range(10**9))
    return lambda size: f"{next(made):0{2 * size}x}"
