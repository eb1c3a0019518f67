"""Something that somebody said of answers."""

from __future__ import annotations

from prefloop.feedback.records import Completion, Judgement, Prompt


def judged(prompt: Prompt, *ranked: tuple[str, int], origin: str = "file:x") -> list[Completion | Judgement]:
    """Answers and one judgement; equal ranks tie."""
    answers = [Completion(prompt_id=prompt.id, text=text, origin=origin) for text, _ in ranked]
    judgement = Judgement(
        id=f"{prompt.id} {origin} {ranked}",
        prompt_id=prompt.id,
        annotator="me",
        source="human",
        shown=tuple(answer.id for answer in answers),
        ranks=tuple(rank for _, rank in ranked),
    )
    return [*answers, judgement]
