import math
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from prefloop.feedback.records import Completion, Prompt
from prefloop.labelers.simulated import CREATED, PANEL, Annotator, assign, judge, left_probability

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def quality(_prompt, answer):
    """The true utility is written in the answer: "0.3 word word"."""
    return float(answer.split()[0])


def question(index, *answers):
    """A prompt and one completion for each (utility, words)."""
    prompt = Prompt.of(f"question {index}")
    texts = [f"{u:.4f}" + " word" * (n - 1) for u, n in answers]
    return prompt, [Completion(prompt_id=prompt.id, text=t, origin=f"writer {i}") for i, t in enumerate(texts)]


def outcomes(annotator, seed, n=3000, answers=None):
    """(did the left one win?, utilities, words) of n judgements of pairs, ties left out."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        pair = answers or [(rng.uniform(0, 0.3), int(rng.integers(3, 30))) for _ in range(2)]
        prompt, completions = question(index, *pair)
        given = judge(annotator, prompt, completions, quality, seed)
        texts = {c.id: c.text for c in completions}
        shown = [texts[key] for key in given.shown]
        if given.ranks != (1, 1):
            utilities, n_words = [quality("", t) for t in shown], [len(t.split()) for t in shown]
            rows.append((given.ranks == (1, 2), utilities, n_words))
    return rows


def formula(annotator, utilities, n_words):
    """Written out again, apart from the code."""
    eps = 1 - annotator.reliability
    relative = (n_words[0] - n_words[1]) / (n_words[0] + n_words[1])
    logit = (utilities[0] - utilities[1]) / annotator.temperature
    logit += annotator.length_bias * relative + annotator.position_bias
    return eps / 2 + (1 - eps) / (1 + math.exp(-logit))


ODD = Annotator("odd", reliability=0.8, temperature=0.2, length_bias=-1.5, position_bias=-0.7)


# --- Choices follow the formula ----------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("annotator", [*PANEL, ODD], ids=lambda a: a.name)
def test_choices_are_as_frequent_as_the_formula_says(annotator, seed):
    rows = outcomes(annotator, seed)
    p = np.array([formula(annotator, u, n) for _, u, n in rows])
    won = np.array([left for left, _, _ in rows])
    assert abs(won.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    # and not on average only: the worse-looking and the better-looking third, each for itself
    for part in np.array_split(np.argsort(p), 3):
        assert abs(won[part].sum() - p[part].sum()) < 4 * np.sqrt((p[part] * (1 - p[part])).sum())


def test_without_noise_the_better_one_always_wins():
    rows = outcomes(Annotator("exact", temperature=1e-7), 1)
    assert all(left == (u[0] > u[1]) for left, u, _ in rows if u[0] != u[1])


def test_left_probability_is_the_formula():
    for annotator in (*PANEL, ODD):
        for utilities, n_words in (([0.2, 0.5], [4, 9]), ([0.9, 0.1], [30, 3]), ([0.4, 0.4], [5, 5])):
            assert left_probability(annotator, utilities, n_words) == pytest.approx(
                formula(annotator, utilities, n_words)
            )
    assert left_probability(Annotator("sharp", temperature=1e-9), [0.0, 1.0], [1, 1]) == 0


@SEEDS
def test_biases_are_recovered_by_logistic_regression(seed):
    annotator = Annotator("a", temperature=0.15, length_bias=1.5, position_bias=0.8)
    rows = outcomes(annotator, seed, 6000)
    y = np.array([left for left, _, _ in rows])
    x = np.array([[u[0] - u[1], (n[0] - n[1]) / (n[0] + n[1]), 1.0] for _, u, n in rows])

    fit = minimize(lambda w: np.logaddexp(0, -np.where(y, 1, -1) * (x @ w)).sum(), np.zeros(3))
    p = expit(x @ fit.x)
    errors = np.sqrt(np.diag(np.linalg.inv((x.T * (p * (1 - p))) @ x)))
    assert np.all(np.abs(fit.x - [1 / 0.15, 1.5, 0.8]) < 4 * errors)
    assert np.all(errors < [0.6, 0.15, 0.1]), "the fit is too loose to prove anything"


@SEEDS
def test_who_clicks_at_random_is_right_half_the_time(seed):
    rows = outcomes(replace(PANEL[-1], position_bias=3.0, length_bias=3.0), seed, answers=[(0.0, 5), (0.9, 50)])
    right = sum(left == (u[0] > u[1]) for left, u, _ in rows)
    assert abs(right - len(rows) / 2) < 4 * math.sqrt(len(rows) / 4)
    assert abs(sum(left for left, _, _ in rows) - len(rows) / 2) < 4 * math.sqrt(len(rows) / 4)


@SEEDS
def test_the_order_shown_is_random_and_stored(seed):
    firsts = Counter()
    for index in range(2000):
        prompt, completions = question(index, (0.1, 5), (0.2, 5), (0.3, 5))
        given = judge(PANEL[0], prompt, completions, quality, seed)
        assert set(given.shown) == {c.id for c in completions}
        firsts[[c.id for c in completions].index(given.shown[0])] += 1
    assert all(abs(n - 2000 / 3) < 4 * math.sqrt(2000 * 2 / 9) for n in firsts.values())


def test_annotators_see_different_orders():
    prompt, completions = question(0, *[(0.1 * i, 5) for i in range(6)])
    assert len({judge(a, prompt, completions, quality, 0).shown for a in PANEL}) == len(PANEL)


# --- Rankings ----------------------------------------------------------------------------------------


@SEEDS
def test_rankings_of_three_follow_plackett_luce(seed):
    annotator = Annotator("a", temperature=0.5, reliability=0.7)
    answers, n = [(0.0, 5), (0.3, 5), (0.9, 5)], 6000
    seen = Counter()
    for index in range(n):
        prompt, completions = question(index, *answers)
        given = judge(annotator, prompt, completions, quality, seed)
        rank = dict(zip(given.shown, given.ranks, strict=True))
        seen[tuple(sorted(range(3), key=lambda i: rank[completions[i].id]))] += 1
    weight = [math.exp(u / 0.5) for u, _ in answers]
    for order in permutations(range(3)):
        luce = math.prod(weight[i] / sum(weight[j] for j in order[k:]) for k, i in enumerate(order))
        p = 0.3 / 6 + 0.7 * luce
        assert abs(seen[order] - n * p) < 4 * math.sqrt(n * p * (1 - p))


@SEEDS
def test_ties_are_called_within_the_margin_only_and_half_the_time(seed):
    annotator = Annotator("a", temperature=0.5, tie_margin=0.1)
    n = 2000
    near = n - len(outcomes(annotator, seed, n, answers=[(0.50, 5), (0.59, 9)]))
    far = n - len(outcomes(annotator, seed, n, answers=[(0.50, 5), (0.61, 9)]))
    assert abs(near - n / 2) < 4 * math.sqrt(n / 4)
    assert far == 0
    assert len(outcomes(replace(annotator, reliability=0.0), seed, n, answers=[(0.5, 5), (0.5, 9)])) == n


def test_ranks_are_dense_with_ties_of_several():
    annotator = Annotator("a", temperature=1e-6, tie_margin=0.01)
    seen = set()
    for index in range(400):
        prompt, completions = question(index, (0.1, 5), (0.5, 5), (0.5, 6), (0.9, 5))
        given = judge(annotator, prompt, completions, quality, 3)
        rank = dict(zip(given.shown, given.ranks, strict=True))
        seen.add(tuple(rank[c.id] for c in completions))
    assert seen == {(3, 2, 2, 1), (4, 3, 2, 1), (4, 2, 3, 1)}


@SEEDS
def test_a_stronger_preference_is_more_often_right(seed):
    rng, right, total = np.random.default_rng(seed), Counter(), Counter()
    annotator = Annotator("a", temperature=0.1, tie_margin=0.02)
    for index in range(3000):
        prompt, completions = question(index, (rng.uniform(0, 0.5), 5), (rng.uniform(0, 0.5), 5))
        given = judge(annotator, prompt, completions, quality, seed)
        if given.strength is None:
            assert given.ranks == (1, 1)
            continue
        best = max(completions, key=lambda c: quality("", c.text)).id
        total[given.strength] += 1
        right[given.strength] += given.shown[given.ranks.index(1)] == best
    assert set(total) == {1, 2, 3, 4}
    accuracy = [right[s] / total[s] for s in (1, 2, 3, 4)]
    assert accuracy == sorted(accuracy)
    assert accuracy[3] > 0.92 > 0.70 > accuracy[0] > 0.5


# --- The record --------------------------------------------------------------------------------------


def test_the_same_question_gets_the_same_record():
    prompt, completions = question(0, (0.1, 5), (0.2, 7), (0.3, 9))
    for annotator in PANEL:
        given = judge(annotator, prompt, completions, quality, 5)
        assert given == judge(annotator, prompt, completions[::-1], quality, 5)
        assert given.source == "simulated"
        assert given.annotator == annotator.name
        assert given.prompt_id == prompt.id
        assert given.created == CREATED


def test_whatever_makes_another_question_makes_another_id():
    prompt, completions = question(0, (0.1, 5), (0.2, 7), (0.3, 9))
    other, others = question(1, (0.1, 5), (0.2, 7))
    ids = [
        judge(PANEL[0], prompt, completions, quality, 5).id,
        judge(PANEL[0], prompt, completions, quality, 6).id,
        judge(PANEL[1], prompt, completions, quality, 5).id,
        judge(replace(PANEL[0], length_bias=1.0), prompt, completions, quality, 5).id,
        judge(PANEL[0], prompt, completions[:2], quality, 5).id,
        judge(PANEL[0], other, others, quality, 5).id,
    ]
    assert len(set(ids)) == len(ids)


def test_the_utility_sees_prompt_and_answer():
    seen = []
    prompt, completions = question(0, (0.1, 5), (0.2, 7))
    judge(PANEL[0], prompt, completions, lambda p, a: seen.append((p, a)) or 0.0, 0)
    assert sorted(seen) == sorted((prompt.text, c.text) for c in completions)


def test_reading_takes_as_long_as_reading_takes():
    def median_seconds(annotator, n_words):
        given = [judge(annotator, *question(i, (0.1, n_words), (0.2, n_words)), quality, 0) for i in range(300)]
        return float(np.median([j.seconds for j in given]))

    slow = Annotator("a", words_per_minute=120)
    assert median_seconds(slow, 59) == pytest.approx(1.5 + 60, rel=0.1)  # 2 · 59 words and the prompt's 2
    assert median_seconds(slow, 5) < median_seconds(slow, 20) < median_seconds(slow, 59)
    assert median_seconds(PANEL[-1], 20) < 4 < median_seconds(PANEL[0], 20)


def test_empty_answers_can_be_judged():
    prompt = Prompt.of("q")
    empty = [Completion(prompt_id=prompt.id, text="", origin=origin) for origin in "ab"]
    assert judge(PANEL[3], prompt, empty, lambda _p, _a: 0.0, 0).ranks in {(1, 2), (2, 1)}


def test_wrong_questions_are_refused():
    prompt, completions = question(0, (0.1, 5), (0.2, 7))
    with pytest.raises(ValueError, match="at least two"):
        judge(PANEL[0], prompt, completions[:1], quality, 0)
    with pytest.raises(ValueError, match="another prompt"):
        judge(PANEL[0], Prompt.of("else"), completions, quality, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("reliability", 1.1), ("reliability", -0.1), ("temperature", 0), ("words_per_minute", -1)],
)
def test_an_impossible_annotator_is_refused_by_field(field, value):
    with pytest.raises(ValueError, match=f"a: {field}"):
        Annotator("a", **{field: value})


# --- The panel and who judges what -------------------------------------------------------------------


def test_the_panel_has_the_usual_people():
    assert len({a.name for a in PANEL}) == len(PANEL) == 6
    assert all(a.name.startswith("sim-") for a in PANEL)
    assert sum(a.length_bias > 0 for a in PANEL) == sum(a.position_bias > 0 for a in PANEL) == 1
    assert sum(a.reliability == 0 for a in PANEL) == 1


@SEEDS
@pytest.mark.parametrize("overlap", [1, 2, 5, 6])
def test_each_item_goes_to_different_people_and_loads_are_even(seed, overlap):
    items = [f"pair {i}" for i in range(200)]
    given = list(assign(items, PANEL, overlap, seed))
    assert Counter(item for item, _ in given) == dict.fromkeys(items, overlap)
    assert len({(item, a.name) for item, a in given}) == len(given)
    load = Counter(a.name for _, a in given)
    assert max(load.values()) - min(load.values()) <= 1
    assert given == list(assign(items, PANEL, overlap, seed))
    if overlap < len(PANEL):
        assert given != list(assign(items, PANEL, overlap, seed + 1))


def test_everyone_meets_everyone_over_the_same_items():
    given = list(assign(range(200), PANEL, 2, 0))
    pairs = {frozenset(a.name for i, a in given if i == item) for item in range(200)}
    assert len(pairs) == 15


def test_an_overlap_that_cannot_be_is_refused():
    for overlap in (0, 7):
        with pytest.raises(ValueError, match=f"overlap = {overlap}"):
            list(assign([1], PANEL, overlap, 0))
    with pytest.raises(ValueError, match="same name"):
        list(assign([1], [PANEL[0], PANEL[0]], 1, 0))
