"""What a model says after a prompt, in words and with probabilities; many prompts in one batch.

An answer is the greedy continuation up to the end of its phrase, so that a person can read it, and the probabilities of
the wanted answers as whole phrases (the product over their tokens, not the mean that CounterFact's scores use).
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from engram.models.continuations import Continuation
from engram.models.generation import Generation, generate_batch
from engram.models.scoring import score_texts

if TYPE_CHECKING:
    from engram.models import LM

Found = TypeVar("Found")

SPEAKING, SCORING = 64, 32
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
        replaced: for a neighbor the old answer of the edited fact, which may be another than its own.
    """

    text: str
    target: str | None = None
    original: str | None = None
    replaced: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says after a prompt.

    Args:
        says: the greedy continuation up to the end of its phrase; empty where the text ends at once.
        probability: of `says`, the product over its tokens; 1 where it is empty.
        target: probability of the new answer, where one was asked for.
        original: probability of the old answer, where one was asked for.
        continuation: the greedy continuation as generated.
        lead: by how many nats per token the new answer is likelier than the old one (than `says`, where no old one was
            named); above 0 the new one leads. Means per token, as in CounterFact's scores, so that answers of different
            lengths compare.
        over_replaced: the same beside the answer that the edit replaces, where that was asked for.
    """

    says: str
    probability: float
    target: float | None = None
    original: float | None = None
    continuation: str = ""
    lead: float | None = None
    over_replaced: float | None = None

    def gives(self, wanted: str) -> bool:
        """Say whether the greedy continuation begins with an answer, as a whole word."""
        text, word = self.continuation.lstrip(), wanted.strip()
        return text.startswith(word) and not (text[len(word) : len(word) + 1].isalnum() and word[-1:].isalnum())


@dataclass(frozen=True, slots=True)
class Speech:
    """What a model says by itself: the phrase, and the whole greedy continuation."""

    says: str
    tail: str


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
    return answered(lm, questions, speak(lm, questions))


def speak(lm: "LM", questions: Sequence[Question]) -> list[Speech]:
    """Return what a model says after every prompt, with room for the longest answer that is named.

    Raises:
        PromptTooLong: a prompt and its answer do not fit into the model's positions.
        NumericalError: the model's output has NaN or infinity.
    """
    return in_batches(questions, lambda some: _spoken_batch(lm, some), SPEAKING)


def answered(lm: "LM", questions: Sequence[Question], speeches: Sequence[Speech]) -> list[Answer]:
    """Put probabilities to what a model said, and to the answers that questions name.

    Raises:
        PromptTooLong: a prompt and its answer do not fit into the model's positions.
        FactError: an answer has no tokens.
        NumericalError: the model's output has NaN or infinity.
    """
    spoken = dict(zip(map(id, questions), speeches, strict=True))
    return in_batches(questions, lambda some: _answered_batch(lm, some, [spoken[id(q)] for q in some]), SCORING)


def weigh(lm: "LM", questions: Sequence[Question], freely: Collection[int] = ()) -> list[Answer]:
    """Return the same answers as `ask` with less work, where questions name an old answer.

    Both answers are scored first. If each token of one is the most probable in its place, it is what the model says;
    only where neither is, the model is asked for its own words.

    Args:
        lm: the model, under an edit or not.
        questions: prompts of any lengths.
        freely: the numbers of those after which the model shall speak in any case.

    Raises:
        PromptTooLong: a prompt and its answer do not fit into the model's positions.
        FactError: an answer has no tokens.
        NumericalError: the model's output has NaN or infinity.
    """
    rest = [i for i in range(len(questions)) if i not in freely]
    weighed = in_batches([questions[i] for i in rest], lambda some: _weigh_batch(lm, some), SCORING)
    found = {i: answer for i, answer in zip(rest, weighed, strict=True) if answer is not None}
    unsure = [i for i in range(len(questions)) if i not in found]
    found |= dict(zip(unsure, ask(lm, [questions[i] for i in unsure]), strict=True))
    return [found[i] for i in range(len(questions))]


def in_batches(
    questions: Sequence[Question], answer: Callable[[list[Question]], Sequence[Found]], size: int
) -> list[Found]:
    """Answer questions of similar lengths together, so many at once, and return the answers in order."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].text))
    answers: dict[int, Found] = {}
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        answers.update(zip(rows, answer([questions[i] for i in rows]), strict=True))
    return [answers[i] for i in range(len(questions))]


