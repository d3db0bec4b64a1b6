"""Facts and cases: what is asked of a model, and how one sees whether it was learnt.

A `Fact` is a subject in a prompt and what shall follow it. A `Case` is a fact with everything that an evaluation asks
about it. Both are plain values and know nothing of models.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches

from engram.errors import FactError, SettingError, SubjectNotFound, TemplateError
from engram.given import require
from engram.showing import Shown


@dataclass(frozen=True, slots=True)
class Fact:
    """One association: a subject, a prompt about it, and the object that follows.

    Args:
        subject: the subject as written in the prompt, e.g. `"Space Needle"`.
        prompt: a template with exactly one `{}` for the subject, e.g. `"The {} is located in the city of"`.
        target: what the model shall say after the prompt (`None` where only the location of the fact matters).
        original: what the model says now, where known.

    Raises:
        TemplateError: `prompt` does not contain exactly one `{}`.
        FactError: the subject is empty.
        SettingError: something is no text.
    """

    subject: str
    prompt: str
    target: str | None = None
    original: str | None = None

    def __post_init__(self) -> None:
        require(self.subject, str, "subject")
        require(self.prompt, str, "prompt")
        require(self.target, (str, type(None)), "target")
        require(self.original, (str, type(None)), "original")
        if not self.subject.strip():
            raise FactError("The subject is empty. Give the words of the prompt that name what the fact is about.")
        count = self.prompt.count("{}")
        if count != 1:
            raise TemplateError(
                f"The prompt {self.prompt!r} contains {count} '{{}}'; it needs exactly one, where the subject stands. "
                f"For a prompt that is already filled in use Fact.from_text(text, subject)."
            )

    @classmethod
    def from_text(
        cls,
        text: str,
        subject: str,
        *,
        target: str | None = None,
        original: str | None = None,
        occurrence: int | None = None,
    ) -> "Fact":
        """Make a fact from a prompt that already contains its subject.

        Args:
            text: the whole prompt, e.g. `"The Space Needle is in"`.
            subject: the subject; its last occurrence counts unless `occurrence` (1 = first) says otherwise.
            target: what the model shall say.
            original: what it says now.
            occurrence: which occurrence of the subject, counted from 1.

        Raises:
            SubjectNotFound: the subject does not stand in the text; the message suggests the closest words.
            SettingError: there is no such occurrence.
        """
        require(text, str, "text")
        require(subject, str, "subject")
        if not text.strip():
            raise FactError("The prompt is empty. Write the beginning of a sentence, such as 'The Space Needle is in'.")
        if not subject.strip():
            raise FactError("The subject is empty. Give the words of the prompt that name what the fact is about.")
        starts = occurrences(text, subject)
        if not starts:
            raise SubjectNotFound(_not_found(text, subject))
        if occurrence is not None and not 1 <= occurrence <= len(starts):
            raise SettingError(
                f"occurrence={occurrence}, but {subject!r} stands {len(starts)} time(s) in {text!r}; "
                f"choose 1 to {len(starts)}."
            )
        begin = starts[-1] if occurrence is None else starts[occurrence - 1]
        head, tail = text[:begin], text[begin + len(subject) :]
        if "{}" in head + tail:
            raise TemplateError(f"The prompt {text!r} contains both the subject and '{{}}'; keep one of them.")
        return cls(subject, f"{head}{{}}{tail}", target, original)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in; spaces at its end are left out, for they belong to what follows."""
        return self.prompt.replace("{}", self.subject).rstrip(" ")

    @property
    def subject_chars(self) -> tuple[int, int]:
        """Character range [begin, end) of the subject in `text`."""
        begin = self.prompt.index("{}")
        return begin, begin + len(self.subject)

    def with_target(self, target: str) -> "Fact":
        """Return the same fact with another target."""
        return replace(self, target=target)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Case(Shown):
    """A fact to edit, with the prompts and texts that show what the edit did (CounterFact's fields).

    Args:
        id: the record's name in its data set.
        fact: the requested change; `fact.target` is new, `fact.original` true.
        relation: name of the relation, for breakdowns.
        paraphrases: other prompts for the same fact, subject filled in.
        neighborhood: prompts about other subjects for which `fact.original` holds.
        attributes: prompts about other subjects for which `fact.target` holds.
        generation: prompts from which text is generated.
        references: texts about things for which `fact.target` holds.
        essence: texts about the subject.
        kept: other facts of the same subject (their `original` is to stay).
        locality: unrelated (prompt, answer) pairs, for data sets that give them (zsRE, WISE, EasyEdit).
    """

    id: str
    fact: Fact
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    essence: tuple[str, ...] = ()
    kept: tuple[Fact, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()


def occurrences(text: str, subject: str) -> list[int]:
    """Return the character positions at which `subject` begins in `text`, overlapping ones included."""
    starts: list[int] = []
    begin = text.find(subject)
    while begin >= 0:
        starts.append(begin)
        begin = text.find(subject, begin + 1)
    return starts


def _not_found(text: str, subject: str) -> str:
    words = text.split()
    width = len(subject.split())
    spans = [
        " ".join(words[i : i + n]) for n in {max(1, width - 1), width, width + 1} for i in range(len(words) - n + 1)
    ]
    close = get_close_matches(subject, spans, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else " Copy the subject from the prompt, letter by letter."
    return f"The subject {subject!r} was looked for in {text!r} and is not there.{hint}"
