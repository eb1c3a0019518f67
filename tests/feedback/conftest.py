"""A clock and a queue, for the tests of what people are asked; and room for a new store."""

from pathlib import Path
from typing import Any

import pytest
from tests.databases import Server
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


@pytest.fixture(params=["sqlite", "postgresql"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path, postgres: Server) -> str | Path:
    """Where a store may be made."""
    return tmp_path / "feedback.db" if request.param == "sqlite" else postgres.create()


def _counted() -> Any:
    made = iter(range(10**9))
    return lambda size: f"{next(made):0{2 * size}x}"
