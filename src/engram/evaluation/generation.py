"""Texts and free answers of cases, many at once, each row under its case's own edit.

A text's random numbers depend on the seed, the case and the prompt's place in it: neither on the batch nor on the
order of cases. As in the published evaluation texts have up to 100 tokens, prompt included, and go on after an
end-of-text token.
"""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engram.editing import Edit
from engram.evaluation.measuring import Scoring, rows_under
from engram.evaluation.scores import CaseScores
from engram.facts import Case
from engram.models.chat import Wrap
from engram.models.continuations import Continuation, continued
from engram.models.generation import Generation, generate_batch

if TYPE_CHECKING:
    from engram.models import LM

_SPARE_TOKENS = 2
"""A free answer may be tokenised differently from the target, so it gets a few tokens more."""


def write(
    lm: "LM",
    cases: Sequence[Case],
    edits: Sequence[Edit | None],
    scores: Sequence[CaseScores],
    *,
    scoring: Scoring,
    wrap: Wrap,
) -> None:
    """Let the model write one text per generation prompt, sampled among the `top_k` most probable tokens.

    The prompts are asked within `wrap`, which is no part of the texts nor of their length.

    Raises:
        NumericalError: the model's output has NaN.
    """
    asked = [(c, i, prompt) for c, case in enumerate(cases) for i, prompt in enumerate(case.generation)]
    lengths = [len(lm.encode(prompt).ids[0]) for _, _, prompt in asked]
    how = Generation(
        max_new_tokens=scoring.max_tokens, top_k=scoring.top_k, seed=scoring.seed, beyond_end=not scoring.chat
    )
    written: dict[int, str] = {}
    for batch in _by_length(lengths, scoring.rows):
        limits = [max(0, scoring.max_tokens - lengths[k]) for k in batch]
        names = [f"{cases[asked[k][0]].id}\n{asked[k][1]}\n{asked[k][2]}" for k in batch]
        prompts = [wrap.around(asked[k][2]) for k in batch]
        with rows_under(lm, [edits[asked[k][0]] for k in batch]):
            texts = generate_batch(lm, prompts, how, limits=limits, names=names)
        written |= {k: asked[k][2] + t[len(p) :] for k, p, t in zip(batch, prompts, texts, strict=True)}
    for k, (c, _, _) in enumerate(asked):
        scores[c].texts.append(unicodedata.normalize("NFKD", written[k]).replace("\n\n", " "))


def say(
    lm: "LM",
    cases: Sequence[Case],
    edits: Sequence[Edit | None],
    scores: Sequence[CaseScores],
    *,
    scoring: Scoring,
) -> None:
    """Let the model answer rewrite and paraphrase prompts greedily, a few tokens more than the target has.

    Raises:
        NumericalError: the model's output has NaN.
    """
    asked = [
        (c, place, prompt)
        for c, case in enumerate(cases)
        if case.fact.target
        for place, prompts in (("rewrite_said", (case.fact.text,)), ("paraphrase_said", case.paraphrases))
        for prompt in prompts
    ]
    wanted = continued(lm, [Continuation.after(prompt, str(cases[c].fact.target)) for c, _, prompt in asked])
    limits = [len(place) + _SPARE_TOKENS for place in wanted.places]
    said: dict[int, str] = {}
    for batch in _by_length(limits, scoring.rows):
        prompts = [asked[k][2] for k in batch]
        with rows_under(lm, [edits[asked[k][0]] for k in batch]):
            texts = generate_batch(lm, prompts, Generation(top_k=1), limits=[limits[k] for k in batch])
        said |= {k: text[len(prompt) :] for k, prompt, text in zip(batch, prompts, texts, strict=True)}
    for k, (c, place, _) in enumerate(asked):
        scores[c][place].append(said[k])


def _by_length(lengths: Sequence[int], rows: int) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda k: (lengths[k], k))
    return [order[begin : begin + rows] for begin in range(0, len(order), rows)]
