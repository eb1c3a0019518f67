"""The parts under the page: which samples are shown, how texts are marked, how curves are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from prefloop.report.read import Sample
from prefloop.report.samples import at_random, compared, disagreement, select, visible
from prefloop.report.scale import duration, number, padded, rolling, thin, ticks, wilson
from prefloop.report.sections import find_peak

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
