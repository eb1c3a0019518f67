"""The statistics page: the store's figures, drawn; hostile names stay text; counted again only when needed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tests.web.world import World, judgement

from prefloop.feedback import statistics as of_store
from prefloop.feedback.agreement import Agreement
from prefloop.feedback.bias import Bias
from prefloop.feedback.features import FEATURES
from prefloop.feedback.intervals import Estimate
from prefloop.feedback.records import Completion, Judgement, Prompt
from prefloop.feedback.statistics import CriterionStatistics, Day
from prefloop.feedback.store import Store
from prefloop.feedback.tasks import Item
from prefloop.web import statistics
from prefloop.web.pages import page

NAMES = ("ana", "bo", "<script>alert(1)</script>", "mirror\u202eed")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.fill(30)
    yield world
    world.store.close()


def judge_all(world: World, seeds: int = 0) -> None:
    """Three who agree and one who says the opposite; two days."""
    judgements = []
    for number, prompt in enumerate(world.store.prompts()):
        pair = tuple(one.id for one in world.store.completions([prompt.id]))
        for who, name in enumerate(NAMES):
            shown = pair if (number + who + seeds) % 2 else pair[::-1]
            right = (1, 2) if shown == pair else (2, 1)
            judgements.append(
                Judgement(
                    id=f"{name}-{number}",
                    prompt_id=prompt.id,
                    annotator=name,
                    source="human" if who else "imported",
                    shown=shown,
                    ranks=right if name != "bo" else right[::-1],
                    seconds=4.0 + who,
                    flags=("unsafe",) if number == 0 else (),
                    created=datetime(2026, 3, 1 + 2 * (number % 2), tzinfo=UTC),
                )
            )
    world.store.add(judgements)


def asked(world: World) -> dict[str, Any]:
    answer = world.browser("boss", "admin").get("/api/statistics")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_figures_and_drawings(world: World) -> None:
    judge_all(world)
    found = asked(world)
    figures, html = found["figures"], found["html"]
    assert figures["totals"]["judgements"] == 120
    assert figures["flags"] == {"unsafe": 4}
    (overall,) = figures["criteria"]
    by_name = {who["name"]: who for who in overall["annotators"]}
    assert by_name["bo"]["agreement"]["value"] == 0
    assert by_name["ana"]["agreement"]["value"] == 1
    assert by_name["bo"]["seconds"] == 5.0
    assert overall["agreement"]["raw"]["value"] == pytest.approx(0.5), "three of the six pairs of annotators agree"
    assert "50.0" in html
    assert html.count("<svg viewBox=") >= 3
    assert "Krippendorff" in html
    assert "2026-03-01: 15 imported" in html
    assert by_name["bo"]["weight"] == 0 < by_name["ana"]["weight"]


def test_names_are_text(world: World) -> None:
    judge_all(world)
    html = asked(world)["html"]
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "\u202e" not in html
    assert "mirror\\u202eed" in html
    assert " style=" not in html, "the page's policy would refuse it"


def test_the_arms_and_whose_answers_win(world: World) -> None:
    """Policies by short names; hostile ones stay text; people who judge see none of it."""
    digest = "0123456789abcdef" * 2
    policies = f"runs/<b>old</b>/sft@{digest}", f"runs/new\u202e/ppo@{digest}"
    prompts = [Prompt.of(f"chosen {k}") for k in range(20)]
    pairs = [[Completion(prompt_id=p.id, text=f"by {o[5:8]}", origin=o) for o in policies] for p in prompts]
    world.store.add([*prompts, *(one for pair in pairs for one in pair)])
    world.queue.close_batch("batch")
    world.queue.open_batch("arms", control_share=0.5)
    world.queue.add_items("arms", [Item(pair[0].prompt_id, (pair[0].id, pair[1].id)) for pair in pairs])
    ana = world.browser("ana")
    while (answer := ana.post("/api/tasks/next").json())["task"] is not None:
        task = answer["task"]
        assert "sft" not in str(answer)
        ranks = [1 if "new" in one["text"] else 2 for one in task["answers"]]
        assert ana.post(f"/api/tasks/{task['id']}/judgement", json=judgement(task, ranks)).status_code == 200
    found = asked(world)
    (overall,) = found["figures"]["criteria"]
    ((first, second),) = overall["origins"]
    assert (first["name"], first["short"], first["win_rate"]["value"]) == (policies[1], "new\u202e/ppo@01234567", 1.0)
    assert second["score"]["value"] == -first["score"]["value"] < 0
    assert overall["arms"]["control"]["votes"] + overall["arms"]["priority"]["votes"] == 20
    for text in (
        "chosen by priority",
        "Whose answers win?",
        "&lt;b&gt;old&lt;/b&gt;/sft@01234567",
        "new\\u202e/ppo@",
    ):
        assert text in found["html"]
    assert not any(text in found["html"] for text in ("\u202e", "<b>old"))


def test_before_anybody_has_judged(world: World) -> None:
    found = asked(world)
    assert found["figures"]["criteria"] == []
    assert "Nobody has judged anything yet." in found["html"]


class Counting:
    """Counts, each time in ten seconds by its own clock; and waits for ``go`` in between."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time, self.calls, self.at_once = 0.0, 0, 0
        self.started, self.go = Event(), Event()
        self.go.set()
        self.cached = statistics.CachedStatistics(world.store, world.queue, lambda: self.time)
        monkeypatch.setattr(statistics, "statistics", self.statistics)

    def statistics(self, store: Store, **named: Any) -> of_store.Statistics:
        self.calls += 1
        self.at_once += 1
        assert self.at_once == 1, "one thread at a time"
        self.started.set()
        assert self.go.wait(20)
        self.time += 10
        found = of_store.statistics(store, **named)
        self.at_once -= 1
        return found

    def judgements(self) -> int:
        return self.cached.get().found.totals.judgements


