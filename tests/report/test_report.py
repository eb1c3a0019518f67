"""The report says what the files say, survives hostile text, asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prefloop.report import write_report
from prefloop.report.entries import Interval
from prefloop.report.read import read_run
from prefloop.report.scale import wilson

from .fixture import HOSTILE, write_demo, write_dialogues, write_json, write_lines, write_minimal

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_demo(tmp_path_factory.mktemp("runs") / "demo")
    write_report(run)
    return run


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo, tmp_path / "demo"))


def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Text(HTMLParser):
    """What a reader sees, and which elements and attributes there are."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.hidden = 0
        self.feed(source)
        self.text = " ".join(" ".join(self.words).replace("\u202f", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def figures(run: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((run / "evaluation" / f"{name}.json").read_text()))


def test_figures_are_those_of_the_files(demo: Path) -> None:
    text = Text(page(demo)).text
    for name in ("ppo", "dpo"):
        values = figures(demo, name)
        for key in ("win_rate", "length_controlled_win_rate"):
            rate = values[key]
            assert f"{100 * rate['value']:.1f} %" in text
            assert f"{100 * rate['low']:.1f}–{100 * rate['high']:.1f}" in text
        assert f"{values['wins']} wins, {values['ties']} ties, {values['losses']} losses" in text
        before, after = values["true_reward_before"], values["true_reward_after"]
        assert f"true reward {before:.3f} → {after:.3f}" in text
    rate = figures(demo, "ppo")["win_rate"]
    assert (
        f"PPO’s answers are preferred to SFT’s {100 * rate['value']:.0f} % of the time (95 % interval "
        f"{100 * rate['low']:.0f}–{100 * rate['high']:.0f}, {rate['n']} held-out prompts, judged by the true "
        "preference)." in text
    )
    assert "81.3 % (78.2–84.4, n = 600)" in text
    assert "Faithfulness fell while the learned reward rose." in text
    assert "0.310 → " in text
    assert "9f1c2ab47e0d5536" in text
    assert "2400" in text
    assert "4 min 10 s" in text  # PPO's manifest: 250.3 seconds


def test_the_wording_follows_the_interval(copy: Path) -> None:
    values = figures(copy, "ppo")
    cases = {(0.40, 0.35, 0.45): "are worse than", (0.52, 0.48, 0.56): "No clear difference"}
    for (value, low, high), expected in cases.items():
        values["win_rate"] = {"value": value, "low": low, "high": high, "n": 500}
        write_json(copy / "evaluation" / "ppo.json", values)
        assert expected in Text(page(copy)).text


def test_a_run_past_its_peak_is_told(demo: Path) -> None:
    assert "training went past the peak" in Text(page(demo)).text


def test_without_true_reward_or_parts(tmp_path: Path) -> None:
    text = Text(page(write_dialogues(tmp_path / "hh"))).text
    assert "judged by the held-out reward model" in text
    assert "unknown in this run" in text
    assert re.search(r"judge’s score −?[\d.]+ → −?[\d.]+", text)
    assert not re.search(r"true reward −?\d", text)
    assert "What changed in" not in text
    assert "No alarms" in text


def test_the_least_there_can_be(tmp_path: Path) -> None:
    text = Text(page(write_minimal(tmp_path / "minimal"))).text
    assert "SFT took the held-out loss from 2.79 to 1.23 nats per token." in text
    assert "Not part of this run, and so not on this page: the reward model, PPO, DPO and the evaluation." in text
    assert "Win rates" not in text


@pytest.mark.parametrize("stage", ["pretrain", "sft", "label", "reward", "judge", "ppo", "dpo", "evaluation"])
def test_any_stage_may_be_missing(copy: Path, stage: str) -> None:
    shutil.rmtree(copy / stage)
    assert Text(page(copy)).text


def test_any_key_may_be_missing(copy: Path) -> None:
    for path in (copy / "evaluation" / "ppo.json", copy / "reward" / "evaluation.json"):
        full = json.loads(path.read_text())
        for key in full:
            write_json(path, {name: value for name, value in full.items() if name != key})
            read_run(copy)
        write_json(path, {})
    for stage in ("sft", "reward", "ppo", "dpo"):
        axis = "iteration" if stage == "ppo" else "step"
        write_lines(copy / stage / "metrics.jsonl", [{axis: 1}, {axis: 2}])
    for path in copy.glob("*/manifest.json"):
        write_json(path, {})
    (copy / "summary.json").unlink()
    assert "no win rate was written" in Text(page(copy)).text


# What belongs together


def changed(run: Path, stage: str, **values: object) -> None:
    path = run / stage / "manifest.json"
    write_json(path, json.loads(path.read_text()) | values)


def shown(run: Path) -> set[str]:
    return {
        attributes["id"] or ""
        for tag, attributes in Text(page(run)).elements
        if tag == "section" and attributes.get("id")
    }


def test_a_stage_of_another_recipe_is_not_shown(copy: Path) -> None:
    """algorithms = ["ppo"] after a run with both: dpo/ is still there, and so may be its comparison."""
    fell = "Both log-probabilities fell against the reference"
    assert fell in Text(page(copy)).text
    path = copy / "summary.json"
    summary = json.loads(path.read_text())
    del summary["stages"]["dpo"], summary["evaluation"]["dpo"]
    write_json(path, summary)
    inputs = json.loads((copy / "evaluation" / "manifest.json").read_text())["inputs"]
    changed(copy, "evaluation", inputs={name: key for name, key in inputs.items() if name != "dpo"})
    text = Text(page(copy)).text
    assert "Not shown: DPO. The last complete run did not have this stage." in text
    assert "dpo" not in shown(copy)
    assert fell not in text
    assert "DPO’s answers" not in text
    assert "PPO’s answers are preferred" in text
    assert "7 min 22 s in all" in text

    changed(copy, "dpo", inputs={"sft": "another"})  # running this recipe to the end does not make it anew either
    text = Text(page(copy)).text
    assert "Not shown: DPO. The last complete run did not have this stage." in text
    assert "earlier version" not in text
    assert "7 min 22 s in all" in text


def test_stages_made_from_an_earlier_version_are_not_shown(copy: Path) -> None:
    everything = shown(copy)
    changed(copy, "reward", key="anew")
    text = Text(page(copy)).text
    assert (
        "Not shown: PPO and the evaluation. They were made from an earlier version of the reward model; run the "
        "recipe to the end to make them anew." in text
    )
    assert everything - shown(copy) == {"win-rates", "over-optimisation-ppo", "ppo", "samples"}
    assert "No policy has been judged" in text
    assert "Not part of this run" not in text
    assert "Faithfulness fell" not in text  # the evaluation's alarm
    assert "7 min 22 s in all" not in text  # the summary's totals are those of the run before
    assert "2.3 GB at most" not in text

    changed(copy, "sft", key="anew too")
    text = Text(page(copy)).text
    assert "the judgements, the reward model, the judge, PPO, DPO and the evaluation. They were made from an" in text
    assert "an earlier version of SFT; run" in text
    assert shown(copy) == {"sft", "pretrain", "provenance"}


def test_the_last_link_of_a_chain_may_be_the_stale_one(copy: Path) -> None:
    """The judgements were made anew; what was made from those before them is stale, however far down."""
    changed(copy, "label", key="anew")
    run = read_run(copy)
    assert [(one.stage, one.changed) for one in run.left_out] == [
        (stage, ("label",)) for stage in ("reward", "judge", "ppo", "dpo", "evaluation")
    ]
    assert "ppo" not in run.stages


def test_a_stage_that_is_gone_takes_those_made_from_it_along(copy: Path) -> None:
    shutil.rmtree(copy / "dpo")
    text = Text(page(copy)).text
    assert "Not shown: the evaluation. It was made from DPO, no longer in this folder; run the recipe" in text
    assert {"ppo", "reward"} <= shown(copy)


def test_without_a_summary_the_manifests_decide(copy: Path) -> None:
    (copy / "summary.json").unlink()
    assert {"ppo", "dpo", "win-rates"} <= shown(copy)
    assert not read_run(copy).left_out
    changed(copy, "dpo", inputs={"sft": "another"})
    assert [one.stage for one in read_run(copy).left_out] == ["dpo", "evaluation"]


# PPO's figures


def with_ppo(run: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    path = run / "ppo" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [row | edit(row) for row in rows])
    return Text(page(run)).text


def test_a_true_reward_of_few_iterations_is_known_all_the_same(copy: Path) -> None:
    path = copy / "ppo" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    text = Text(page(copy)).text
    assert "unknown in this run" not in text
    assert "at the end; too few iterations to look for a peak" in text


def test_whose_judgement_it_is_reads_well(copy: Path) -> None:
    for judge, said in (
        ("the trained reward itself", "the trained reward itself"),
        ("held-out reward model", "the held-out reward model"),
        ("the run's reward model", "the run's reward model"),
    ):
        write_json(copy / "evaluation" / "ppo.json", figures(copy, "ppo") | {"judge": judge})
        text = Text(page(copy)).text
        assert f"Judged by {said}" in text.replace("’", "'")
        assert "the the" not in text
    write_json(copy / "evaluation" / "ppo.json", figures(copy, "ppo") | {"judge": "models/true-north"})
    assert "Judged by the models/true-north" in Text(page(copy)).text  # whose scores are no true reward


def test_a_bug_seen_by_training_is_an_alarm(copy: Path) -> None:
    quiet = Text(page(copy)).text
    for words in ("Sampling and training disagreed", "below 0 by more", "nats a token in"):
        assert words not in quiet
    text = with_ppo(copy, lambda row: {"ratio_error": {3: 0.0011, 7: 0.25}.get(row["iteration"], 0.00099)})
    assert (
        "PPO’s health Sampling and training disagreed in 2 of 200 iterations: a token’s probability differed by up "
        "to 0.250 (relative, iteration 7) before any update, and rounding explains no more than 0.001." in text
    )
    text = with_ppo(copy, lambda row: {"kl": -0.4} if row["iteration"] == 9 else {})
    assert "PPO’s health The KL from the reference was −0.400 nats at iteration 9, below 0 by more" in text
    text = with_ppo(copy, lambda row: {"kl": -0.02} if row["iteration"] <= 40 else {})
    assert "was −0.020 nats on average over iterations 1 to 40, below 0" in text
    text = with_ppo(copy, lambda row: {"kl": {11: 2.1, 12: 2.5}.get(row["iteration"], 1.9) * row["response_tokens"]})
    assert "PPO’s health The KL from the reference was above 2 nats a token in 2 of 200 iterations, at most" in text
    assert "at most 2.50 (iteration 12): the policy has left the language" in text


def test_an_ensembles_disagreement_is_shown(copy: Path) -> None:
    path = copy / "reward" / "evaluation.json"
    values = json.loads(path.read_text())
    values["by_disagreement"] = [{"low": 0.25, "high": 1.5, "accuracy": 0.7, "n": 100, "effective_n": 80.0}]
    write_json(path, values)
    said = " ".join(attributes.get("aria-label") or "" for _, attributes in Text(page(copy)).elements)
    assert "Members differ by 0.25 to 1.5 70.0 %" in said.replace("\u202f", " ")


def test_intervals_of_a_reward_model_are_as_wide_as_its_pairs_are_worth(copy: Path) -> None:
    path = copy / "reward" / "evaluation.json"
    values = json.loads(path.read_text())
    for row in (values["by_margin"][0], values["by_agreement"][0], values["reliability"][0]):
        row["effective_n"] = 25.0
    write_json(path, values)
    quality = read_run(copy).stages["reward"].quality
    assert quality
    assert [row["effective_n"] for row in quality.by_margin] == [25, 200, 200]
    assert [row["effective_n"] for row in quality.reliability] == [25, 80, 95, 110, 125, 130]
    said = " ".join(attributes.get("aria-label") or "" for _, attributes in Text(page(copy)).elements)
    for label, share, effective in (
        ("from 0 to 0.7", 0.62, 25),
        ("from 0.7 to 1.9", 0.84, 200),
        ("agree 60 %", 0.58, 25),
    ):
        low, high = wilson(share, effective)
        assert f"{label} {100 * share:.1f} %, interval {100 * low:.1f}–{100 * high:.1f}" in said.replace(
            "\u202f", " "
        )


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


def broken_line(run: Path) -> None:
    path = run / "ppo" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[16] = lines[16][:40]
    path.write_text("\n".join(lines) + "\n")


def wrong_type(run: Path) -> None:
    write_lines(run / "sft" / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "low"}])


