"""The glue of the CartPole benchmark: rows, cut episodes, and that a few updates teach something."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from benchmarks.cartpole import (
    Act,
    Array,
    Batch,
    Networks,
    Outcome,
    Piece,
    Players,
    Settings,
    Tracker,
    evaluate,
    ppo,
    reinforce,
    table,
    update,
    with_bootstrap,
)

from prefloop.algorithms.gae import generalised_advantages

GAMMA, LAM = 0.9, 0.7


def balanced(states: Array) -> npt.NDArray[np.int64]:
    """Pushes towards the side that the pole falls to, a little more so away from the middle: never falls."""
    return np.asarray(states @ np.array([0.1, 0.2, 1.0, 1.0]) > 0, np.int64)


def left(states: Array) -> npt.NDArray[np.int64]:
    return np.zeros(len(states), np.int64)


@pytest.mark.parametrize("act", [left, balanced])
def test_advantages_are_those_of_a_slow_loop_over_the_transitions(act: Act) -> None:
    """Each transition by itself, as it comes; V(s′) wherever the pole did not fall, the limit of 500 included."""
    torch.manual_seed(0)
    networks = Networks()

    def value(state: Array) -> float:
        return float(networks.values(torch.from_numpy(state)).detach())

    transitions = []
    for i in range(2):
        env = gymnasium.make("CartPole-v1")
        state, _ = env.reset(seed=3 + i)
        for _ in range(510 if act is balanced else 25):
            next_state, reward, fallen, stopped, _ = env.step(int(act(state[None])[0]))
            transitions.append((i, state, float(reward), next_state, fallen, fallen or stopped))
            state = env.reset()[0] if fallen or stopped else next_state
    expected, advantage = [], 0.0
    for t in reversed(range(len(transitions))):
        i, state, reward, next_state, fallen, ended = transitions[t]
        goes_on = not ended and t + 1 < len(transitions) and transitions[t + 1][0] == i
        delta = reward + (0.0 if fallen else GAMMA * value(next_state)) - value(state)
        advantage = delta + (GAMMA * LAM * advantage if goes_on else 0.0)
        expected.append((state.tolist(), advantage, advantage + value(state)))

    players = Players(2, 3, Tracker())
    batch = Batch.of(players.play(act, len(transitions) // 2))
    with torch.no_grad():
        rewards = with_bootstrap(batch, networks.values(batch.next_states), GAMMA)
        values = networks.values(batch.states)
    advantages, returns = generalised_advantages(rewards, values, batch.mask, GAMMA, LAM)
    mask = batch.mask
    found = list(zip(batch.states[mask].tolist(), advantages[mask].tolist(), returns[mask].tolist(), strict=True))
    assert any(ended and not fallen for *_, fallen, ended in transitions) == (act is balanced)
    assert any(fallen for *_, fallen, _ in transitions) == (act is left)
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        assert one[0] == other[0]
        assert one[1:] == pytest.approx(other[1:], abs=1e-5)


def test_an_episode_goes_on_in_the_next_rollout() -> None:
    tracker = Tracker()
    players = Players(3, 0, tracker)
    parts = [players.play(left, 4) for _ in range(5)]
    assert tracker.steps == sum(len(piece.actions) for pieces in parts for piece in pieces) == 60
    ended = [piece for pieces in parts for piece in pieces if piece.next_state is None]
    assert len(ended) == len(tracker.last) > 0
    whole, alone = Players(3, 0, Tracker()), Tracker()
    for piece in whole.play(left, 20):
        if piece.next_state is None:
            alone.episode(float(len(piece.actions)))
    assert sorted(tracker.last) == sorted(alone.last)


def test_whole_episodes_one_for_each_environment() -> None:
    tracker = Tracker()
    pieces = Players(4, 7, tracker).play(left)
    assert len(pieces) == len(tracker.last) == 4
    assert sorted(len(piece.actions) for piece in pieces) == sorted(tracker.last)
    assert tracker.steps == sum(tracker.last)


def test_rows_are_padded_and_masked() -> None:
    def piece(length: int, end: float | None) -> Piece:
        states = [np.full(4, float(t), np.float32) for t in range(length)]
        next_state = None if end is None else np.full(4, end, np.float32)
        return Piece(states, [1] * length, [1.0] * length, next_state)

    batch = Batch.of([piece(2, None), piece(3, 9.0)])
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.rewards.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.goes_on.tolist() == [False, True]
    assert with_bootstrap(batch, torch.tensor([100.0, 4.0]), 0.5).tolist() == [[1, 1, 0], [1, 1, 3]]


def test_solved_is_when_a_hundred_episodes_have_a_mean_of_475() -> None:
    tracker = Tracker()
    for number in range(150):
        tracker.steps += 1
        tracker.episode(500.0 if number >= 30 else 0.0)
    assert tracker.solved == 30 + 95  # 95 of 100 at 500


def test_evaluation_is_of_a_hundred_episodes_that_a_seed_names() -> None:
    assert evaluate(balanced, 0) == 500.0
    assert evaluate(left, 0) == evaluate(left, 0) != evaluate(left, 1)
    assert evaluate(left, 0) < 12


def test_an_update_learns_what_pays() -> None:
    """Action 1 is followed by a long life, action 0 by a short one."""
    torch.manual_seed(0)
    networks = Networks()
    state = np.ones(4, np.float32)
    settings = Settings(1, 1, 8, 4, 1e-2, GAMMA, LAM, decay=False)
    batch = Batch.of([Piece([state], [a], [float(a)]) for a in (0, 1, 0, 1, 1, 0, 0, 1)])
    adam = torch.optim.Adam(networks.parameters(), lr=1e-2)
    for _ in range(10):
        figures = update(networks, adam, batch, settings, clip_range=0.2)
    likely = torch.softmax(networks.policy(torch.from_numpy(state)), 0)
    assert float(likely[1].detach()) > 0.9
    assert float(networks.values(torch.from_numpy(state)).detach()) == pytest.approx(0.5, abs=0.2)
    assert 0 < figures["entropy"] < math.log(2)


def test_both_learners_leave_a_fresh_policy_behind() -> None:
    """A fifteenth of what the benchmark takes: 100 random episodes have a mean of about 22."""
    settings = Settings(8, 32, 256, 10, 1e-3, gamma=0.98, lam=0.8, decay=True)
    assert ppo(0, settings, 7_000).score > 60
    assert reinforce(0, 7_000, learning_rate=1e-2).score > 60


def test_the_table_says_what_was_not_reached() -> None:
    found = {"prefloop": [Outcome(50_000, 500.0, 10.0), Outcome(math.inf, 400.0, 12.0)]}
    text = table(found, [4, 5], 100_000)
    assert "| 5 | not reached | 400.0 | 12.0 |" in text
    assert "| mean | 50,000; 1 not in 100,000 | 450.0 ± 635.3 | 11.0 ± 12.7 |" in text
    assert "| mean | 2 not in 100,000 |" in table({"prefloop": [Outcome(math.inf, 9.0, 1.0)] * 2}, [4, 5], 100_000)
