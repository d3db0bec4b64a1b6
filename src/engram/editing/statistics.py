"""Which key statistics an edit uses: those it was given, else counted on the text that belongs to the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from engram.errors import SettingError
from engram.stats import Corpus, KeyStatistics, Progress, open_corpus, statistics

if TYPE_CHECKING:
    from engram.models import LM

MINI_TOKENS = 100_000
"""About how much text `mini` writes for its own statistics."""


def built_in_corpus(lm: "LM") -> Corpus:
    """Return the text that comes with a model: only `mini` has one.

    Raises:
        SettingError: the model has none; the message says what to give.
    """
    if lm.name != "mini":
        raise SettingError(
            f"Editing {lm.name} needs key statistics, and these need text. Give corpus=... (a .txt, .csv or .jsonl "
            f"file, or 'hf:Salesforce/wikitext:wikitext-103-raw-v1' for a Hugging Face dataset), or covariance=..."
        )
    from engram.mini.text import statistics_text

    return Corpus("mini's own text", f"mini-{MINI_TOKENS}", lambda: statistics_text(tokens=MINI_TOKENS))


def statistics_for(
    lm: "LM",
    layer: int,
    covariance: KeyStatistics | Tensor | None,
    corpus: Corpus | str | Path | Sequence[str] | None,
    *,
    seed: int,
    progress: Progress | None,
) -> KeyStatistics:
    """Return the key statistics of a layer; never silently the identity.

    Raises:
        SettingError: neither statistics nor text were given, and the model has no text of its own.
        EditMismatch: the statistics belong to another model.
    """
    if isinstance(covariance, Tensor):
        return KeyStatistics.of(lm, {layer: covariance})
    if covariance is not None:
        covariance.require_fit(lm)
        return covariance
    source = built_in_corpus(lm) if corpus is None else open_corpus(corpus)
    return statistics(lm, layer, source, seed=seed, progress=progress)
