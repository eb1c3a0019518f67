"""Attention written out for bfloat16, against the formula; and the shapes of the calls that packed rows make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import gpt2, llama, random_sequences
from torch import Tensor

from prefloop.models import attention, packing
from prefloop.models.attention import written_out
from prefloop.models.forward import pack, pad, predicting_states
from prefloop.models.packing import Stem, few, grain, lay_out
from prefloop.models.precision import computing_in

CPU = torch.device("cpu")


def made(heads: int, shared: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values of three parts of 5 queries that see 9 places, some of which are hidden."""
    torch.manual_seed(heads)
    shapes = [(3, heads, 5, 8), (3, heads // shared, 9, 8), (3, heads // shared, 9, 6)]
    hidden = torch.zeros(3, 5, 9).masked_fill_(torch.rand(3, 5, 9) < 0.4, -torch.inf)
    hidden[:, :, 0] = 0  # everybody sees something
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes], hidden


def by_formula(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Head by head, with the keys repeated."""
    times = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(times, dim=1) for part in (key, value))
    scores = torch.einsum("nhld,nhmd->nhlm", query, key) * scale + hidden[:, None]
    return torch.einsum("nhlm,nhme->nhle", scores.softmax(3), value)


@pytest.mark.parametrize(("heads", "shared"), [(1, 1), (4, 1), (4, 2), (6, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("table", [1, 2**22])
def test_written_out_is_the_formula(
    heads: int,
    shared: int,
    dtype: torch.dtype,
    tolerance: float,
    parts: int,
    table: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "TABLE", table)
    inputs, hidden = made(heads, shared, dtype)
    hidden = hidden[:parts]  # of one for all parts, or one for each
    exact = [part.detach().float().requires_grad_() for part in inputs]
    found, expected = written_out(*inputs, hidden, 0.3), by_formula(*exact, hidden, 0.3)
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    slope = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, inputs, slope.to(dtype))
    for one, other in zip(gradients, torch.autograd.grad(expected, exact, slope), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("layout", [pack, pad])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_bfloat16_is_written_out_and_says_what_float32_says(
    make: Any, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make().eval()
    batch = layout(random_sequences(2, [(5, 3), (1, 9), (12, 1), (5, 6)]), CPU)
    asked: list[int] = []
    own = packing.written_out

    def noted(*args: Any) -> Tensor:
        asked.append(1)
        return own(*args)

    monkeypatch.setattr(packing, "written_out", noted)
    exact = predicting_states(model, batch).detach()
    assert not asked, "in float32 the kernel is as quick"
    with computing_in("bfloat16"):
        found = predicting_states(model, batch)
        assert asked
        found.float().sum().backward()
        asked.clear()
        monkeypatch.setattr(packing, "LONGEST", 0)
        kernels = predicting_states(model, batch).detach()
        assert not asked, "too many keys"
    for states in (found.detach(), kernels):
        assert 0 < float((states - exact).abs().max()) < 0.1 * float(exact.std())


@given(
    st.lists(
        st.builds(
            lambda prompt, branches: Stem(prompt, tuple(branches)),
            st.integers(1, 90),
            st.lists(st.integers(1, 90), max_size=3),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_calls_are_of_few_shapes_and_hold_every_token(stems: list[Stem]) -> None:
    layout = lay_out(stems, CPU)
    count = sum(stem.prompt + sum(stem.branches) for stem in stems)
    read = torch.cat([bucket.queries.flatten() for bucket in layout.buckets])
    assert read[layout.order].tolist() == list(range(count))
    for bucket in layout.buckets:
        parts, longest = bucket.queries.shape
        assert parts.bit_count() == 1
        assert longest == few(longest)
        assert bucket.keys.shape[1] - (0 if bucket.mask is None else longest) in {few(size) for size in range(1, 91)}
        seen = [len(set(row)) for row in bucket.keys.tolist()]
        assert max(seen) <= packing.WASTE * min(seen) + 8


@pytest.mark.parametrize("count", [*range(1, 40), 63, 64, 65, 1000, 5000])
def test_few_numbers_are_eight_between_powers_of_two(count: int) -> None:
    assert count <= few(count) <= count * 1.125
    assert few(few(count)) == few(count)
    assert few(count - count % grain(count)) == count - count % grain(count)
    power = 2 ** max(4, count.bit_length() - 1)
    assert len({few(one) for one in range(power + 1, 2 * power + 1)}) == 8
