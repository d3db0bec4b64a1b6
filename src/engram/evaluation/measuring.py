"""What is measured, and under which edits: settings and contexts that all measurements share."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engram.editing import Edit, applied_rows
from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """What is measured for each case.

    Args:
        generate: write texts from the generation prompts (GE, RS); by far the most expensive part.
        free: let the model answer freely after rewrite and paraphrase prompts.
        max_tokens: length of a text, prompt included.
        top_k: texts are sampled among so many most probable tokens.
        seed: for sampling; a text depends on it, the case and the prompt only.
        held_out: texts whose perplexity is measured under each edit.
        rows: rows per pass; results do not depend on it.
        chat: ask every prompt within the tokenizer's chat template; a text then ends where the model ends it.

    Raises:
        SettingError: a number below 1.
    """

    generate: bool = True
    free: bool = True
    max_tokens: int = 100
    top_k: int = 5
    seed: int = 0
    held_out: tuple[str, ...] = field(default=(), repr=False)
    rows: int = 64
    chat: bool = False

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "rows"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)}; it must be 1 or more.")

    def describe(self) -> dict[str, Any]:
        """Return what decides the results as plain values, for a run's settings."""
        texts = "\n".join(self.held_out)
        return {
            "generate": self.generate,
            "free": self.free,
            "max_tokens": self.max_tokens,
            "top_k": self.top_k,
            "seed": self.seed,
            "held_out": hashlib.sha256(texts.encode()).hexdigest()[:16] if texts else None,
            **({"chat": True} if self.chat else {}),
        }


LIKELIHOODS = Scoring(generate=False, free=False)
"""Only what teacher forcing gives: no text is generated."""


@contextmanager
def rows_under(lm: "LM", edits: Sequence[Edit | None]) -> Generator[None]:
    """Let row i of every batch behave as under edit i; costs nothing where there is no edit."""
    if not any(edits):
        yield
        return
    with applied_rows(lm, edits):
        yield


@contextmanager
def all_under(lm: "LM", edit: Edit | None) -> Generator[None]:
    """Let all rows behave as under one edit."""
    if not edit:
        yield
        return
    with edit.applied(lm):
        yield