def no_axis(run: Path) -> None:
    write_lines(run / "sft" / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"loss": 2.0}])


def bad_verdict(run: Path) -> None:
    path = run / "evaluation" / "dpo.samples.jsonl"
    path.write_text(path.read_text().replace('"verdict": "win"', '"verdict": "won"', 1))


def half_an_interval(run: Path) -> None:
    write_json(run / "evaluation" / "ppo.json", figures(run, "ppo") | {"win_rate": {"value": 0.5}})


def no_utf8(run: Path) -> None:
    (run / "recipe.toml").write_bytes(b'name = "a"\nother = "\xff"\n')


def no_toml(run: Path) -> None:
    (run / "recipe.toml").write_text('name = "a"\nother =\n', encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (broken_line, r"ppo/metrics\.jsonl, line 17: not valid JSON .*Delete the folder .*ppo and run"),
        (wrong_type, r'sft/metrics\.jsonl, line 2: `loss` should be a number, but it is "low"\. Delete'),
        (no_axis, r"sft/metrics\.jsonl, line 2: `step` should be a number .* but it is null"),
        (bad_verdict, r"dpo\.samples\.jsonl, line \d+: `verdict` should be `win`, `tie` or `loss`.*\"won\""),
        (half_an_interval, r"ppo\.json: `win_rate` should be an interval"),
        (no_utf8, r"recipe\.toml, line 2: this is not UTF-8"),
        (no_toml, r"recipe\.toml: not valid TOML \(.*line 2"),
    ],
)
def test_a_broken_file_is_named(copy: Path, spoil: Callable[[Path], None], expected: str) -> None:
    old = (copy / "report.html").read_bytes()
    spoil(copy)
    with pytest.raises(ValueError, match=expected):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == old


