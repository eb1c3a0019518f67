"""The connection breaks, comes late or not at all: what was said is stored once, and with the task it is about."""

from __future__ import annotations

import pytest
from playwright.sync_api import Request, Route, expect
from tests.web.browser.site import Desk, Site, lost

PAIR = ("The *first* text", "The second text")


def test_a_lost_connection_loses_nothing(site: Site) -> None:
    site.ask(PAIR, PAIR[::-1])
    desk = site.open()
    desk.page.route("**/api/**", lost)
    desk.keys("1", "r")
    desk.page.keyboard.type("said offline")
    desk.keys("Control+Enter")
    desk.see("What you said is kept in this browser")
    assert site.judgements() == []
    desk.page.unroute("**/api/**")
    desk.page.get_by_role("button", name="Try now").click()
    desk.at(2)
    expect(desk.page.locator("#trouble")).to_be_hidden()
    assert [one.reason for one in site.judgements()] == ["said offline"]


@pytest.mark.parametrize("heard", [True, False])
def test_what_was_on_its_way_is_sent_after_a_reload_and_counts_once(site: Site, heard: bool) -> None:
    site.ask(PAIR, PAIR[::-1])
    desk = site.open()

    def answer_lost(route: Route) -> None:
        if heard:
            route.fetch()
        lost(route)

    desk.page.route("**/judgement", answer_lost)
    desk.keys("2", "Enter")
    desk.see("What you said is kept in this browser")
    assert site.store.counts().judgements == heard
    desk.page.unroute("**/judgement")
    desk.page.reload()
    desk.at(2)
    expect(desk.page.locator("#live")).to_have_text("Stored. Task 2.")
    assert [one.ranks for one in site.judgements()] == [(2, 1)]
    assert site.store.counts().judgements == 1
    expect(desk.page.get_by_role("radio", name="Answer 2")).not_to_be_checked()


def hold_draft(desk: Desk, *keys: str) -> Route:
    """Say something; its draft is on the way and does not arrive until the route goes on."""
    held: list[Route] = []
    # Not unrouted: that would let the one through that is held.
    desk.page.route("**/draft", lambda route: route.continue_() if held else held.append(route))
    with desk.page.expect_request("**/draft"):
        desk.keys(*keys)
    desk.page.evaluate("0")  # until the route is known here, too
    return held[0]


def test_a_draft_that_is_lost_late_does_not_come_back_into_another_task(site: Site) -> None:
    site.ask(PAIR, PAIR[::-1])
    desk = site.open()
    held = hold_draft(desk, "1")
    desk.keys("Enter")
    desk.at(2)
    with desk.page.expect_response("**/draft"):
        desk.keys("2")
    drafts: list[Request] = []
    desk.page.on("request", lambda request: request.url.endswith("/draft") and drafts.append(request))
    with desk.page.expect_event("requestfailed"):
        lost(held)
    desk.page.evaluate("new Promise((resolve) => setTimeout(resolve))")  # the page has heard of it
    desk.page.evaluate("dispatchEvent(new Event('pagehide'))")  # what is not saved is saved now
    desk.page.evaluate("fetch('/api/me').then(() => null)")
    assert drafts == []
    desk.keys("Enter")
    desk.done()
    assert [one.ranks for one in site.judgements()] == [(1, 2), (2, 1)]


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("key", ["s", "u"])
def test_what_takes_a_task_away_waits_for_its_draft(site: Site, key: str, arrives: bool) -> None:
    site.ask(PAIR, PAIR[::-1])
    desk = site.open()
    desk.keys("1", "Enter")
    desk.at(2)
    second = desk.prompt()
    held = hold_draft(desk, "2", "2")
    desk.keys(key)
    expect(desk.page.locator("#main")).to_have_attribute("aria-busy", "true")
    if arrives:
        held.continue_()
    else:
        lost(held)
    if key == "s":
        desk.done()
        desk.keys("u")
        expect(desk.page.locator("#live")).to_have_text("Undone. Task 2.")
    else:
        desk.at(1)
        desk.page.evaluate("localStorage.clear()")
        desk.keys("Enter")
        desk.at(2)
    assert desk.prompt() == second
    expect(desk.page.get_by_role("radio", name="negligibly")).to_be_checked()


def test_two_requests_that_wait_for_the_connection_are_both_tried_again(site: Site) -> None:
    site.store.add_guidelines("# Be kind", "owner")
    site.ask(PAIR, PAIR[::-1])
    desk = site.browser("ann", viewport={"width": 1400, "height": 900})
    # By itself nothing is tried again.
    desk.page.add_init_script(
        "const at = setTimeout; window.setTimeout = (run, ms) => (ms < 1000 ? at(run, ms) : 0);"
    )
    for address in ("**/guidelines", "**/judgement"):
        desk.page.route(address, lost)
    with desk.page.expect_event("requestfailed"):
        desk.page.goto(site.url)
    desk.at(1)
    with desk.page.expect_event("requestfailed", lambda request: request.url.endswith("/judgement")):
        desk.keys("1", "Enter")
    desk.see("What you said is kept in this browser")
    desk.page.unroute("**/guidelines")
    with desk.page.expect_event("requestfailed", lambda request: request.url.endswith("/judgement")):
        desk.page.get_by_role("button", name="Try now").click()
    expect(desk.page.get_by_role("heading", name="Be kind")).to_be_visible()
    desk.see("What you said is kept in this browser")
    desk.page.unroute("**/judgement")
    desk.page.get_by_role("button", name="Try now").click()
    desk.at(2)
    expect(desk.page.locator("#trouble")).to_be_hidden()
