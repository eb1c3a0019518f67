"""What goes wrong, told so that the caller can mend it, and with nothing of the inside."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefloop.feedback.tasks import ConflictError

LOG = logging.getLogger("prefloop.web")
REMEDIES = {
    400: "Send what /api/docs describes.",
    401: "Open your invite link, or the link that `prefloop label` printed; a script sends its token.",
    403: "Ask an administrator of this project.",
    404: "Check the address; /api/docs lists all of them.",
    405: "/api/docs lists the methods of each address.",
    408: "Send it again over a better connection.",
    409: "Load the page again to see how things stand.",
    413: "Send less at once.",
    415: "Send JSON with the header Content-Type: application/json.",
    421: "Use the address that `prefloop label` printed.",
    422: "Send what /api/docs describes.",
    429: "Wait for as long as the header Retry-After says, then send it again.",
    500: "Try again. If it happens again, tell the administrator the number: the server's log explains it.",
    503: "Try again in a few seconds.",
}
"""Status → what to do. Also every status that an error can have."""
_WHATS = {400: "This request cannot be read.", 404: "There is nothing here.", 405: "This method is not for here."}
_MOST_FAULTS = 3


class ProblemError(Exception):
    """A refusal, in words for whoever asked."""

    def __init__(self, status: int, what: str, remedy: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.remedy = remedy or REMEDIES[status]
        self.headers = dict(headers or {})

    def response(self) -> Response:
        body = {"error": {"what": self.what, "remedy": self.remedy}}
        text = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        return Response(text, self.status, self.headers, "application/json")


class Failures:
    """Middleware: what nobody foresaw becomes a 500 with a number, and the log keeps what happened."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ProblemError as problem:
            if started:
                raise
            await problem.response()(scope, receive, send)
        except Exception as error:
            if started:  # too late to say anything: the connection is cut, so that nobody takes half for whole
                raise
            await _incident(error).response()(scope, receive, send)


def _incident(error: Exception) -> ProblemError:
    number = secrets.token_hex(4)
    LOG.error("incident %s", number, exc_info=error)
    return ProblemError(500, f"Something went wrong here (incident {number}).")


def install(app: FastAPI) -> None:
    """The handlers of everything that is foreseen."""
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    for kind in (ValueError, LookupError, ConflictError, TimeoutError):
        app.add_exception_handler(kind, _from_the_store)


def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error.response()


def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code if error.status_code in REMEDIES else 400
    return ProblemError(status, _WHATS.get(status, _WHATS[400]), headers=error.headers).response()


def _invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return ProblemError(422, _faults(error.errors())).response()


def _from_the_store(_: Request, error: Exception) -> Response:
    """The store's own refusals are exactly these classes; a subclass (KeyError, a codec's) is a fault of ours."""
    if isinstance(error, ConflictError):
        return ProblemError(409, str(error)).response()
    if isinstance(error, TimeoutError):
        return ProblemError(503, "The store is busy.", headers={"Retry-After": "2"}).response()
    if type(error) is LookupError:
        return ProblemError(404, str(error)).response()
    if isinstance(error, ValidationError):
        return ProblemError(400, _faults(error.errors())).response()
    if type(error) is ValueError:
        return ProblemError(400, str(error)).response()
    return _incident(error).response()


def _faults(errors: Any) -> str:
    told = [_fault(error) for error in errors]
    more = f"; and {len(told) - _MOST_FAULTS} more" if len(told) > _MOST_FAULTS else ""
    return "; ".join(told[:_MOST_FAULTS]) + more


def _fault(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"] if part != "body")
    return f"{place:.100}: {error['msg']}" if place else str(error["msg"])