def test_what_is_no_run_folder(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"neither recipe\.toml nor summary\.json"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match=r"It holds runs: give one of them, such as .*demo"):
        write_report(demo.parent)


def test_values_that_are_no_numbers_are_told(copy: Path) -> None:
    rows = [{"step": i, "loss": math.nan if i == 5 else 2.0 - i / 50} for i in range(1, 40)]
    write_lines(copy / "sft" / "metrics.jsonl", rows)
    text = Text(page(copy)).text
    assert "Not every value is a finite number: loss." in text
    assert "1 value is not a finite number" in text


@pytest.mark.parametrize("odd", [0.0, -1.0, 5e-324, 1e308, math.nan, math.inf, None])
def test_odd_numbers_break_nothing(copy: Path, odd: float | None) -> None:
    kept = {"step", "iteration", "n", "wins", "ties", "losses", "seed", "judgements"}

    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoiled(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        return odd if isinstance(value, int | float) and key not in kept else value

    for path in copy.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [spoiled(row) if i % 9 == 4 else row for i, row in enumerate(rows)])
    for path in (copy / "reward" / "evaluation.json", copy / "ppo" / "manifest.json"):
        write_json(path, spoiled(json.loads(path.read_text())))
    source = page(copy)
    assert not re.search(r'="-?(nan|inf)"', source)
    assert " nan " not in Text(source).text


def test_at_most_sixty_samples(demo: Path) -> None:
    assert 40 < page(demo).count("data-verdict=") <= 60


def test_an_interval_is_read(demo: Path) -> None:
    quality = read_run(demo).stages["reward"].quality
    assert quality
    assert quality.accuracy == Interval(0.813, 0.7818, 0.8442, 600)


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
