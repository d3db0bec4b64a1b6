"""What follows a prompt, as tokens: prompt and continuation are one text, tokenised once, parted by character offset.

The tokens that stand for a character beyond the prompt are the continuation's, and the model reads those before them.
So a prompt's last line break is read once and scored never, and where what follows changes how the prompt's end is
tokenised, the joined text decides. Spaces at a prompt's end belong to what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from engram.errors import FactError
from engram.facts import Fact
from engram.models.encoding import Encoded

if TYPE_CHECKING:
    from engram.models.lm import LM


def joined(prompt: str, continuation: str) -> str:
    """Return the prompt and its continuation with white space between them (the published code's one space)."""
    gap = "" if not prompt or prompt[-1].isspace() or continuation[:1].isspace() else " "
    return f"{prompt}{gap}{continuation}"


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text that begins with a prompt.

    Args:
        prompt: the prompt.
        text: the whole text as it stands, prompt included.
    """

    prompt: str
    text: str

    @classmethod
    def after(cls, prompt: str, words: str) -> "Continuation":
        """Put words behind a prompt, with one space between them unless either has white space there.

        Raises:
            FactError: there are no words.
        """
        if not words.strip():
            raise FactError(f"The continuation of {prompt!r} is empty. Give at least one word.")
        return cls(prompt, joined(prompt, words))

    @property
    def begin(self) -> int:
        """The first character that is the continuation's: spaces at the prompt's end are."""
        return len(self.prompt.rstrip(" "))


@dataclass(frozen=True, slots=True)
class Continued:
    """Continuations as tokens.

    Args:
        encoded: the whole texts, padded on the right.
        places: the positions of each continuation's tokens; at least one, and at least one token before them.
    """

    encoded: Encoded
    places: tuple[range, ...]

    def before(self, row: int) -> list[int]:
        """Return the tokens that the model reads before a continuation."""
        return self.encoded.ids[row, : self.places[row].start].tolist()

    def ids(self, row: int) -> list[int]:
        """Return a continuation's tokens."""
        place = self.places[row]
        return self.encoded.ids[row, place.start : place.stop].tolist()


def continued(lm: "LM", texts: Sequence[Continuation]) -> Continued:
    """Tokenise texts and find their continuations' tokens.

    Raises:
        PromptTooLong: a text does not fit into the model's positions.
        FactError: a continuation has no tokens, or no token stands before it.
    """
    encoded = lm.encode([each.text for each in texts])
    places: list[range] = []
    for row, each in enumerate(texts):
        place = encoded.beyond(row, each.begin)
        if not place:
            raise FactError(
                f"{each.text[each.begin :]!r} tokenises to nothing after {each.prompt!r}. Choose another target."
            )
        if not place.start:
            raise FactError(
                f"The model has nothing to read before {each.text[each.begin :]!r}. Write at least one word in front."
            )
        places.append(place)
    return Continued(encoded, tuple(places))


def continuation_ids(lm: "LM", prompt: str, continuation: str) -> list[int]:
    """Return the token ids that a continuation adds to a prompt.

    Raises:
        FactError: it adds none.
    """
    return continued(lm, [Continuation.after(prompt, continuation)]).ids(0)


@dataclass(frozen=True, slots=True)
class Asked:
    """A fact's prompt as the model reads it before the answer that the fact names (`original`), if it names one.

    Args:
        ids: token ids.
        subject: positions of the subject's tokens.
        answer: the answer's first token.
    """

    ids: Int[Tensor, "1 pos"]
    subject: range
    answer: int | None


def asked(lm: "LM", fact: Fact) -> Asked:
    """Tokenise a fact's prompt together with its answer.

    Raises:
        PromptTooLong: they do not fit into the model's positions.
        FactError: the answer has no tokens, or the tokenizer drops the subject or joins it with the answer.
    """
    if fact.original is None:
        encoded = lm.encode(fact.text)
        return Asked(encoded.ids, encoded.span(0, *fact.subject_chars), None)
    found = continued(lm, [Continuation.after(fact.text, fact.original)])
    begin, subject = found.places[0].start, found.encoded.span(0, *fact.subject_chars)
    if subject.stop > begin:
        raise FactError(f"The tokenizer joins {fact.subject!r} with {fact.original!r}. Write a word in between.")
    return Asked(found.encoded.ids[:, :begin], subject, found.ids(0)[0])
