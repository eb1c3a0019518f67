"""A person labels, by keyboard, mouse or finger; the store has what they said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect
from tests.web.browser.site import Site

from prefloop.feedback.assignment import Queue
from prefloop.feedback.records import Prompt

PAIR = ("The *first* text", "The second text")


def test_a_session_by_keyboard_alone(site: Site) -> None:
    site.ask(*[[f"left {i}", f"right {i}"] for i in range(6)], criteria=("overall",))
    desk = site.browser()
    desk.page.goto(site.server.link)
    desk.at(1)
    assert "#" not in desk.page.url, "the key stays in no address"
    shown = desk.answers()
    desk.keys("1", "1", "Enter")  # better, negligibly
    desk.at(2)
    desk.keys("ArrowRight", "ArrowRight", "ArrowRight", "Enter")  # 2, negligibly, slightly
    desk.at(3)
    desk.keys("t", "Enter")
    desk.at(4)
    desk.keys("2", "f", "Space", "Tab", "Space", "r")
    desk.page.keyboard.type("2 is unsafe. Enter? s u t")  # no shortcut while typing
    desk.keys("Control+Enter")
    desk.at(5)
    desk.keys("s")  # the skipped one is neither done nor back
    desk.at(6)
    desk.keys("Enter")
    desk.see("choose an answer or a tie first")
    desk.keys("1", "Enter")
    desk.done()
    by_prompt = {prompt: said["overall"] for prompt, said in site.ranks_by_text().items()}
    assert by_prompt["batch question 0"] == {shown[0]: 1, shown[1]: 2}
    said = {one.prompt_id: one for one in site.judgements()}
    at = [said.get(Prompt.of(f"batch question {i}").id) for i in range(6)]
    assert [one and (one.ranks, one.strength) for one in at] == [
        *[((1, 2), 1), ((2, 1), 2), ((1, 1), None), ((2, 1), None), None, ((1, 2), None)]
    ]
    assert at[3] is not None
    assert at[3].flags == ("unsafe", "personal data")
    assert at[3].reason == "2 is unsafe. Enter? s u t"
    assert all(one.annotator == site.server.settings.owner and one.seconds is not None for one in site.judgements())
    assert desk.errors == []


def test_the_focus_and_a_screen_reader_follow_the_task(site: Site) -> None:
    site.ask(PAIR, PAIR[::-1])
    desk = site.open()
    expect(desk.page.locator("#task-heading")).to_be_focused()
    desk.keys("1")
    expect(desk.page.locator("#live")).to_have_text("Answer 1 is better")
    desk.keys("Enter")
    expect(desk.page.locator("#live")).to_have_text("Stored. Task 2.")
    expect(desk.page.locator("#task-heading")).to_be_focused()
    expect(desk.page.get_by_role("radio", name="Answer 1")).not_to_be_checked()


def test_a_ranking_with_ties_by_numbers(site: Site) -> None:
    site.ask(["a", "b", "c", "d"])
    desk = site.open()
    shown = desk.answers()
    desk.keys("3", "1", "t", "4", "Enter")
    desk.see("rank every answer first")
    desk.keys("2", "4", "ArrowRight")  # the fourth is picked and moved out of its tie
    desk.keys("Enter")
    desk.done()
    assert site.ranks_by_text()["batch question 0"]["overall"] == dict(zip(shown, (2, 4, 1, 3), strict=True))


def test_a_ranking_with_ties_by_mouse(site: Site) -> None:
    site.ask(["a", "b", "c", "d"])
    desk = site.open(viewport={"width": 1280, "height": 900})
    shown = desk.answers()
    for answer in (0, 1, 2, 3):
        desk.chip(answer).click()
    desk.chip(3).drag_to(desk.page.locator('[data-tier="0"]'))  # 1 = 4 > 2 > 3
    desk.chip(2).drag_to(desk.page.locator('[data-gap="0"]'))  # 3 > 1 = 4 > 2
    desk.chip(1).click()
    desk.page.get_by_role("button", name="← Better").click()  # 3 > 1 = 2 = 4
    desk.chip(0).drag_to(desk.page.locator(".board"), target_position={"x": 500, "y": 30})
    expect(desk.chip(0)).to_have_attribute("aria-label", "Answer 1: not ranked")
    desk.page.get_by_role("button", name="Rank next").click()  # 3 > 2 = 4 > 1
    expect(desk.chip(1)).to_have_attribute("aria-label", "Answer 2: rank 2 of 3, tied with 4")
    desk.page.get_by_role("button", name="Send").click()
    desk.done()
    assert site.ranks_by_text()["batch question 0"]["overall"] == dict(zip(shown, (3, 2, 1, 2), strict=True))


def test_undo_brings_back_what_was_said(site: Site) -> None:
    site.ask(PAIR, PAIR[::-1], criteria=("helpful", "harmless"))
    desk = site.open()
    desk.keys("1", "1", "1", "Enter", "t", "r")
    desk.page.keyboard.type("because")
    desk.page.get_by_role("button", name="Edit answer 2").click()
    desk.page.keyboard.type("Well. ")
    desk.keys("Control+Enter")
    desk.at(2)
    assert len(site.judgements()) == 2
    assert [one.text[:10] for one in site.store.demonstrations()] == ["Well. The "]
    desk.keys("u")
    desk.at(1)
    assert site.judgements() == []
    assert list(site.store.demonstrations()) == []
    helpful = desk.page.get_by_role("group", name="helpful").first
    expect(helpful.get_by_role("radio", name="slightly")).to_be_checked()
    expect(desk.page.locator("#reason")).to_have_value("because")
    expect(desk.page.locator("#edited")).to_have_value("Well. " + desk.answers()[1].replace("first", "*first*"))
    desk.keys("2", "Enter")
    desk.at(2)
    ranks = {one.criterion: (one.ranks, one.strength, one.reason) for one in site.judgements()}
    assert ranks == {"helpful": ((2, 1), None, "because"), "harmless": ((1, 1), None, "because")}
    desk.keys("u", "u")  # the second comes while the first is under way
    desk.at(1)
    desk.keys("u")
    desk.see("There is nothing to undo")


def test_a_skip_can_be_undone_with_its_draft(site: Site) -> None:
    site.ask(PAIR, PAIR[::-1])
    desk = site.open()
    first = desk.prompt()
    desk.keys("2", "2", "s")
    desk.at(2)
    assert desk.prompt() != first
    desk.keys("u")
    expect(desk.page.locator("#live")).to_have_text("Undone. Task 1.")
    assert desk.prompt() == first
    expect(desk.page.get_by_role("radio", name="negligibly")).to_be_checked()


def test_what_the_server_refuses_is_told_and_kept(site: Site) -> None:
    site.ask(PAIR)
    desk = site.open()

    def refuse(route: Route) -> None:
        route.fulfill(status=422, json={"error": {"what": "The reason is odd.", "remedy": "Say it otherwise."}})

    desk.page.route("**/judgement", refuse)
    desk.keys("2", "r")
    desk.page.keyboard.type("odd")
    desk.keys("Control+Enter")
    desk.see("The reason is odd. Say it otherwise.")
    desk.page.unroute("**/judgement")
    desk.page.reload()
    desk.at(1)
    expect(desk.page.locator("#reason")).to_have_value("odd")
    desk.keys("Enter")
    desk.done()
    assert [one.reason for one in site.judgements()] == ["odd"]


def test_two_tabs_of_one_person_count_once(site: Site) -> None:
    site.ask(PAIR)
    desk = site.open()
    other = desk.page.context.new_page()
    other.goto(site.url)
    expect(other.locator("#task")).to_be_visible()
    desk.keys("1", "Enter")
    desk.done()
    other.keyboard.press("2")
    other.keyboard.press("Enter")
    expect(other.locator("#idle-problem")).to_contain_text("Not stored.")
    assert [one.ranks for one in site.judgements()] == [(1, 2)]


def test_a_draft_survives_a_reload_and_another_browser(site: Site) -> None:
    site.ask(["a", "b", "c"])
    desk = site.open()
    desk.keys("2", "t", "3", "f", "Space", "e")
    desk.page.keyboard.type("better ")
    desk.keys("Escape", "r")
    desk.page.keyboard.type("in the middle of")
    desk.page.reload()

    def there() -> None:
        desk.at(1)
        expect(desk.page.locator("#reason")).to_have_value("in the middle of")
        expect(desk.page.locator("#edited")).to_have_value("better " + desk.answers()[1])
        expect(desk.page.get_by_role("checkbox", name="unsafe")).to_be_checked()
        expect(desk.chip(2)).to_have_attribute("aria-label", "Answer 3: rank 1 of 1, tied with 2")

    there()
    assert site.judgements() == []
    # From the server alone.
    desk.keys("Tab")
    desk.page.evaluate("localStorage.clear()")
    desk.page.reload()
    there()
    desk = site.open()
    there()
    desk.keys("1", "Enter")
    desk.done()
    assert site.judgements()[0].reason == "in the middle of"


def test_a_draft_survives_a_reload_though_the_server_keeps_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise LookupError("no such task")

    monkeypatch.setattr(Queue, "save_draft", away)
    site.ask(PAIR)
    desk = site.open()
    desk.keys("2", "2", "r")
    desk.page.keyboard.type("only here")
    desk.page.reload()
    desk.at(1)
    expect(desk.page.locator("#reason")).to_have_value("only here")
    expect(desk.page.get_by_role("radio", name="negligibly")).to_be_checked()


def test_the_newer_of_two_browsers_drafts_is_shown(site: Site) -> None:
    site.ask(PAIR)
    here, there = site.open(), site.open()
    for desk, text in ((here, "earlier"), (there, "later")):
        desk.keys("r")
        with desk.page.expect_response(lambda answer: answer.url.endswith("/draft")):
            desk.page.keyboard.insert_text(text)
    for desk in (here, there):
        desk.page.reload()
        expect(desk.page.locator("#reason")).to_have_value("later")


def test_two_annotators_at_once(site: Site) -> None:
    texts = [[f"left {i}", f"right {i}"] for i in range(4)]
    site.ask(*texts, overlap=1)
    ann, bob = site.open("ann"), site.open("bob")
    assert ann.prompt() != bob.prompt()
    for task in (1, 2):
        ann.at(task)
        bob.at(task)
        ann.keys("1", "Enter")
        bob.keys("2", "Enter")
    ann.done()
    bob.done()
    said = sorted((one.annotator, one.ranks) for one in site.judgements())
    assert said == [("ann", (1, 2)), ("ann", (1, 2)), ("bob", (2, 1)), ("bob", (2, 1))]
    assert len({one.prompt_id for one in site.judgements()}) == 4


def test_a_session_that_ends_takes_nothing_with_it(site: Site) -> None:
    site.ask(PAIR)
    desk = site.open("ann")
    desk.at(1)
    desk.keys("2", "r")
    desk.page.keyboard.type("before the end")
    desk.page.context.clear_cookies()
    desk.keys("Control+Enter")
    expect(desk.page.get_by_role("heading", name="Please sign in")).to_be_focused()
    desk.page.get_by_label("Address or key").fill("no such key, not at all")
    desk.keys("Enter")
    expect(desk.page.locator("#signin-problem")).not_to_be_empty()
    desk.page.get_by_label("Address or key").fill(f"{site.url}/#key={site.people.make_token('ann', '')[1]}")
    desk.keys("Enter")
    desk.done()
    said = [(one.annotator, one.ranks, one.reason) for one in site.judgements()]
    assert said == [("ann", (2, 1), "before the end")]


def test_an_invite_is_accepted_with_a_name(site: Site) -> None:
    site.ask(PAIR)
    _, secret = site.people.invite("annotator", "owner")
    desk = site.browser()
    desk.page.goto(f"{site.url}/join#{secret}")
    desk.page.get_by_label("Your name").fill("zoë")
    desk.keys("Enter")
    desk.at(1)
    desk.keys("1", "Enter")
    desk.done()
    assert [one.annotator for one in site.judgements()] == ["zoë"]


def test_new_tasks_appear_by_themselves(site: Site) -> None:
    desk = site.browser("ann")
    desk.page.clock.install()
    desk.page.goto(site.url)
    desk.done("Nothing to judge yet")
    asked: list[str] = []
    desk.page.on("request", lambda request: asked.append(request.url))
    for _ in range(20):
        desk.page.clock.fast_forward(30_000)
        expect(desk.page.locator("#main")).not_to_have_attribute("aria-busy", "true")
    assert 5 <= len(asked) <= 20, "gently"
    site.ask(PAIR)
    desk.page.clock.fast_forward(61_000)
    desk.at(1)
    expect(desk.page.locator("#task-heading")).to_be_focused()


def test_time_in_a_hidden_tab_does_not_count(site: Site) -> None:
    site.ask(PAIR)
    desk = site.browser("ann")
    desk.page.clock.install()
    desk.page.goto(site.url)
    desk.at(1)
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    desk.page.clock.run_for(10_000)
    desk.page.evaluate(hide, True)
    desk.page.clock.fast_forward(600_000)
    desk.page.evaluate(hide, False)
    desk.page.clock.run_for(5_000)
    desk.keys("1", "Enter")
    desk.done()
    seconds = site.judgements()[0].seconds
    assert seconds is not None
    assert 15 <= seconds < 60


def test_guidelines_are_shown_and_what_was_chosen_is_remembered(site: Site) -> None:
    site.store.add_guidelines("# Be kind\n\n* [rules](https://example.org)", "owner")
    site.ask(PAIR, PAIR[::-1])
    desk = site.open(viewport={"width": 1400, "height": 900})
    pane = desk.page.get_by_role("complementary", name="Guidelines")
    expect(pane.get_by_role("heading", name="Be kind")).to_be_visible()
    desk.keys("g")
    expect(pane).to_be_hidden()
    desk.page.reload()
    desk.at(1)
    expect(desk.page.locator("#guidelines-toggle")).to_have_attribute("aria-expanded", "false")
    desk.keys("1", "Enter")
    desk.at(2)
    assert site.judgements()[0].guidelines == 1
    site.store.add_guidelines("# Be brief", "owner")
    desk.keys("1", "Enter")
    desk.done()
    site.ask(["x", "y"], batch="more")
    desk.page.reload()
    desk.at(3)
    expect(pane.get_by_role("heading", name="Be brief")).to_be_visible()


def test_the_help_and_the_documentation_list_the_same_keys(site: Site) -> None:
    site.ask(PAIR)
    desk = site.open()
    desk.keys("?")
    shown = [
        (row.locator("kbd").all_inner_texts(), row.locator("td").inner_text())
        for row in desk.page.locator("#keys tr").all()
    ]
    page = (Path(__file__).parents[3] / "docs" / "labelling.md").read_text(encoding="utf-8")
    table = page.partition("| key | |\n|---|---|\n")[2].partition("\n\n")[0]
    told = [
        (re.findall(r"`(.+?)`|(…)", keys), text) for keys, text in re.findall(r"^\| (.+?) \| (.+) \|$", table, re.M)
    ]
    assert shown == [(["".join(found) for found in keys], text) for keys, text in told]


def test_keys_can_be_turned_off(site: Site) -> None:
    site.ask(PAIR)
    desk = site.open()
    desk.keys("?")
    expect(desk.page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    desk.page.get_by_label("Single keys do this").uncheck()
    desk.keys("Escape")
    expect(desk.page.get_by_role("dialog")).to_be_hidden()
    desk.keys("1", "s", "Enter")
    expect(desk.page.get_by_role("radio", name="Answer 1")).not_to_be_checked()
    desk.page.get_by_role("radio", name="Answer 1").check()
    desk.page.get_by_role("button", name="Send").focus()
    desk.keys("Enter")
    desk.done()


def test_a_phone(site: Site) -> None:
    """360 pixels wide: nothing sticks out, targets are for fingers, and fingers suffice."""
    wide = "| a | b | c | d |\n|-|-|-|-|\n| one thing | another | a third | a fourth |\n\n" + "long" * 200
    site.ask([wide, "short"], ["a", "b", "c", "d", "e"])
    desk = site.open(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page = desk.page

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        small = page.locator("button:visible, label.option:visible, summary:visible").evaluate_all(
            "nodes => nodes.filter(n => n.getBoundingClientRect().height < 43).map(n => n.outerHTML)"
        )
        assert small == []

    fits()
    page.locator("label", has_text="Answer 2").last.tap()
    page.locator("label", has_text="significantly").tap()
    fits()
    page.get_by_role("button", name="Send").tap()
    desk.at(2)
    fits()
    for answer in (4, 2):
        page.locator(f'[data-rank="{answer}"]').tap()
    for answer in (0, 1, 3):
        desk.chip(answer).tap()
    fits()
    page.get_by_role("button", name="Send").tap()
    desk.done()
    fits()
    ranks = {(one.ranks, one.strength) for one in site.judgements()}
    assert ranks == {((2, 1), 4), ((3, 4, 2, 5, 1), None)}
