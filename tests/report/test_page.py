"""The page survives hostile text, asks the network for nothing, and works in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.fixture import HOSTILE, figures, write_json
from tests.report.reader import Text, page

from prefloop.report import write_report

CHROMIUM = Path("/usr/bin/chromium")


def test_hostile_text_is_only_ever_text(demo: Path) -> None:
    source = page(demo)
    parsed = Text(source)
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    assert "img" not in {tag for tag, _ in parsed.elements}
    for _, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    for text in HOSTILE[:3]:
        assert text not in source
        assert " ".join(text.split()) in parsed.text
    for character in "\u202e\u202c\u200b\u0007":
        assert character not in source
    for spelled in ("U+202E", "U+202C", "U+200B", "U+0007", "U+D800"):
        assert f">{spelled}</span>" in source
    assert "Show the other 8800 characters" in parsed.text


def test_hostile_text_in_every_other_field(copy: Path) -> None:
    evil = "</script></style><img src=x onerror=alert(1)>"
    values = figures(copy, "ppo")
    values |= {"name": evil, "against": evil, "judge": evil, "alarms": [evil]}
    values["parts"] = {evil: {"before": 0.1, "after": 0.2}}
    write_json(copy / "evaluation" / "ppo.json", values)
    write_json(copy / "summary.json", {"name": evil})
    write_json(copy / "sft" / "manifest.json", {"key": evil, "versions": {evil: evil}, "finished": evil})
    (copy / "recipe.toml").write_text(f"name = '{evil}'\n", encoding="utf-8")
    source = page(copy)
    assert "<img" not in source
    assert source.count("</script>") == 1
    assert source.count("</style>") == 1


def test_nothing_is_loaded_and_the_policy_fits(demo: Path) -> None:
    source = page(demo)
    for tag, attributes in Text(source).elements:
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or (tag, value) == ("link", "data:,")
    assert "@import" not in source
    assert "url(" not in source
    content = re.search(r'Content-Security-Policy" content="([^"]*)"', source)
    assert content
    policy = html.unescape(content[1])
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", source, re.S)
        assert inside
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_same_files_same_bytes_and_no_leftovers(copy: Path) -> None:
    before = sorted(path.name for path in copy.iterdir())
    first = write_report(copy).read_bytes()
    assert write_report(copy).read_bytes() == first
    assert sorted(path.name for path in copy.iterdir()) == before
    assert len(first) < 600_000


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: install the Debian package chromium to test the page in a browser")
    from playwright.sync_api import sync_playwright

    quiet = ["background-networking", "component-update", "sync"]
    flags = ["--no-sandbox", "--disable-gpu", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [390, 1240])
def test_in_a_browser(browser: Any, demo: Path, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    target = write_report(demo)
    tab.goto(target.as_uri())

    assert tab.evaluate("document.documentElement.scrollWidth") == width
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light

    chart = tab.locator("#over-optimisation-ppo svg[tabindex]").last
    chart.scroll_into_view_if_needed()
    chart.hover()
    assert "true reward" in tab.inner_text("#readout")
    assert re.search(r"iteration \d+", tab.inner_text("#readout"))

    tab.click("[data-filter=loss]")
    shown = tab.locator(".card:not([hidden])")
    assert shown.count() == tab.locator('.card[data-verdict="loss"]').count() > 0
    assert f"{shown.count()}" in tab.inner_text("[data-filter=loss]")
    tab.click("#unfold")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert complaints == []
    assert requests == [target.as_uri()]
    tab.close()
