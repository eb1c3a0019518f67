import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.demo import grammar, rewrites
from prefloop.demo.preference import (
    Parts,
    brevity,
    ideal_rewrite,
    mistakes,
    politeness,
    score,
    sense,
    utility,
)
from prefloop.feedback.records import Prompt

MESSAGE = "Dana, where is the budget? I need it by Friday, now."
IDEAL = "Hi Dana, could you please send me the budget by Friday? Thanks!"
COUNTED = "Wake up, Ben, you fool, I want 12 copies of the report by noon and stop whining."
RAMBLING = "Oh Rosa, it is one of those days again, anyway, cancel the workshop on Monday, but then who knows."


def prompts(seed, n=1000):
    return [*grammar.sample_prompts(n, "train", seed), *grammar.sample_prompts(n, "heldout", seed)]


# --- The best, and the order -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_ideal_rewrite_is_nearly_perfect_for_every_prompt(seed):
    for prompt in prompts(seed):
        assert utility(prompt.text, ideal_rewrite(prompt)) > 0.99, (prompt.text, ideal_rewrite(prompt))


def test_every_intent_and_form_has_its_ideal():
    for intent in grammar.INTENTS:
        for form in intent.forms:
            for time in grammar.TIMES:
                facts = grammar.Facts(
                    intent, "Umar", grammar.ITEMS[intent.items][-1], time, "60" if intent.amount else None
                )
                text = grammar.message(facts, form, "Quick, {name}, {core}", ".")
                assert utility(text, ideal_rewrite(Prompt.of(text))) > 0.99


ORDERED = ("ideal padded", "padded curt", "curt rude", "curt dropped", "rude changed", "dropped changed")


@pytest.mark.parametrize("seed", [1, 2])
def test_ideal_beats_padded_beats_curt_beats_rude_and_unfaithful(seed):
    rng = random.Random(seed)
    wins = dict.fromkeys(ORDERED, 0)
    asked = prompts(seed, 700)
    for prompt in asked:
        facts = grammar.read(prompt.text)
        value = {habit: utility(prompt.text, rewrites.demonstrate(facts, habit, rng)) for habit in rewrites.HABITS}
        value["ideal"] = utility(prompt.text, ideal_rewrite(prompt))
        for pair in wins:
            better, worse = pair.split()
            wins[pair] += value[better] > value[worse]
    shares = {pair: n / len(asked) for pair, n in wins.items()}
    assert shares.pop("ideal padded") == 1
    assert min(shares.values()) > 0.8, shares


def test_each_habit_is_on_average_worth_what_it_should_be():
    rng = random.Random(4)
    asked = prompts(4, 500)
    mean = {
        habit: statistics.mean(utility(p.text, rewrites.demonstrate(grammar.read(p.text), habit, rng)) for p in asked)
        for habit in rewrites.HABITS
    }
    order = ["good", "padded", "curt", "rude", "dropped", "changed"]
    assert sorted(mean, key=lambda habit: -mean[habit]) == order
    assert all(mean[a] - mean[b] > 0.05 for a, b in pairwise(order)), mean


# --- Hacks: each is an answer that a lazy optimiser would like, and what it may get at most ----------

HACKS = {
    "empty": ("", 0),
    "blank": (" \n\t ", 0),
    "punctuation": ("...!?!", 0),
    "one word": ("Thanks!", 0),
    "two words": ("Thank you!", 0),
    "courtesy alone": ("Hi Dana, could you please? Thanks!", 0.25),
    "nothing but please": ("please " * 12, 0.01),
    "nothing but thanks": ("Thanks! " * 8, 0.05),
    "the message again": (MESSAGE, 0.5),
    "all names": (" ".join(grammar.NAMES), 0.001),
    "all names, politely": (
        f"Hi {' '.join(grammar.NAMES)}, please send me the budget by Friday. Thanks!",
        0.001,
    ),
    "all items": (
        f"Hi Dana, please send me the {' '.join(grammar.FACT_WORDS['item'])} by Friday. Thanks!",
        0.001,
    ),
    "all verbs": ("Hi Dana, please send check print sign call fix return the budget by Friday. Thanks!", 0.2),
    "all days": ("Hi Dana, please send me the budget by Monday, Tuesday, Thursday, Friday. Thanks!", 0.3),
    "only the facts": ("Dana budget Friday send", 0.5),
    "facts with courtesies": ("Hi Dana please send budget Friday thanks", 0.8),
    "words in heaps": ("Thanks Friday budget the me send please you could Dana Hi", 0.1),
    "said twice": (f"{IDEAL} {IDEAL}", 0.5),
    "please again": ("Hi Dana, please, could you please please send me the budget by Friday? Thanks!", 0.9),
    "thanks again": (f"{IDEAL} Thank you! Many thanks! Thanks!", 0.9),
    "greeted again": (f"Hi Dana, hello Dana, dear Dana, {IDEAL[9:]}", 0.9),
    "rude": (f"Hi Dana, you lazy idiot, {IDEAL[9:]}", 0.7),
    "wrong name": (IDEAL.replace("Dana", "Rosa"), 0.4),
    "wrong item": (IDEAL.replace("budget", "report"), 0.4),
    "wrong time": (IDEAL.replace("Friday", "Monday"), 0.4),
    "no time": (IDEAL.replace(" by Friday", ""), 0.6),
    "no item": (IDEAL.replace("the budget", "it"), 0.6),
    "no request": (IDEAL.replace("send me ", ""), 0.6),
    "another request": (IDEAL.replace("send me", "sign"), 0.4),
    "a request too many": (IDEAL.replace("send me", "sign and send me"), 0.6),
    "a number made up": (IDEAL.replace("the budget", "12 copies of the budget"), 0.6),
    "an unknown number": (IDEAL.replace("the budget", "the budget 977"), 0.6),
    "noise after it": (f"{IDEAL} zxq vbn qwe rty uio asd fgh", 0.45),
    "emoji": (f"{IDEAL} {'🙂 ' * 20}", 0.3),
    "very long": (f"{IDEAL} {' '.join(rewrites.PADDING_AFTER * 3)}", 0.75),
}


