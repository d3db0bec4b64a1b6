"""Text in front of prompts, written by the model itself, so that an edit holds wherever its subject appears."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engram.models import LM

STARTS = ("The", "In", "It", "After", "A")
TOP_K = 5


def sample_contexts(lm: "LM", lengths: Sequence[int], *, seed: int = 0, bare: bool = True) -> tuple[str, ...]:
    """Return context templates such as `"The weather was nice. {}"`.

    Args:
        lm: the model that writes them, by top-5 sampling from its beginning-of-text token (from common first words
            where it has none, or says nothing after it).
        lengths: length of each context in tokens.
        seed: for sampling.
        bare: put the bare prompt, `"{}"`, first.
    """
    start = lm.tokenizer.bos_token or lm.tokenizer.eos_token
    made: dict[int, list[str]] = {}
    for length in sorted(set(lengths)):
        count = sum(other == length for other in lengths)
        made[length] = _written(lm, [start] * count if start else _starts(count), length, seed)
    contexts = [made[length].pop(0) for length in lengths]
    return (*(["{}"] if bare else []), *contexts)


def _starts(count: int) -> list[str]:
    return [STARTS[i % len(STARTS)] for i in range(count)]


def _written(lm: "LM", starts: list[str], length: int, seed: int) -> list[str]:
    """Return contexts; what has no words is written again from a common first word."""
    with_mark = starts[0] not in STARTS
    texts = lm.generate(starts, max_new_tokens=length if with_mark else max(1, length - 1), top_k=TOP_K, seed=seed)
    texts = [_plain(text.removeprefix(start) if with_mark else text) for text, start in zip(texts, starts, strict=True)]
    empty = [i for i, text in enumerate(texts) if not text]
    if empty and with_mark:
        for i, context in zip(empty, _written(lm, _starts(len(empty)), length, seed), strict=True):
            texts[i] = context.removesuffix(". {}")
    return [f"{text}. {{}}" for text in texts]


def _plain(text: str) -> str:
    """One line without braces and without the full stop that follows anyway."""
    return re.sub(r"\s+", " ", re.sub(r"[{}]|<\|.*?\|>", " ", text)).strip().rstrip(".").rstrip()
