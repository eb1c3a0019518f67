"""Clicked = stored = exported: random rankings, ties, strengths, flags, notes, undos; by keys, clicks and drags."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect
from tests.web.browser.site import Desk, Site

from prefloop.feedback.formats import export_file, import_file
from prefloop.feedback.records import CANNOT_JUDGE, FLAGS, Judgement, dense_ranks
from prefloop.feedback.store import Store

CRITERIA = ("helpful", "harmless")
STRENGTHS = ("negligibly", "slightly", "better", "significantly")
TASKS = 8


@dataclass
class Said:
    """What a person means to say about the answers as they stand there."""

    verdicts: dict[str, tuple[tuple[int, ...], int | None]]
    flags: tuple[str, ...] = ()
    reason: str = ""
    demonstration: str | None = None
    answers: list[str] = field(default_factory=list)


def something(rng: random.Random, criteria: tuple[str, ...], count: int) -> Said:
    def verdict() -> tuple[tuple[int, ...], int | None]:
        ranks = dense_ranks([rng.randrange(count) for _ in range(count)])
        clear = count == 2 and ranks != (1, 1) and rng.random() < 0.6
        return ranks, rng.randint(1, 4) if clear else None

    often = rng.choice([0.0, 0.3, 0.3, 1.0])
    return Said(
        {criterion: verdict() for criterion in criteria},
        tuple(flag for flag in FLAGS if rng.random() < often),
        rng.choice(["", "", "two\nlines", "“quotes” <b> 漢字 \\n"]),
        rng.choice([None, None, "my own\nanswer"]),
    )


def say(desk: Desk, rng: random.Random, said: Said) -> None:
    """By the keyboard or by the mouse, criterion by criterion; whatever stood there before is replaced."""
    said.answers = desk.answers()
    for place, (ranks, strength) in enumerate(said.verdicts.values()):
        if len(ranks) == 2:
            say_pair(desk, rng, place, ranks, strength)
        else:
            say_ranking(desk, rng, place, ranks)
    for flag in FLAGS:
        box = desk.page.get_by_role("checkbox", name=flag)
        box.set_checked(flag in said.flags)
    desk.page.locator("#reason").fill(said.reason)
    if desk.page.locator("#discard").is_visible():
        desk.page.locator("#discard").click()
    if said.demonstration is not None:
        desk.page.get_by_role("button", name=rng.choice(["Write an answer of your own", "Edit answer 1"])).click()
        desk.page.locator("#edited").fill(said.demonstration)
    if rng.random() < 0.3:
        desk.page.locator("#task-heading").focus()
        desk.page.reload()
        expect(desk.page.locator("#task")).to_be_visible()
        assert desk.answers() == said.answers
    desk.page.get_by_role("button", name="Send").click()


def activate(desk: Desk, place: int) -> None:
    desk.page.locator("#task-heading").focus()
    for _ in range(len(CRITERIA)):
        groups = desk.page.locator(".criterion")
        if groups.count() == 1 or "active" in (groups.nth(place).get_attribute("class") or ""):
            return
        desk.keys("c")
    raise AssertionError("C never reaches the criterion")


def say_pair(desk: Desk, rng: random.Random, place: int, ranks: tuple[int, ...], strength: int | None) -> None:
    first = None if ranks == (1, 1) else ranks.index(1)
    how = rng.choice(["numbers", "arrows", "clicks"])
    if how == "clicks":
        group = desk.page.locator(".criterion").nth(place)
        group.locator("label", has_text="Tie").click()  # forgets an earlier strength
        if first is not None:
            group.locator("label", has_text=f"Answer {first + 1}").click()
        if strength is not None:
            group.locator("label", has_text=STRENGTHS[strength - 1]).click()
        return
    activate(desk, place)
    desk.keys(*rng.choices(["1", "2", "ArrowLeft", "t"], k=rng.randrange(4)))  # thinking aloud
    desk.keys("t")
    if first is not None:
        key = str(first + 1) if how == "numbers" else ("ArrowLeft", "ArrowRight")[first]
        desk.keys(*[key] * (1 + (strength or 0)))


def say_ranking(desk: Desk, rng: random.Random, place: int, ranks: tuple[int, ...]) -> None:
    activate(desk, place)
    desk.keys(*["Backspace"] * len(ranks))
    group = desk.page.locator(".criterion").nth(place)
    chip = [group.locator(f'.chip[data-answer="{answer}"]') for answer in range(len(ranks))]
    how = rng.choice(["numbers", "arrows", "drags"])
    if how == "drags":
        return drag(rng, group, chip, ranks)
    best_first = sorted(range(len(ranks)), key=lambda answer: ranks[answer])
    for before, answer in zip([None, *best_first], best_first, strict=False):
        tied = before is not None and ranks[before] == ranks[answer]
        if how == "numbers":
            desk.keys(*(["t"] if tied else []), str(answer + 1))
        else:
            chip[answer].click()  # behind all others
            if tied:
                chip[answer].focus()
                desk.keys("ArrowLeft")
    return None


def drag(rng: random.Random, group: Locator, chip: list[Locator], ranks: tuple[int, ...]) -> None:
    """In any order: onto one of its rank, or between those of lower and of higher ranks."""
    there: list[int] = []
    for answer in rng.sample(range(len(ranks)), len(ranks)):
        equal = [other for other in there if ranks[other] == ranks[answer]]
        better = {ranks[other] for other in there if ranks[other] < ranks[answer]}
        chip[answer].drag_to(chip[equal[0]] if equal else group.locator(f'[data-gap="{len(better)}"]'))
        there.append(answer)


def check(site: Site, said: list[Said]) -> None:
    texts = {one.id: one.text for one in site.store.completions()}
    stored: dict[tuple[frozenset[str], str], Judgement] = {}
    for one in site.judgements():
        stored[frozenset(texts[shown] for shown in one.shown), one.criterion] = one
    assert len(stored) == sum(len(one.verdicts) for one in said)
    for one in said:
        for criterion, (ranks, strength) in one.verdicts.items():
            judgement = stored[frozenset(one.answers), criterion]
            assert [texts[shown] for shown in judgement.shown] == one.answers
            assert (judgement.ranks, judgement.strength) == (ranks, strength), one
            assert set(judgement.flags) == set(one.flags)
            assert judgement.reason == one.reason
    assert sorted(one.text for one in site.store.demonstrations()) == sorted(
        one.demonstration for one in said if one.demonstration is not None
    )


def check_exports(site: Site, said: list[Said], folder: Path) -> None:
    judged = [one for one in said if CANNOT_JUDGE not in one.flags]  # the others' verdicts say nothing
    for criterion in said[0].verdicts:
        export_file(site.store, "oasst", folder / f"{criterion}.jsonl", criterion=criterion)
        trees = [json.loads(line) for line in (folder / f"{criterion}.jsonl").read_text("utf-8").splitlines()]
        exported = [{reply["text"]: reply["rank"] + 1 for reply in tree["prompt"]["replies"]} for tree in trees]
        meant = [dict(zip(one.answers, one.verdicts[criterion][0], strict=True)) for one in judged]
        assert sorted(map(repr_of, exported)) == sorted(map(repr_of, meant))

        export_file(site.store, "comparison", folder / f"{criterion}-pairs.jsonl", criterion=criterion)
        rows = [json.loads(line) for line in (folder / f"{criterion}-pairs.jsonl").read_text("utf-8").splitlines()]
        pairs = [
            (better, worse)
            for ranks in meant
            for better, worse in (sorted(pair, key=lambda text: ranks[text]) for pair in combinations(ranks, 2))
            if ranks[better] != ranks[worse]
        ]
        assert sorted((row["chosen"], row["rejected"]) for row in rows) == sorted(pairs)

    export_file(site.store, "prefloop", folder / "whole.jsonl")
    with Store.open(folder / "again.db") as again:
        import_file(again, folder / "whole.jsonl")
        assert list(again.judgements()) == site.judgements()
        assert list(again.demonstrations()) == list(site.store.demonstrations())


def repr_of(ranks: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(ranks.items())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_was_clicked_is_stored_and_exported(site: Site, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    criteria = CRITERIA[: rng.randint(1, 2)]
    counts = [rng.choice([2, 2, 3, 4, 5]) for _ in range(TASKS)]
    site.ask(*[[f"task {i}, text {n}" for n in range(count)] for i, count in enumerate(counts)], criteria=criteria)
    desk = site.open(viewport={"width": 1280, "height": 1000})
    said: list[Said] = []
    while len(said) < TASKS:
        desk.at(len(said) + 1)
        said.append(something(rng, criteria, len(desk.answers())))
        say(desk, rng, said[-1])
        if len(said) < TASKS:
            desk.at(len(said) + 1)
        else:
            desk.done()
        if rng.random() < 0.3:
            desk.page.get_by_role("button", name="Undo").filter(visible=True).click()
            desk.at(len(said))
            check(site, said[:-1])
            assert desk.answers() == said.pop().answers
    check(site, said)
    check_exports(site, said, tmp_path)
    assert desk.errors == []
