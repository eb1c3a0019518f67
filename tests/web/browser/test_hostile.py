"""The hostile corpus in a real browser, in every place that shows a model's or a person's text."""

from __future__ import annotations

from playwright.sync_api import Request, expect
from tests.web.browser.site import Desk, Site
from tests.web.hostile import EVIL, HOSTILE, NESTED

from prefloop.feedback.records import Prompt

BATCH = 8


def watch(desk: Desk) -> list[str]:
    """Every request that does not go to our own server, and every dialogue."""
    away: list[str] = []

    def seen(request: Request) -> None:
        if not request.url.startswith(desk.site.url):
            away.append(request.url)

    desk.page.context.on("request", seen)
    desk.page.on("dialog", lambda dialog: (away.append(dialog.message), dialog.dismiss())[0])
    desk.page.on("framenavigated", lambda frame: frame.url.startswith(desk.site.url) or away.append(frame.url))
    return away


def intact(desk: Desk, away: list[str]) -> None:
    page = desk.page
    assert page.evaluate("window.hacked") is None
    assert away == []
    assert len(page.frames) == 1
    # Nothing of the page is shadowed or twice there, and nothing in a text is more than text.
    assert page.evaluate("[...document.querySelectorAll('[id]')].length") == page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(n => n.id)).size"
    )
    free = "a, img, svg, math, script, style, form, input, button, iframe, video, object, [id], [name], [style]"
    assert page.locator(".text").locator(free).count() == 0
    assert page.evaluate(
        "document.getElementById('task') instanceof HTMLFormElement && typeof document.cookie === 'string'"
    )
    assert desk.errors == []


def test_no_script_runs_and_no_request_leaves(site: Site) -> None:
    texts = [text for text in HOSTILE if text.strip()]
    site.store.add_guidelines("\n\n".join(texts), "owner")
    items = []
    for i in range(0, len(texts), BATCH):
        answers = [f"{i + n}\n\n{text}" for n, text in enumerate(texts[i : i + BATCH])]
        items.append((Prompt.of("\n\n".join([str(i), *answers])), [*answers, f"plain {i}"]))
    site.ask(*items)
    desk = site.open(viewport={"width": 1280, "height": 900})
    away = watch(desk)
    for task in range(1, len(items) + 1):
        desk.at(task)
        intact(desk, away)
        desk.keys("p")
        intact(desk, away)
        desk.keys("p", *"123456789"[: len(desk.answers())], "Enter")
    desk.done()
    intact(desk, away)


def test_pairs_with_differences_marked(site: Site) -> None:
    site.ask(*[(Prompt.of(f"{i}"), [text, f"{HOSTILE[i - 1]} and"]) for i, text in enumerate(HOSTILE[:24])])
    desk = site.open()
    away = watch(desk)
    desk.keys("d")
    for task in range(1, 25):
        desk.at(task)
        expect(desk.page.locator("mark").first).to_be_attached()
        intact(desk, away)
        desk.keys("e")
        intact(desk, away)
        desk.keys("Escape", "t", "Enter")
    desk.done()


def test_huge_texts_do_not_stop_the_page(site: Site) -> None:
    site.ask((Prompt.of("long " * 50_000), NESTED[:9]), NESTED[9:])
    desk = site.open()
    away = watch(desk)
    for task, count in ((1, 9), (2, 4)):
        desk.at(task)
        intact(desk, away)
        assert desk.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        desk.keys(*"123456789"[:count], "Enter")
    desk.done()


def test_a_policy_blocks_what_the_sanitiser_would_let_through(site: Site) -> None:
    """The second wall alone: the page is handed raw HTML in place of the sanitiser's."""
    site.ask(["first", "second"])
    desk = site.browser("ann")
    away = watch(desk)
    raw = (
        "<img src=x onerror=window.hacked=1><svg onload=window.hacked=2>"
        + f"<img src={EVIL}/p><iframe src={EVIL}></iframe>"
    )

    def tamper(route: object) -> None:
        answer = route.fetch()  # type: ignore[attr-defined]
        body = answer.json()
        body["task"]["answers"][0]["html"] = raw
        route.fulfill(response=answer, json=body)  # type: ignore[attr-defined]

    desk.page.route("**/tasks/next", tamper)
    answered: list[str] = []
    desk.page.on("requestfinished", lambda request: answered.append(request.url))
    desk.page.goto(site.url)
    desk.at(1)
    expect(desk.page.locator(".text iframe")).to_be_attached()
    assert desk.page.evaluate("window.hacked") is None
    assert not [url for url in answered if url.startswith(EVIL)]
    assert not [url for url in away if not url.startswith(("chrome-error", EVIL, "about"))]
