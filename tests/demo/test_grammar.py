import os
import random
import statistics
import subprocess
import sys
from itertools import product

import pytest

from prefloop.demo import grammar, rewrites
from prefloop.demo.grammar import AMOUNTS, FACT_WORDS, INTENTS, ITEMS, NAMES, REGISTERS, TIMES, Facts

BY_INTENT = pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.name)
BY_SPLIT = pytest.mark.parametrize("split", ["train", "heldout"])
WRAPPERS = [(b, a) for befores, afters in REGISTERS.values() for b, a in product(befores, afters)]


def some_facts(intent):
    return Facts(intent, "Dana", ITEMS[intent.items][0], "Friday", "12" if intent.amount else None)


def neighbours(facts):
    """The facts with each slot, one at a time, at each of its values."""
    slots = {"name": NAMES, "item": ITEMS[facts.intent.items], "time": TIMES}
    if facts.amount:
        slots["amount"] = AMOUNTS
    for slot, values in slots.items():
        for value in values:
            yield Facts(**{**vars(facts), slot: value})


# --- Reading back, and with it the number of messages ------------------------------------------------


@BY_INTENT
def test_every_wording_of_every_value_is_read_back(intent):
    for facts in neighbours(some_facts(intent)):
        for form, (before, after) in product(intent.forms, WRAPPERS):
            assert grammar.read(grammar.message(facts, form, before, after)) == facts


@BY_INTENT
def test_the_wordings_of_the_same_facts_differ(intent):
    """With the test above: different facts give different texts, so no two messages are the same text."""
    facts = some_facts(intent)
    texts = [grammar.message(facts, form, *wrapper) for form, wrapper in product(intent.forms, WRAPPERS)]
    assert len(set(texts)) == len(texts) == 3 * (4 * 4 + 6 * 6 + 6 * 6)


@BY_SPLIT
def test_the_count_is_the_number_of_facts_times_the_number_of_wordings(split):
    said = [
        (form, name, item, time, amount)
        for intent in INTENTS
        for form in intent.forms
        for name, item, time in product(NAMES, ITEMS[intent.items], TIMES)
        for amount in (AMOUNTS if intent.amount else (None,))
        if (name in grammar.heldout_values(form, "name")) == (split == "heldout")
        if (item in grammar.heldout_values(form, "item")) == (split == "heldout")
    ]
    assert len(set(said)) == len(said)
    assert grammar.count_prompts(split) == len(said) * len(WRAPPERS) > 100_000


def test_cues_are_in_their_own_form_and_nowhere_else():
    cues = [cue for intent in INTENTS for cue in intent.cues]
    assert len(set(cues)) == len(cues)
    wrapped = {word for wrapper in WRAPPERS for text in wrapper for word in grammar.words(text)}
    facts = {word for known in FACT_WORDS.values() for word in known}
    assert not wrapped & set(cues)
    assert not facts & set(cues)
    for intent in INTENTS:
        for cue, form in zip(intent.cues, intent.forms, strict=True):
            assert set(grammar.words(form)) & set(cues) == {cue}


def test_fillers_say_nothing_that_a_rewrite_would_have_to_keep():
    wrapped = {word for wrapper in WRAPPERS for text in wrapper for word in grammar.words(text)}
    assert not wrapped & {word for known in FACT_WORDS.values() for word in known}
    assert not wrapped & {verb for intent in INTENTS for verb in intent.verbs}


def test_no_word_stands_for_two_facts():
    known = [word for words in FACT_WORDS.values() for word in words]
    assert len(set(known)) == len(known) == len(NAMES) + sum(map(len, ITEMS.values())) + len(TIMES) + len(AMOUNTS)


@pytest.mark.parametrize(
    "text",
    ["", "Hello", "Dana, send me the budget.", "Dana, order chairs by noon.", "send the budget by noon"],
)
def test_a_text_of_another_world_is_refused_by_name(text):
    with pytest.raises(ValueError, match="message"):
        grammar.read(text)


