"""Sampling against a slow sampler: no cache, one row, float64; and against the distribution itself."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tests.toys import MODELS, gpt2, llama, naive_log_probs
from tests.zoo import make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prefloop.models.heads import ValueHead
from prefloop.models.precision import computing_in
from prefloop.rollout import attention, decoder
from prefloop.rollout.batch import Rollout
from prefloop.rollout.decoder import Decoder
from prefloop.rollout.draw import draw
from prefloop.rollout.sampler import _uniforms, sample

EOS = 1
PROMPTS = [[5, 6, 7], [9], [3, 3, 8, 12, 4, 9, 2, 11, 6], [7, 5], [4, 4, 4, 4, 4]]


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return frequent_eos(MODELS[request.param](16))


def frequent_eos(model: Any) -> Any:
    """So that responses end at different lengths, and rows leave the batch: eos is likely whatever came before."""
    head = model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[EOS] = 1.0
    head.bias = torch.nn.Parameter(bias)
    return model


def slow_sample(
    model: Any, prompt: list[int], uniforms: np.ndarray[Any, Any], temperature: float, eos_id: int = EOS
) -> list[int]:
    """One row: the whole sequence through the model for every token, the distribution inverted by a loop."""
    ids: list[int] = []
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            cumulative = itertools.accumulate(torch.softmax(logits / temperature, 0).tolist())
            token = next(place for place, total in enumerate(cumulative) if uniform < total)
        ids.append(token)
        if token == eos_id:
            break
    return ids


def rows(rollout: Rollout) -> list[list[int]]:
    return [rollout.responses[row] for row in range(len(rollout))]


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


def many_prompts(count: int, seed: int) -> list[list[int]]:
    numbers = np.random.default_rng(seed)
    return [numbers.integers(2, 16, length).tolist() for length in numbers.integers(1, 20, count)]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of the cache after each time that rows entered."""
    seen, enter = [], Decoder.enter

    def watched(decoder: Decoder, *given: Any) -> None:
        enter(decoder, *given)
        seen.append((len(decoder.states), decoder._width))

    monkeypatch.setattr(Decoder, "enter", watched)
    return seen


