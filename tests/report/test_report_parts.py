"""The parts under the page: which samples are shown, how texts are marked, how curves are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from prefloop.report.bars import histogram, reliability
from prefloop.report.charts import SMALL, Options, Series, line_chart
from prefloop.report.read import Manifest, Metrics, Run, Sample, Stage
from prefloop.report.samples import at_random, compared, disagreement, select, visible
from prefloop.report.scale import duration, number, padded, rolling, thin, ticks, wilson
from prefloop.report.sections import find_peak, over_optimisation
from prefloop.report.stages import RATIO_TOLERANCE, on_policy_health
from prefloop.training import policy_gradient

# The selection of samples


def sample(index: int, verdict: str, true: float, learned: float) -> Sample:
    return Sample(f"prompt {index}", "before", "after", verdict, 0.0, true, 0.0, learned)


def test_random_samples_keep_the_proportion() -> None:
    verdicts = ["win"] * 120 + ["tie"] * 30 + ["loss"] * 50
    pool = [sample(i, verdict, 0.1, 0.1) for i, verdict in enumerate(verdicts)]
    chosen = at_random(pool, 20)
    assert sorted(s.verdict for s in chosen) == ["loss"] * 5 + ["tie"] * 3 + ["win"] * 12
    assert at_random(list(reversed(pool)), 20) == chosen
    assert len(at_random(pool[:3], 20)) == 3
    assert at_random([], 20) == []


def test_worst_and_most_misjudged_are_found() -> None:
    random = Random(1)
    pool = [sample(i, "win", random.uniform(0.1, 1), random.uniform(0.1, 1)) for i in range(200)]
    worst, fooled = sample(900, "loss", -8.0, -7.0), sample(901, "loss", -1.5, 6.0)
    groups = select([*pool, worst, fooled], 5)
    by_title = {group.title: group.samples for group in groups}
    assert worst in by_title["Biggest losses"] + by_title["Drawn at random"]
    shown = [s for group in groups for s in group.samples]
    assert worst in shown
    assert fooled in shown
    assert len(shown) == len({id(s) for s in shown}) <= 5
    score = disagreement([*pool, worst, fooled])
    assert score(worst) is None
    assert score(fooled) == max(value for s in [*pool, fooled] if (value := score(s)) is not None)


def test_words_that_differ_are_marked() -> None:
    before, after = compared("Send me the report now.", "Could you send me the long report?")
    assert after.head == "<ins>Could you send</ins> me the <ins>long</ins> report<ins>?</ins>"
    assert before.head == "<del>Send</del> me the report<del> now.</del>".replace("<del> now", " <del>now")
    same, _ = compared("The same words.", "The same  words.")
    assert "<del>" not in same.head
    empty, filled = compared("", "Something new")
    assert empty.head == ""
    assert "Something new" in filled.head


def test_marks_do_not_open_a_door() -> None:
    _, after = compared("say hello to <b>all</b>", "say hello to <script>all</script>")
    assert "<script" not in after.head
    assert "&lt;" in after.head


def test_emoji_stay_and_controls_show() -> None:
    assert visible("👩‍💻 ok") == "👩‍💻 ok"
    assert visible("a\nb\tc") == "a\nb\tc"
    assert "U+2066" in visible("x\u2066y")


# Numbers and curves


def test_numbers_read_well() -> None:
    assert [number(v) for v in (0, 5, 0.1234, -2.346, 12.345, 456.78, 123456, 1e-6)] == [
        *("0", "5", "0.123", "−2.35", "12.3", "456.8", "123\u202f456", "1.0e−6")
    ]
    spoken = [duration(v).replace("\u202f", " ") for v in (0.42, 48, 200, 7500)]
    assert spoken == ["0.4 s", "48 s", "3 min 20 s", "2 h 05 min"]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-0.037, 0.11, 3) == [0.0, 0.05, 0.1]
    random = Random(2)
    for _ in range(300):
        low = random.uniform(-1, 1) * 10 ** random.randint(-6, 6)
        _, high = padded(low, low + random.random() * 10 ** random.randint(-6, 6))
        places = ticks(low, high, 5)
        assert 2 <= len(places) <= 12
        slack = 1e-6 * (high - low) + 1e-14 * abs(high)
        assert all(low - slack <= place <= high + slack for place in places)


def test_wilson_against_the_known_case() -> None:
    low, high = wilson(0.9, 10)
    assert (round(low, 4), round(high, 4)) == (0.5958, 0.9821)
    assert wilson(1.0, 5)[1] == 1.0


def test_smoothing_follows_a_line_to_its_ends() -> None:
    line = [(float(i), 3.0 * i - 4) for i in range(50)]
    assert all(abs(a - b) < 1e-9 for (_, a), (_, b) in zip(rolling(line, 9), line, strict=True))
    means, band = thin([(float(i), float(i % 10)) for i in range(1000)], 100)
    assert means[0] == (4.5, 4.5)
    assert band[0] == (4.5, 0.0, 9.0)


def curve(shape: Callable[[float], float], noise: float, seed: int) -> list[tuple[float, float]]:
    random = Random(seed)
    return [(float(i), shape(i / 200) + random.gauss(0, noise)) for i in range(1, 201)]


def test_a_peak_is_found_and_noise_is_not_taken_for_one() -> None:
    peak = find_peak(curve(lambda t: t * (1 - t), 0.01, 0))
    assert peak
    assert abs(peak.at - 100) < 25
    assert peak.past
    false = 0
    for seed in range(200):
        for shape in (lambda t: t, lambda t: 0 * t, lambda t: 1 - math.exp(-6 * t)):
            found = find_peak(curve(shape, 0.1, seed))
            assert found
            false += found.past
    assert false / 600 < 0.03
    assert find_peak([(1.0, 1.0)] * 3) is None


def test_ties_are_neither_better_nor_worse() -> None:
    """Four wins, two losses and six answers that stayed as they were: the bar above 0 has its ties in grey."""
    chart = histogram("a", [0.05, 0.15, 0.15, 0.25, -0.15, -0.25, *[0.0] * 6], "change")
    assert chart
    bars = [
        (tone, float(height)) for tone, height in re.findall(r'"block tone-(\w+)[^>]* height="([\d.]+)"', chart.svg)
    ]
    unit = sum(height for _, height in bars) / 12
    heights = {tone: sum(height for one, height in bars if one == tone) / unit for tone, _ in bars}
    assert heights == pytest.approx({"blue": 4, "orange": 2, "grey": 6}, abs=0.05)
    assert "no change" in {key.name for key in chart.keys}
    assert "6 of them unchanged" in chart.svg
    plain = histogram("a", [0.05, 0.15, 0.15, 0.25, -0.15, -0.25, 0.3, 0.4], "change")
    assert plain
    assert "tone-grey" not in plain.svg


def test_a_share_between_whole_percents_is_not_rounded() -> None:
    chart = line_chart("share", [Series("a", [(1.0, 1.0), (2.0, 1.0)])], Options(share=True, size=SMALL))
    assert chart
    assert re.findall(r">([\d.]+)\u202f%<", chart.svg) == ["90.0", "92.5", "95.0", "97.5", "100.0"]


def test_powers_of_ten_are_short() -> None:
    chart = line_chart("error", [Series("a", [(1.0, 1e-6), (2.0, 0.5)])], Options(log=True, size=SMALL))
    assert chart
    assert re.findall(r'class="tick"[^>]*text-anchor="end">([^<]+)<', chart.svg)[:4] == ["1e−6", "1e−4", "0.01", "1"]


def test_the_path_of_a_reward_starts_at_nothing_gained() -> None:
    """However steep the first iterations are, both rewards start at 0 and reach 1."""
    rows = [
        {"iteration": float(i), "reward": 1 - 0.5**i, "true_reward": 3 - 3 * 0.6**i, "kl": i / 9} for i in range(30)
    ]
    section = over_optimisation(Run(Path(), "run", stages={"ppo": Stage("ppo", Metrics("iteration", rows))}), "ppo")
    assert section
    ticks_shown = re.findall(r'class="tick"[^>]*text-anchor="end">([^<]+)<', section.figures[0].chart.svg)
    assert min(float(tick.replace("−", "-")) for tick in ticks_shown) == 0
    assert not re.search(r"highest at", section.figures[1].chart.svg)  # it is still rising at the end


# Checks of PPO


def kl_warnings(values: list[float], episodes: int) -> list[str]:
    rows = [{"iteration": float(i), "kl": kl, "response_tokens": 20.0} for i, kl in enumerate(values, start=1)]
    section = on_policy_health(
        Run(Path(), "run", episodes={"ppo": episodes}, stages={"ppo": Stage("ppo", Metrics("iteration", rows))}),
        "ppo",
    )
    assert section
    return section.warnings


def test_the_tolerance_is_that_of_training() -> None:
    of = {str(dtype).removeprefix("torch."): error for dtype, error in policy_gradient.RATIO_TOLERANCE.items()}
    assert of == RATIO_TOLERANCE


@pytest.mark.parametrize(("precision", "warned"), [([], True), (["float32"], True), (["bfloat16"], False)])
def test_what_rounding_explains_depends_on_the_precision(precision: list[str], warned: bool) -> None:
    rows = [{"iteration": 1.0, "ratio_error": 0.2}]
    manifest = Manifest("ppo", None, {}, None, None, None, None, None, None, {}, precision)
    section = on_policy_health(
        Run(Path(), "run", stages={"ppo": Stage("ppo", Metrics("iteration", rows), manifest)}), "ppo"
    )
    assert section
    assert bool(section.warnings) == warned


def test_noise_around_a_small_kl_is_no_alarm() -> None:
    """log(π/π_ref) ~ N(μ, 2μ), the only normal distribution with E[π_ref/π] = 1."""
    random = Random(0)
    for _ in range(300):
        mean, episodes = 10 ** random.uniform(-4, 0), random.choice([1, 8, 64, 256])
        noise = math.sqrt(2 * mean / episodes)
        values = [random.gauss(mean, noise) for _ in range(60)]
        assert kl_warnings(values, episodes) == [], (mean, episodes)


def test_a_kl_that_cannot_be_is_found_in_noise() -> None:
    random = Random(1)
    for _ in range(100):
        values = [random.gauss(-0.05, 0.1) for _ in range(30)]
        assert len(kl_warnings(values, 64)) == 1
    assert kl_warnings([-0.14], 64) == []
    assert len(kl_warnings([-0.15], 64)) == 1  # 64 · 0.15 > −log 10⁻⁴ = 9.2
    assert len(kl_warnings([5.0, -0.15, 5.0], 64)) == 1  # what was above 0 before does not make up for it
    assert kl_warnings([-0.14, 5.0, -0.14], 64) == []


def test_dots_of_a_calibration_are_worth_their_effective_number() -> None:
    def whisker(effective: float) -> float:
        row = {"predicted": 0.7, "observed": 0.7, "n": 400.0, "effective_n": effective}
        chart = reliability("a", [row])
        assert chart
        y1, y2 = re.findall(r'whisker tone-blue"[^>]* y1="([\d.]+)" y2="([\d.]+)"', chart.svg)[0]
        return float(y1) - float(y2)

    (low, high), (wide_low, wide_high) = wilson(0.7, 400), wilson(0.7, 100)
    assert whisker(100) / whisker(400) == pytest.approx((wide_high - wide_low) / (high - low), rel=0.02)