@pytest.mark.parametrize("hack", HACKS)
def test_hacks_do_not_pay(hack):
    answer, most = HACKS[hack]
    assert utility(MESSAGE, IDEAL) == 1
    assert utility(MESSAGE, answer) <= most


@pytest.mark.parametrize("answer", ["", "  ", "?", "Thanks!", "please " * 30, "asdf qwer zxcv uiop"])
def test_a_degenerate_answer_is_near_zero_in_everything(answer):
    parts = score(MESSAGE, answer)
    assert max(parts.politeness, parts.brevity, parts.faithfulness) < 0.05


@pytest.mark.parametrize("message", [COUNTED, RAMBLING])
def test_copying_the_message_is_far_from_the_best(message):
    assert utility(message, message) < 0.45


# --- The parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("Hi Ben, please print 12 copies of the report by noon.", 0),
        ("Hi Ben, please print 12 copies of the report.", 1),
        ("Please print 12 copies of the report by noon.", 1),
        ("Hi Ben, please print copies of the report by noon.", 1),
        ("Hi Ben, please print 15 copies of the report by noon.", 2),
        ("Hi Ben, please print 120 copies of the report by noon.", 2),
        ("Hi Ben, please sign 12 copies of the report by noon.", 2),
        ("", 5),
    ],
)
def test_mistakes_are_counted_one_by_one(answer, count):
    assert mistakes(COUNTED, answer) == count
    assert score(COUNTED, answer).faithfulness == pytest.approx(sense(answer) * 0.6**count)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Send me the budget by Friday.", 0.4),
        ("Hi Dana, send me the budget by Friday.", 0.6),
        ("Hi Rosa, send me the budget by Friday.", 0.4),
        ("Please send me the budget by Friday.", 0.6),
        ("Could you send me the budget by Friday?", 0.6),
        ("Please send me the budget by Friday. Thanks!", 0.8),
        (IDEAL, 1.0),
        (f"{IDEAL} Thanks!", 0.85),
        ("Send me the budget by Friday, you fool.", 0.1),
        ("Hi Dana, you fool, could you please send me the budget? Thanks!", 0.25),
    ],
)
def test_politeness_by_example(answer, value):
    assert politeness(MESSAGE, answer) == pytest.approx(value)


def test_brevity_is_full_up_to_enough_and_falls_in_a_line():
    assert [brevity(n) for n in (5, 15, 30, 200)] == [1, 1, 0, 0]
    assert brevity(21) == pytest.approx(0.6)
    assert brevity(21) - brevity(22) == pytest.approx(brevity(28) - brevity(29))


def test_utility_weighs_the_parts_and_faithfulness_most():
    assert Parts(politeness=1, brevity=1, faithfulness=1).utility == pytest.approx(1)
    assert Parts(politeness=0.5, brevity=0.25, faithfulness=0.8).utility == pytest.approx(0.8 * (0.4 + 0.2 + 0.05))
    assert Parts(politeness=1, brevity=1, faithfulness=0).utility == 0
    assert Parts(politeness=0, brevity=0, faithfulness=1).utility == pytest.approx(0.4)


def test_every_demonstration_makes_sense():
    """What the grammar itself writes is never odd: its faults are counted by the other parts."""
    rng = random.Random(9)
    for prompt in prompts(9, 1500):
        answer = rewrites.write_demonstration(prompt, rng)
        assert sense(answer) == 1, answer


def test_another_way_of_asking_is_as_good():
    assert utility(MESSAGE, "Dear Dana, would you share the budget with me by Friday please? Thank you!") > 0.95
    assert utility(MESSAGE, "Hi Dana, could you kindly send me the budget by Friday? Thanks!") > 0.85


def test_case_and_spacing_do_not_matter():
    assert utility(MESSAGE, IDEAL.lower().replace(" ", "\n ")) == utility(MESSAGE, IDEAL)


# --- Any text ----------------------------------------------------------------------------------------

WORDS = sorted(
    {w for p in grammar.sample_prompts(300, "train", 0) for w in p.text.split()} | {*IDEAL.split(), "é", "12", "🙂"}
)
TEXTS = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))


@settings(max_examples=300, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_any_two_texts_have_a_score_between_0_and_1(prompt, answer):
    parts = score(prompt, answer)
    for value in (parts.politeness, parts.brevity, parts.faithfulness, parts.utility):
        assert 0 <= value <= 1
    assert score(prompt, answer) == parts


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=25))
def test_no_heap_of_known_words_comes_close_to_the_ideal(words):
    answer = " ".join(words)
    assert utility(MESSAGE, answer) < 0.9 or mistakes(MESSAGE, answer) == 0


def test_a_long_text_is_scored_quickly():
    assert utility(MESSAGE, "word " * 200_000) < 0.01
