"""Administration: who may come in, and with what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from .access import FOR_ADMINS, Admin, errors
from .errors import ProblemError
from .schemas import (
    Identifier,
    InviteIn,
    InviteMade,
    InviteOut,
    PersonIn,
    PersonOut,
    TokenIn,
    TokenMade,
    TokenOut,
)
from .state import Shared

router = APIRouter(prefix="/api", tags=["People"], dependencies=FOR_ADMINS, responses=errors(401, 403))
InPath = Annotated[str, Path(max_length=80)]


@router.get("/people")
def people(state: Shared) -> list[PersonOut]:
    """Everybody who ever came in, those who were sent away too."""
    return [PersonOut(**vars(person)) for person in state.people.all()]


@router.post("/people")
def add_person(state: Shared, body: PersonIn) -> PersonOut:
    """Make a person who signs in by token only, such as a program; people accept an invite."""
    return PersonOut(**vars(state.people.ensure(body.name, body.role)))


@router.post("/people/{name:path}/revoke", status_code=204, responses=errors(401, 403, 404))
def revoke(state: Shared, admin: Admin, name: InPath) -> None:
    """Send somebody away: their sessions and tokens end at once. What they judged stays."""
    if name == admin.name:
        raise ProblemError(400, "You cannot send yourself away.", "Ask another administrator.")
    state.people.revoke(name)


@router.post("/people/{name:path}/restore", status_code=204, responses=errors(401, 403, 404))
def restore(state: Shared, name: InPath) -> None:
    """Let somebody come back; they need a new token to sign in with."""
    state.people.restore(name)


@router.get("/invites")
def invites(state: Shared) -> list[InviteOut]:
    """All invites, without their secrets."""
    return [InviteOut(**vars(invite)) for invite in state.people.invites()]


@router.post("/invites")
def invite(state: Shared, admin: Admin, body: InviteIn) -> InviteMade:
    """Make a link that one person can come in by, once."""
    made, secret = state.people.invite(body.role, admin.name, body.name, body.days)
    return InviteMade(**vars(made), url=f"{state.settings.origins[0]}/join#{secret}", secret=secret)


@router.delete("/invites/{invite_id}", status_code=204, responses=errors(401, 403, 404))
def withdraw(state: Shared, invite_id: Identifier) -> None:
    """Make an invite that nobody has used worthless."""
    state.people.withdraw(invite_id)


@router.get("/tokens")
def tokens(state: Shared) -> list[TokenOut]:
    """All tokens that work, without their secrets."""
    return [TokenOut(**vars(token)) for token in state.people.tokens()]


@router.post("/tokens", responses=errors(401, 403, 404))
def make_token(admin: Admin, state: Shared, body: TokenIn) -> TokenMade:
    """Make a token for a script, or for somebody to sign in again; it may do what its person may do."""
    made, secret = state.people.make_token(body.name, body.label, body.days, admin.name)
    return TokenMade(**vars(made), token=secret, url=f"{state.settings.origins[0]}/#key={secret}")


@router.delete("/tokens/{token_id}", status_code=204, responses=errors(401, 403, 404))
def drop_token(state: Shared, token_id: Identifier) -> None:
    """Make a token worthless at once."""
    state.people.drop_token(token_id)
