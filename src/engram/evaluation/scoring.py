"""Scores of cases, many at once: every row of a batch is one prompt of one case, under that case's own edit.

A prompt runs once, whatever the number of its targets, and each target costs its own few tokens behind the cached
prompt. Rows are sorted by length, so little is padded. Row i of every pass is row i of the batch, which is what lets
each row carry its own edit (`engram.editing.applied_rows`); results do not depend on who shares a batch with whom.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from engram.editing import Edit
from engram.errors import NumericalError
from engram.evaluation.generation import say, write
from engram.evaluation.measuring import LIKELIHOODS, Scoring, all_under, rows_under
from engram.evaluation.perplexity import ESSENCE_TOKENS, perplexities
from engram.evaluation.scores import CaseScores
from engram.facts import Case
from engram.models.chat import wrap_for
from engram.models.scoring import score_tokens

if TYPE_CHECKING:
    from engram.models import LM

_TARGET_CHARS = 4096
"""Rows times characters of the longest target in one pass: bounds the logits of long targets."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One prompt of one case with the continuations that are scored after it."""

    case: int
    field: str
    prompt: str
    answers: tuple[str, ...]


def score_case(lm: "LM", case: Case, *, edit: Edit | None = None, scoring: Scoring = LIKELIHOODS) -> CaseScores:
    """Score one case on a model, or under an edit of it.

    Args:
        lm: the model.
        case: what is asked.
        edit: the edit that the model shall be under; the model as it is when not given.
        scoring: what is measured; only likelihoods when not given.

    Raises:
        PromptTooLong: a prompt and its target do not fit into the model's positions.
        FactError: a target has no tokens.
        NumericalError: the model's output has NaN.
    """
    return score_cases(lm, [case], [edit], scoring=scoring)[0]


def score_cases(
    lm: "LM", cases: Sequence[Case], edits: Sequence[Edit | None] | None = None, *, scoring: Scoring = LIKELIHOODS
) -> list[CaseScores]:
    """Score many cases at once, each under its own edit.

    Args:
        lm: the model.
        cases: what is asked.
        edits: for each case the edit that the model shall be under; the model as it is where `None`.
        scoring: what is measured.

    Raises:
        PromptTooLong: a prompt and its target do not fit into the model's positions.
        FactError: a target has no tokens.
        TokenizerError: `scoring.chat` on a model without a chat template.
        NumericalError: the model's output has NaN.
    """
    under = [None] * len(cases) if edits is None else list(edits)
    scores = [CaseScores() for _ in cases]
    wrap = wrap_for(lm, chat=scoring.chat)
    asked = [wrap.case(case) for case in cases]
    _likelihoods(lm, asked, under, scores, scoring.rows)
    if scoring.free:
        say(lm, asked, under, scores, scoring=scoring)
    if scoring.generate:
        write(lm, cases, under, scores, scoring=scoring, wrap=wrap)
    for case, edit, result in zip(cases, under, scores, strict=True):
        if case.essence or scoring.held_out:
            _texts(lm, case, edit, result, scoring.held_out)
    return scores


def _likelihoods(
    lm: "LM", cases: Sequence[Case], edits: Sequence[Edit | None], scores: list[CaseScores], rows: int
) -> None:
    found: dict[int, tuple[list[float], list[list[int]], list[float]]] = {}
    questions = [question for index, case in enumerate(cases) for question in _questions(index, case)]
    for batch in _batches(questions, rows):
        asked = [questions[i] for i in batch]
        with rows_under(lm, [edits[q.case] for q in asked]):
            scored = score_tokens(lm, [q.prompt for q in asked], [q.answers for q in asked])
        if not torch.isfinite(scored.nll).all():
            raise NumericalError(f"A score of {lm.name} is NaN or infinite.")
        for place, i in enumerate(batch):
            hits = [
                float(np.mean([a == b for a, b in zip(target, said, strict=True)]))
                for target, said in zip(scored.targets[place], scored.predictions[place], strict=True)
            ]
            found[i] = (scored.nll[place].tolist(), scored.predictions[place], hits)
    pairs: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
    for i, question in enumerate(questions):
        nll, said, hits = found[i]
        result = scores[question.case]
        match question.field:
            case "locality":
                result.locality.append(said[0])
                result.locality_hits.append(hits[0])
            case "kept":
                result.kept_hits.append(hits[0])
            case name:
                pairs[question.case, name].append([nll[0], nll[1] if len(nll) > 1 else np.nan])
                if name == "rewrite":
                    result.rewrite_hits.append(hits[0])
                elif name == "paraphrase":
                    result.paraphrase_hits.append(hits[0])
                elif name == "neighborhood":
                    result.neighborhood_next.append(said[0][0])
    for (index, name), values in pairs.items():
        setattr(scores[index], name, np.array(values))


def _questions(index: int, case: Case) -> Iterator[_Question]:
    fact = case.fact
    if fact.target:
        targets = (fact.target,) if fact.original is None else (fact.target, fact.original)
        yield _Question(index, "rewrite", fact.text, targets)
        prompts = {"paraphrase": case.paraphrases, "neighborhood": case.neighborhood, "attribute": case.attributes}
        for name, texts in prompts.items():
            yield from (_Question(index, name, text, targets) for text in texts)
    yield from (_Question(index, "locality", prompt, (answer,)) for prompt, answer in case.locality)
    yield from (_Question(index, "kept", other.text, (other.original,)) for other in case.kept if other.original)


def _batches(questions: Sequence[_Question], rows: int) -> Iterator[list[int]]:
    """Yield batches of question numbers: the same number of answers, similar lengths, bounded logits."""
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i].answers), len(questions[i].prompt), i))
    batch: list[int] = []
    widest = 0
    for i in order:
        width = max(len(answer) for answer in questions[i].answers)
        other_kind = batch and len(questions[batch[0]].answers) != len(questions[i].answers)
        too_many = len(batch) >= rows or (len(batch) + 1) * max(widest, width) > _TARGET_CHARS
        if batch and (other_kind or too_many):
            yield batch
            batch, widest = [], 0
        batch.append(i)
        widest = max(widest, width)
    if batch:
        yield batch


def _texts(lm: "LM", case: Case, edit: Edit | None, result: CaseScores, held_out: Sequence[str]) -> None:
    """Measure perplexities: of the texts about the subject, and of texts that have nothing to do with it."""
    with all_under(lm, edit):
        if case.essence:
            (result.essence,) = perplexities(lm, [" ".join(case.essence)], max_tokens=ESSENCE_TOKENS, published=True)
        if held_out:
            result.perplexity = float(np.mean(perplexities(lm, held_out)))
