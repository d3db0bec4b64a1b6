"""The metrics, as pure functions of numbers and texts (ROME paper §3.4 and appendix D).

Scores of prompts are mean token negative log-likelihoods [prompt, (new, true)] in nats. Everything here is a plain
number between its natural bounds; tables multiply by 100 where the paper does.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from engram.intervals import harmonic_mean

Pairs = Float[np.ndarray, "_ 2"]
"""Mean NLL of the new and of the true target after each prompt (no axis name: fields of one case differ in length)."""


def success(nll: Pairs) -> float:
    """Share of prompts after which the new target is likelier than the true one (ES on rewrites, PS on paraphrases)."""
    return float((nll[:, 1] > nll[:, 0]).mean())


def magnitude(nll: Pairs) -> float:
    """Mean of P(new) - P(true), probabilities per token (EM, PM)."""
    return float((np.exp(-nll[:, 0]) - np.exp(-nll[:, 1])).mean())


def kept(nll: Pairs) -> float:
    """Share of neighborhood prompts after which the true target is still likelier (NS)."""
    return float((nll[:, 1] < nll[:, 0]).mean())


def kept_magnitude(nll: Pairs) -> float:
    """Mean of P(true) - P(new) on neighborhood prompts (NM)."""
    return -magnitude(nll)


def words(text: str) -> list[str]:
    """Split a text into words as the Penn Treebank does (NLTK's tokenizer, which needs no download)."""
    from nltk.tokenize import TreebankWordTokenizer  # slow import, only here

    return TreebankWordTokenizer().tokenize(text)


def ngram_entropy(text: str, n: int) -> float:
    """Entropy in bits of a text's word n-grams; 0 where it has fewer than two different ones."""
    tokens = words(text)
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = sum(counts.values())
    return sum(-c / total * math.log2(c / total) for c in counts.values()) if total else 0.0


def fluency(texts: Sequence[str]) -> float:
    """Mean over texts of the weighted two- and three-gram entropy (GE, in bits; low where a text repeats itself)."""
    return float(np.mean([(2 / 3 * ngram_entropy(t, 2) + 4 / 3 * ngram_entropy(t, 3)) / 2 for t in texts]))


def same_share(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of positions at which two predictions are equal."""
    return float(np.mean([a == b for a, b in zip(before, after, strict=True)]))


def begins_with(text: str, target: str) -> bool:
    """Say whether a continuation begins with the target as whole words (case and leading white space aside)."""
    found, wanted = text.strip().casefold(), target.strip().casefold()
    return found.startswith(wanted) and not found[len(wanted) : len(wanted) + 1].isalnum()


def relative_score(columns: Float[np.ndarray, "case 4"]) -> float:
    """Return S against the unedited model, from columns ES, PS, NS and the unedited model's NS.

    The harmonic mean of mean ES, mean PS and min(1, mean NS / mean NS unedited): an edit can at best leave the
    neighborhood as it was, and a model whose own NS is 75 % is not blamed for the rest. Plain S is lower.
    """
    es, ps, ns, unedited = (float(mean) for mean in columns.mean(axis=0))
    return harmonic_mean([es, ps, 1.0 if unedited == 0 else min(1.0, ns / unedited)])
