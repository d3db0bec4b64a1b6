"""What an edit aims at: the three modes, what the model says already, and what it says without knowing the subject."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.answers import Question, ask, percent, said
from engram.editing.parts.prompts import require_target, rows_for
from engram.editing.records import Mode
from engram.errors import FactError
from engram.facts import Fact
from engram.models.chat import Wrap, wrap_for
from engram.models.continuations import asked
from engram.models.encoding import left_padded
from engram.models.hooks import Site, patch, record

if TYPE_CHECKING:
    from engram.models import LM

SAMPLES, NOISE = 10, 3.0
_BATCH = 64


def mode_of(fact: Fact, given: Mode | None = None) -> Mode:
    """Return the mode in which a fact is treated: the one that is given, else by whether an original is named.

    Raises:
        FactError: the fact lacks what the mode needs.
    """
    mode: Mode = given or ("insert" if fact.original is None else "modify")
    if mode == "modify" and fact.original is None:
        raise FactError(f"Modifying {fact.text!r} needs what the model says now: Fact(..., original=...).")
    if mode != "erase":
        require_target(fact)
    return mode


@torch.no_grad()
def says(lm: "LM", facts: Sequence[Fact], *, chat: bool = False) -> list[bool]:
    """Say for each fact whether every token of its target is the model's first choice now.

    Args:
        lm: the model.
        facts: the facts; prompts of similar lengths share a pass.
        chat: ask within the chat template.

    Raises:
        FactError: a fact without a target.
    """
    wrap = wrap_for(lm, chat=chat)
    rows = [rows_for(lm, i, f, ["{}"], wrap, target=require_target(f))[0] for i, f in enumerate(facts)]
    found = [False] * len(rows)
    for some in by_length([row.ids for row in rows]):
        ids, mask = left_padded([rows[i].ids for i in some])
        counts = torch.tensor([len(rows[i].targets) for i in some])
        with lm.passes.ending(ids.shape[1] - counts):
            best = lm.forward(ids, mask=mask, keep=int(counts.max())).argmax(-1).tolist()
        for i, line in zip(some, best, strict=True):
            found[i] = line[-len(rows[i].targets) :] == rows[i].targets
    return found


def by_length(rows: Sequence[Sequence[int]], most: int = _BATCH) -> Iterator[list[int]]:
    """Yield the numbers of rows that go together: similar lengths, and not too many."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    yield from (order[begin : begin + most] for begin in range(0, len(order), most))


@torch.no_grad()
def contradicted(lm: "LM", facts: Sequence[Fact], *, chat: bool) -> tuple[str, ...]:
    """Return a sentence for every fact whose old answer is not what the model says: it never knew it.

    Args:
        lm: the model, without an edit.
        facts: the facts; those that name no `original` are passed over.
        chat: ask within the chat template.
    """
    wrap = wrap_for(lm, chat=chat)
    named = [(fact, fact.original) for fact in facts if fact.original is not None]
    read = [asked(lm, wrap.fact(fact)) for fact, _ in named]
    rows: list[list[int]] = [each.ids[0].tolist() for each in read]
    unsure: list[int] = []
    for some in by_length(rows):
        ids, mask = left_padded([rows[i] for i in some])
        best = lm.forward(ids, mask=mask, keep=1)[:, -1].argmax(-1).tolist()
        unsure += [i for i, token in zip(some, best, strict=True) if token != read[i].answer]
    doubted = [named[i] for i in sorted(unsure)]
    answers = ask(lm, [Question(text=wrap.around(fact.text), original=original) for fact, original in doubted])
    return tuple(
        f"The model does not know {original!r}: after {fact.text!r} it says {said(answer)}, and {original} has "
        f"{percent(answer.original or 0.0)}."
        for (fact, original), answer in zip(doubted, answers, strict=True)
        if not answer.gives(original)
    )


@torch.no_grad()
def without_subject(lm: "LM", fact: Fact, wrap: Wrap, *, seed: int) -> Float[Tensor, " vocab"]:
    """Return what the model would say after the prompt without knowing the subject.

    The subject's token embeddings get Gaussian noise of three times their standard deviation, as in causal tracing
    (ROME paper, section 2.1); the next-token probabilities are averaged over ten draws.
    """
    row = rows_for(lm, 0, fact, ["{}"], wrap, target=None)[0]
    begin = len(wrap.before) + fact.subject_chars[0]
    span = lm.encode(row.text).span(0, begin, begin + len(fact.subject))
    ids = torch.tensor([row.ids]).repeat(SAMPLES, 1)
    embed = Site("embed")
    with record(lm, [embed], stop=True) as seen:
        lm.forward(ids[:1], keep=1)
    clean = seen[embed][0, span.start : span.stop].float()
    drawn = torch.randn(SAMPLES, *clean.shape, generator=torch.Generator().manual_seed(seed))
    noise = NOISE * clean.std() * drawn.to(clean.device)

    def corrupt(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[:, span.start : span.stop] += noise.to(tensor.dtype)
        return tensor

    with patch(lm, {embed: corrupt}):
        logits = lm.forward(ids, keep=1)[:, -1].float()
    lm.require_finite(logits, "The output without the subject")
    return logits.softmax(-1).mean(0)
