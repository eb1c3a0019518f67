"""Who is asking, and what they may do. Every route but sign-in goes through `signed_in` or `administrator`."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.responses import Response

from prefloop.feedback.people import Person

from .errors import ProblemError
from .limits import network
from .schemas import Error
from .settings import COOKIE
from .state import Shared, State

# For the API's documentation; `_who` does the reading.
_COOKIE = APIKeyCookie(name=COOKIE, auto_error=False, description="Set by POST /api/session.")
_BEARER = HTTPBearer(auto_error=False, description="A token that an administrator made.")


def signed_in(request: Request, state: Shared) -> Person:
    """The person that a token or a session belongs to; their rate of requests is counted here."""
    person = _who(request, state)
    if person is None:
        slow_down(state.strangers.wait(network(request.client.host if request.client else "")))
        raise ProblemError(401, "You are not signed in.", headers={"WWW-Authenticate": "Bearer"})
    slow_down(state.requests.wait(person.name))
    return person


async def administrator(person: Annotated[Person, Depends(signed_in)]) -> Person:
    if person.role != "admin":
        raise ProblemError(403, "Only administrators may do this.")
    return person


Annotator = Annotated[Person, Depends(signed_in)]
Admin = Annotated[Person, Depends(administrator)]
FOR_ANNOTATORS = [Depends(_COOKIE), Depends(_BEARER), Depends(signed_in)]
FOR_ADMINS = [Depends(_COOKIE), Depends(_BEARER), Depends(administrator)]


def _who(request: Request, state: State) -> Person | None:
    """A token goes before a cookie; a wrong one is not made good by the other."""
    if "authorization" in request.headers:
        kind, _, token = request.headers["authorization"].partition(" ")
        return state.people.bearer(token.strip()) if kind.lower() == "bearer" else None
    secret = request.cookies.get(state.settings.cookie, "")
    return state.people.signed_in(secret) if secret else None


def slow_down(seconds: float) -> None:
    """Refuse when there is something to wait for."""
    if seconds > 0:
        raise ProblemError(429, "Too many requests.", headers={"Retry-After": str(math.ceil(seconds))})


def set_session(response: Response, state: State, secret: str) -> None:
    response.set_cookie(
        state.settings.cookie,
        secret,
        max_age=int(state.settings.session_hours * 3600),
        path="/",
        secure=state.settings.secure,
        httponly=True,
        samesite="strict",
    )


def drop_session(response: Response, state: State) -> None:
    response.delete_cookie(
        state.settings.cookie, path="/", secure=state.settings.secure, httponly=True, samesite="strict"
    )


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's documentation: these errors, and those that every route may answer with."""
    always = (400, 408, 413, 415, 421, 422, 429, 500, 503)
    return {status: {"model": Error, "description": _MEANINGS[status]} for status in sorted({*always, *statuses})}


_MEANINGS = {
    400: "The request cannot be carried out as it is; `what` says why",
    401: "Nobody is signed in",
    403: "The role does not allow it, or the request comes from another site",
    404: "There is no such thing, or it is somebody else's",
    408: "The body came too slowly",
    409: "Something else was done with it in the meantime",
    413: "The body is too long",
    415: "The body is not JSON",
    421: "Asked for under a name that is not this server's",
    422: "A field is missing, unknown or out of its bounds",
    429: "Too many requests; `Retry-After` says how many seconds to wait",
    500: "A fault of the server; the log explains the incident's number",
    503: "The store is busy; `Retry-After` says how many seconds to wait",
}
