"""How well a model knows the world's facts: greedy accuracy in trained and held-out phrasings, alone or behind text."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from engram.mini.text import Passage, Writer, fill
from engram.mini.world import WorldFact

_TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Question:
    """A prompt whose true continuation is a space and `fact.object`."""

    fact: WorldFact
    phrasing: str
    prompt: str


@dataclass(frozen=True)
class Answer:
    """Whether greedy decoding gives the object's first token, and the whole object."""

    question: Question
    first: bool
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of right answers among `count`, as fractions."""

    count: int
    first: float
    whole: float


def questions(
    facts: Sequence[WorldFact], *, held_out: bool, in_front: Writer | None = None, article: bool = True, seed: int = 0
) -> list[Question]:
    """Every fact in all its trained, or all its held-out, phrasings.

    With `in_front`, each prompt stands behind one sentence: in turn a filler and a fact about another entity.
    """
    rng = random.Random(f"questions|{seed}")
    asked: list[Question] = []
    for fact in facts:
        for phrasing in fact.held_out if held_out else fact.trained:
            prompt = fill(phrasing, fact.entity, article=article).text
            if in_front:
                prompt = f"{_front(in_front, fact, rng)} {prompt}"
            asked.append(Question(fact, phrasing, prompt))
    return asked


def _front(writer: Writer, fact: WorldFact, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return writer.fillers.draw(rng)
    others: list[Passage] = []
    while not others:
        other = rng.choice(writer.world.facts)
        if other.entity != fact.entity:
            others.append(writer.sentence(other, rng))
    return others[0].text


@torch.inference_mode()
def ask(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Question]) -> list[Answer]:
    """Answer greedily; equal to decoding token by token, because an answer counts only if every token is right."""
    prompts = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch([q.prompt for q in asked])]
    objects = [e.ids for e in tokenizer.backend_tokenizer.encode_batch([" " + q.fact.object for q in asked])]
    order = sorted(range(len(asked)), key=lambda index: len(prompts[index]) + len(objects[index]))
    answers: dict[int, Answer] = {}
    while order:
        longest = len(prompts[order[-1]]) + len(objects[order[-1]])
        count = max(1, _TOKENS_PER_BATCH // longest)
        chunk, order = order[-count:], order[:-count]
        rows = torch.zeros(len(chunk), longest, dtype=torch.long)
        for row, index in enumerate(chunk):
            ids = prompts[index] + objects[index]
            rows[row, : len(ids)] = torch.tensor(ids)
        greedy = model(rows).logits.argmax(-1)
        for row, index in enumerate(chunk):
            start = len(prompts[index]) - 1
            right = greedy[row, start : start + len(objects[index])] == torch.tensor(objects[index])
            answers[index] = Answer(asked[index], bool(right[0]), bool(right.all()))
    return [answers[index] for index in range(len(asked))]


def summarize(answers: Sequence[Answer]) -> Accuracy:
    """Shares over all answers."""
    count = len(answers)
    return Accuracy(
        count=count, first=sum(a.first for a in answers) / count, whole=sum(a.whole for a in answers) / count
    )


def by_relation(answers: Sequence[Answer]) -> dict[str, Accuracy]:
    """Shares per relation id, in order of appearance."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.question.fact.relation.id].append(answer)
    return {name: summarize(group) for name, group in groups.items()}
