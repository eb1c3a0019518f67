"""A client of the labelling server's API, for scripts: annotate, fill batches, look at progress.

from prefloop.client import Client

with Client("http://127.0.0.1:8765", token) as client:
    while (task := client.next().task) is not None:
        client.submit(task, ranks=[1, 2])
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from prefloop.web import schemas

ATTEMPTS = 4
LONGEST_WAIT = 30.0
_PIECE = 1 << 20
_ITEMS = 1000
_Model = TypeVar("_Model", bound=BaseModel)


class ApiError(Exception):
    """The server refused; ``what`` it says and how to mend it (``remedy``)."""

    def __init__(self, status: int, what: str, remedy: str) -> None:
        super().__init__(f"{what} {remedy}".strip() + f" (status {status})")
        self.status = status
        self.what = what
        self.remedy = remedy


class Client:
    """One person's view of a server. Not for several threads at once; make one for each.

    Every method raises ApiError when the server refuses, and ConnectionError when it cannot be reached. What may be
    sent twice without harm is sent again, up to 4 times, when the connection breaks; what the server was too busy
    for, always.
    """

    def __init__(self, url: str, token: str, timeout: float = 30.0) -> None:
        """``url`` is where the pages are, ``timeout`` in seconds."""
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=timeout)
        self._patient = httpx.Timeout(timeout, read=None)  # for what takes as long as there is much of it

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Labelling

    def me(self) -> schemas.Me:
        """Whose token this is."""
        return self._get("/api/me", schemas.Me)

    def next(self) -> schemas.Next:
        """The task to do now, the same one until it is sent or skipped; without one, ``reason`` says why."""
        return self._post("/api/tasks/next", schemas.Next, again=True)

    def submit(
        self,
        task: schemas.Task,
        ranks: Sequence[int] | Mapping[str, Sequence[int]],
        *,
        strength: int | None = None,
        flags: Sequence[schemas.Flag] = (),
        reason: str = "",
        seconds: float | None = None,
        demonstration: str = "",
        edited: int | None = None,
        id: str = "",
    ) -> schemas.Sent:
        """Judge a task: a rank for each answer in the order shown, 1 is best, equal ranks tie.

        With several criteria ``ranks`` maps each to its ranks. ``demonstration`` is a better answer, ``edited`` the
        place (from 0) of the one that it was made from. ``id`` names this judgement: sent again under the same one,
        it counts once; a new one is made when not given.
        """
        by_criterion = ranks if isinstance(ranks, Mapping) else dict.fromkeys(task.criteria, ranks)
        body = {
            "id": id or uuid.uuid4().hex,
            "verdicts": [
                {"criterion": criterion, "ranks": list(given), "strength": strength}
                for criterion, given in by_criterion.items()
            ],
            "flags": list(flags),
            "reason": reason,
            "seconds": seconds,
            "demonstration": {"answer": edited, "text": demonstration} if demonstration else None,
        }
        return self._post(f"/api/tasks/{task.id}/judgement", schemas.Sent, body, again=True)

    def skip(self, task: schemas.Task) -> None:
        """Leave a task to others."""
        self._send("POST", f"/api/tasks/{task.id}/skip", again=True)

    def save_draft(self, task: schemas.Task, draft: Mapping[str, Any]) -> None:
        """Keep what was said so far, and the task for its annotator."""
        self._send("PUT", f"/api/tasks/{task.id}/draft", {"draft": dict(draft)}, again=True)

    def undo(self) -> schemas.Task | None:
        """Take back the last judgement or skip; its task, with what was said as its draft."""
        return self._post("/api/undo", schemas.Undone).task

    def progress(self) -> schemas.Progress:
        return self._get("/api/progress", schemas.Progress)

    def guidelines(self) -> schemas.Guidelines:
        """The newest version; ``version`` is None when there is none."""
        return self._get("/api/guidelines", schemas.Guidelines)

    # Administration

    def add_guidelines(self, text: str) -> schemas.GuidelinesVersion:
        """A new version, in Markdown."""
        return self._post("/api/guidelines", schemas.GuidelinesVersion, {"text": text})

    def batches(self) -> list[schemas.BatchOut]:
        return self._list("/api/batches", schemas.BatchOut)

    def open_batch(self, name: str, **settings: Any) -> schemas.BatchOut:
        """Open a batch or change its settings: the fields of `schemas.BatchIn`."""
        return self._post("/api/batches", schemas.BatchOut, {"name": name, **settings}, again=True)

    def close_batch(self, name: str) -> None:
        self._send("POST", f"/api/batches/{_quoted(name)}/close", again=True)

    def add_items(self, batch: str, items: Sequence[Mapping[str, Any]]) -> int:
        """Put items, with the fields of `schemas.ItemIn`, into a batch; the number that were new."""
        added = 0
        for start in range(0, len(items), _ITEMS):
            body = {"items": [dict(item) for item in items[start : start + _ITEMS]]}
            path = f"/api/batches/{_quoted(batch)}/items"
            added += self._post(path, schemas.ItemsAdded, body, again=True).added
        return added

    def people(self) -> list[schemas.PersonOut]:
        return self._list("/api/people", schemas.PersonOut)

    def add_person(self, name: str, role: Literal["annotator", "admin"] = "annotator") -> schemas.PersonOut:
        """Make a person who signs in by token, such as a program."""
        return self._post("/api/people", schemas.PersonOut, {"name": name, "role": role}, again=True)

    def revoke(self, name: str) -> None:
        """Send somebody away; what they judged stays."""
        self._send("POST", f"/api/people/{_quoted(name)}/revoke", again=True)

    def restore(self, name: str) -> None:
        """Undo `revoke`."""
        self._send("POST", f"/api/people/{_quoted(name)}/restore", again=True)

    def invite(
        self, role: Literal["annotator", "admin"] = "annotator", name: str = "", days: int = 7
    ) -> schemas.InviteMade:
        """A link by which one person comes in, once."""
        return self._post("/api/invites", schemas.InviteMade, {"role": role, "name": name, "days": days})

    def make_token(self, name: str, label: str = "", days: int | None = None) -> schemas.TokenMade:
        """A token for somebody; its text is shown once."""
        return self._post("/api/tokens", schemas.TokenMade, {"name": name, "label": label, "days": days})

    def stats(self) -> schemas.Stats:
        return self._get("/api/stats", schemas.Stats)

    def statistics(self) -> dict[str, Any]:
        """Agreement, reliability, bias and what is still needed, as docs/feedback-statistics.md explains them."""
        with _connecting():
            answer = self._http.get("/api/statistics", timeout=self._patient)
        return schemas.Statistics.model_validate_json(_checked(answer).content).figures

    def import_file(self, path: str | Path, format: str | None = None, skip_bad: bool = False) -> schemas.Imported:
        """Add a file to the store, as `prefloop import` does."""
        path = Path(path)
        query: dict[str, str | bool] = {"name": path.name, "skip_bad": skip_bad}
        if format is not None:
            query["format"] = format
        with _connecting(), path.open("rb") as file:
            answer = self._http.post(
                "/api/import",
                params=query,
                content=_pieces(file),
                headers={"Content-Type": "application/octet-stream"},
                timeout=self._patient,
            )
        return schemas.Imported.model_validate_json(_checked(answer).content)

    def export(self, path: str | Path, format: str = "prefloop", criterion: str = "overall") -> schemas.Exported:
        """Write what `prefloop export` writes to a file of JSON lines, and say what was left out of it.

        The file is whole or absent.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        query = {"format": format, "criterion": criterion}
        try:
            with (
                _connecting(),
                self._http.stream("GET", "/api/export", params=query, timeout=self._patient) as answer,
                partial.open("wb") as file,
            ):
                if answer.is_error:
                    answer.read()
                told = _exported(_checked(answer))
                for piece in answer.iter_bytes():
                    file.write(piece)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return told

    # Requests

    def _get(self, path: str, model: type[_Model]) -> _Model:
        return model.model_validate_json(self._send("GET", path, again=True).content)

    def _list(self, path: str, model: type[_Model]) -> list[_Model]:
        return TypeAdapter(list[model]).validate_json(self._send("GET", path, again=True).content)  # type: ignore[valid-type]

    def _post(
        self, path: str, model: type[_Model], body: Mapping[str, Any] | None = None, again: bool = False
    ) -> _Model:
        return model.model_validate_json(self._send("POST", path, body, again=again).content)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, again: bool) -> httpx.Response:
        for attempt in range(1, ATTEMPTS + 1):
            last = attempt == ATTEMPTS
            try:
                with _connecting():
                    answer = self._http.request(method, path, json=body)
            except ConnectionError:
                if last or not again:
                    raise
                time.sleep(0.1 * 4**attempt)
                continue
            if last or answer.status_code not in (429, 503):
                return _checked(answer)
            time.sleep(_wait(answer))
        raise AssertionError("the last attempt returns or raises")


@contextmanager
def _connecting() -> Iterator[None]:
    """Failures of the connection as Python's own ConnectionError."""
    try:
        yield
    except httpx.TransportError as error:
        raise ConnectionError(f"the server cannot be reached ({error or type(error).__name__})") from error


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        error = schemas.Error.model_validate_json(answer.content).error
    except ValueError:
        raise _of_somebody_else(answer) from None
    raise ApiError(answer.status_code, error.what, error.remedy)


def _exported(answer: httpx.Response) -> schemas.Exported:
    try:
        return schemas.Exported.model_validate_json(answer.headers.get(schemas.EXPORTED, ""))
    except ValueError:
        raise _of_somebody_else(answer) from None


def _of_somebody_else(answer: httpx.Response) -> ApiError:
    return ApiError(answer.status_code, "This is no answer of prefloop.", "Check the address.")


def _wait(answer: httpx.Response) -> float:
    told = answer.headers.get("Retry-After", "")
    return min(LONGEST_WAIT, float(told) if told.isdecimal() else 1.0)


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
