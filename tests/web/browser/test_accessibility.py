"""No violation that axe finds, in each state of the pages, light and dark."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from tests.web.browser.site import Desk, Site, lost, message

from prefloop.feedback.records import Prompt

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RICH = "# Title\n\n### Deep\n\n> quote\n\n1. `code`\n\n| a | b |\n|-|-|\n| 1 | 2 |\n\n[x](http://e.org) \u202e"


def violations(desk: Desk) -> list[str]:
    found = Axe().run(desk.page, options={"runOnly": {"type": "tag", "values": RULES}}).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_no_violation_in_any_state(site: Site, scheme: str, width: int) -> None:
    site.store.add_guidelines("# What counts\n\n* truth", "owner")
    turns = [message("system", "Be good. " * 200), message("user", "Hi"), message("assistant", "Yes?")]
    prompt = Prompt(messages=(*turns, message("user", "Go on. " * 300)))
    site.ask((prompt, [RICH, RICH.replace("quote", "word")]), criteria=("helpful", "harmless"))
    site.ask(["a", "b", "c"], batch="ranking")
    desk = site.open("ann", "admin", viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = desk.page
    expect(page.locator("#guidelines-toggle")).to_be_visible()

    def clean(state: str) -> None:
        assert violations(desk) == [], state

    for task in (1, 2):
        desk.at(task)
        if page.locator(".ranking").count():
            desk.keys("3", "t", "1", "3")
            clean("ranking, one picked")
            desk.keys("ArrowRight", "Enter")
            expect(page.locator("#problem")).to_be_visible()
            clean("ranking, not complete")
            desk.keys("2")
        else:
            clean("pair")
            desk.keys("1", "1", "d")
            clean("differences")
            desk.keys("p", "Enter", "t")
            clean("plain text, second criterion")
            desk.keys("d", "p", "e")
            clean("editing")
            desk.keys("Escape", "f", "Space", "?")
            expect(page.get_by_role("dialog")).to_be_visible()
            clean("help")
            desk.keys("Escape")
            expect(page.get_by_role("dialog")).to_be_hidden()
            desk.keys("g")
            clean("guidelines, the other way")
        if task == 2:
            page.route("**/judgement", lost)
        desk.keys("Enter")
    expect(page.locator("#trouble")).to_be_visible()
    clean("no connection")
    page.unroute("**/judgement")
    page.get_by_role("button", name="Try now").click()
    desk.done()
    clean("done")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Please sign in")).to_be_visible()
    clean("signed out")
    for address in ("/join", "/join#" + "x" * 43):
        page.goto("about:blank")
        page.goto(site.url + address)
        expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
        clean(address)
