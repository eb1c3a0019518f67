"""The administrator's page and the API's documentation in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.web.test_serve import running
from tests.web.world import World

from prefloop.web.serve import LabelServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(world: World) -> Iterator[LabelServer]:
    with running(LabelServer(world.store, port=0)) as server:
        yield server


class Visit:
    """A page of the server, and everything that went wrong in it."""

    def __init__(self, browser: Browser, server: LabelServer, width: int = 1200) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.origin = server.settings.origins[0]
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else 0)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._own(request.url))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))

    def _own(self, url: str) -> None:
        if not url.startswith((f"{self.origin}/", "data:")):
            self.problems.append(f"request to {url}")

    def scan(self) -> None:
        """No violation that axe knows of."""
        found = Axe().run(self.page)
        assert found.violations_count == 0, found.generate_report()


@pytest.fixture
def boss(world: World, browser: Browser, server: LabelServer) -> Iterator[Visit]:
    world.fill(4, target=4, batch="first <b>batch</b>")
    world.people.ensure("Ana <img src=x onerror=alert(1)>", "annotator")
    world.store.add_guidelines("Be *kind*.", "boss")
    visit = Visit(browser, server)
    visit.page.context.add_cookies(
        [
            {
                "name": server.settings.cookie,
                "value": world.people.start_session(world.people.ensure("boss", "admin").name, 1),
                "url": visit.origin,
            }
        ]
    )
    visit.page.goto(f"{visit.origin}/admin")
    expect(visit.page.get_by_role("heading", name="In the store")).to_be_visible()
    yield visit
    visit.page.context.close()
    assert visit.problems == []


def test_an_administrators_day(world: World, boss: Visit) -> None:
    page = boss.page
    expect(page.locator("#numbers")).to_contain_text("8")
    expect(page.locator("#batches")).to_contain_text("0 of 4")
    boss.scan()

    page.get_by_label("Name").fill("mika")
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_label("Link to pass on")
    expect(link).to_have_value(re.compile(rf"^{boss.origin}/join#[\w-]{{43}}$"))
    expect(page.locator("#invites")).to_contain_text("For mika")
    secret = link.input_value().split("#")[1]
    page.get_by_role("button", name="Withdraw invite for mika").click()
    expect(page.locator("#invites li")).to_have_count(0)
    with pytest.raises(ValueError, match="ask for a new one"):
        world.people.accept(secret, "mika")

    page.get_by_label("What for").fill("nightly")
    page.get_by_label("Whose").select_option("boss")
    page.get_by_role("button", name="Make a token").click()
    expect(page.locator("#tokens")).to_contain_text("nightly")
    expect(page.get_by_label("Token, shown once")).to_have_value(re.compile(r"^[\w-]{43}$"))
    person = world.people.bearer(page.get_by_label("Token, shown once").input_value())
    assert person is not None
    assert person.name == "boss"
    page.get_by_role("button", name="Drop token of boss, nightly").click()
    expect(page.locator("#tokens li")).to_have_count(0)

    page.get_by_role("button", name="New link boss").click()
    expect(page.get_by_label("Link for them alone")).to_have_value(re.compile(rf"^{boss.origin}/#key=[\w-]{{43}}$"))

    page.get_by_role("button", name="Close first").click()
    expect(page.locator("#batches")).to_contain_text("closed")
    page.get_by_role("button", name="Open first").click()
    expect(page.locator("#batches")).to_contain_text("open")
    assert not world.queue.batches()[0].closed

    page.get_by_role("button", name="Send away Ana").click()
    expect(page.get_by_role("button", name="Let in again Ana")).to_be_visible()
    page.get_by_role("button", name="Let in again Ana").click()
    expect(page.get_by_role("button", name="Send away Ana")).to_be_visible()

    page.get_by_label("Text").fill("Be *fair*.")
    page.get_by_role("button", name="Save as a new version").click()
    expect(page.get_by_label("Version")).to_have_value("2")
    assert world.store.guidelines()[-1].text == "Be *fair*."
    page.get_by_label("Version").select_option("1")
    expect(page.get_by_label("Text")).to_have_value("Be *kind*.")
    boss.scan()


def test_what_is_refused_is_shown_where_it_was_asked(boss: Visit) -> None:
    expect(boss.page.get_by_role("button", name="Send away boss")).to_have_count(0)
    boss.page.get_by_label("Name").fill("boss")
    boss.page.get_by_role("button", name="Make a link").click()
    expect(boss.page.get_by_role("region", name="Invites").get_by_role("alert")).to_contain_text("somebody called")
    boss.problems.clear()  # the browser reports every 400
    boss.scan()


def test_a_link_can_be_copied(boss: Visit) -> None:
    page = boss.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Make a link").click()
    expect(page.get_by_label("Link to pass on")).to_have_value(re.compile("/join#"))
    page.get_by_role("button", name="Copy").first.click()
    expect(page.locator("#live")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == page.get_by_label("Link to pass on").input_value()


def test_others_are_told(world: World, browser: Browser, server: LabelServer) -> None:
    visit = Visit(browser, server)
    visit.page.goto(f"{visit.origin}/admin")
    expect(visit.page.get_by_role("alert")).to_contain_text("You are not signed in.")
    expect(visit.page.locator("#sections")).to_be_hidden()
    visit.scan()
    visit.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_documentation(browser: Browser, server: LabelServer, scheme: str) -> None:
    visit = Visit(browser, server, width=390)
    visit.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    visit.page.goto(f"{visit.origin}/api/docs")
    visit.page.get_by_text("Details of POST /api/tasks/next").click()
    expect(visit.page.get_by_role("heading", name="POST /api/tasks/next")).to_be_visible()
    visit.scan()
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.page.context.close()
    assert visit.problems == []


def test_the_page_on_a_phone(boss: Visit) -> None:
    boss.page.set_viewport_size({"width": 360, "height": 740})
    assert boss.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boss.scan()
