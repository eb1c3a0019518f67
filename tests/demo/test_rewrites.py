import random
import statistics

import pytest

from prefloop.demo import grammar, rewrites
from prefloop.demo.grammar import FACT_WORDS, REGISTERS
from prefloop.demo.preference import mistakes, score
from prefloop.demo.rewrites import HABITS
from prefloop.feedback.records import Prompt

ENDS = tuple(after for _, afters in REGISTERS.values() for after in afters if len(after) > 1)
"""How messages end, and rewrites do not."""


def test_the_odds_of_the_habits_are_odds():
    assert sum(HABITS.values()) == pytest.approx(1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_demonstrations_show_each_virtue_often_and_all_together_seldom(seed):
    rng = random.Random(seed)
    prompts = grammar.sample_prompts(3000, "train", seed)
    parts = [score(prompt.text, rewrites.write_demonstration(prompt, rng)) for prompt in prompts]

    def share(test):
        return sum(map(test, parts)) / len(parts)

    assert share(lambda p: p.politeness > 0.9) == pytest.approx(0.56, abs=0.05)
    assert share(lambda p: p.brevity > 0.9) == pytest.approx(0.64, abs=0.05)
    assert share(lambda p: p.faithfulness > 0.9) == pytest.approx(0.83, abs=0.04)
    assert 0.11 < share(lambda p: p.utility > 0.97) < 0.18
    assert 0.75 < statistics.mean(p.utility for p in parts) < 0.83


MISTAKES_OF = {"good": {0}, "padded": {0}, "curt": {0}, "rude": {0}, "dropped": {1}, "changed": {2}}


@pytest.mark.parametrize("habit", HABITS)
def test_each_habit_makes_its_own_mistakes_and_no_others(habit):
    rng = random.Random(habit)
    prompts = grammar.sample_prompts(1500, "train", 13)
    answers = [rewrites.demonstrate(grammar.read(prompt.text), habit, rng) for prompt in prompts]
    assert {mistakes(p.text, a) for p, a in zip(prompts, answers, strict=True)} == MISTAKES_OF[habit]
    rude = [bool(grammar.RUDE_WORDS & set(grammar.words(answer))) for answer in answers]
    assert all(rude) if habit == "rude" else not any(rude)
    lengths = [len(answer.split()) for answer in answers]
    assert min(lengths) > 17 if habit == "padded" else max(lengths) <= (40 if "ed" in habit else 16)
    assert all(answer[0].isupper() and answer[-1] in ".!?" for answer in answers)


def test_pretraining_text_says_one_thing_several_times_in_forms_of_the_training_split():
    documents = rewrites.pretraining_text(1500, 17)
    assert documents == rewrites.pretraining_text(1500, 17)
    checked = 0
    for document in documents:
        sayings = document.split("\n")
        assert len(sayings) == rewrites.SAYINGS
        names = {tuple(w for w in grammar.words(text) if w in FACT_WORDS["name"]) for text in sayings}
        assert len(names) == 1, "every saying keeps the name"
        for text in sayings:
            cues = [word for word in grammar.words(text) if word in grammar.CUES]
            wrapped = text.endswith(ENDS)
            if cues and wrapped:  # a message, not a rewrite
                form = next(f for f in grammar.INTENT_OF if cues[0] in grammar.words(f))
                facts = grammar.read(text)
                assert facts.name in grammar.slot_values(form, "name", "train")
                assert facts.item in grammar.slot_values(form, "item", "train")
                checked += 1
    assert checked > 1000


def test_a_demonstration_needs_nothing_but_the_text():
    assert rewrites.write_demonstration(
        Prompt.of("Dana, where is the budget? I need it by Friday."), random.Random(1)
    )