# --- Train and held out ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", grammar.INTENT_OF)
def test_the_splits_share_no_form_with_name_or_item(form):
    for slot, values in (("name", NAMES), ("item", ITEMS[grammar.INTENT_OF[form].items])):
        train = grammar.slot_values(form, slot, "train")
        held = grammar.slot_values(form, slot, "heldout")
        assert not set(train) & set(held)
        assert set(train) | set(held) == set(values)
        assert len(held) == max(1, len(values) // 4)


def test_every_name_and_item_occurs_in_training():
    for slot, row in (("name", NAMES), *(("item", items) for items in ITEMS.values())):
        seen = {v for form in grammar.INTENT_OF for v in grammar.slot_values(form, slot, "train")}
        assert set(row) <= seen


def form_of(text):
    """The form of a message, by its cue."""
    return next(word for word in grammar.words(text) if word in grammar.CUES)


def test_sampled_splits_keep_apart_what_belongs_apart_and_share_all_words():
    def said(prompts):
        return [(form_of(prompt.text), grammar.read(prompt.text)) for prompt in prompts]

    train, held = grammar.sample_prompts(8000, "train", 3), grammar.sample_prompts(2000, "heldout", 3)
    for slot in ("name", "item"):
        seen = {(form, getattr(facts, slot)) for form, facts in said(train)}
        assert not seen & {(form, getattr(facts, slot)) for form, facts in said(held)}
    words_seen = {word for prompt in train for word in grammar.words(prompt.text)}
    assert {word for prompt in held for word in grammar.words(prompt.text)} <= words_seen
    cues_seen = words_seen & set(grammar.CUES)
    assert cues_seen == set(grammar.CUES), "every sentence form has its own cue, so every form is in training"


# --- Sampling ----------------------------------------------------------------------------------------


@BY_SPLIT
def test_prompts_are_distinct_and_a_larger_sample_only_appends(split):
    prompts = grammar.sample_prompts(3000, split, 7)
    assert len({prompt.id for prompt in prompts}) == 3000
    assert {prompt.split for prompt in prompts} == {split}
    assert not any(prompt.metadata for prompt in prompts)
    assert grammar.sample_prompts(500, split, 7) == prompts[:500]
    assert grammar.sample_prompts(500, split, 8) != prompts[:500]


def test_sampling_does_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "import random; from prefloop.demo import grammar as g, rewrites as w;"
        "p = g.sample_prompts(50, 'heldout', 1); r = random.Random(2);"
        "print([(x.id, w.write_demonstration(x, r)) for x in p]);"
        "print(w.pretraining_text(20, 3))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 1000


def test_more_prompts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="heldout split"):
        grammar.sample_prompts(grammar.count_prompts("heldout"), "heldout", 0)


def test_registers_and_intents_come_up_evenly():
    prompts = grammar.sample_prompts(7000, "train", 5)
    for intent in INTENTS:
        n = sum(grammar.read(prompt.text).intent == intent for prompt in prompts)
        assert n == pytest.approx(500, abs=4 * 500**0.5)
    rude = sum(bool(set(grammar.words(p.text)) & grammar.RUDE_WORDS) for p in prompts)
    # a third are rude; 1 in 36 of these has no such word: "the last time" at the start and a plain end
    share = 35 / 36 / 3
    assert rude / 7000 == pytest.approx(share, abs=4 * (share * (1 - share) / 7000) ** 0.5)


def test_texts_are_short_and_the_vocabulary_is_small():
    rng = random.Random(11)
    prompts = grammar.sample_prompts(4000, "train", 11)
    answers = [rewrites.write_demonstration(prompt, rng) for prompt in prompts]
    asked = [len(prompt.text.split()) for prompt in prompts]
    assert statistics.median(asked) <= 16
    assert max(asked) <= 32
    assert statistics.median(len(answer.split()) for answer in answers) <= 16
    texts = [prompt.text for prompt in prompts] + answers
    assert len({word for text in texts for word in grammar.words(text)}) <= 450


@pytest.mark.parametrize("seed", [0, 1])
def test_messages_begin_and_end_like_sentences(seed):
    for prompt in grammar.sample_prompts(1000, "train", seed):
        assert prompt.text[0].isupper()
        assert prompt.text[-1] in ".!?"
        assert not set("{}") & set(prompt.text)
        assert "  " not in prompt.text
