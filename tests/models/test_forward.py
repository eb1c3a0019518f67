"""Forward passes: padding, micro-batches and heads change nothing about what the model itself says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import MODELS, gpt2, llama, naive_log_probs, random_sequences
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from prefloop.chat import Rendered
from prefloop.models.forward import (
    TokenBatch,
    head_logits,
    hidden_states,
    last_states,
    micro_batches,
    pad,
    predicting_states,
    response_log_probs,
    score_responses,
)

CPU = torch.device("cpu")
LENGTHS = [(5, 3), (1, 9), (12, 1), (2, 2), (7, 8)]


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


def cohere() -> Any:
    torch.manual_seed(0)
    return CohereForCausalLM(
        CohereConfig(vocab_size=32, **SMALL, logit_scale=0.25, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    )


def granite() -> Any:
    torch.manual_seed(0)
    return GraniteForCausalLM(
        GraniteConfig(vocab_size=32, **SMALL, logits_scaling=4.0, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    )


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize("make", [*MODELS.values(), cohere, granite], ids=[*MODELS, "cohere", "granite"])
def test_head_logits_are_the_models_own(make: Any) -> None:
    """A plain head, Gemma's soft cap, Cohere's scale, Granite's divisor."""
    model = make().eval()
    batch = pad(random_sequences(0, [(3, 7)]), CPU)
    with torch.no_grad():
        found = head_logits(model, hidden_states(model, batch)[0])
        expected = model(input_ids=batch.ids).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_line_05_padding_changes_no_log_probability(model: Any, temperature: float) -> None:
    """A batch of many against one row at a time through the model's own logits."""
    sequences = random_sequences(1, LENGTHS)
    with torch.no_grad():
        found = response_log_probs(model, pad(sequences, CPU), temperature)
    expected = [naive_log_probs(model, sequence, temperature) for sequence in sequences]
    torch.testing.assert_close(found, torch.cat(expected).float(), atol=2e-5, rtol=0)


def test_line_05_ids_at_padded_places_mean_nothing(model: Any) -> None:
    batch = pad(random_sequences(1, LENGTHS), CPU)
    other = TokenBatch(batch.ids.where(batch.attention, torch.tensor(7)), batch.attention, batch.response)
    assert not torch.equal(batch.ids, other.ids)
    with torch.no_grad():
        assert torch.equal(response_log_probs(model, batch), response_log_probs(model, other))


@pytest.mark.parametrize("max_tokens", [1, 20, 60, 10_000])
def test_line_14_micro_batches_change_no_score(model: Any, max_tokens: int) -> None:
    sequences = random_sequences(2, LENGTHS)
    found = score_responses(model, sequences, max_tokens)
    assert [len(values) for values in found] == [answered for _, answered in LENGTHS]
    for values, sequence in zip(found, sequences, strict=True):
        torch.testing.assert_close(values, naive_log_probs(model, sequence).float(), atol=1e-4, rtol=0)


def test_scoring_takes_no_gradients() -> None:
    assert not any(values.requires_grad for values in score_responses(llama(), random_sequences(0, LENGTHS), 64))


def test_several_answers_in_one_sequence_are_all_scored() -> None:
    model = llama()
    [sequence] = random_sequences(3, [(4, 6)])
    holed = Rendered(sequence.ids, [False, False, True, True, False, False, False, True, True, False])
    [found] = score_responses(model, [holed], 100)
    torch.testing.assert_close(found, naive_log_probs(model, holed).float(), atol=1e-5, rtol=0)


def test_a_batch_says_which_tokens_are_real_and_whose_they_are() -> None:
    batch = pad([Rendered([5, 6, 7], [False, True, True]), Rendered([8, 9], [False, True])], CPU)
    assert batch.attention.tolist() == [[True, True, True], [True, True, False]]
    assert batch.response.tolist() == [[False, True, True], [False, True, False]]
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.rows.tolist() == [0, 0, 1]


def test_states_that_predict_stand_one_place_before_their_tokens() -> None:
    batch = pad([Rendered([5, 6, 7], [False, True, True]), Rendered([8, 9], [False, True])], CPU)
    states = torch.arange(6.0).reshape(2, 3, 1)
    assert predicting_states(states, batch)[:, 0].tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], [3.0, 5.0, 8.0]),
        ([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], [3.0, 7.0, 11.0]),
        ([[0, 1, 1, 0]], [2.0]),
    ],
    ids=["padded right", "padded left", "both"],
)
def test_line_23_the_last_state_is_the_last_real_tokens(attention: list[list[int]], expected: list[float]) -> None:
    real = torch.tensor(attention, dtype=torch.bool)
    states = torch.arange(float(real.numel())).reshape(*real.shape, 1)
    batch = TokenBatch(torch.zeros_like(real, dtype=torch.long), real, real)
    assert last_states(states, batch)[:, 0].tolist() == expected


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_micro_batches_hold_everything_once_and_fit(lengths: Sequence[int], max_tokens: int) -> None:
    groups = list(micro_batches(lengths, max_tokens))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[index] for index in group)
        assert padded <= max_tokens or len(group) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_micro_batches_are_of_similar_length_and_as_large_as_they_may_be(
    lengths: Sequence[int], max_tokens: int
) -> None:
    groups = list(micro_batches(lengths, max_tokens))
    flat = [lengths[index] for group in groups for index in group]
    assert flat == sorted(lengths)
    for group, following in pairwise(groups):
        assert (len(group) + 1) * lengths[following[0]] > max_tokens


def test_micro_batches_depend_on_the_lengths_alone() -> None:
    assert list(micro_batches([3, 3, 1, 3], 6)) == [[2, 0], [1, 3]]


def test_dropout_of_a_model_in_training_is_felt() -> None:
    """Otherwise the tests of dropout being off would pass for models without any."""
    model = gpt2(resid_pdrop=0.5).train()
    batch = pad(random_sequences(0, LENGTHS), CPU)
    assert not torch.equal(response_log_probs(model, batch), response_log_probs(model, batch))
