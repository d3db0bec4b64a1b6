"""What an edit aims at: the three modes, what the model says already, and what it says without knowing the subject."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.answers import Question, ask, percent, said
from engram.editing.parts.prompts import padded, require_target, rows_for
from engram.editing.records import Mode
from engram.errors import FactError
from engram.facts import Fact
from engram.models.chat import Wrap, wrap_for
from engram.models.continuations import asked
from engram.models.hooks import Site, patch, record

if TYPE_CHECKING:
    from engram.models import LM

SAMPLES, NOISE = 10, 3.0


def mode_of(fact: Fact, method: Any) -> Mode:
    """Return the mode in which a method treats a fact: the method's own, else by whether an original is named.

    Raises:
        FactError: the fact lacks what the mode needs.
    """
    mode: Mode = getattr(method, "mode", None) or ("insert" if fact.original is None else "modify")
    if mode == "modify" and fact.original is None:
        raise FactError(f"Modifying {fact.text!r} needs what the model says now: Fact(..., original=...).")
    if mode != "erase":
        require_target(fact)
    return mode


@torch.no_grad()
def already_says(lm: "LM", fact: Fact, mode: Mode, *, chat: bool) -> bool:
    """Say whether every token of the target is the model's first choice now."""
    if mode == "erase":
        return False
    batch = padded(rows_for(lm, 0, fact, ["{}"], wrap_for(lm, chat=chat), target=require_target(fact)))
    targets = batch.rows[0].targets
    best = lm.forward(batch.ids, keep=len(targets))[0, -len(targets) :].argmax(-1)
    return best.tolist() == targets


@torch.no_grad()
def contradicted(lm: "LM", facts: Sequence[Fact], *, chat: bool) -> tuple[str, ...]:
    """Return a sentence for every fact whose old answer is not what the model says: it never knew it.

    Args:
        lm: the model, without an edit.
        facts: the facts; those that name no `original` are passed over.
        chat: ask within the chat template.
    """
    wrap, found = wrap_for(lm, chat=chat), list[str]()
    for fact in facts:
        if fact.original is None:
            continue
        question = asked(lm, wrap.fact(fact))
        logits = lm.forward(question.ids, keep=1)[0, -1]
        if int(logits.argmax()) == question.answer:
            continue
        (answer,) = ask(lm, [Question(text=wrap.around(fact.text), original=fact.original)])
        if not answer.gives(fact.original):
            found.append(
                f"The model does not know {fact.original!r}: after {fact.text!r} it says {said(answer)}, and "
                f"{fact.original} has {percent(answer.original or 0.0)}."
            )
    return tuple(found)


@torch.no_grad()
def without_subject(lm: "LM", fact: Fact, wrap: Wrap, *, seed: int) -> Float[Tensor, " vocab"]:
    """Return what the model would say after the prompt without knowing the subject.

    The subject's token embeddings get Gaussian noise of three times their standard deviation, as in causal tracing
    (PROTOCOL §2); the next-token probabilities are averaged over ten draws.
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
