"""Forward passes: padding, micro-batches and heads change nothing about what the model itself says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import MODELS, gpt2, llama, naive_log_probs, random_sequences, response_log_probs
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from prefloop.chat import Rendered
from prefloop.models import forward
from prefloop.models.forward import (
    arrange,
    head_logits,
    hidden_states,
    in_parts,
    micro_batches,
    pack,
    pad,
    score_responses,
    token_parts,
    whole_parts,
)
from prefloop.models.packing import Stem, longest_packed

CPU = torch.device("cpu")
LLAMA = llama()
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
        found = head_logits(model, hidden_states(model, batch))
        expected = model(input_ids=batch.ids).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("layout", [pad, pack])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_line_05_neighbours_change_no_log_probability(layout: Any, temperature: float) -> None:
    """A batch of many against one row at a time through the model's own logits."""
    for name, make in MODELS.items():
        model = make()
        if layout is pack and not longest_packed(model):
            assert name == "gemma2", "attention with a soft cap is the model's own"
            continue
        sequences = answers_to_one_prompt(random_sequences(1, LENGTHS))
        with torch.no_grad():
            found = response_log_probs(model, layout(sequences, CPU), temperature)
        expected = [naive_log_probs(model, sequence, temperature) for sequence in sequences]
        torch.testing.assert_close(found, torch.cat(expected).float(), atol=2e-5, rtol=0)


def answers_to_one_prompt(sequences: list[Rendered]) -> list[Rendered]:
    """The sequences, and after the first one two more answers to its prompt."""
    first, *others = sequences
    asked = first.ids[: first.mask.index(True)]
    more = [
        Rendered(asked + other.ids[-3:], [False] * len(asked) + [True] * len(other.ids[-3:])) for other in others[:2]
    ]
    return [first, *more, *others]


@pytest.mark.parametrize("layout", [pad, pack])
def test_the_last_state_of_each_sequence_is_its_last_tokens(layout: Any) -> None:
    model, sequences = llama(), answers_to_one_prompt(random_sequences(1, LENGTHS))
    with torch.no_grad():
        batch = layout(sequences, CPU)
        found = hidden_states(model, batch)[batch.last]
        expected = [hidden_states(model, pad([one], CPU))[-1] for one in sequences]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)


def test_a_prompt_is_read_once_for_its_answers() -> None:
    sequences = answers_to_one_prompt(random_sequences(1, LENGTHS))
    batch = pack(sequences, CPU)
    first = LENGTHS[0][0]
    assert (
        sum(stem.prompt + sum(stem.branches) for stem in batch.layout.stems) == sum(map(len, sequences)) - 2 * first
    )
    assert batch.layout.stems[0] == Stem(first, (LENGTHS[0][1], 3, 3))
    assert batch.rows.tolist() == pad(sequences, CPU).rows.tolist()
    assert torch.equal(batch.targets, pad(sequences, CPU).targets)


def test_dropout_does_not_pass_for_an_architecture_that_cannot_be_packed() -> None:
    model = gpt2(attn_pdrop=0.5, resid_pdrop=0.5).train()
    state = torch.random.get_rng_state()
    assert longest_packed(model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 100, 257, 511, 512, 5000])
def test_rows_are_of_few_lengths(tokens: int) -> None:
    batch = pack(lengths_of([tokens]), CPU)
    lengths = {pack(lengths_of([other]), CPU).ids.numel() for other in range(256, 512)}
    assert tokens <= batch.ids.numel() <= tokens * 9 / 8
    assert len(lengths) <= 9


def test_sequences_of_one_length_stay_in_rows() -> None:
    model = llama()
    assert not arrange(random_sequences(0, [(3, 4)] * 5), model).layout
    assert arrange(random_sequences(0, LENGTHS), model).layout
    assert arrange(answers_to_one_prompt(random_sequences(0, [(3, 3)] * 5)), model).layout, "a prompt is shared"


@pytest.mark.parametrize("sizes", [[19], [4, 1, 14], [1] * 19])
def test_parts_change_no_gradient(sizes: list[int]) -> None:
    torch.manual_seed(0)
    trunk, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 5)
    inputs = torch.randn(19, 3)
    whole = head(trunk(inputs)).square().sum()
    expected = torch.autograd.grad(whole, [*trunk.parameters(), *head.parameters()])
    seen = []
    for part, place in in_parts(trunk(inputs), sizes, lambda states, place: (head(states).square().sum(), place)):
        part.backward()
        seen.append(place)
    assert [place.stop - place.start for place in seen] == sizes
    for slope, weight in zip(expected, [*trunk.parameters(), *head.parameters()], strict=True):
        torch.testing.assert_close(weight.grad, slope)


def test_parts_are_of_about_as_many_logits_as_they_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()  # 32 words
    monkeypatch.setattr(forward, "PART", 32 * 7)
    assert token_parts(model, 16) == [7, 7, 2]
    assert whole_parts(model, [3, 4, 1, 9, 2, 2]) == [[0, 1], [2], [3], [4, 5]]
    monkeypatch.setattr(forward, "PART", 32 * 512)
    assert token_parts(model, 1500) == [512, 512, 448, 28], "of few lengths"


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


@pytest.mark.parametrize("layout", [pad, pack])
def test_a_batch_says_what_is_predicted_from_where(layout: Any) -> None:
    batch = layout([Rendered([5, 6, 7], [False, True, True]), Rendered([8, 9], [False, True])], CPU)
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.ids.flatten()[batch.predicting].tolist() == [5, 6, 8]
    assert batch.ids.flatten()[batch.last].tolist() == [7, 9]


def lengths_of(lengths: Sequence[int]) -> list[Rendered]:
    return [Rendered([0] * length, [False] * (length - 1) + [True]) for length in lengths]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.booleans())
def test_micro_batches_hold_everything_once_and_fit(lengths: Sequence[int], max_tokens: int, packs: bool) -> None:
    groups = list(micro_batches(lengths_of(lengths), max_tokens, *([LLAMA] if packs else [])))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        own = [lengths[index] for index in group]
        assert (sum(own) if packs else len(own) * max(own)) <= max_tokens or len(group) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_padded_micro_batches_are_of_similar_length_and_as_large_as_they_may_be(
    lengths: Sequence[int], max_tokens: int
) -> None:
    groups = list(micro_batches(lengths_of(lengths), max_tokens))
    flat = [lengths[index] for group in groups for index in group]
    assert flat == sorted(lengths)
    for group, following in pairwise(groups):
        assert (len(group) + 1) * lengths[following[0]] > max_tokens


def test_packed_micro_batches_keep_a_prompts_answers_together() -> None:
    sequences = answers_to_one_prompt(random_sequences(1, LENGTHS))
    mixed = [sequences[i] for i in (3, 0, 4, 1, 5, 2, 6)]
    (group,) = micro_batches(mixed, 10_000, LLAMA)
    assert len(pack([mixed[i] for i in group], CPU).layout.stems) == len(LENGTHS)


def test_micro_batches_depend_on_the_sequences_alone() -> None:
    assert list(micro_batches(lengths_of([3, 3, 1, 3]), 6)) == [[2, 0], [1, 3]]


def test_dropout_of_a_model_in_training_is_felt() -> None:
    """Otherwise the tests of dropout being off would pass for models without any."""
    model = gpt2(resid_pdrop=0.5).train()
    batch = pad(random_sequences(0, LENGTHS), CPU)
    assert not torch.equal(response_log_probs(model, batch), response_log_probs(model, batch))
