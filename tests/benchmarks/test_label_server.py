"""The server under load and killed, in short: the whole benchmark has 64 annotators, 20,000 sends and 50 kills."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.label_server import Project, check, kill, load
from tests.databases import Server

from prefloop.feedback.assignment import Queue
from prefloop.feedback.tasks import Submission, Verdict


def test_nothing_is_lost_or_doubled_on_sqlite(tmp_path: Path) -> None:
    with Project(tmp_path) as project:
        told = load(project, annotators=8, judgements=120, servers=1, rate=0)
    assert "120 judgements by 8 annotators" in told
    assert "n 120" in told


def test_nor_by_two_servers_on_postgresql(tmp_path: Path, postgres: Server) -> None:
    with Project(tmp_path, postgres.create()) as project:
        assert "2 server(s)" in load(project, annotators=8, judgements=120, servers=2, rate=0)


def test_a_killed_server_has_kept_what_it_acknowledged(tmp_path: Path) -> None:
    with Project(tmp_path) as project:
        assert kill(project, annotators=4, kills=3, seed=tmp_path.stat().st_ino).startswith("3 kills")


def test_the_count_sees_what_is_lost_and_what_is_doubled(tmp_path: Path) -> None:
    with Project(tmp_path) as project:
        (sender,) = project.prepare(1, items=3, lease_seconds=60)
        queue = Queue(project.store)
        task = queue.next(sender.name)
        assert task is not None
        queue.submit(sender.name, task.id, Submission("send", (Verdict("overall", (1, 2)),)))
        with pytest.raises(AssertionError, match="0 acknowledged, 1 stored"):
            check(project, [sender])
        sender.acknowledged = {task.id: "send"}
        assert check(project, [sender]) == 1
        sender.acknowledged["another"] = "lost"
        with pytest.raises(AssertionError, match="2 acknowledged, 1 stored"):
            check(project, [sender])
