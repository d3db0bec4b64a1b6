"""Which words of a prompt are its subject: guessed, or picked by clicking tokens."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from engram.facts import occurrences

Span = tuple[int, int]
"""Characters [begin, end)."""

_WORD = re.compile(r"\S+")
_EDGE = ".,;:!?\"'()[]“”‘’"
_LINKS = frozenset("of the de la le du da di von van der den and for in on at al el".split())
_OPENERS = frozenset(
    "a an and at by for from he her his how i if in is it its my of on our she that the their there these they this to "
    "we what when where which who whose why with you your".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A subject that was picked by clicking.

    Args:
        prompt: the prompt in which it was picked.
        span: the subject's characters.
        open: whether another click extends it.
    """

    prompt: str
    span: Span
    open: bool

    @property
    def subject(self) -> str:
        """The subject as it stands in the prompt."""
        return self.prompt[self.span[0] : self.span[1]]

    @property
    def occurrence(self) -> int:
        """Which occurrence of the subject it is, from 1."""
        return occurrences(self.prompt, self.subject).index(self.span[0]) + 1


def picked(prompt: str, token: Span, before: Pick | None) -> Pick:
    """Return the subject after a click on a token: its word, or everything from the word clicked before to this one.

    Args:
        prompt: the prompt.
        token: characters of the clicked token.
        before: the pick so far.
    """
    begin, end = word_around(prompt, token)
    if before is not None and before.prompt == prompt and before.open and before.span != (begin, end):
        return Pick(prompt=prompt, span=(min(begin, before.span[0]), max(end, before.span[1])), open=False)
    return Pick(prompt=prompt, span=(begin, end), open=True)


def word_around(prompt: str, token: Span) -> Span:
    """Return the word that a token belongs to, without punctuation at its edges."""
    for word in _WORD.finditer(prompt):
        if word.start() < max(token[1], token[0] + 1) and word.end() > token[0]:
            begin, end = _trimmed(prompt, word.span())
            if begin < end:
                return begin, end
    return token


def guessed(prompt: str, names: Iterable[str] = ()) -> str:
    """Guess a prompt's subject: a known name in it, else its longest capitalised phrase, else its first own word.

    Args:
        prompt: the prompt; an empty one has an empty subject.
        names: names that the model is known to know.
    """
    known = [name for name in names if _stands_in(name, prompt)]
    if known:
        return max(known, key=len)
    words = [_trimmed(prompt, match.span()) for match in _WORD.finditer(prompt)]
    words = [(begin, end) for begin, end in words if begin < end]
    runs = _capitalised(prompt, words)
    if runs:
        begin, end = max(runs, key=lambda run: run[1] - run[0])
        return prompt[begin:end]
    own = [prompt[begin:end] for begin, end in words if prompt[begin:end].lower() not in _OPENERS]
    return own[0] if own else prompt.strip()


def _capitalised(prompt: str, words: list[Span]) -> list[Span]:
    """Return runs of capitalised words; small words may stand inside, and an opener does not begin one."""
    runs: list[Span] = []
    current: list[Span] = []

    def close() -> None:
        while current and _small(prompt, current[-1]):
            current.pop()
        if current:
            runs.append((current[0][0], current[-1][1]))
        current.clear()

    for begin, end in words:
        word = prompt[begin:end]
        if current and "." in prompt[current[-1][1] : begin]:
            close()
        if word[0].isupper() and (current or word.lower() not in _OPENERS):
            current.append((begin, end))
        elif current and word in _LINKS:
            current.append((begin, end))
        else:
            close()
    close()
    return runs


def _small(prompt: str, span: Span) -> bool:
    return not prompt[span[0]].isupper()


def _trimmed(prompt: str, span: Span) -> Span:
    begin, end = span
    while begin < end and prompt[begin] in _EDGE:
        begin += 1
    while begin < end and prompt[end - 1] in _EDGE:
        end -= 1
    if prompt[begin:end].endswith(("'s", "’s")):
        end -= 2
    return begin, end


def _stands_in(name: str, prompt: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt) is not None
