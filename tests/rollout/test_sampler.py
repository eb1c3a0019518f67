"""Sampling against a slow sampler: no cache, one row, float64; and against the distribution itself."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tests.rollout.slow import EOS, PROMPTS, frequent_eos, rows, slow_sample
from tests.toys import llama, naive_log_probs

from prefloop.models.heads import ValueHead
from prefloop.rollout.sampler import _uniforms, sample


@pytest.mark.parametrize(("temperature", "answers"), [(1.0, 1), (0.7, 3), (0.0, 1)])
def test_line_01_samples_are_those_of_a_slow_sampler(model: Any, temperature: float, answers: int) -> None:
    rollout = sample(
        model,
        PROMPTS,
        eos_id=EOS,
        max_response_tokens=12,
        temperature=temperature,
        seed=4,
        answers=answers,
        batch_size=9,
    )
    expected = [
        slow_sample(model, prompt, _uniforms(4, prompt, answer, 12), temperature)
        for prompt in PROMPTS
        for answer in range(answers)
    ]
    assert rows(rollout) == expected
    assert rollout.prompts == [prompt for prompt in PROMPTS for _ in range(answers)]
    if temperature:
        assert len({len(response) for response in expected}) > 2  # rows did leave the batch at different times


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_line_01_samples_follow_the_softmax_of_the_logits_over_t(temperature: float, seed: int) -> None:
    """Chi-square over all responses of up to two tokens, 4,000 samples: p > 1e-5."""
    model, prompt, count = llama(5, initializer_range=0.2), [2, 3, 4], 4000
    rollout = sample(
        model,
        [prompt],
        eos_id=EOS,
        max_response_tokens=2,
        temperature=temperature,
        seed=seed,
        answers=count,
        batch_size=count,
    )
    found = Counter(tuple(ids) for ids in rows(rollout))

    def distribution(ids: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        return torch.softmax(logits / temperature, 0).tolist()

    first = distribution(prompt)
    expected = {(EOS,): first[EOS]}
    for token in set(range(5)) - {EOS}:
        second = distribution([*prompt, token])
        expected |= {(token, then): first[token] * second[then] for then in range(5)}
    assert sum(expected.values()) == pytest.approx(1.0)
    assert set(found) <= set(expected)
    observed = [found[response] for response in expected]
    assert min(expected.values()) * count > 4  # else the test's own approximation fails
    assert chisquare(observed, [p * count for p in expected.values()]).pvalue > 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_line_03_cached_log_probabilities_are_those_of_an_uncached_pass(model: Any, temperature: float) -> None:
    rollout = sample(
        model, PROMPTS, eos_id=EOS, max_response_tokens=12, temperature=temperature, seed=1, answers=2, batch_size=4
    )
    for row, sequence in enumerate(rollout.sequences):
        expected = naive_log_probs(model, sequence, temperature)
        found = rollout.log_probs[row][rollout.mask[row]].double()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_line_17_entropy_is_that_of_the_distribution_drawn_from(model: Any) -> None:
    rollout = sample(model, PROMPTS[:1], eos_id=EOS, max_response_tokens=6, temperature=0.7, seed=0)
    [sequence] = rollout.sequences
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence.ids])).logits[0].double() / 0.7
    for place, found in enumerate(rollout.entropy[0, : int(rollout.lengths[0])].tolist()):
        probabilities = torch.softmax(logits[len(PROMPTS[0]) - 1 + place], 0)
        assert found == pytest.approx(float(torch.special.entr(probabilities).sum()), abs=1e-4)


def test_values_are_those_of_the_states_before_each_token(model: Any) -> None:
    head = ValueHead(16)
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(head.linear.bias, 0.3)
    rollout = sample(
        model, PROMPTS, eos_id=EOS, max_response_tokens=10, seed=2, answers=2, batch_size=6, value_head=head
    )
    for row, (sequence, prompt) in enumerate(zip(rollout.sequences, rollout.prompts, strict=True)):
        with torch.no_grad():
            states = model.base_model(input_ids=torch.tensor([sequence.ids])).last_hidden_state[0]
            expected = head(states[len(prompt) - 1 : -1])
        torch.testing.assert_close(rollout.values[row][rollout.mask[row]], expected, atol=1e-4, rtol=0)
    assert not bool(rollout.values[~rollout.mask].any())


def test_without_a_value_head_values_are_zero() -> None:
    rollout = sample(llama(16), PROMPTS, eos_id=EOS, max_response_tokens=4)
    assert not bool(rollout.values.any())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_line_05_the_batch_a_sequence_lands_in_does_not_matter(model: Any, batch_size: int) -> None:
    options: dict[str, Any] = {"eos_id": EOS, "max_response_tokens": 12, "seed": 7}
    together = sample(model, PROMPTS, **options)
    backwards = sample(model, PROMPTS[::-1], batch_size=batch_size, **options)
    assert rows(backwards)[::-1] == rows(together)
    alone = sample(model, PROMPTS[2:3], **options)
    assert rows(alone) == rows(together)[2:3]
    torch.testing.assert_close(
        alone.log_probs[0][alone.mask[0]], together.log_probs[2][together.mask[2]], atol=1e-5, rtol=0
    )


def test_the_same_seed_gives_the_same_rollout_bit_for_bit_and_another_another() -> None:
    model = llama(16)
    first, again, other = (sample(model, PROMPTS, eos_id=EOS, max_response_tokens=8, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.log_probs, again.log_probs)
    assert rows(first) != rows(other)


def test_sampling_leaves_torchs_random_numbers_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sample(llama(16), PROMPTS, eos_id=EOS, max_response_tokens=4)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_prompt_that_comes_twice_gets_two_samples() -> None:
    model, prompt = llama(16), PROMPTS[0]
    options: dict[str, Any] = {"eos_id": EOS, "max_response_tokens": 10, "seed": 5}
    twice = sample(model, [prompt, PROMPTS[1], prompt], **options)
    assert rows(twice)[0] != rows(twice)[2]
    assert [rows(twice)[0], rows(twice)[2]] == rows(sample(model, [prompt], answers=2, **options))
    mixed = sample(model, [prompt, prompt], answers=2, **options)
    assert rows(mixed) == rows(sample(model, [prompt], answers=4, **options))
    assert len({tuple(ids) for ids in rows(mixed)}) == 4


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_k_answers_stand_in_the_order_of_the_prompts(batch_size: int) -> None:
    rollout = sample(llama(16), PROMPTS, eos_id=EOS, max_response_tokens=6, answers=3, batch_size=batch_size)
    assert rollout.prompts == [prompt for prompt in PROMPTS for _ in range(3)]
    assert len(rollout) == 15
    single = sample(llama(16), PROMPTS, eos_id=EOS, max_response_tokens=6)
    assert rows(rollout)[::3] == rows(single)


def test_line_06_a_response_ends_at_its_first_eos(model: Any) -> None:
    rollout = sample(model, PROMPTS, eos_id=EOS, max_response_tokens=12, seed=0, answers=8)
    assert {bool(ended) for ended in rollout.ended} == {True, False}
    for row, ended in enumerate(rollout.ended.tolist()):
        ids, length = rollout.responses[row], int(rollout.lengths[row])
        assert (ids[-1] == EOS) == ended
        assert EOS not in ids[:-1]
        assert ended or length == 12
        assert rollout.mask[row].tolist() == [True] * length + [False] * (rollout.mask.shape[1] - length)
    for field in (rollout.ids, rollout.log_probs, rollout.entropy, rollout.values):
        assert not bool(field[~rollout.mask].any())


def test_line_06_an_eos_as_the_last_allowed_token_ends_the_response() -> None:
    model = llama(16)
    free = sample(model, PROMPTS, eos_id=99, max_response_tokens=5, seed=3)
    last = int(free.ids[2, 4])
    assert last not in free.ids[2, :4].tolist()
    rollout = sample(model, PROMPTS[2:3], eos_id=last, max_response_tokens=5, seed=3)
    assert rollout.ended.tolist() == [True]
    assert rollout.lengths.tolist() == [5]


def test_a_response_without_eos_is_cut_off_and_says_so() -> None:
    rollout = sample(llama(16), PROMPTS, eos_id=99, max_response_tokens=5)
    assert rollout.ended.tolist() == [False] * 5
    assert rollout.lengths.tolist() == [5] * 5


def test_an_eos_whose_id_is_that_of_padding_still_ends_once() -> None:
    """Ids at padding are 0; with eos 0 they must not count."""
    rollout = sample(llama(5), [[2, 3]] * 20, eos_id=0, max_response_tokens=8)
    for row, ended in enumerate(rollout.ended.tolist()):
        ids = rollout.responses[row]
        assert ids.count(0) == int(ended)
        assert ended or len(ids) == 8


def test_the_batch_is_as_wide_as_its_longest_response() -> None:
    rollout = sample(frequent_eos(llama(16)), PROMPTS[:2], eos_id=EOS, max_response_tokens=60, seed=1)
    assert rollout.ids.shape[1] == int(rollout.lengths.max()) < 60


def test_greedy_answers_do_not_depend_on_the_seed() -> None:
    first, other = (
        sample(llama(16), PROMPTS, eos_id=EOS, max_response_tokens=8, temperature=0, seed=s) for s in (0, 1)
    )
    assert rows(first) == rows(other)


def test_line_04_the_sequences_of_a_rollout_are_its_very_ids() -> None:
    rollout = sample(llama(16), PROMPTS, eos_id=EOS, max_response_tokens=7, seed=2)
    for row, sequence in enumerate(rollout.sequences):
        response = rollout.ids[row][rollout.mask[row]].tolist()
        assert sequence.ids == PROMPTS[row] + response
        assert sequence.mask == [False] * len(PROMPTS[row]) + [True] * len(response)


def test_uniforms_depend_on_seed_prompt_and_index_and_nothing_else() -> None:
    made = [
        _uniforms(seed, prompt, answer, 50)
        for seed, prompt, answer in itertools.product((0, 1), ([2, 3], [3, 2], [2]), (0, 1))
    ]
    assert len({tuple(numbers) for numbers in made}) == len(made)
    assert _uniforms(0, [2, 3], 0, 50).tolist() == made[0].tolist()
    assert _uniforms(0, [2, 3], 0, 80)[:50].tolist() == made[0].tolist()  # a longer limit changes no start
    pooled = np.concatenate(made)
    assert 0 <= pooled.min() < pooled.max() < 1
    assert abs(pooled.mean() - 0.5) < 4 / math.sqrt(12 * len(pooled))
