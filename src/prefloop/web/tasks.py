"""What the labelling page does: the next task, its draft, sending, skipping, undoing."""

from __future__ import annotations

from fastapi import APIRouter

from prefloop.feedback import tasks

from .access import FOR_ANNOTATORS, Annotator, errors
from .schemas import (
    DraftIn,
    Guidelines,
    Next,
    Progress,
    Sent,
    Shown,
    ShownMessage,
    SubmissionIn,
    Task,
    Undone,
)
from .state import Shared, State

router = APIRouter(prefix="/api", tags=["Labelling"], dependencies=FOR_ANNOTATORS, responses=errors(401))


@router.post("/tasks/next", responses=errors(401, 403))
def next_task(person: Annotator, state: Shared) -> Next:
    """The next task. Asked again before it is sent, it is the same one."""
    task = state.queue.next(person.name)
    progress = state.queue.progress(person.name)
    reason = "" if task else state.queue.why_nothing(person.name)
    return Next(task=_task(state, task), progress=_progress(progress), reason=reason)


@router.put("/tasks/{task_id}/draft", status_code=204, responses=errors(401, 403, 404, 409))
def save_draft(person: Annotator, state: Shared, task_id: str, body: DraftIn) -> None:
    """Keep what was said so far, and keep the task for its annotator."""
    state.queue.save_draft(person.name, task_id, body.draft)


@router.post("/tasks/{task_id}/judgement", responses=errors(401, 403, 404, 409))
def submit(person: Annotator, state: Shared, task_id: str, body: SubmissionIn) -> Sent:
    """Judge a task. Sending it again under the same `id` stores nothing more and gives the same answer."""
    stored = state.queue.submit(person.name, task_id, _submission(body))
    return Sent(stored=len(stored))


@router.post("/tasks/{task_id}/skip", status_code=204, responses=errors(401, 403, 404, 409))
def skip(person: Annotator, state: Shared, task_id: str) -> None:
    """Leave a task to others; it does not come back."""
    state.queue.skip(person.name, task_id)


@router.post("/undo", responses=errors(401, 403))
def undo(person: Annotator, state: Shared) -> Undone:
    """Take back the last judgement that was sent: its task comes again, with what was said as its draft."""
    task = state.queue.undo(person.name)
    return Undone(task=_task(state, task), progress=_progress(state.queue.progress(person.name)))


@router.get("/progress")
def progress(person: Annotator, state: Shared) -> Progress:
    """How far this annotator, and all of them together, have come."""
    return _progress(state.queue.progress(person.name))


@router.get("/guidelines")
def guidelines(state: Shared) -> Guidelines:
    """What annotators are asked to do: the newest version."""
    versions = state.store.guidelines()
    if not versions:
        return Guidelines(version=None, html="", text="")
    newest = versions[-1]
    return Guidelines(version=newest.version, html=state.html(newest.text), text=newest.text)


def _task(state: State, task: tasks.Task | None) -> Task | None:
    if task is None:
        return None
    return Task(
        id=task.id,
        criteria=list(task.criteria),
        messages=[
            ShownMessage(role=message.role, html=state.html(message.content), text=message.content)
            for message in task.prompt.messages
        ],
        answers=[Shown(html=state.html(answer.text), text=answer.text) for answer in task.shown],
        guidelines=task.guidelines,
        draft=task.draft,
        expires=task.expires,
        number=task.number,
    )


def _submission(body: SubmissionIn) -> tasks.Submission:
    edited = body.demonstration
    return tasks.Submission(
        id=body.id,
        verdicts=tuple(
            tasks.Verdict(verdict.criterion, tuple(verdict.ranks), verdict.strength) for verdict in body.verdicts
        ),
        flags=tuple(body.flags),
        reason=body.reason,
        seconds=body.seconds,
        demonstration=None if edited is None else (edited.answer, edited.text),
    )


def _progress(progress: tasks.Progress) -> Progress:
    return Progress(**vars(progress))
