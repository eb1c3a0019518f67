"""A real server with a real store, and a person at a browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from prefloop.feedback.assignment import Queue
from prefloop.feedback.people import People, Role
from prefloop.feedback.records import Completion, Judgement, Message, Prompt
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Item
from prefloop.web.serve import LabelServer

SECONDS = 20_000.0  # milliseconds: how long a busy machine may take
expect.set_options(timeout=SECONDS)


class Site:
    """One project's pages. ``open`` signs somebody in, in a browser of their own."""

    def __init__(self, folder: Path, browser: Browser) -> None:
        self.store = Store.open(folder / "feedback.db")
        self.queue, self.people = Queue(self.store), People(self.store)
        self.server = LabelServer(self.store, port=0)
        self.url = self.server.settings.origins[0]
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self._thread = threading.Thread(target=self.server.run)

    @contextmanager
    def running(self) -> Iterator[Site]:
        self._thread.start()
        try:
            with self.store:
                yield self
                for context in self._contexts:
                    context.close()
                self.server.stop()
                self._thread.join(20)
        finally:
            self.server.stop()

    def ask(self, *items: Sequence[str] | tuple[Prompt, Sequence[str]], batch: str = "batch", **how: Any) -> None:
        """Items to judge: their answers, or (prompt, answers). Asked in this order."""
        self.queue.open_batch(batch, **({"control_share": 0.0} | how))
        made = []
        for number, item in enumerate(items):
            prompt, answers = item if isinstance(item[0], Prompt) else (Prompt.of(f"{batch} question {number}"), item)
            texts = [Completion(prompt_id=prompt.id, text=str(text), origin="policy") for text in answers]
            self.store.add([prompt, *texts])
            made.append(Item(prompt.id, tuple(one.id for one in texts), priority=-number))
        self.queue.add_items(batch, made)

    def open(self, name: str = "ann", role: Role = "annotator", **options: Any) -> Desk:
        """Somebody sits down and has a task, or is told that there is none."""
        desk = self.browser(name, role, **options)
        desk.page.goto(self.url)
        expect(desk.page.locator("#task, #idle").filter(visible=True)).to_be_visible()
        return desk

    def browser(self, name: str = "", role: Role = "annotator", **options: Any) -> Desk:
        """Signed in where ``name`` is given."""
        context = self._browser.new_context(**({"reduced_motion": "reduce"} | options))
        context.set_default_timeout(SECONDS)
        # A page that is busy hears late that its requests are held up, and goes on asking the server until then. So
        # it is told before there is anything to hold up.
        context.route("**/nothing-asks-for-this", lost)
        self._contexts.append(context)
        if name:
            self.people.ensure(name, role)
            secret = self.people.start_session(name, 1)
            context.add_cookies([{"name": self.server.settings.cookie, "value": secret, "url": self.url}])
        return Desk(context.new_page(), self)

    def judgements(self) -> list[Judgement]:
        return list(self.store.judgements())

    def ranks_by_text(self) -> dict[str, dict[str, dict[str, int]]]:
        """Prompt's text → criterion → answer's text → rank, of all that counts."""
        texts = {one.id: one.text for one in self.store.completions()}
        prompts = {one.id: one.text for one in self.store.prompts()}
        said: dict[str, dict[str, dict[str, int]]] = {}
        for one in self.judgements():
            ranks = {texts[shown]: rank for shown, rank in zip(one.shown, one.ranks, strict=True)}
            said.setdefault(prompts[one.prompt_id], {})[one.criterion] = ranks
        return said


class Desk:
    """What a person does: keys, clicks, and looking at what is there."""

    def __init__(self, page: Page, site: Site) -> None:
        self.page, self.site = page, site
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def at(self, task: int) -> None:
        """Wait until this is the task that is shown and it listens."""
        expect(self.page.locator("#task-heading")).to_have_text(f"Task {task}")
        expect(self.page.locator("#main")).not_to_have_attribute("aria-busy", "true")

    def done(self, heading: str = "All done") -> None:
        expect(self.page.locator("#idle-heading")).to_have_text(heading)
        expect(self.page.locator("#main")).not_to_have_attribute("aria-busy", "true")

    def see(self, text: str) -> None:
        expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible()

    def answers(self) -> list[str]:
        """In the order shown."""
        return self.page.locator(".answer > .text").all_inner_texts()

    def prompt(self) -> str:
        return self.page.locator("#turns .turn:last-child .text").inner_text()

    def chip(self, answer: int) -> Any:
        return self.page.locator(f'.chip[data-answer="{answer}"]')


def lost(route: Route) -> None:
    route.abort("connectionfailed")


def message(role: str, content: str) -> Message:
    return Message(role=role, content=content)  # type: ignore[arg-type]
