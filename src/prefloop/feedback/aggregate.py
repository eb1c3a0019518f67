"""Judgements become what training reads: votes and rankings of the answers of a prompt, and frozen snapshots.

All pairs of a prompt stay in one `Comparison`: shuffled among others, the C(K, 2) pairs of a ranking overfit
in a single pass (Ouyang et al. 2022, section 3.5). A tie counts one half for either side, as in
Bradley–Terry.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .records import BEST_ONLY, CANNOT_JUDGE, Completion, Judgement, Prompt, Split, content_id, content_id_of

if TYPE_CHECKING:  # a database need not be there for comparisons
    from .store import Store

_FORMAT = 1
"""The number of the snapshot's file format."""


@dataclass(frozen=True)
class Ranking:
    """What a judgement said about the answers of a prompt; or several, of the same content."""

    tiers: tuple[tuple[int, ...], ...]
    """Places of the answers, best tier first; those of one tier tie."""
    weight: float = 1.0
    """How many judgements it counts as."""
    strength: int = 0
    """How clear the preference of the best over the worst is, 1 to 4; 0 where that was not said."""
    margin: float = 0.0
    """By how much the best one's score should lead the worst one's, where that was said outright."""
    best_only: bool = False
    """Only the first tier was chosen; nothing was said about the order of the others."""


@dataclass(frozen=True)
class Comparison:
    """Everything that was said about the answers of one prompt."""

    prompt: Prompt
    texts: tuple[str, ...]
    """K ≥ 2 different texts, sorted."""
    completion_ids: tuple[str, ...]
    """For each text the completion that it came from; of several with the same text, the first by id."""
    wins: tuple[tuple[int, int, float], ...]
    """(i, j, votes for texts[i] over texts[j]), sorted, votes > 0. A tie is half a vote each way."""
    rankings: tuple[Ranking, ...] = ()
    """The judgements behind the votes, as places in ``texts``; empty where only the votes are known."""


def votes(judgement: Judgement) -> Iterator[tuple[str, str, float]]:
    """(winner, loser, votes) by completion id for each of the C(K, 2) pairs shown; a tie gives two halves.

    Whoever could not judge casts none.
    """
    if CANNOT_JUDGE in judgement.flags:
        return
    best_only = BEST_ONLY in judgement.flags
    ranked = zip(judgement.shown, judgement.ranks, strict=True)
    for (one, rank), (other, other_rank) in combinations(ranked, 2):
        if rank < other_rank:
            yield one, other, 1.0
        elif rank > other_rank:
            yield other, one, 1.0
        elif not best_only:
            yield one, other, 0.5
            yield other, one, 0.5


def tells_apart(judgement: Judgement, texts: Mapping[str, str]) -> bool:
    """Whether it casts a vote for one text over another; ``texts``: the answers' by completion id."""
    return any(texts[winner] != texts[loser] for winner, loser, _ in votes(judgement))


