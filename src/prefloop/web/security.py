"""What holds for every request, in one place and before any route: middleware in plain ASGI.

From the outside in: the headers of every answer, the host that is asked for, the origin of a change, the size and
the kind of a body. Each refuses what it does not know.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ProblemError
from .settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""On every answer, errors and static files included."""
STRICT_TRANSPORT = "max-age=31536000"

READING = frozenset({"GET", "HEAD"})
"""Methods that change nothing. Every other one, known or not, must come from our own pages or bear a token."""

BODY_BYTES = 1 << 20
BODY_SECONDS = 60.0
STREAMED = "/api/import"
"""The one address whose body is a file: it is handed on piece by piece, under a limit of its own."""


class SecurityHeaders:
    """The headers of every answer. What a route says about caching stands; else nothing is kept."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.headers = HEADERS | ({"Strict-Transport-Security": STRICT_TRANSPORT} if settings.secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, sending)


class OwnHost:
    """Answers only for the names that the server was started with: DNS rebinding brings in another one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.hosts = {origin.split("://")[1] for origin in settings.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = Headers(scope=scope).getlist("host")
            if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
                raise ProblemError(421, "This server does not answer under this name.")
        await self.app(scope, receive, send)


class OwnOrigin:
    """Refuses changes that another site's page asks for (CSRF).

    The browser says where a request comes from: `Origin`, or `Sec-Fetch-Site` where that is absent. Without either,
    only a request that bears a token and no cookie is let in: a browser would not make one of its own accord.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.origins = {origin.split("://")[1]: origin for origin in settings.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READING and not self._ours(Headers(scope=scope)):
            raise ProblemError(
                403,
                "This request does not come from this server's own pages.",
                "Use the pages at the address that `prefloop label` printed; a script sends a token and no cookie.",
            )
        await self.app(scope, receive, send)

    def _ours(self, headers: Headers) -> bool:
        origins, sites = headers.getlist("origin"), headers.getlist("sec-fetch-site")
        if origins and origins != [self.origins.get(headers["host"].lower())]:
            return False
        if sites and sites != ["same-origin"]:
            return False
        bears = headers.get("authorization", "").lower().startswith("bearer ")
        return bool(origins or sites) or (bears and "cookie" not in headers)


class Bodies:
    """JSON only, and no more of it than fits: what is said to be too long is refused unread, and what turns out
    so is cut off, with or without a Content-Length."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.import_bytes = settings.import_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == STREAMED:
            _declared(Headers(scope=scope), self.import_bytes)
            await self.app(scope, _counted(receive, self.import_bytes), send)
        else:
            headers = Headers(scope=scope)
            _declared(headers, BODY_BYTES)
            body = await _whole(_counted(receive, BODY_BYTES))
            if body and not _is_json(headers):
                raise ProblemError(415, "The body is not declared as JSON.")
            await self.app(scope, _replayed(body, receive), send)


def _declared(headers: Headers, limit: int) -> None:
    for length in headers.getlist("content-length"):
        if not re.fullmatch(r"[0-9]{1,18}", length):
            raise ProblemError(400, "The Content-Length is not a number.")
        if int(length) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> ProblemError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ProblemError(413, f"The body is longer than {limit} bytes.", headers={"Connection": "close"})


def _counted(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counting() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_large(limit)
        return message

    return counting


async def _whole(receive: Receive) -> bytes:
    """The body; who sends it drop by drop is not waited for."""
    pieces = []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ProblemError(400, "The connection ended before the body did.")
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError:
        raise ProblemError(
            408, f"The body did not come within {BODY_SECONDS:g} seconds.", headers={"Connection": "close"}
        ) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    rest: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replaying() -> Message:
        return next(rest, None) or await receive()

    return replaying


def _is_json(headers: Headers) -> bool:
    kinds = headers.getlist("content-type")
    if len(kinds) != 1 or headers.get("content-encoding", "identity").lower() != "identity":
        return False
    kind, _, parameters = kinds[0].partition(";")
    return kind.strip().lower() == "application/json" and parameters.strip().lower() in (
        *("", "charset=utf-8", 'charset="utf-8"'),
    )
