"""What a pass keeps, against a walk through the graph that it leaves; and the tokens that fit."""

from __future__ import annotations

import gc
import os
import platform
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import gemma2, gpt2, llama, policy, random_sequences

from prefloop.config import SFTConfig
from prefloop.models import footprint
from prefloop.models.footprint import Kept, budget_in, hand_back, kept, noting_budgets, room_on, token_budget
from prefloop.models.forward import arrange, hidden_states
from prefloop.models.precision import computing_in
from prefloop.training.loop import fitted
from prefloop.training.sft import train_sft

GIB = 2**30


def in_the_graph(model: Any, states: torch.Tensor) -> int:
    """Bytes of all tensors that the graph behind ``states`` names as saved, each storage once."""
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    seen, waiting = set(), [states.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        saved += list(getattr(node, "saved_tensors", ()))
        for value in saved:
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in own:
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        waiting += [following for following, _ in node.next_functions]
    return sum(found.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [llama, gpt2, gemma2])
def test_what_is_kept_is_what_the_graph_holds(make: Any, precision: Any) -> None:
    """For another number of sequences than those that were counted, of other lengths."""
    model = make(64, width=32, layers=3) if make is llama else make(64)
    model.train()
    rows = random_sequences(3, [(9, 11), (20, 7), (5, 14), (12, 16), (8, 8), (17, 13), (6, 21)], 64)
    with computing_in(precision):
        counted = kept(model, length=23)
        batch = arrange(rows, model)
        with torch.random.fork_rng():
            held = in_the_graph(model, hidden_states(model, batch))
    tokens = sum(map(len, rows)) if batch.layout else batch.ids.numel()
    assert counted.bytes(tokens) == pytest.approx(held, rel=0.15)


def test_only_casts_of_weights_are_there_whatever_the_tokens() -> None:
    model = llama(64, width=32, layers=3)
    products = sum(one.numel() for name, one in model.named_parameters() if "proj" in name)
    with computing_in("float32"):
        assert kept(model).fixed < 0.1 * products
    with computing_in("bfloat16"):
        assert kept(model).fixed == pytest.approx(2 * products, rel=0.2)


def test_twice_the_layers_keep_twice_as_much() -> None:
    two, four = (kept(llama(64, width=32, layers=layers)).per_token for layers in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [llama, gpt2, gemma2])
def test_counting_leaves_nothing_in_memory(make: Any, precision: Any) -> None:
    """What autograd keeps of an operation's own result can hold on to itself."""
    model, made = make(64), list[weakref.ref[Any]]()
    for module in model.modules():
        module.register_forward_hook(
            lambda _module, _given, found: made.append(weakref.ref(found)) if torch.is_tensor(found) else None
        )
    with computing_in(precision):
        kept(model)
    gc.collect()
    assert len(made) > 20
    assert not any(one() is not None for one in made)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = gpt2(resid_pdrop=0.5).eval()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        kept(model)
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("room", "per_token", "expected"),
    [(4 * GIB, 5e5, 4096), (4 * GIB, 1e6, 4096), (4 * GIB, 2e6, 2048), (GIB / 2, 3e7, 512), (1e15, 1e3, 4096)],
)
def test_the_budget_is_a_power_of_two_within_limits(room: float, per_token: float, expected: int) -> None:
    assert budget_in(room, Kept(per_token, 0.0)) == expected
    if 512 < expected < 4096:
        assert expected * per_token <= room < 2 * expected * per_token


def test_a_processor_is_given_no_more_than_makes_it_quicker() -> None:
    sizes = [GIB / 2, GIB, 2 * GIB, 64 * GIB]
    assert [room_on(torch.device("cpu"), size) for size in sizes] == [GIB / 8, GIB / 4, GIB / 4, GIB / 4]
    assert [room_on(torch.device("cuda"), size) for size in sizes] == [size / 4 for size in sizes]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that keeps what is free")
def test_memory_that_is_free_goes_back() -> None:
    pieces = [torch.ones(3_000) for _ in range(8_000)]  # 96 MB, each too small to be mapped by itself
    held = resident()
    walls = pieces[::50]
    del pieces
    kept_back = resident()
    hand_back()
    assert resident() < kept_back - 60e6
    assert kept_back > held - 30e6, "else there was nothing to hand back"
    assert len(walls) == 160


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_it_is_measured_once_a_shape_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(footprint, "_budgets", {})
    monkeypatch.setattr(footprint, "memory_of", lambda _: GIB)
    monkeypatch.setattr(footprint, "kept", lambda _: (asked.append(1), Kept(1e5, 0.0))[1])
    with noting_budgets() as found:
        assert [token_budget(llama()) for _ in range(2)] == [2048] * 2
        assert len(asked) == 1
        with computing_in("bfloat16"):
            token_budget(llama())
        token_budget(llama(layers=3))
    assert len(asked) == 3
    assert found == {2048}
    token_budget(llama())
    assert found == {2048}


def test_what_the_settings_say_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.training.loop.token_budget", lambda _: 1024)
    assert fitted(SFTConfig(), llama()).micro_batch_tokens == 1024
    assert fitted(SFTConfig(micro_batch_tokens=5), llama()).micro_batch_tokens == 5


def test_training_takes_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches are cut to it: more of them, and the same weights."""
    data, found = random_sequences(2, [(3, 5), (4, 6), (2, 7), (6, 3)]), []
    for budget in (8, 8192):
        monkeypatch.setattr("prefloop.training.loop.token_budget", lambda _, budget=budget: budget)
        trained = policy()
        passes: list[int] = []
        trained.model.base_model.register_forward_pre_hook(lambda *_, p=passes: p.append(1))
        with computing_in("float32"):
            train_sft(trained, data, [], SFTConfig(batch_size=4, epochs=1, max_grad_norm=1e9), 0, lambda _: None)
        found.append((len(passes), torch.cat([one.detach().flatten() for one in trained.model.parameters()])))
    (many, first), (few, second) = found
    assert many > few
    assert torch.allclose(first, second, atol=1e-5)
