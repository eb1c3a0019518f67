"""Which answers are shown, and how a model's text becomes HTML that cannot do anything.

The selection is honest by construction: prompts in the order of their hash (nobody chose them), wins, ties
and losses in their true proportion; and beside it the worst of each kind, labelled as such.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from prefloop.report.read import VERDICTS, Sample

SHOWN = 1_200  # characters of an answer before the rest is folded away
MOST = 20_000  # characters of an answer that enter the page at all
LITTLE_IN_COMMON = 0.25  # below this, marks would cover nearly all of both answers
MOST_WORDS = 2_500  # above this, comparing two answers word by word costs more than it tells
Pieces = list[tuple[str, bool]]  # (text, whether the other answer lacks it)


@dataclass(frozen=True)
class Group:
    title: str
    caption: str
    samples: list[Sample]


def select(samples: Sequence[Sample], limit: int) -> list[Group]:
    """At most `limit` samples in three groups; no sample stands in two of them."""
    special = limit // 5
    drawn = at_random(samples, limit - 2 * special)
    taken = {id(sample) for sample in drawn}
    worst = _top(samples, taken, _loss, special)
    taken |= {id(sample) for sample in worst}
    fooled = _top(samples, taken, disagreement(samples), special)
    groups = [
        Group(
            "Drawn at random",
            f"{len(drawn)} of {len(samples)} held-out prompts, chosen by a hash of the text, with wins, ties "
            "and losses in their true proportion.",
            drawn,
        ),
        Group(
            "Biggest losses",
            "The answers that fell furthest below the ones before training. Chosen because they are bad.",
            worst,
        ),
        Group(
            "Where the learned reward was wrong",
            "The learned reward and the judge disagree most about the change. This is where training is "
            "pulled in the wrong direction.",
            fooled,
        ),
    ]
    return [group for group in groups if group.samples]


def at_random(samples: Sequence[Sample], wanted: int) -> list[Sample]:
    """Stratified by verdict (largest remainders), in each stratum the first by hash; in hash order."""
    wanted = min(wanted, len(samples))
    if not wanted:
        return []
    ordered = sorted(samples, key=_hash)
    strata = {verdict: [s for s in ordered if s.verdict == verdict] for verdict in VERDICTS}
    exact = {verdict: wanted * len(strata[verdict]) / len(samples) for verdict in VERDICTS}
    quota = {verdict: math.floor(exact[verdict]) for verdict in VERDICTS}
    by_remainder = sorted(VERDICTS, key=lambda v: (quota[v] - exact[v], VERDICTS.index(v)))
    for verdict in by_remainder[: wanted - sum(quota.values())]:
        quota[verdict] += 1
    chosen = [sample for verdict in VERDICTS for sample in strata[verdict][: quota[verdict]]]
    return sorted(chosen, key=_hash)


def _hash(sample: Sample) -> str:
    text = f"{sample.prompt}\0{sample.before}\0{sample.after}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _top(
    samples: Iterable[Sample], taken: set[int], score: Callable[[Sample], float | None], wanted: int
) -> list[Sample]:
    """The `wanted` samples of highest positive score that are not taken yet."""
    scored = [(value, s) for s in samples if id(s) not in taken and (value := score(s)) is not None]
    ranked = sorted(((v, s) for v, s in scored if v > 0), key=lambda pair: (-pair[0], _hash(pair[1])))
    return [sample for _, sample in ranked[:wanted]]


def change(before: float | None, after: float | None) -> float | None:
    if before is None or after is None or not math.isfinite(after - before):
        return None
    return after - before


def _loss(sample: Sample) -> float | None:
    difference = change(sample.true_before, sample.true_after)
    return None if difference is None or sample.verdict != "loss" else -difference


def disagreement(samples: Sequence[Sample]) -> Callable[[Sample], float | None]:
    """How far apart learned and judged change are, in their own spreads; nothing where both agree in sign."""

    def spread(values: list[float]) -> float:
        return math.sqrt(sum(v * v for v in values) / len(values)) if values else 0.0

    learned = [d for s in samples if (d := change(s.learned_before, s.learned_after)) is not None]
    judged = [d for s in samples if (d := change(s.true_before, s.true_after)) is not None]
    learned_spread, judged_spread = spread(learned), spread(judged)

    def score(sample: Sample) -> float | None:
        a = change(sample.learned_before, sample.learned_after)
        b = change(sample.true_before, sample.true_after)
        if a is None or b is None or a * b >= 0:
            return None
        return abs(a / learned_spread - b / judged_spread)

    return score


# Invisible or reordering characters: bidi controls, zero-width signs, tags, other controls and formats, lone
# surrogates, private use. The joiners U+200C and U+200D stay, for emoji and several scripts are made of them.
_KEPT = {"\n", "\t", "\u200c", "\u200d", "\u00ad"}


def _is_hidden(character: str) -> bool:
    if character in _KEPT:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def visible(text: str) -> Markup:
    """Escaped text in which every control character is spelled out, such as U+202E."""
    written: list[str] = []
    plain: list[str] = []
    for character in text.replace("\r\n", "\n"):
        if not _is_hidden(character):
            plain.append(character)
            continue
        written += [escape("".join(plain)), _spelled(character)]
        plain = []
    return Markup("").join([*written, escape("".join(plain))])


def _spelled(character: str) -> Markup:
    name = unicodedata.name(character, "control character")
    return Markup('<span class="control" title="{}">U+{:04X}</span>').format(name, ord(character))


@dataclass(frozen=True)
class Answer:
    """One text ready for the page: what is shown, what is folded away, what did not fit at all."""

    head: Markup
    rest: Markup
    folded: int
    left_out: int


def compared(before: str, after: str) -> tuple[Answer, Answer]:
    """Both answers with the words marked that the other one lacks."""
    first, second = words(before[:MOST]), words(after[:MOST])
    if len(first) + len(second) > MOST_WORDS:
        old, new = [(before[:MOST], False)], [(after[:MOST], False)]
    else:
        old, new = difference(first, second)
    return _answer(old, "del", before), _answer(new, "ins", after)


def folded(text: str) -> Answer:
    """A text on its own, without marks."""
    return _answer([(text[:MOST], False)], "", text)


def words(text: str) -> list[str]:
    """Words and signs, each with the space before it."""
    return re.findall(r"\s*(?:\w+|[^\w\s])|\s+$", text)


def difference(first: list[str], second: list[str]) -> tuple[Pieces, Pieces]:
    """Which stretches only the first has, and which only the second. Little in common: nothing is marked."""
    matcher = difflib.SequenceMatcher(None, _keys(first), _keys(second), autojunk=False)
    old: Pieces = []
    new: Pieces = []
    for operation, a, b, c, d in matcher.get_opcodes():
        # A lone sign between two changed stretches is no agreement worth showing.
        marked = operation != "equal" or (b - a == 1 and not first[a].strip().isalnum())
        if b > a:
            old.append(("".join(first[a:b]), marked))
        if d > c:
            new.append(("".join(second[c:d]), marked))
    if matcher.ratio() < LITTLE_IN_COMMON:
        return [("".join(first), False)], [("".join(second), False)]
    if len(matcher.get_opcodes()) == 1 and first and second:  # the same words throughout
        return [("".join(first), False)], [("".join(second), False)]
    return _joined(old), _joined(new)


def _keys(tokens: list[str]) -> list[str]:
    return [token.strip() for token in tokens]


def _joined(pieces: Pieces) -> Pieces:
    joined: Pieces = []
    for text, marked in pieces:
        if joined and joined[-1][1] == marked:
            text = joined.pop()[0] + text
        joined.append((text, marked))
    return joined


def _answer(pieces: Pieces, mark: str, whole: str) -> Answer:
    length = sum(len(text) for text, _ in pieces)
    # A fold that hides a line or two would only be in the way.
    cut = SHOWN if length > SHOWN * 1.25 else length
    head: list[Markup] = []
    rest: list[Markup] = []
    at = 0
    for text, marked in pieces:
        inside = max(0, min(len(text), cut - at))
        for part, side in ((text[:inside], head), (text[inside:], rest)):
            if part:
                side.append(_piece(part, marked, mark))
        at += len(text)
    return Answer(Markup("").join(head), Markup("").join(rest), length - min(cut, length), max(0, len(whole) - MOST))


def _piece(text: str, marked: bool, mark: str) -> Markup:
    if not marked or not text.strip():
        return visible(text)
    words = text.lstrip()
    return Markup("{2}<{0}>{1}</{0}>").format(mark, visible(words), visible(text[: len(text) - len(words)]))