def skip_one(world: World) -> None:
    task = world.queue.next("zoe")
    assert task is not None
    world.queue.skip("zoe", task.id)


def test_counted_again_only_when_something_was_said_and_not_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(world, monkeypatch)
    assert counting.judgements() == 0
    judge_all(world)
    counting.time = 10 + 49
    assert (counting.judgements(), counting.calls) == (0, 1), "younger than five times what it cost"
    counting.time = 10 + 50
    assert (counting.judgements(), counting.calls) == (120, 2)
    counting.time += 1000
    assert (counting.judgements(), counting.calls) == (120, 2), "nothing was said"
    skip_one(world)
    assert (counting.judgements(), counting.calls) == (120, 3)


def test_one_thread_counts_and_others_get_what_is_kept_or_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_all(world)
    counting = Counting(world, monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        counting.go.clear()
        waiting = [pool.submit(counting.judgements) for _ in range(4)]
        assert counting.started.wait(20)
        assert not any(one.done() for one in waiting)
        counting.go.set()
        assert [one.result(20) for one in waiting] == [120] * 4
        assert counting.calls == 1
        skip_one(world)
        counting.time += 1000
        counting.go.clear()
        counting.started.clear()
        slow = pool.submit(counting.cached.get)
        assert counting.started.wait(20)
        try:
            kept = pool.submit(counting.cached.get).result(5)
        finally:
            counting.go.set()
        assert slow.result(20).at > kept.at
    assert counting.calls == 2


def test_what_fails_is_counted_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(world, monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(world.queue, "gold_ranks", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            counting.cached.get()
    assert counting.judgements() == 0


def test_the_page_says_when_it_was_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(world)
    at = datetime.fromisoformat(found["figures"]["counted"]["at"])
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert f'As of <time datetime="{at.isoformat()}">{at:%Y-%m-%d %H:%M:%S} UTC</time>.' in found["html"]
    counted = Counting(world, monkeypatch).cached.get()
    assert "UTC</time>, counted in 10 seconds." in page("statistics.html", **statistics.described(counted))


def test_votes_over_time_have_a_column_for_every_day(world: World) -> None:
    figure = statistics.votes_over_time(
        [Day("2026-01-01", "human", "a", 3), Day("2026-04-01", "human", "a", 7), Day("2026-04-03", "ai", "b", 2)]
    )
    assert figure is not None
    svg = str(figure.chart.svg)
    assert "2026-04-01: 7 human" in svg
    assert "2026-04-03: 2 ai" in svg
    assert "2026-02-03" in svg, "sixty days"
    assert "2026-01-01:" not in svg
    assert figure.caption.endswith("3 earlier ones are not drawn.")
    assert statistics.votes_over_time([]) is None


@pytest.mark.parametrize(("value", "words"), [(0.5, "for the answer that is longer"), (-0.5, "that is shorter")])
def test_every_effect_is_said_in_words(value: float, words: str) -> None:
    effect = Estimate(value=value, low=value - 0.1, high=value + 0.1, n=9)
    unclear = Estimate(value=value, low=-1.0, high=1.0, n=9)
    features = {**dict.fromkeys(FEATURES, unclear), "length": effect}
    bias = Bias(unclear, features, None, {}, {}, {}, None)
    one = CriterionStatistics(
        *("overall", 9, 0, 9, 9, 0, 9, None, Agreement(0, *[None] * 6), (), None, bias, None, (), (), (), ())
    )
    told = {name: said for name, _, said in statistics.bias_rows(one)}
    assert told.keys() == {"position", *FEATURES}
    assert words in told.pop("length")
    assert set(told.values()) == {"not clear of 0"}


@pytest.mark.parametrize("role", ["annotator", None])
def test_only_for_administrators(world: World, role: Any) -> None:
    client = world.browser("ana", role) if role else world.stranger()
    assert client.get("/api/statistics").status_code == (403 if role else 401)