def _spoken_batch(lm: "LM", questions: list[Question]) -> list[Speech]:
    prompts = [question.text.rstrip(" ") for question in questions]  # a space belongs to the answer's first token
    given = [text for q in questions for text in _named(q) if text]
    longest = max((lm.encode(text).ids.shape[1] for text in given), default=0)
    how = Generation(max_new_tokens=max(_LEAST_NEW_TOKENS, longest + 2))
    texts = generate_batch(lm, prompts, how)
    tails = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    most = max(_LEAST_WORDS, max((len(text.split()) for text in given), default=0))
    return [Speech(phrase(tail, most), tail) for tail in tails]


def _answered_batch(lm: "LM", questions: list[Question], speeches: list[Speech]) -> list[Answer]:
    prompts = [question.text.rstrip(" ") for question in questions]
    wanted = [
        [_spoken(prompt, said), *(Continuation.after(prompt, text or _STAND_IN) for text in _named(question))]
        for question, prompt, said in zip(questions, prompts, speeches, strict=True)
    ]
    return [
        _answer(question, said.says, said.tail, *scores)
        for question, said, scores in zip(questions, speeches, _scored(lm, wanted), strict=True)
    ]


def _weigh_batch(lm: "LM", questions: list[Question]) -> list[Answer | None]:
    wanted = [[Continuation.after(q.text.rstrip(" "), text or _STAND_IN) for text in _named(q)] for q in questions]
    answers: list[Answer | None] = []
    for question, scores in zip(questions, _scored(lm, wanted), strict=True):
        target, original, _ = scores
        sure = [
            (text, score)
            for text, score in ((question.target, target), (question.original, original))
            if text and score.greedy
        ]
        if not sure or not question.original:
            answers.append(None)
            continue
        text, score = sure[0][0].strip(), sure[0][1]
        answers.append(_answer(question, text, f" {text}", score, *scores))
    return answers


@dataclass(frozen=True, slots=True)
class _Score:
    """Probability of a text, its mean negative log-likelihood per token in nats, and whether the model would say it."""

    probability: float
    nll: float
    greedy: bool


def _named(question: Question) -> tuple[str | None, str | None, str | None]:
    """Return the answers whose probabilities are wanted."""
    return question.target, question.original, question.replaced


def _answer(
    question: Question, said: str, tail: str, own: _Score, target: _Score, original: _Score, replaced: _Score
) -> Answer:
    old = original if question.original else own
    return Answer(
        says=said,
        probability=own.probability if said else 1.0,
        target=target.probability if question.target else None,
        original=original.probability if question.original else None,
        continuation=tail,
        lead=old.nll - target.nll if question.target and (question.original or said) else None,
        over_replaced=replaced.nll - target.nll if question.target and question.replaced else None,
    )


def _spoken(prompt: str, said: Speech) -> Continuation:
    """Return the phrase that the model said as it stands behind the prompt, the white space before it included."""
    space = said.tail[: len(said.tail) - len(said.tail.lstrip())]
    return Continuation(prompt, f"{prompt}{space}{said.says or _STAND_IN}")


def _scored(lm: "LM", wanted: list[list[Continuation]]) -> list[list[_Score]]:
    """Return the score of each text after its prompt; what stands for an empty text is of no meaning."""
    scored = score_texts(lm, wanted)
    return [
        [_Score(math.exp(-len(ids) * mean), mean, ids == best) for ids, best, mean in zip(*row, strict=True)]
        for row in zip(scored.targets, scored.predictions, scored.nll.tolist(), strict=True)
    ]


def phrase(text: str, most_words: int = 3) -> str:
    """Return the beginning of a text up to the end of its phrase, and not too many words of it.

    A name ends where small letters begin, so that its probability compares with that of another name.

    >>> phrase(" Rome, the capital of"), phrase(" Tokyo and is")
    ('Rome', 'Tokyo')
    """
    head = text.strip()
    end = _PHRASE.search(head, 1)
    words = (head[: end.start()] if end else head).split()
    if not end and 1 < len(words) <= most_words:
        words = words[:-1]  # the last word may have been cut
    words = words[:most_words]
    name = next((i for i, word in enumerate(words) if not word[0].isupper()), len(words))
    return " ".join(words[: name or len(words)])


def said(answer: Answer) -> str:
    """Return an answer with its probability."""
    return f"{answer.says} {percent(answer.probability)}" if answer.says else "(end of text)"


def percent(share: float) -> str:
    """Return a probability as people read it: two digits, and no false zero.

    >>> percent(0.97), percent(0.0321), percent(0.0)
    ('97 %', '3.2 %', '0 %')
    """
    value = 100 * share
    if value == 0 or value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.05 else "<0.1 %"
