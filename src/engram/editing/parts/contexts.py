"""Text in front of prompts, written by the model itself, so that an edit holds wherever its subject appears."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engram.models import LM

Contexts = Sequence[str] | Sequence[Sequence[str]]
"""Templates with one `{}`, or several groups of such that count alike however many are in each."""

STARTS = ("The", "In", "It", "After", "A")
TOP_K = 5


def sample_contexts(
    lm: "LM", lengths: Sequence[int], *, seed: int = 0, bare: bool = True, starts: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return context templates such as `"The weather was nice. {}"`.

    Args:
        lm: the model that writes them, by top-5 sampling from its beginning-of-text token (from common first words
            where it has none, or says nothing after it).
        lengths: length of each context in tokens.
        seed: for sampling.
        bare: put the bare prompt, `"{}"`, first.
        starts: words to begin with instead; they are part of the contexts.
    """
    start = None if starts else lm.tokenizer.bos_token or lm.tokenizer.eos_token
    made: dict[int, list[str]] = {}
    for length in sorted(set(lengths)):
        count = sum(other == length for other in lengths)
        made[length] = _written(
            lm, [start] * count if start else _starts(count, starts or STARTS), length, seed, mark=bool(start)
        )
    contexts = [made[length].pop(0) for length in lengths]
    return (*(["{}"] if bare else []), *contexts)


def _starts(count: int, words: Sequence[str] = STARTS) -> list[str]:
    return [words[i % len(words)] for i in range(count)]


def _written(lm: "LM", starts: list[str], length: int, seed: int, *, mark: bool = False) -> list[str]:
    """Return contexts; what has no words is written again from a common first word."""
    texts = lm.generate(starts, max_new_tokens=length if mark else max(1, length - 1), top_k=TOP_K, seed=seed)
    texts = [_plain(text.removeprefix(start) if mark else text) for text, start in zip(texts, starts, strict=True)]
    empty = [i for i, text in enumerate(texts) if not text]
    if empty and mark:
        for i, context in zip(empty, _written(lm, _starts(len(empty)), length, seed), strict=True):
            texts[i] = context.removesuffix(". {}")
    return [f"{text}. {{}}" for text in texts]


def _plain(text: str) -> str:
    """One line without braces and without the full stop that follows anyway."""
    return re.sub(r"\s+", " ", re.sub(r"[{}]|<\|.*?\|>", " ", text)).strip().rstrip(".").rstrip()


def flat(contexts: Contexts) -> tuple[str, ...]:
    """Return contexts without their groups."""
    return tuple(text for group in contexts for text in ([group] if isinstance(group, str) else group))


def shares(contexts: Contexts) -> tuple[float, ...]:
    """Return how much each context counts: alike within a group, and every group alike.

    Contexts in no groups make two: the bare prompt, and all others (MEMIT's code: 1/2, and 1/10 for each of five).
    """
    texts = flat(contexts)
    names = ["bare" if text == "{}" else "others" for text in texts]
    if not all(isinstance(group, str) for group in contexts):
        names = [str(i) for i, group in enumerate(contexts) for _ in ([group] if isinstance(group, str) else group)]
    return tuple(1 / (len(set(names)) * names.count(name)) for name in names)
