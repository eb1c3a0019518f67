"""The labelling server under load, and killed: does it keep what it has acknowledged, and how quick is it?

    python -m benchmarks.label_server load [--annotators 64] [--judgements 20000] [--servers 1] [--rate 0]
    python -m benchmarks.label_server kill [--kills 50] [--annotators 16]

Real servers (`prefloop label`), real requests to 127.0.0.1, one thread for each annotator; every annotator has a
token and does what the page does: next, judge, next, … Without ``--database URL`` the store is a SQLite file in a new
folder.

``load`` sends that many judgements as fast as the servers answer, or ``--rate`` a second from all annotators
together, in a store that has ``--stored`` judgements already, and counts afterwards: every acknowledged send is in
the store once, nothing else is, nobody judged an item twice, and no item was judged more often than its overlap.
``kill`` sends SIGKILL to the server at random moments under load, starts it again, and counts at the end; a send
whose answer did not arrive is sent again under its id, as the page does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.assignment import build

from prefloop.feedback.assignment import Queue
from prefloop.feedback.database import ENVIRONMENT
from prefloop.feedback.people import People
from prefloop.feedback.records import Completion, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Item

OVERLAP = 2
BATCH = "load"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "kill"])
    parser.add_argument("--annotators", type=int, default=64)
    parser.add_argument("--judgements", type=int, default=20_000)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--stored", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--database", default="")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Project(Path(folder), options.database) as project:
        if options.stored:
            build(project.store, options.stored, 0)
        if options.what == "load":
            print(load(project, options.annotators, options.judgements, options.servers, options.rate))
        else:
            print(kill(project, options.annotators, options.kills, options.seed))


class Project:
    """A folder with a store, its people and its items."""

    def __init__(self, folder: Path, database: str = "") -> None:
        self.folder = folder
        self.environment = dict(os.environ) | ({ENVIRONMENT: database} if database else {})
        self.store = Store.open(database or folder / "feedback.db")

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def prepare(self, annotators: int, items: int, lease_seconds: int) -> list[Annotator]:
        """People with tokens, and items that they are asked about."""
        prompts = [Prompt.of(f"Question {i} of {uuid.uuid4()}?") for i in range(items)]
        answers = [Completion(prompt_id=p.id, text=text, origin="load") for p in prompts for text in ("Yes.", "No.")]
        self.store.add([*prompts, *answers])
        queue, people = Queue(self.store), People(self.store)
        queue.open_batch(BATCH, overlap=OVERLAP, lease_seconds=lease_seconds)
        queue.add_items(
            BATCH, [Item(p.id, (answers[2 * i].id, answers[2 * i + 1].id)) for i, p in enumerate(prompts)]
        )
        made, run = [], uuid.uuid4().hex[:8]  # others may have sent to this database before
        for number in range(annotators):
            name = people.ensure(f"sender {run} {number}", "annotator").name
            made.append(Annotator(name, people.make_token(name, "load")[1]))
        return made

    @contextmanager
    def server(self, port: int) -> Iterator[subprocess.Popen[bytes]]:
        """A server of this project that answers; killed at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "prefloop", "label", "--no-browser", "--port", str(port)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            _until(lambda: process.poll() is not None or _answers(port))
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode} before it answered")
            yield process
        finally:
            process.kill()
            process.wait()


