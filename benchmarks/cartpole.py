"""CartPole, solved by the functions that train language models: what docs/cartpole.md reports.

    python benchmarks/cartpole.py [--seeds 0 1 2 3] [--steps 100000] [--parts tuned default reinforce]

An action of CartPole takes the place of a token, an episode the place of a response: GAE, whitening, both clipped
losses and the log-probabilities are those of ``prefloop.algorithms``, unchanged. Beside them stands the PPO of
Stable-Baselines3, same settings, networks, number of steps and seeds (``pip install '.[bench]'``).

The functions take rows in which the state after the last action is worth nothing. A row here is an episode or a piece
of one; where it was cut (by the end of a rollout, or by the limit of 500 steps), γ·V(s′) is added to its last reward.
That is exact: δ_T = (r_T + γV(s′)) + γ·0 − V_T is what bootstrapping gives, and nothing behind T enters the sum.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from prefloop.algorithms.gae import generalised_advantages
from prefloop.algorithms.likelihood import token_entropy, token_log_probs
from prefloop.algorithms.masked import masked_whiten
from prefloop.algorithms.ppo import policy_loss, value_loss

GAME = "CartPole-v1"
SOLVED, EPISODES = 475.0, 100
"""Gymnasium's threshold: the mean return of as many episodes in a row."""

Array = npt.NDArray[np.float32]
Act = Callable[[Array], npt.NDArray[np.int64]]
"""States side by side to actions."""


@dataclass(frozen=True)
class Settings:
    """Those of PPO. Advantages are whitened and the entropy bonus is 0."""

    environments: int
    """Played side by side."""
    steps: int
    """Of each environment between two updates."""
    minibatch: int
    epochs: int
    learning_rate: float
    gamma: float
    lam: float
    decay: bool
    """Learning rate and clip range fall linearly to 0, or stay."""
    clip_range: float = 0.2
    value_coef: float = 1.0
    """Of ½(V − R)²; the baseline has no ½ and says 0.5."""
    max_grad_norm: float = 0.5


SETTINGS = {
    # Those that RL Baselines3 Zoo tuned for this game, and those that the baseline has without being told.
    "tuned": Settings(8, 32, 256, 20, 1e-3, gamma=0.98, lam=0.8, decay=True),
    "default": Settings(1, 2048, 64, 10, 3e-4, gamma=0.99, lam=0.95, decay=False),
}


class Outcome(NamedTuple):
    solved: float
    """Steps when the last 100 episodes of training first had a mean return of 475; infinite: never."""
    score: float
    """Mean return of 100 new episodes, the likeliest action taken."""
    seconds: float
    """Processor time of training, the playing included."""


@dataclass
class Tracker:
    """Watches training."""

    steps: int = 0
    solved: float = math.inf
    last: deque[float] = field(default_factory=lambda: deque(maxlen=EPISODES))

    def episode(self, score: float) -> None:
        self.last.append(score)
        if len(self.last) == EPISODES and np.mean(self.last) >= SOLVED:
            self.solved = min(self.solved, self.steps)


@dataclass
class Piece:
    """An episode, or a piece of one."""

    states: list[Array] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    next_state: Array | None = None
    """Where it went on; None where the pole fell."""


class Players:
    """Environments played side by side; an episode goes on from one call to the next."""

    def __init__(self, count: int, seed: int, tracker: Tracker) -> None:
        self.tracker = tracker
        self.environments = [gymnasium.make(GAME) for _ in range(count)]
        # As the baseline seeds them: both meet the same first states.
        self.states: list[Array] = [env.reset(seed=seed + i)[0] for i, env in enumerate(self.environments)]
        self.scores = [0.0] * count

    def play(self, act: Act, steps: int | None = None) -> list[Piece]:
        """Play ``steps`` in each environment; or, without that number, each to the end of its episode."""
        pieces: list[Piece] = []
        current = [Piece() for _ in self.environments]
        playing, played = list(range(len(current))), 0
        while playing and played != steps:
            played += 1
            self.tracker.steps += len(playing)
            for i, action in zip(playing, act(np.stack([self.states[i] for i in playing])).tolist(), strict=True):
                if self._step(i, action, current[i]):
                    pieces.append(current[i])
                    current[i] = Piece()
            if steps is None:
                playing = [i for i in playing if current[i].actions]
        for piece, state in zip(current, self.states, strict=True):
            if piece.actions:
                piece.next_state = state
                pieces.append(piece)
        return pieces

    def _step(self, i: int, action: int, piece: Piece) -> bool:
        """One action, added to ``piece``; true where the episode is over."""
        piece.states.append(self.states[i])
        piece.actions.append(action)
        self.states[i], reward, fallen, stopped, _ = self.environments[i].step(action)
        piece.rewards.append(float(reward))
        self.scores[i] += float(reward)
        if fallen or stopped:
            piece.next_state = None if fallen else self.states[i]
            self.tracker.episode(self.scores[i])
            self.scores[i] = 0.0
            self.states[i], _ = self.environments[i].reset()
        return fallen or stopped


