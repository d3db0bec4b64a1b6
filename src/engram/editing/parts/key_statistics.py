"""Which key statistics an edit uses: those it was given, else what is in the cache, else counted now."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from engram.errors import SettingError
from engram.progress import Progress
from engram.stats import Corpus, KeyStatistics, kept_statistics, open_corpus, statistics
from engram.stats.corpus import own_corpus
from engram.stats.counting import Counting
from engram.stats.finding import need_text, text_for

if TYPE_CHECKING:
    from engram.models import LM

Given = KeyStatistics | Tensor | Mapping[int, Tensor] | str | Path
"""Statistics as users have them: counted, a matrix, matrices by layer, or a folder that `KeyStatistics.save` wrote."""
Text = Corpus | str | Path | Sequence[str]


def built_in_corpus(lm: "LM") -> Corpus:
    """Return the text that comes with a model: only `mini` has one.

    Raises:
        SettingError: the model has none; the message says what to give.
    """
    return text_for(lm)


def statistics_for(
    lm: "LM",
    layers: int | Sequence[int],
    covariance: Given | None,
    corpus: Text | None,
    *,
    seed: int,
    progress: Progress | None,
    tokens: int | None = None,
) -> KeyStatistics:
    """Return the key statistics of one layer or several; never silently the identity.

    What was counted before serves where it is at least as good as what is asked. For a model without a text of its own,
    and with none given, that is any text that was counted; the `remark` then says which.

    Args:
        lm: the model.
        layers: the layers.
        covariance: statistics that the user has.
        corpus: text to count on.
        seed: for the order of the texts.
        progress: told about tokens counted.
        tokens: how many are asked for; see `engram.stats.counting.Counting` otherwise.

    Raises:
        SettingError: neither statistics nor text were given, and the model has none.
        DataError: a corpus or a folder of statistics cannot be read.
        EditMismatch: the statistics belong to another model.
    """
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if covariance is not None:
        return given_statistics(lm, wanted, covariance)
    source = own_corpus(lm) if corpus is None else open_corpus(corpus)
    found = kept_statistics(lm, wanted, source, tokens=tokens)
    missing = [layer for layer in wanted if layer not in found.layers]
    if source is None:
        return found_anywhere(lm, wanted, found, tokens)
    if not missing:
        return found
    new = statistics(lm, missing, source, tokens=tokens, seed=seed, progress=progress)
    return replace(new, layers={**found.layers, **new.layers})


def given_statistics(lm: "LM", layers: Sequence[int], covariance: Given) -> KeyStatistics:
    """Return what the user has as statistics, checked against the model.

    Raises:
        DataError: the folder cannot be read.
        EditMismatch: they belong to another model.
        SettingError: a matrix has another size, or a layer is not among them.
    """
    if isinstance(covariance, str | Path):
        covariance = KeyStatistics.load(covariance)
    if isinstance(covariance, Tensor):
        covariance = dict.fromkeys(layers, covariance)
    if isinstance(covariance, Mapping):
        covariance = KeyStatistics.of(lm, covariance)
    covariance.require_fit(lm)
    for layer in layers:
        covariance[layer]  # refuses a layer that is not there
    return covariance


def found_anywhere(lm: "LM", layers: Sequence[int], found: KeyStatistics, tokens: int | None) -> KeyStatistics:
    """Return counts over whatever text, with a remark; smaller ones than the rule asks for where nobody named a number.

    Raises:
        SettingError: there is none for a layer.
    """
    most = Counting().most(lm.d_mlp) or 0
    some = found if tokens is not None else kept_statistics(lm, layers, tokens=1)
    every = replace(some, layers={**some.layers, **found.layers})
    least = min((moment.tokens for moment in every.layers.values()), default=0)
    missing = [layer for layer in layers if layer not in every.layers]
    if missing:
        few = kept_statistics(lm, missing, tokens=1)
        if tokens is None or not few.layers:
            raise SettingError(need_text(lm.name, missing))
        have = min(moment.tokens for moment in few.layers.values())
        raise SettingError(
            f"The cache has {have:,} tokens of {few.corpus} for {lm.name}; {tokens:,} are asked for. Give the corpus "
            f"to count more (--corpus FILE, in Python corpus=...), or ask for fewer."
        )
    remark = f"Key statistics from the cache, as no corpus was named: {least:,} tokens of {every.corpus}"
    if len(found.layers) < len(layers):
        remark += f", fewer than the {most:,} that are counted as a rule"
    return replace(every, remark=f"{remark}.")
