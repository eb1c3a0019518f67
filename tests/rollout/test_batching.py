"""Rows that leave the batch and enter it, prompts that are read together, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.rollout.slow import EOS, PROMPTS, frequent_eos, many_prompts, rows, slow_sample
from tests.toys import gpt2, llama, naive_log_probs
from tests.zoo import make
from torch.utils._python_dispatch import TorchDispatchMode

from prefloop.models.heads import ValueHead
from prefloop.models.precision import computing_in
from prefloop.rollout import attention, decoder
from prefloop.rollout.decoder import Decoder
from prefloop.rollout.sampler import _uniforms, sample


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


def test_rows_that_have_ended_do_not_leave_the_models_context(entered: list[tuple[int, int]]) -> None:
    """A row that ended at the very last position waits for others to end, so that newcomers can take their places."""
    prompts = [[2 + place % 14 for place in range(start, start + 9)] for start in range(60)]
    model = frequent_eos(gpt2(16, n_positions=16))
    rollout = sample(model, prompts, eos_id=EOS, max_response_tokens=8, batch_size=8)
    assert len(entered) > 4
    assert {True, False} == set(rollout.ended.tolist())