@dataclass(frozen=True)
class Batch:
    """Pieces as rows (B), padded to the longest (R)."""

    states: Tensor
    """[B, R, 4]."""
    actions: Tensor
    """[B, R]."""
    rewards: Tensor
    """[B, R]."""
    mask: Tensor
    """[B, R]; true where something was done."""
    next_states: Tensor
    """[B, 4]; anything where the pole fell."""
    goes_on: Tensor
    """[B]; false where the pole fell."""

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Batch:
        lengths = torch.tensor([len(piece.actions) for piece in pieces])
        shape = (len(pieces), int(lengths.max()))
        mask = torch.arange(shape[1]) < lengths[:, None]
        states, actions, rewards = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        states[mask] = torch.from_numpy(np.concatenate([np.stack(piece.states) for piece in pieces]))
        actions[mask] = torch.tensor([action for piece in pieces for action in piece.actions])
        rewards[mask] = torch.tensor([reward for piece in pieces for reward in piece.rewards])
        ends = [piece.states[-1] if piece.next_state is None else piece.next_state for piece in pieces]
        goes_on = torch.tensor([piece.next_state is not None for piece in pieces])
        return cls(states, actions, rewards, mask, torch.from_numpy(np.stack(ends)), goes_on)


def with_bootstrap(batch: Batch, next_values: Tensor, gamma: float) -> Tensor:
    """Rewards [B, R] with γ·V(s′) added to the last of every row that was cut."""
    last = batch.mask.sum(1, keepdim=True) - 1
    return batch.rewards.scatter_add(1, last, (gamma * next_values * batch.goes_on)[:, None])


class Networks(nn.Module):
    """Two of them, two hidden layers of 64 each, started as the baseline starts its own."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = _network(2, 0.01), _network(1, 1.0)

    def values(self, states: Tensor) -> Tensor:
        found: Tensor = self.value(states)[..., 0]
        return found

    @torch.no_grad()
    def sample(self, states: Array) -> npt.NDArray[np.int64]:
        drawn = torch.softmax(self.policy(torch.from_numpy(states)), 1).multinomial(1)[:, 0]
        return np.asarray(drawn, np.int64)

    @torch.no_grad()
    def likeliest(self, states: Array) -> npt.NDArray[np.int64]:
        return np.asarray(self.policy(torch.from_numpy(states)).argmax(1), np.int64)


def _network(outputs: int, gain: float) -> nn.Sequential:
    layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
    for layer, size in zip(layers[::2], (math.sqrt(2), math.sqrt(2), gain), strict=True):
        nn.init.orthogonal_(layer.weight, size)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def ppo(seed: int, settings: Settings, total: int) -> Outcome:
    """PPO for ``total`` steps, a rollout begun being finished."""
    torch.manual_seed(seed)
    started, tracker, networks = time.process_time(), Tracker(), Networks()
    players = Players(settings.environments, seed, tracker)
    adam = torch.optim.Adam(networks.parameters(), eps=1e-5, fused=True)
    while tracker.steps < total:
        batch = Batch.of(players.play(networks.sample, settings.steps))
        left = 1 - tracker.steps / total if settings.decay else 1.0
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * max(left, 0.0)
        update(networks, adam, batch, settings, settings.clip_range * max(left, 0.0))
    seconds = time.process_time() - started
    return Outcome(tracker.solved, evaluate(networks.likeliest, seed), seconds)


def update(
    networks: Networks, adam: torch.optim.Optimizer, batch: Batch, settings: Settings, clip_range: float
) -> dict[str, float]:
    """Every epoch over one rollout; returns statistics of the last minibatch."""
    states, actions, mask = batch.states[batch.mask], batch.actions[batch.mask], batch.mask
    with torch.no_grad():
        old_log_probs = token_log_probs(networks.policy(states), actions)
        old_values = torch.zeros_like(batch.rewards).masked_scatter(mask, networks.values(states))
        rewards = with_bootstrap(batch, networks.values(batch.next_states), settings.gamma)
    advantages, returns = generalised_advantages(rewards, old_values, mask, settings.gamma, settings.lam)
    whitened, targets = masked_whiten(advantages, mask)[mask], returns[mask]
    figures = {}
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(states)).split(settings.minibatch):
            logits, values = networks.policy(states[rows]), networks.values(states[rows])
            losses, stats = policy_loss(
                token_log_probs(logits, actions[rows]), old_log_probs[rows], whitened[rows], clip_range
            )
            # The baseline does not clip values.
            errors = value_loss(values, old_values[mask][rows], targets[rows], math.inf)
            losses = losses + settings.value_coef * errors
            adam.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_(networks.parameters(), settings.max_grad_norm)
            adam.step()
            figures = {name: float(value.mean()) for name, value in stats.items()}
    with torch.no_grad():
        figures["entropy"] = float(token_entropy(networks.policy(states), 1.0).mean())
    return figures


def reinforce(seed: int, total: int, environments: int = 8, learning_rate: float = 3e-3) -> Outcome:
    """Rewards to go of whole episodes, whitened, and one step for each round of them [Williams 1992].

    Rewards to go are GAE without a critic: V = 0 and λ = 1; the gradient of the clipped loss at ratio 1 is that of
    −A log π. An episode stopped at 500 steps counts as one that ended there.
    """
    torch.manual_seed(seed)
    started, tracker, networks = time.process_time(), Tracker(), Networks()
    players = Players(environments, seed, tracker)
    adam = torch.optim.Adam(networks.policy.parameters(), lr=learning_rate, fused=True)
    while tracker.steps < total:
        batch = Batch.of(players.play(networks.sample))
        mask = batch.mask
        advantages, _ = generalised_advantages(batch.rewards, torch.zeros_like(batch.rewards), mask, 0.99, 1.0)
        log_probs = token_log_probs(networks.policy(batch.states[mask]), batch.actions[mask])
        losses, _ = policy_loss(log_probs, log_probs.detach(), masked_whiten(advantages, mask)[mask], 0.2)
        adam.zero_grad()
        losses.mean().backward()
        adam.step()
    seconds = time.process_time() - started
    return Outcome(tracker.solved, evaluate(networks.likeliest, seed), seconds)


def baseline(seed: int, settings: Settings, total: int) -> Outcome:
    """Stable-Baselines3's PPO."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    tracker = Tracker()

    class Watch(BaseCallback):  # type: ignore[misc, unused-ignore]
        def _on_step(self) -> bool:
            tracker.steps = self.num_timesteps
            for info in self.locals["infos"]:
                if "episode" in info:
                    tracker.episode(float(info["episode"]["r"]))
            return True

    def schedule(value: float) -> float | Callable[[float], float]:
        return (lambda left: left * value) if settings.decay else value

    started = time.process_time()
    learner = PPO(
        "MlpPolicy",
        make_vec_env(GAME, settings.environments, seed=seed),
        learning_rate=schedule(settings.learning_rate),
        n_steps=settings.steps,
        batch_size=settings.minibatch,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.lam,
        clip_range=schedule(settings.clip_range),
        vf_coef=settings.value_coef / 2,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        device="cpu",
    )
    learner.learn(total, callback=Watch())
    seconds = time.process_time() - started
    return Outcome(
        tracker.solved, evaluate(lambda states: learner.predict(states, deterministic=True)[0], seed), seconds
    )