@dataclass
class Annotator:
    """Somebody who judges through the API, and what they know to be stored."""

    name: str
    token: str
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Task → the send's id."""
    pending: tuple[str, dict[str, Any]] | None = None
    """The task and the send that has not been answered yet."""
    waits: dict[str, list[float]] = field(default_factory=lambda: {"next": [], "judge": []})
    """Seconds that each request took."""
    _connection: http.client.HTTPConnection | None = None
    _last: float = 0.0

    def step(self, port: int) -> bool:
        """One task from asking for it to its acknowledgement; False when there is none. OSError: nobody answers."""
        if self.pending is None:
            task = self._post(port, "next", "/api/tasks/next")["task"]
            if task is None:
                return False
            verdicts = [{"criterion": name, "ranks": [1, 2], "strength": 3} for name in task["criteria"]]
            send: dict[str, Any] = {
                "id": uuid.uuid4().hex,
                "verdicts": verdicts,
                "flags": [],
                "reason": "",
                "seconds": 1.5,
            }
            self.pending = task["id"], send
        task_id, send = self.pending
        self._post(port, "judge", f"/api/tasks/{task_id}/judgement", send)
        self.acknowledged[task_id] = send["id"]
        self.pending = None
        return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _post(self, port: int, what: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        # Servers hang up on who has been silent for five seconds.
        if self._connection is None or self._connection.port != port or time.monotonic() - self._last > 3:
            self.close()
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        assert self._connection is not None
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        started = time.perf_counter()
        try:
            self._connection.request("POST", path, json.dumps(body or {}), headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise OSError(str(error)) from error
        self.waits[what].append(time.perf_counter() - started)
        self._last = time.monotonic()
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}: {text[:500]!r}")
        found: dict[str, Any] = json.loads(text)
        return found


def load(project: Project, annotators: int, judgements: int, servers: int, rate: float) -> str:
    """Judge until ``judgements`` are acknowledged; figures, or AssertionError when something is lost or doubled."""
    people = project.prepare(annotators, -(-judgements // OVERLAP) + annotators, lease_seconds=1800)
    left = threading.Semaphore(judgements)
    with ExitStack() as stack:
        ports = [_free_port() for _ in range(servers)]
        for port in ports:
            stack.enter_context(project.server(port))
        pause = annotators / rate if rate else 0.0
        started = time.perf_counter()
        with _threads(lambda number: _work(people[number], ports[number % servers], left, pause, number), annotators):
            pass
        seconds = time.perf_counter() - started
        for person in people:
            person.close()
    found = check(project, people)
    assert found == judgements, f"{found} judgements for {judgements} sends"
    lines = [f"{judgements} judgements by {annotators} annotators, {servers} server(s), {seconds:.0f} s "]
    lines[0] += f"({judgements / seconds:.0f} a second): none lost, none doubled"
    for what in ("next", "judge"):
        waits = np.concatenate([person.waits[what] for person in people]) * 1000
        p50, p95, p99 = np.percentile(waits, [50, 95, 99])
        lines.append(f"{what:>5}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms, n {len(waits)}")
    return "\n".join(lines)


def _work(person: Annotator, port: int, left: threading.Semaphore, pause: float, number: int) -> None:
    rng = random.Random(number)
    time.sleep(pause * rng.random())
    while left.acquire(blocking=False):
        started = time.perf_counter()
        assert person.step(port), "the items are enough for all"
        # As people do: some tasks take longer, in the mean ``pause``.
        time.sleep(max(0.0, pause * rng.uniform(0.5, 1.5) - (time.perf_counter() - started)))


def kill(project: Project, annotators: int, kills: int, seed: int) -> str:
    """Kill the server ``kills`` times under load; figures, or AssertionError when something is lost or doubled."""
    people = project.prepare(annotators, items=200 * kills, lease_seconds=1800)
    rng, port, over = random.Random(seed), _free_port(), threading.Event()

    def work(person: Annotator) -> None:
        while not (over.is_set() and person.pending is None):
            try:
                assert person.step(port), "the items are enough for all"
            except OSError:
                time.sleep(0.02)  # nobody answers at the moment

    def acknowledged() -> int:
        return sum(len(person.acknowledged) for person in people)

    moments = []
    with _threads(lambda number: work(people[number]), annotators, over):
        for _ in range(kills):
            with project.server(port) as process:
                before = acknowledged()
                _until(lambda before=before: acknowledged() > before)  # type: ignore[misc]
                time.sleep(rng.uniform(0.0, 0.6))
                process.send_signal(signal.SIGKILL)
                process.wait()
                moments.append(acknowledged() - before)
        with project.server(port):
            over.set()
            _until(lambda: all(person.pending is None for person in people))
    for person in people:
        person.close()
    found = check(project, people)
    return (
        f"{kills} kills, {min(moments)} to {max(moments)} acknowledged judgements between two of them: all {found} "
        "are there, once"
    )


def check(project: Project, people: Sequence[Annotator]) -> int:
    """Count what is stored against what was acknowledged; how many judgements there are."""
    names = {person.name for person in people}
    stored = [one for one in project.store.judgements(effective=False) if one.annotator in names]
    by_person = Counter(judgement.annotator for judgement in stored)
    for person in people:
        sent = len(person.acknowledged)
        assert by_person[person.name] == sent, f"{person.name}: {sent} acknowledged, {by_person[person.name]} stored"
    asked = Counter((judgement.annotator, judgement.prompt_id) for judgement in stored)
    assert not [who for who, count in asked.items() if count > 1], "somebody judged an item twice"
    votes = Counter(judgement.prompt_id for judgement in stored)
    assert max(votes.values()) <= OVERLAP, "an item was judged more often than its overlap"
    return len(stored)


@contextmanager
def _threads(work: Callable[[int], None], count: int, over: threading.Event | None = None) -> Iterator[None]:
    """``count`` threads beside what is done within; ``over`` is set at its end. The first failure is raised."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if over is not None:
            over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {seconds:g} s")
        time.sleep(0.01)


def _answers(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