def comparisons(
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
    judgements: Iterable[Judgement],
    weights: Mapping[str, float] | None = None,
    judgement_weights: Mapping[str, float] | None = None,
) -> list[Comparison]:
    """One comparison for each prompt with at least one vote, in the order of the prompts' ids.

    ``judgements`` are effective ones (`Store.judgements`) of one criterion. A judgement counts as many votes
    as its annotator's weight times its own, by its id (each 1 where the mappings do not name it). Completions with
    the same text are one answer: a pair of them says nothing, and in a ranking its best place counts. The result does
    not depend on the order of the arguments.

    Raises ValueError for records that do not belong together, mixed criteria, and weights below 0 or not
    finite.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    answers = {completion.id: completion for completion in completions}
    weights, judgement_weights = checked_weights(weights or {}), checked_weights(judgement_weights or {})
    criteria: set[str] = set()
    # Votes are collected first and added exactly (fsum): a running sum would depend on their order.
    cast: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    said: dict[str, dict[_Said, list[float]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for judgement in judgements:
        criteria.add(judgement.criterion)
        _check_known(judgement, by_id, answers)
        weight = weights.get(judgement.annotator, 1.0) * judgement_weights.get(judgement.id, 1.0)
        for winner, loser, share in votes(judgement):
            better, worse = answers[winner].text, answers[loser].text
            if weight > 0 and better != worse:
                cast[judgement.prompt_id][better, worse].append(share * weight)
        tiers = _tiers(judgement, answers)
        if weight > 0 and sum(map(len, tiers)) > 1 and CANNOT_JUDGE not in judgement.flags:
            best_only = BEST_ONLY in judgement.flags and sum(map(len, tiers)) > 2
            said[judgement.prompt_id][tiers, judgement.strength or 0, best_only].append(weight)
            for key in judgement.shown:
                text = answers[key].text
                seen[judgement.prompt_id][text] = min(key, seen[judgement.prompt_id].get(text, key))
    if len(criteria) > 1:
        raise ValueError(f"judgements of several criteria do not add up: {', '.join(sorted(criteria))}; choose one")
    return [_comparison(by_id[key], seen[key], cast[key], said[key]) for key in sorted(cast)]


_Said = tuple[tuple[tuple[str, ...], ...], int, bool]
"""Texts, best tier first; strength; whether only the best was chosen."""


def _tiers(judgement: Judgement, answers: Mapping[str, Completion]) -> tuple[tuple[str, ...], ...]:
    rank: dict[str, int] = {}
    for key, place in zip(judgement.shown, judgement.ranks, strict=True):
        text = answers[key].text
        rank[text] = min(place, rank.get(text, place))
    return tuple(tuple(sorted(text for text in rank if rank[text] == place)) for place in sorted(set(rank.values())))


def _comparison(
    prompt: Prompt,
    seen: Mapping[str, str],
    cast: Mapping[tuple[str, str], list[float]],
    said: Mapping[_Said, list[float]],
) -> Comparison:
    texts = tuple(sorted(seen))
    place = {text: index for index, text in enumerate(texts)}
    wins = sorted((place[one], place[other], math.fsum(cast[one, other])) for one, other in cast)
    rankings = (
        Ranking(tuple(tuple(place[text] for text in tier) for tier in tiers), math.fsum(counts), strength, 0.0, best)
        for (tiers, strength, best), counts in sorted(said.items())
    )
    return Comparison(prompt, texts, tuple(seen[text] for text in texts), tuple(wins), tuple(rankings))


def checked_weights(weights: Mapping[str, float]) -> Mapping[str, float]:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name!r} is {weight}; expected a finite number, 0 or more")
    return weights


def _check_known(judgement: Judgement, prompts: Mapping[str, Prompt], answers: Mapping[str, Completion]) -> None:
    if judgement.prompt_id not in prompts:
        raise ValueError(f"judgement {judgement.id} is about prompt {judgement.prompt_id}, which was not given")
    for key in judgement.shown:
        if key not in answers:
            raise ValueError(f"judgement {judgement.id} shows completion {key}, which is missing")
        if answers[key].prompt_id != judgement.prompt_id:
            raise ValueError(f"judgement {judgement.id} shows completion {key}, which answers another prompt")


def said_key(judgement: Judgement, split: Split | None, texts: Sequence[str]) -> str:
    """Hash of what a judgement says: of a prompt with this split, and about these texts in the order shown."""
    return content_id(
        judgement.prompt_id,
        split,
        texts,
        judgement.ranks,
        judgement.annotator,
        judgement.source,
        judgement.strength,
        judgement.criterion,
        judgement.flags,
        judgement.reason,
    )


def snapshot_hash(criterion: str, keys: Iterable[str]) -> str:
    """Of a snapshot that says this; the keys in their order."""
    return content_id_of("snapshot", criterion, keys)


@dataclass(frozen=True)
class Snapshot:
    """Effective judgements of one criterion with what they are about, frozen: what a model was trained on.

    Each kind is in an order that follows from the content alone.
    """

    criterion: str
    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    judgements: tuple[Judgement, ...]

    @cached_property
    def hash(self) -> str:
        """128 bits, hexadecimal, of what was said: prompts with their splits, texts in the order shown,
        ranks, and who judged by which criterion, how strongly, with which flags and reason.

        The same for judgements that were given again: their ids, times, the order of insertion and the
        origins of the texts do not count.
        """
        return snapshot_hash(self.criterion, sorted(self._keys[judgement.id] for judgement in self.judgements))

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Judgement id → hash of what it says."""
        splits = {prompt.id: prompt.split for prompt in self.prompts}
        texts = {completion.id: completion.text for completion in self.completions}
        return {
            judgement.id: said_key(judgement, splits[judgement.prompt_id], [texts[key] for key in judgement.shown])
            for judgement in self.judgements
        }

    def comparisons(
        self, weights: Mapping[str, float] | None = None, judgement_weights: Mapping[str, float] | None = None
    ) -> list[Comparison]:
        """As `comparisons`, of this snapshot."""
        return comparisons(self.prompts, self.completions, self.judgements, weights, judgement_weights)

    def write(self, path: str | Path) -> None:
        """Write JSON lines: a header with the hash, then prompts, completions and judgements."""
        write_snapshot(Path(path), self)