@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize("answers", [1, 3])
def test_line_01_rows_that_enter_are_sampled_as_if_alone(
    model: Any, answers: int, spans: bool, entered: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if spans:
        monkeypatch.setattr(attention, "LEAST", 2)
        monkeypatch.setattr(attention, "APART", 2)
    prompts = many_prompts(24, seed=answers)
    rollout = sample(model, prompts, eos_id=EOS, max_response_tokens=12, seed=3, answers=answers, batch_size=7)
    expected = [
        slow_sample(model, prompt, _uniforms(3, prompt, answer, 12), 1.0)
        for prompt in prompts
        for answer in range(answers)
    ]
    assert rows(rollout) == expected
    for row, sequence in enumerate(rollout.sequences):
        found = rollout.log_probs[row][rollout.mask[row]].double()
        torch.testing.assert_close(found, naive_log_probs(model, sequence), atol=1e-4, rtol=0)
    assert len(entered) > 4
    assert max(count for count, _ in entered) <= 7


def test_in_bfloat16_keys_are_kept_as_they_are_multiplied() -> None:
    model = llama(16).eval()
    for precision, kept in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with computing_in(precision), torch.no_grad(), decoder.casting_once(model):
            rows_read = Decoder(model, PROMPTS[2:], 2)
            rows_read.advance(torch.tensor([3] * 6))
        assert {part.dtype for layer in rows_read._cache.layers for part in layer._kept} == {kept}


@pytest.mark.parametrize("answers", [1, 3])
def test_prompts_are_read_in_passes_of_so_many_tokens(
    model: Any, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that is how they would be sampled alone; a prompt that is longer has a pass to itself."""
    monkeypatch.setattr(decoder, "PASS", 15)
    prompts, read = many_prompts(24, seed=answers), list[tuple[int, int]]()
    options = {"max_response_tokens": 5, "seed": 4, "answers": answers, "batch_size": 18}
    with watching_passes(model, read):
        rollout = sample(model, prompts, eos_id=EOS, **options)
    assert rows(rollout) == [
        slow_sample(model, prompt, _uniforms(4, prompt, answer, 5), 1.0)
        for prompt in prompts
        for answer in range(answers)
    ]
    assert {count for count, length in read if length > 1} > {1, 2}
    assert max(count * length for count, length in read if count > 1 and length > 1) <= 15


@contextmanager
def watching_passes(model: Any, read: list[tuple[int, int]]) -> Iterator[None]:
    """Notes the shape of what the model reads."""
    hook = model.base_model.register_forward_pre_hook(
        lambda _model, _given, named: read.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


def test_what_keeps_more_than_columns_reads_all_its_prompts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cannot be put together there."""
    monkeypatch.setattr(decoder, "PASS", 15)
    model, read = make("mamba", True, 16), list[tuple[int, int]]()
    with watching_passes(model, read):
        sample(model, PROMPTS, eos_id=EOS, max_response_tokens=3)
    assert [(count, length) for count, length in read if count > 1] == [(5, 9), (5, 1), (5, 1)]


def test_the_cache_does_not_grow_with_the_number_of_prompts(entered: list[tuple[int, int]]) -> None:
    sample(frequent_eos(llama(16)), many_prompts(150, 0), eos_id=EOS, max_response_tokens=8, batch_size=6)
    assert len(entered) > 30
    assert max(columns for _, columns in entered) <= 19 + 8


@pytest.mark.parametrize("answers", [1, 3, 4])
def test_the_batch_is_full_again_whenever_rows_enter(answers: int, entered: list[tuple[int, int]]) -> None:
    """Also where fewer rows have ended than a prompt has answers: their room is not lost."""
    options = {"max_response_tokens": 8, "answers": answers, "batch_size": 12}
    sample(frequent_eos(llama(16)), many_prompts(100, 0), eos_id=EOS, **options)
    *before, _ = entered  # the last prompts may be too few
    assert len(before) > 10
    assert min(count for count, _ in before) > 12 - answers


@pytest.mark.parametrize("frozen", [False, True])
def test_in_bfloat16_weights_are_cast_once_and_numbers_stay_float32(frozen: bool) -> None:
    model, casts = llama(64), []
    shapes = {module.weight.shape for module in model.modules() if isinstance(module, torch.nn.Linear)}
    model.requires_grad_(not frozen)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, _types: Any, given: Any = (), options: Any = None) -> Any:
            if call is torch.ops.aten._to_copy.default and given[0].shape in shapes:
                casts.append(given[0].shape)
            return call(*given, **(options or {}))

    head = ValueHead(16)
    torch.nn.init.normal_(head.linear.weight)
    with computing_in("bfloat16"), Watch():
        rollout = sample(model, PROMPTS, eos_id=EOS, max_response_tokens=9, batch_size=2, value_head=head)
    assert len(casts) == sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert all(parameter.requires_grad != frozen for parameter in model.parameters())
    assert {t.dtype for t in (rollout.log_probs, rollout.entropy, rollout.values)} == {torch.float32}
    for row, sequence in enumerate(rollout.sequences):
        found = rollout.log_probs[row][rollout.mask[row]].double()
        torch.testing.assert_close(found, naive_log_probs(model, sequence), atol=0.1, rtol=0)
    # A distribution drawn from in bfloat16 would have log-probabilities of eight bits.
    assert not torch.equal(rollout.log_probs, rollout.log_probs.bfloat16().float())
    assert not torch.equal(rollout.values, rollout.values.bfloat16().float())


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


PROBABILITIES = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.2501, 3), (0.7499, 3), (0.7501, 4), (1 - 2**-53, 4)]
)
def test_line_01_draws_invert_the_distribution_and_never_take_the_impossible(uniform: float, token: int) -> None:
    tokens, log_probs, _ = draw(PROBABILITIES.log(), torch.tensor([uniform], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [token]
    assert float(log_probs) == pytest.approx(math.log(PROBABILITIES[0, token].item()))


@given(st.integers(0, 2**20), st.integers(2, 3000))
def test_line_01_no_uniform_falls_past_the_last_token(seed: int, vocabulary: int) -> None:
    logits: Tensor = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * 5
    highest = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    tokens, log_probs, _ = draw(logits, highest, 1.0)
    assert 0 <= int(tokens) < vocabulary
    assert bool(torch.isfinite(log_probs).all())


def test_greedy_draws_report_the_log_probability_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, log_probs, entropy = draw(logits, torch.tensor([0.9]), 0.0)
    expected = torch.log_softmax(logits[0], 0)
    assert tokens.tolist() == [1]
    assert float(log_probs) == pytest.approx(float(expected[1]))
    assert float(entropy) == pytest.approx(float(-(expected.exp() * expected).sum()))


@pytest.mark.parametrize("part", [2**22, 50_000])
@pytest.mark.parametrize("vocabulary", [7, 4096, 50_257, 150_000])
def test_line_01_draws_are_those_of_float64(vocabulary: int, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.rollout.draw.PART", part)
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(5, vocabulary, generator=generator) * 4
    logits[:, ::3] = -torch.inf
    uniforms = torch.rand(5, generator=generator, dtype=torch.float64)
    tokens, log_probs, entropy = draw(logits, uniforms, 0.7)
    expected = torch.log_softmax(logits.double() / 0.7, 1)
    cumulative = expected.exp().cumsum(1)
    reached, before = (cumulative.gather(1, (tokens - less)[:, None].clamp(min=0))[:, 0] for less in (0, 1))
    before *= tokens > 0
    assert bool(((before - 1e-7 <= uniforms) & (uniforms <= reached + 1e-7)).all())
    torch.testing.assert_close(log_probs.double(), expected.gather(1, tokens[:, None])[:, 0], atol=3e-6, rtol=0)
    torch.testing.assert_close(entropy.double(), torch.special.entr(expected.exp()).sum(1), atol=3e-6, rtol=0)


def test_rows_that_have_ended_do_not_leave_the_models_context(entered: list[tuple[int, int]]) -> None:
    """A row that ended at the very last position waits for others to end, so that newcomers can take their places."""
    prompts = [[2 + place % 14 for place in range(start, start + 9)] for start in range(60)]
    model = frequent_eos(gpt2(16, n_positions=16))
    rollout = sample(model, prompts, eos_id=EOS, max_response_tokens=8, batch_size=8)
    assert len(entered) > 4
    assert {True, False} == set(rollout.ended.tolist())
