"""Administration: feedback in and out, and what it says."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from prefloop.feedback.formats import (
    ExportFormat,
    ExportReport,
    Format,
    ImportReport,
    export_file,
    import_file,
)
from prefloop.feedback.store import Store

from .access import FOR_ADMINS, errors
from .errors import ProblemError
from .pages import page
from .schemas import (
    EXPORTED,
    MOST_REJECTED,
    REJECTED_CHARACTERS,
    Criterion,
    Exported,
    Imported,
    Rejected,
    Statistics,
    Stats,
)
from .state import Shared
from .statistics import described, figures

router = APIRouter(prefix="/api", tags=["Data"], dependencies=FOR_ADMINS, responses=errors(401, 403))
FileName = Annotated[
    str,
    Query(max_length=100, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$", description="Becomes the answers' origin."),
]
JSON_LINES = "application/x-ndjson"
FILES = {JSON_LINES, "application/octet-stream"}
GZIP = b"\x1f"
"""How a gzip file begins; no file of text does."""
_PIECE = 1 << 20
_ROOM = 1_000
"""Characters for the reasons in a header: some proxies refuse an answer with more than 4 KiB of headers."""
_TOLD = {
    "description": "What became of what the store holds, as JSON in ASCII.",
    "required": True,
    "schema": {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": Exported.model_json_schema(),
    },
}


@router.get("/stats")
def stats(state: Shared) -> Stats:
    """How much there is."""
    return Stats(**vars(state.store.counts()))


@router.get("/statistics")
def statistics(state: Shared) -> Statistics:
    """What the judgements are worth: agreement, reliability, bias, what is still needed. Slow for a large store."""
    found = state.statistics.get()
    return Statistics(figures=figures(found), html=page("statistics.html", **described(found)))


@router.post(
    "/import",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The file, as `prefloop import` takes it.",
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(FILES)},
        }
    },
)
async def import_records(
    request: Request,
    state: Shared,
    name: FileName,
    format: Annotated[Format | None, Query(description="Found by looking, unless given.")] = None,
    skip_bad: Annotated[bool, Query(description="Leave bad rows out and return them.")] = False,
) -> Imported:
    """Add a file to the store, all or nothing; the same file again adds nothing."""
    if request.headers.get("content-type", "").lower() not in FILES:
        allowed = " or ".join(sorted(FILES))
        raise ProblemError(415, "The file is not declared.", f"Send it with the header Content-Type: {allowed}.")
    with tempfile.TemporaryDirectory(prefix="prefloop-import-") as folder:
        path = Path(folder) / name
        with path.open("wb") as file:
            async for piece in request.stream():
                if file.tell() == 0 and piece.startswith(GZIP):
                    raise ProblemError(415, "The file is compressed, and may be of any size.", "Send it unpacked.")
                await run_in_threadpool(file.write, piece)
        return await run_in_threadpool(_import, state.store, path, format, skip_bad)


def _import(store: Store, path: Path, format: Format | None, skip_bad: bool) -> Imported:
    try:
        report = import_file(store, path, format, skip_bad=skip_bad)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{path.parent}/", "")) from error  # where it lay is not their concern
    rejected, more = _rejected(report)
    return Imported(
        format=report.format or "",
        rows=report.rows,
        corrected=report.corrected,
        skipped={reason: len(lines) for reason, lines in report.skipped.items()},
        noted=dict(report.noted),
        unit=report.unit,
        rejected=rejected,
        rejected_more=more,
        **vars(report.added),
    )


def _rejected(report: ImportReport) -> tuple[list[Rejected], int]:
    """The first rows of the file of rejected rows, which goes with its folder, and how many more are in it."""
    if report.rejected is None:
        return [], 0
    with report.rejected.open(encoding="utf-8") as file:
        first = [_row(json.loads(line), report.unit) for line in islice(file, MOST_REJECTED)]
        return first, sum(1 for _ in file)


def _row(kept: dict[str, Any], unit: str) -> Rejected:
    """A row may be bad because it has numbers or text that no answer can carry: it goes as JSON in ASCII."""
    reason = kept["reason"][:REJECTED_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return Rejected(number=kept[unit], reason=reason, row=json.dumps(kept["row"])[:REJECTED_CHARACTERS])


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {JSON_LINES: {"schema": {"type": "string"}}},
            "description": f"One row per line. The header `{EXPORTED}` is a JSON object: the `format`, how many "
            "`rows`, what was `left_out` and what was `noted` (written otherwise than it was said): why → how many",
            "headers": {EXPORTED: _TOLD},
        }
    },
)
def export(
    state: Shared,
    format: ExportFormat = "prefloop",
    criterion: Annotated[Criterion, Query(description="Whose judgements are written.")] = "overall",
) -> StreamingResponse:
    """What the store holds, as `prefloop export` writes it; `prefloop` is everything."""
    folder = tempfile.TemporaryDirectory(prefix="prefloop-export-")
    try:
        path = Path(folder.name) / "feedback.jsonl"
        report = export_file(state.store, format, path, criterion=criterion)
        headers = {
            "Content-Disposition": f'attachment; filename="{format}.jsonl"',
            "Content-Length": str(path.stat().st_size),
            EXPORTED: _told(report),
        }
    except BaseException:
        folder.cleanup()
        raise
    return _LastCopy(_pieces(path), folder, headers)


def _told(report: ExportReport) -> str:
    left_out, noted = _most_frequent(report.left_out), _most_frequent(report.noted)
    told = Exported(format=report.format, rows=report.rows, left_out=left_out, noted=noted)
    return json.dumps(told.model_dump())  # ASCII, without a line's end: a criterion may have any name


def _most_frequent(counts: Counter[str]) -> dict[str, int]:
    """As many as have room in a header; of the others the sum."""
    told: dict[str, int] = {}
    room = _ROOM
    for reason, count in counts.most_common():
        room -= len(json.dumps({reason: count}))
        if room < 0:
            return told | {"other reasons": counts.total() - sum(told.values())}
        told[reason] = count
    return told


class _LastCopy(StreamingResponse):
    """A file out of a folder that is removed afterwards, whether all of it was fetched or not."""

    def __init__(
        self, pieces: Iterator[bytes], folder: tempfile.TemporaryDirectory[str], headers: dict[str, str]
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=JSON_LINES)
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._folder.cleanup()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
