"""What a model says after a prompt, in words and with probabilities; many prompts in one batch.

An answer is the greedy continuation up to the end of its phrase, so that a person can read it, and the probabilities of
the wanted answers as whole phrases (the product over their tokens, not the mean that CounterFact's scores use).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engram.models.continuations import Continuation
from engram.models.generation import Generation, generate_batch
from engram.models.scoring import score_texts

if TYPE_CHECKING:
    from engram.models import LM

BATCH = 32
_LEAST_NEW_TOKENS = 8
_LEAST_WORDS = 3
_STAND_IN = "."
_PHRASE = re.compile(r"[.!?;:,\n(\"]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt and the answers whose probabilities are wanted.

    Args:
        text: the prompt as the model shall see it.
        target: the new answer, where there is one.
        original: the old answer, where it is known.
    """

    text: str
    target: str | None = None
    original: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says after a prompt.

    Args:
        says: the greedy continuation up to the end of its phrase; empty where the text ends at once.
        probability: of `says`, the product over its tokens; 1 where it is empty.
        target: probability of the new answer, where one was asked for.
        original: probability of the old answer, where one was asked for.
        continuation: the greedy continuation as generated.
    """

    says: str
    probability: float
    target: float | None = None
    original: float | None = None
    continuation: str = ""

    def gives(self, wanted: str) -> bool:
        """Say whether the greedy continuation begins with an answer, as a whole word."""
        text, word = self.continuation.lstrip(), wanted.strip()
        return text.startswith(word) and not (text[len(word) : len(word) + 1].isalnum() and word[-1:].isalnum())


def ask(lm: "LM", questions: Sequence[Question]) -> list[Answer]:
    """Return a model's answer to every question, in order.

    Args:
        lm: the model, under an edit or not.
        questions: prompts of any lengths; similar lengths share a batch.

    Raises:
        PromptTooLong: a prompt and its answer do not fit into the model's positions.
        FactError: an answer has no tokens.
        NumericalError: the model's output has NaN or infinity.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].text))
    answers: dict[int, Answer] = {}
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        answers.update(zip(rows, _ask_batch(lm, [questions[i] for i in rows]), strict=True))
    return [answers[i] for i in range(len(questions))]


def _ask_batch(lm: "LM", questions: list[Question]) -> list[Answer]:
    prompts = [question.text.rstrip(" ") for question in questions]  # a space belongs to the answer's first token
    given = [text for q in questions for text in (q.target, q.original) if text]
    longest = max((lm.encode(text).ids.shape[1] for text in given), default=0)
    how = Generation(max_new_tokens=max(_LEAST_NEW_TOKENS, longest + 2))
    texts = generate_batch(lm, prompts, how)
    tails = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    most = max(_LEAST_WORDS, max((len(text.split()) for text in given), default=0))
    says = [phrase(tail, most) for tail in tails]
    wanted = [
        [_spoken(prompt, tail, said), *(Continuation.after(prompt, t or _STAND_IN) for t in (q.target, q.original))]
        for q, prompt, tail, said in zip(questions, prompts, tails, says, strict=True)
    ]
    chances = _chances(lm, wanted)
    return [
        Answer(
            says=said,
            probability=chance[0] if said else 1.0,
            target=chance[1] if question.target else None,
            original=chance[2] if question.original else None,
            continuation=tail,
        )
        for question, said, tail, chance in zip(questions, says, tails, chances, strict=True)
    ]


def _spoken(prompt: str, tail: str, said: str) -> Continuation:
    """Return the phrase that the model said as it stands behind the prompt, the white space before it included."""
    space = tail[: len(tail) - len(tail.lstrip())]
    return Continuation(prompt, f"{prompt}{space}{said or _STAND_IN}")


def _chances(lm: "LM", wanted: list[list[Continuation]]) -> list[list[float]]:
    """Return the probability of each text after its prompt; what stands for an empty text is of no meaning."""
    scored = score_texts(lm, wanted)
    return [
        [math.exp(-len(ids) * mean) for ids, mean in zip(targets, row, strict=True)]
        for targets, row in zip(scored.targets, scored.nll.tolist(), strict=True)
    ]


def phrase(text: str, most_words: int = 3) -> str:
    """Return the beginning of a text up to the end of its phrase, and not too many words of it.

    >>> phrase(" Rome, the capital of")
    'Rome'
    """
    head = text.strip()
    end = _PHRASE.search(head, 1)
    words = (head[: end.start()] if end else head).split()
    if not end and 1 < len(words) <= most_words:
        words = words[:-1]  # the last word may have been cut
    return " ".join(words[:most_words])
