"""What somebody sends becomes records: judgements, demonstrations; and an undo retractions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from .records import FLAGS, Demonstration, Judgement, content_id
from .tasks import Submission, Task, Verdict


def judgements_of(
    annotator: str, task: Task, submission: Submission, events: Mapping[str, str], now: datetime
) -> list[Judgement]:
    """One judgement by each criterion, each after what this task led to before (``events``).

    ValueError for what does not fit the task.
    """
    _check_submission(task, submission)
    return [
        Judgement(
            # With the task: nobody can send under an id that another's judgement has or will have.
            id=content_id("send", task.id, submission.id, verdict.criterion),
            prompt_id=task.prompt.id,
            annotator=annotator,
            source="human",
            shown=tuple(completion.id for completion in task.shown),
            ranks=verdict.ranks,
            strength=verdict.strength,
            criterion=verdict.criterion,
            flags=submission.flags,
            reason=submission.reason,
            seconds=submission.seconds,
            supersedes=events.get(verdict.criterion),
            created=now,
            guidelines=task.guidelines,
        )
        for verdict in submission.verdicts
    ]


def _check_submission(task: Task, submission: Submission) -> None:
    if not submission.id:
        raise ValueError("a send needs an id, made by the sender")
    criteria = [verdict.criterion for verdict in submission.verdicts]
    if sorted(criteria) != sorted(task.criteria):
        raise ValueError(f"a send has one verdict by each criterion ({', '.join(task.criteria)}); got {criteria}")
    for verdict in submission.verdicts:
        if len(verdict.ranks) != len(task.shown):
            raise ValueError(f"{len(task.shown)} answers were shown; got {len(verdict.ranks)} ranks")
    if submission.seconds is not None and not 0 <= submission.seconds < math.inf:
        raise ValueError(f"seconds is how long it took, 0 or more; got {submission.seconds}")
    strange = [flag for flag in submission.flags if flag not in FLAGS]
    if strange:
        raise ValueError(f"unknown flags {strange!r:.200}; allowed are {', '.join(FLAGS)}")
    if submission.demonstration is not None:
        place, text = submission.demonstration
        if place is not None and not 0 <= place < len(task.shown):
            raise ValueError(
                f"the demonstration was made from answer {place}; the answers are 0 to {len(task.shown) - 1}"
            )
        if not text.strip():
            raise ValueError("the demonstration is empty; leave it out instead")


def demonstrations_of(
    annotator: str, task: Task, submission: Submission, judgement: Judgement
) -> list[Demonstration]:
    if submission.demonstration is None:
        return []
    place, text = submission.demonstration
    source = {} if place is None else {"edited": task.shown[place].id}
    origin = f"person:{annotator}"
    return [
        Demonstration(prompt_id=task.prompt.id, text=text, origin=origin, metadata=source, judgement_id=judgement.id)
    ]


def retraction(judgement: Judgement, now: datetime) -> Judgement:
    changes = {
        "id": content_id("undo", judgement.id),
        "supersedes": judgement.id,
        "retracted": True,
        "created": now,
    }
    return judgement.model_copy(update=changes)


def as_draft(said: Sequence[Judgement], demonstration: tuple[int | None, str] | None) -> dict[str, Any]:
    """What was said, in the form in which it was sent."""
    verdicts = [Verdict(judgement.criterion, judgement.ranks, judgement.strength) for judgement in said]
    return {
        "verdicts": [asdict(verdict) | {"ranks": list(verdict.ranks)} for verdict in verdicts],
        "flags": list(said[0].flags),
        "reason": said[0].reason,
        "demonstration": demonstration and {"answer": demonstration[0], "text": demonstration[1]},
    }
