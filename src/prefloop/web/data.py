"""Administration: feedback in and out, and what it says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from prefloop.feedback.formats import Format, ImportReport, import_file
from prefloop.feedback.store import AnyRecord, Store

from .access import FOR_ADMINS, errors
from .errors import ProblemError
from .schemas import Imported, Stats
from .state import Shared

router = APIRouter(prefix="/api", tags=["Data"], dependencies=FOR_ADMINS, responses=errors(401, 403))
FileName = Annotated[str, Query(max_length=100, pattern=r"^\w[\w.-]*$", description="Becomes the answers' origin.")]
JSON_LINES = "application/x-ndjson"


@router.get("/stats")
def stats(state: Shared) -> Stats:
    """How much there is, and what it says."""
    return Stats(**vars(state.store.counts()), sections=[])


@router.post(
    "/import",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The file, as `prefloop import` takes it.",
            "content": {JSON_LINES: {"schema": {"type": "string", "contentMediaType": "application/json"}}},
        }
    },
)
async def import_records(
    request: Request,
    state: Shared,
    name: FileName,
    format: Annotated[Format | None, Query(description="Found by looking, unless given.")] = None,
    skip_bad: Annotated[bool, Query(description="Leave bad rows out and say which.")] = False,
) -> Imported:
    """Add a file to the store, all or nothing; the same file again adds nothing."""
    if request.headers.get("content-type", "").lower() != JSON_LINES:
        raise ProblemError(415, "The file is not declared.", f"Send it with the header Content-Type: {JSON_LINES}.")
    with tempfile.TemporaryDirectory(prefix="prefloop-import-") as folder:
        path = Path(folder) / name
        with path.open("wb") as file:
            async for piece in request.stream():
                await run_in_threadpool(file.write, piece)
        report = await run_in_threadpool(_import, state.store, path, format, skip_bad)
    skipped = {reason: len(lines) for reason, lines in report.skipped.items()}
    return Imported(format=report.format or "", rows=report.rows, skipped=skipped, **vars(report.added))


def _import(store: Store, path: Path, format: Format | None, skip_bad: bool) -> ImportReport:
    try:
        return import_file(store, path, format, skip_bad=skip_bad)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{path.parent}/", "")) from error  # where it lay is not their concern


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}, "description": "One record per line"}},
)
def export(state: Shared, format: Literal["records"] = "records") -> StreamingResponse:
    """Everything in the store, one JSON object per line, in the order in which a store takes it."""
    headers = {"Content-Disposition": f'attachment; filename="feedback.{format}.jsonl"'}
    return StreamingResponse(_lines(state.store), headers=headers, media_type=JSON_LINES)


def _lines(store: Store) -> Iterator[str]:
    judgements = store.judgements(effective=False)
    records: Iterator[AnyRecord] = chain(store.prompts(), store.completions(), judgements, store.demonstrations())
    for record in records:
        yield f'{{"kind":"{type(record).__name__.lower()}","record":{record.model_dump_json()}}}\n'
