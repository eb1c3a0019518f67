"""What the routes share: the store, those who stand on it, and the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from prefloop.feedback.assignment import Queue
from prefloop.feedback.people import People
from prefloop.feedback.store import Store

from .limits import Limiter
from .rendered import Rendered
from .settings import Settings
from .statistics import CachedStatistics


@dataclass(frozen=True)
class State:
    settings: Settings
    store: Store
    people: People
    queue: Queue
    sign_ins: Limiter
    """By network address."""
    strangers: Limiter
    """Requests of nobody who is signed in, by network address: a guess costs a look into the database."""
    requests: Limiter
    """By person."""
    html: Rendered
    statistics: CachedStatistics

    @classmethod
    def of(cls, store: Store, settings: Settings) -> State:
        queue = Queue(store)
        return cls(
            settings,
            store,
            People(store),
            queue,
            Limiter(settings.sign_ins_per_minute / 60, settings.sign_ins_per_minute),
            Limiter(settings.requests_per_second, 4 * settings.requests_per_second),
            Limiter(settings.requests_per_second, 4 * settings.requests_per_second),
            Rendered(),
            CachedStatistics(store, queue),
        )


async def state_of(request: Request) -> State:
    return cast(State, request.app.state.prefloop)


Shared = Annotated[State, Depends(state_of)]