def evaluate(act: Act, seed: int) -> float:
    """Mean return of 100 episodes, the same for every learner."""
    players = Players(EPISODES, 1_000_000 * (seed + 1), Tracker())
    players.play(act)
    return float(np.mean(players.tracker.last))


def table(found: dict[str, list[Outcome]], seeds: Sequence[int], total: int) -> str:
    """The figures as a Markdown table, a row for each seed, the mean and its 95 % interval (Student's t) below."""
    heads = [f"{name}: {what}" for name in found for what in ("steps to 475", "final return", "CPU seconds")]
    rows = [["seed", *heads], ["---"] * (len(heads) + 1)]
    for i, seed in enumerate(seeds):
        rows.append([str(seed)])
        for outcome in (outcomes[i] for outcomes in found.values()):
            steps = "not reached" if math.isinf(outcome.solved) else f"{outcome.solved:,.0f}"
            rows[-1] += [steps, f"{outcome.score:.1f}", f"{outcome.seconds:.1f}"]
    rows.append(["mean"])
    for outcomes in found.values():
        solved = [outcome.solved for outcome in outcomes]
        reached = [steps for steps in solved if math.isfinite(steps)]
        said = [_mean(reached, ",.0f")] if reached else []
        if len(reached) < len(solved):
            said.append(f"{len(solved) - len(reached)} not in {total:,}")
        rows[-1] += [
            "; ".join(said),
            _mean([outcome.score for outcome in outcomes], ".1f"),
            _mean([outcome.seconds for outcome in outcomes], ".1f"),
        ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _mean(values: Sequence[float], form: str) -> str:
    if len(values) < 2:
        return f"{values[0]:{form}}"
    half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{np.mean(values):{form}} ± {half:{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--steps", type=int, default=100_000, help="of training")
    parser.add_argument("--parts", nargs="+", default=[*SETTINGS, "reinforce"], choices=[*SETTINGS, "reinforce"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts:
        found: dict[str, list[Outcome]] = {}
        for seed in options.seeds:  # learners by turns, so that what else the machine does slows all of them down
            if part == "reinforce":
                found.setdefault("prefloop", []).append(reinforce(seed, options.steps))
                continue
            for name, learn in (("prefloop", ppo), ("SB3", baseline)):
                found.setdefault(name, []).append(learn(seed, SETTINGS[part], options.steps))
        print(f"\n{part}, {options.steps:,} steps\n\n{table(found, options.seeds, options.steps)}", flush=True)


if __name__ == "__main__":
    main()
