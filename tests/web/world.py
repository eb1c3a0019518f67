"""A project with a queue, its application, and clients that are signed in as somebody."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.testclient import TestClient

from prefloop.feedback.assignment import Queue
from prefloop.feedback.people import People, Role
from prefloop.feedback.records import Completion, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Item
from prefloop.web.app import make_app
from prefloop.web.settings import Settings, loopback_origins

ORIGIN = "http://127.0.0.1:8765"
KEY = "K" * 43


class World:
    """One project; ``settings`` replaces fields of the server's settings."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        (folder / "feedback.db").write_bytes(_empty_store())
        self.store = Store.open(folder / "feedback.db")
        self.people, self.queue = People(self.store), Queue(self.store)
        given = {"origins": loopback_origins("127.0.0.1", 8765), "key": KEY, "owner": "owner"} | settings
        self.settings = Settings(**given)
        self.app = make_app(self.store, self.settings)
        self.origin = self.settings.origins[0]

    def fill(self, items: int, answers: int = 2, gold: Sequence[int] = (), batch: str = "batch", **how: Any) -> None:
        """A batch of items, of which those at the places in ``gold`` have a known answer."""
        self.queue.open_batch(batch, **how)
        made = []
        for number in range(items):
            prompt = Prompt.of(f"{batch} question {number}")
            texts = [f"answer {number} of *kind* {place}" for place in range(answers)]
            completions = [Completion(prompt_id=prompt.id, text=text, origin=f"policy-{text}") for text in texts]
            self.store.add([prompt, *completions])
            ranks = tuple(range(1, answers + 1)) if number in gold else None
            made.append(Item(prompt.id, tuple(one.id for one in completions), gold=ranks))
        self.queue.add_items(batch, made)

    def stranger(self, **headers: str) -> TestClient:
        """A browser on our pages that nobody has signed in with."""
        return TestClient(self.app, base_url=self.origin, headers={"Origin": self.origin, **headers})

    def browser(self, name: str, role: Role = "annotator") -> TestClient:
        """A browser in which somebody is signed in."""
        self.people.ensure(name, role)
        client = self.stranger()
        client.cookies.set(self.settings.cookie, self.people.start_session(name, 1), domain="127.0.0.1")
        return client

    def script(self, name: str, role: Role = "annotator") -> TestClient:
        """A program with somebody's token."""
        self.people.ensure(name, role)
        token = self.people.make_token(name, "test")[1]
        return TestClient(self.app, base_url=self.origin, headers={"Authorization": f"Bearer {token}"})


@cache
def _empty_store() -> bytes:
    """Migrations take longer than most of these tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "feedback.db"
        Store.open(path).close()
        return path.read_bytes()


def judgement(task: dict[str, Any], ranks: Sequence[int] | None = None, **fields: Any) -> dict[str, Any]:
    """What the page sends about a task."""
    ranks = list(ranks or range(1, len(task["answers"]) + 1))
    verdicts = [{"criterion": name, "ranks": ranks, "strength": 2} for name in task["criteria"]]
    return {"id": f"send-{task['id']}"[:64], "verdicts": verdicts, **fields}
