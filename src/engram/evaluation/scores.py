"""What was measured for one case on one model: numbers and texts, no verdicts. Goes into a results file and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from engram.evaluation.metrics import Pairs
from engram.showing import Shown

PROMPT_FIELDS = ("rewrite", "paraphrase", "neighborhood", "attribute")


def no_pairs() -> Pairs:
    """Return scores of no prompts."""
    return np.empty((0, 2))


@dataclass(slots=True, kw_only=True, repr=False)
class CaseScores(Shown):
    """Scores of one case. `scores["rewrite"]` is `scores.rewrite`.

    Args:
        rewrite: mean NLL [prompt, (new, true)] in nats; NaN for a target that the case does not have.
        paraphrase: the same for its paraphrases.
        neighborhood: for its neighborhood prompts.
        attribute: for its attribute prompts.
        rewrite_hits: for each rewrite prompt the share of the new target's tokens that are the most probable ones.
        paraphrase_hits: the same for its paraphrases.
        neighborhood_next: the most probable next token after each neighborhood prompt.
        locality: for each unrelated prompt the most probable token at each position of its answer.
        locality_hits: for each unrelated prompt the share of these that are the answer's.
        kept_hits: for each other fact of the subject the share of its answer's tokens that are the most probable ones.
        rewrite_said: for each rewrite prompt what the model says, greedily.
        paraphrase_said: the same for its paraphrases.
        texts: generated texts, prompts included.
        essence: perplexity of the texts about the subject.
        perplexity: mean perplexity of held-out texts.
    """

    rewrite: Pairs = field(default_factory=no_pairs)
    paraphrase: Pairs = field(default_factory=no_pairs)
    neighborhood: Pairs = field(default_factory=no_pairs)
    attribute: Pairs = field(default_factory=no_pairs)
    rewrite_hits: list[float] = field(default_factory=list[float])
    paraphrase_hits: list[float] = field(default_factory=list[float])
    neighborhood_next: list[int] = field(default_factory=list[int])
    locality: list[list[int]] = field(default_factory=list[list[int]])
    locality_hits: list[float] = field(default_factory=list[float])
    kept_hits: list[float] = field(default_factory=list[float])
    rewrite_said: list[str] = field(default_factory=list[str])
    paraphrase_said: list[str] = field(default_factory=list[str])
    texts: list[str] = field(default_factory=list[str])
    essence: float | None = None
    perplexity: float | None = None

    def __getitem__(self, name: str) -> Any:
        """Return a field by its name."""
        if name not in {f.name for f in fields(self)}:
            raise KeyError(name)
        return getattr(self, name)

    def plain(self) -> dict[str, Any]:
        """Return everything that was measured as plain values for JSON (NaN as `None`)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        result: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value = [[None if np.isnan(x) else float(x) for x in row] for row in value]
            if value is not None and value != []:
                result[name] = value
        return result

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "CaseScores":
        """Return scores from what `plain` gave."""
        typed: dict[str, Any] = {k: _pairs(v) if k in PROMPT_FIELDS else v for k, v in values.items()}
        return cls(**typed)


def _pairs(rows: Sequence[Sequence[float | None]]) -> Pairs:
    return np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=np.float64).reshape(-1, 2)
