"""The pages and their files. They hold no data: what they show comes from the API, which knows who is asking.

Nothing here waits for the store, so the routes need no thread: pages load however busy it is.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from .api_docs import operations
from .errors import ProblemError

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def label_page() -> HTMLResponse:
    return HTMLResponse(page("label.html", title="Labelling"))


@router.api_route("/admin", methods=["GET", "HEAD"])
async def admin_page() -> HTMLResponse:
    return HTMLResponse(page("admin.html", title="Administration"))


@router.api_route("/join", methods=["GET", "HEAD"])
async def join_page() -> HTMLResponse:
    return HTMLResponse(page("join.html", title="Welcome"))


@router.api_route("/api/docs", methods=["GET", "HEAD"])
async def docs_page(request: Request) -> HTMLResponse:
    openapi = request.app.openapi()
    return HTMLResponse(page("api.html", title="API", openapi=openapi, operations=operations(openapi)))


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static_file(request: Request, name: str) -> Response:
    """From a table made when the server starts: no path of a request ever reaches the disk."""
    if name not in static_files():
        raise ProblemError(404, "There is no such file.")
    body, kind, tag = static_files()[name]
    headers = {"ETag": tag, "Cache-Control": "no-cache"}  # kept, but asked about every time
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=kind)


@cache
def static_files() -> dict[str, tuple[bytes, str, str]]:
    """Name → content, media type and ETag of everything in ``static/``."""
    found = [path for path in files("prefloop.web").joinpath("static").iterdir() if path.is_file()]
    found.append(files("prefloop.report").joinpath("static", "charts.css"))  # statistics are drawn as reports are
    return {path.name: _file(path) for path in found}


def _file(path: Traversable) -> tuple[bytes, str, str]:
    body = path.read_bytes()
    kind = {"js": "text/javascript", "css": "text/css"}.get(path.name.rpartition(".")[2])
    kind = kind or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return body, kind, f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'


def page(name: str, **fields: Any) -> str:
    """A template, filled in."""
    # base: the pages are at the top of their host (`settings.origin_of` sees to that)
    return _environment().get_template(name).render(base="", **fields)


def _coded(text: str) -> Markup:
    """What stands between backticks, of any number, as code."""
    parts = re.split(r"`+", text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("prefloop.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["coded"] = _coded
    return made
