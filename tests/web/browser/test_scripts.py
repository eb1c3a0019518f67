"""The pages' own functions, called in the browser and compared with independent ones."""

from __future__ import annotations

import random
import re

from playwright.sync_api import Page
from tests.web.browser.site import Site

from prefloop.web.render import CONTROLS


def blank(site: Site) -> Page:
    desk = site.browser()
    desk.page.goto(f"{site.url}/join")
    return desk.page


def longest(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, one row at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def test_the_words_in_common_are_a_longest_subsequence(site: Site) -> None:
    rng = random.Random(3)
    pairs = [[rng.choices("abcd", k=rng.randint(0, 12)) for _ in "ab"] for _ in range(300)]
    script = """pairs => import("/static/diff.js").then(m =>
        pairs.map(([a, b]) => m.common(a, b).map(places => [...places].sort((x, y) => x - y))))"""
    for (a, b), (in_a, in_b) in zip(pairs, blank(site).evaluate(script, pairs), strict=True):
        assert [a[i] for i in in_a] == [b[j] for j in in_b]
        assert len(in_a) == longest(a, b)


def test_texts_too_long_to_compare_are_told_apart(site: Site) -> None:
    script = """() => import("/static/diff.js").then(m =>
        m.common(Array.from({ length: 4000 }, (_, i) => `a${i}`), Array.from({ length: 4000 }, (_, i) => `b${i}`)))"""
    assert blank(site).evaluate(script) is None


def test_the_plain_view_marks_the_same_characters_as_the_server(site: Site) -> None:
    script = """() => import("/static/text.js").then(m => {
        const node = document.createElement("div"), marked = [];
        for (let point = 0; point <= 0x10ffff; point++) {
            if (point > 0x3100 && point < 0xf000) point = 0xf000;  // nothing but letters and surrogates
            if (point > 0xe1000) break;
            m.fill(node, { text: `x${String.fromCodePoint(point)}` }, true);
            if (node.querySelector(".control")) marked.push(point);
        }
        return marked;
    })"""
    marked = blank(site).evaluate(script)
    server = re.compile(f"[{CONTROLS}]")
    points = [*range(1, 0x3101), *range(0xF000, 0xE1001)]
    assert marked == [0, *(point for point in points if server.match(chr(point)))]


def test_the_plain_view_is_the_text(site: Site) -> None:
    script = """text => import("/static/text.js").then(m => {
        const node = document.createElement("div");
        m.fill(node, { text }, true);
        return [node.textContent, node.children.length];
    })"""
    assert blank(site).evaluate(script, "<b>a</b>\n\n *c* \u202e\u202e") == ["<b>a</b>\n\n *c* U+202E ×2", 1]


def test_moving_in_a_ranking_keeps_every_answer_once(site: Site) -> None:
    """Random walks with every operation: the tiers stay a partition, and half steps go back where they came from."""
    script = """() => import("/static/judgement.js").then(m => {
        const faults = [];
        let seed = 7;
        const random = n => (seed = (seed * 48271) % 2147483647) % n;
        for (let walk = 0; walk < 300; walk++) {
            const count = 3 + random(4);
            let tiers = m.tiersOf(Array.from({ length: count }, () => 1 + random(count)));
            for (let step = 0; step < 20; step++) {
                const a = random(count), before = JSON.stringify(tiers), direction = random(2) * 2 - 1;
                const moved = m.move(tiers, a, direction);
                if (JSON.stringify(moved) !== before && JSON.stringify(m.move(moved, a, -direction)) !== before)
                    faults.push(["no way back", before, a, direction]);
                const to = random(tiers.length + 1), on = random(tiers.length);
                tiers = [moved, m.dropOn(tiers, a, on), m.dropBetween(tiers, a, to), m.append(tiers, a),
                         m.level(tiers, a)][random(5)];
                if (tiers.flat().sort().join() !== [...Array(count).keys()].join() || tiers.some(t => !t.length))
                    faults.push(["not a partition", before, a]);
                if (JSON.stringify(m.tiersOf(m.ranksOf(tiers, count))) !== JSON.stringify(tiers))
                    faults.push(["not the same again", tiers]);
            }
        }
        return faults;
    })"""
    assert blank(site).evaluate(script) == []
