"""Coming in and going out."""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Depends, Request, Response

from prefloop.feedback.people import Person

from .access import FOR_ANNOTATORS, Annotator, drop_session, errors, set_session, slow_down
from .errors import ProblemError
from .limits import network
from .schemas import InviteSignIn, KeySignIn, Me
from .state import Shared, State

router = APIRouter(prefix="/api", tags=["Signing in"])


async def _not_too_often(request: Request, state: Shared) -> None:
    slow_down(state.sign_ins.wait(network(request.client.host if request.client else "")))


@router.post(
    "/session", dependencies=[Depends(_not_too_often)], responses=errors(401, 403), openapi_extra={"security": []}
)
def sign_in(request: Request, response: Response, state: Shared, how: KeySignIn | InviteSignIn) -> Me:
    """Sign in with a key (the server's, or one's own token), or accept an invite. The answer sets a cookie."""
    person = _bearer(state, how.key) if isinstance(how, KeySignIn) else state.people.accept(how.invite, how.name)
    if old := request.cookies.get(state.settings.cookie):
        state.people.end_session(old)
    set_session(response, state, state.people.start_session(person.name, state.settings.session_hours))
    return Me(name=person.name, role=person.role)


@router.delete("/session", status_code=204, dependencies=FOR_ANNOTATORS, responses=errors(401, 403))
def sign_out(request: Request, response: Response, state: Shared) -> None:
    """End the session that the cookie stands for."""
    if secret := request.cookies.get(state.settings.cookie):
        state.people.end_session(secret)
    drop_session(response, state)


@router.get("/me", dependencies=FOR_ANNOTATORS, responses=errors(401))
def me(person: Annotator) -> Me:
    """Who is signed in."""
    return Me(name=person.name, role=person.role)


def _bearer(state: State, key: str) -> Person:
    """Whoever has the server's key is its owner; a token lets its person come back when their session is over."""
    if not (state.settings.key and hmac.compare_digest(key, state.settings.key)):
        if (found := state.people.bearer(key)) is None:
            raise ProblemError(401, "This key is not the one of the server that runs now, nor anybody's token.")
        return found
    person = state.people.ensure(state.settings.owner, "admin")
    if person.revoked:  # whoever starts the server has the database
        state.people.restore(person.name)
    return person