class SnapshotLike(Protocol):
    """What a snapshot's file is made of; each kind in its order."""

    @property
    def hash(self) -> str: ...
    @property
    def criterion(self) -> str: ...
    @property
    def prompts(self) -> Iterable[Prompt]: ...
    @property
    def completions(self) -> Iterable[Completion]: ...
    @property
    def judgements(self) -> Iterable[Judgement]: ...


def write_snapshot(path: Path, frozen: SnapshotLike) -> None:
    """As `Snapshot.write`."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        header = {"snapshot": _FORMAT, "hash": frozen.hash, "criterion": frozen.criterion}
        file.write(json.dumps(header, ensure_ascii=False) + "\n")
        for name in _KINDS:
            for record in getattr(frozen, f"{name}s"):
                file.write(f'{{"{name}":{record.model_dump_json()}}}\n')


_KINDS: dict[str, type[Prompt | Completion | Judgement]] = {
    "prompt": Prompt,
    "completion": Completion,
    "judgement": Judgement,
}


def snapshot(store: Store, criterion: str, completion_ids: Collection[str] | None = None) -> Snapshot:
    """Freeze the effective judgements of a criterion, or only those that compare ``completion_ids``.

    A judgement that also shows a completion outside ``completion_ids`` is left out as a whole.
    """
    allowed = None if completion_ids is None else frozenset(completion_ids)
    judgements = [
        judgement
        for judgement in store.judgements(criterion)
        if allowed is None or allowed.issuperset(judgement.shown)
    ]
    asked = {judgement.prompt_id for judgement in judgements}
    shown = {key for judgement in judgements for key in judgement.shown}
    prompts = [prompt for prompt in store.prompts() if prompt.id in asked]
    completions = [completion for completion in store.completions(sorted(asked)) if completion.id in shown]
    return _ordered(criterion, prompts, completions, judgements)


def read_snapshot(path: str | Path) -> Snapshot:
    """Read what `Snapshot.write` wrote; ValueError when it is something else or its hash does not fit."""
    path = Path(path)
    found: dict[str, list[Any]] = {name: [] for name in _KINDS}
    with path.open("rb") as file:
        wanted, criterion = read_header(path, file.readline())
        for number, line in enumerate(file, start=2):
            name, record = read_line(path, number, line)
            found[name].append(record)
    try:
        made = _ordered(criterion, *found.values())
    except KeyError as error:
        raise missing_record(path, error.args[0]) from error
    check_hash(path, made.hash, wanted)
    return made


def read_header(path: Path, line: bytes) -> tuple[str, str]:
    """Hash and criterion in the first line of a snapshot."""
    try:
        header = json.loads(line)
        version, wanted, criterion = header["snapshot"], header["hash"], header["criterion"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a snapshot: its first line is not a header") from error
    if version != _FORMAT:
        raise ValueError(f"{path} is a snapshot of format {version}; this prefloop reads {_FORMAT}")
    return wanted, criterion


def read_line(path: Path, number: int, line: bytes) -> tuple[str, Any]:
    """The kind of record in a line of a snapshot, and the record."""
    name = line[2 : line.find(b'"', 2)].decode("ascii", "replace")
    if name in _KINDS and line.startswith(b'{"'):
        # As `Snapshot.write` has it, in half the time; what cannot be read like that is told below what it lacks.
        with suppress(ValueError):
            return name, _KINDS[name].model_validate_json(line.strip()[len(name) + 4 : -1], strict=False)
    try:
        ((name, fields),) = json.loads(line.decode()).items()
        return name, _KINDS[name].model_validate(fields, strict=False)
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}, line {number} is not a record of a snapshot: {error}") from error


def check_hash(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise ValueError(f"{path} was changed: its content has the hash {found}, its header says {wanted}")


def missing_record(path: Path, id: str) -> ValueError:
    return ValueError(f"{path} was changed: the prompt or completion {id!r} is missing")


def _ordered(
    criterion: str, prompts: list[Prompt], completions: list[Completion], judgements: list[Judgement]
) -> Snapshot:
    def by_id(record: Prompt | Completion) -> str:
        return record.id

    loose = Snapshot(criterion, tuple(prompts), tuple(completions), tuple(judgements))
    return Snapshot(
        criterion,
        tuple(sorted(prompts, key=by_id)),
        tuple(sorted(completions, key=by_id)),
        tuple(sorted(judgements, key=lambda judgement: (loose._keys[judgement.id], judgement.id))),
    )
