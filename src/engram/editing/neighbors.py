"""Neighbors of an edited subject, for any model: well-known things that it takes for something similar.

Built-in subjects are put where the edited one stands in the prompt, and the states at their last tokens are compared a
third of the way up, where a model has gathered what kind of thing a name is, and where edits are made. Two rounds keep
it quick: a few subjects tell which kinds are near, then these kinds are looked at as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.kinds import Kind, Relation, load_kinds
from engram.models.hooks import Site, record

if TYPE_CHECKING:
    from engram.facts import Fact
    from engram.models import LM

_OPENING = "As everybody knows, "  # the first token of a text has a state that is like no other
_FEW, _BEST, _NEAR_KINDS = 8, 4, 3
_DEPTH = 1 / 3
_BATCH = 128
_ARTICLES = ("the ", "a ", "an ")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies around a subject.

    Args:
        subjects: subjects of the nearest kinds, the most similar first; never the subject itself.
        kinds: all kinds, the nearest first.
    """

    subjects: tuple[str, ...]
    kinds: tuple[Kind, ...]


def surroundings(lm: "LM", fact: "Fact", kinds: Sequence[Kind] | None = None) -> Surroundings:
    """Return the subjects that are most similar to a fact's, as the model sees them in the fact's own prompt.

    Args:
        lm: the model, without an edit.
        fact: the fact.
        kinds: what is compared; the built-in kinds when not given.
    """
    kinds = load_kinds() if kinds is None else kinds
    others = {kind.name: [s for s in kind.subjects if not same_name(s, fact.subject)] for kind in kinds}
    front = fact.prompt.partition("{}")[0]
    few = [(kind, subject) for kind in kinds for subject in others[kind.name][:_FEW]]
    states = _states(lm, front, [fact.subject, *(subject for _, subject in few)])
    scale = states.mean(0), states.std(0)
    near: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for (kind, _), value in zip(few, _similarity(states, *scale).tolist(), strict=True):
        near[kind.name].append(value)
    ordered = sorted(kinds, key=lambda kind: -sum(sorted(near[kind.name])[-_BEST:]))
    subjects = [subject for kind in ordered[:_NEAR_KINDS] for subject in others[kind.name]]
    whole = torch.cat([states[:1], _states(lm, front, subjects)])
    rank = _similarity(whole, *scale).argsort(descending=True, stable=True)
    return Surroundings(tuple(dict.fromkeys(subjects[i] for i in rank.tolist())), tuple(ordered))


def relation_of(prompt: str, kinds: Sequence[Kind]) -> tuple[Kind, Relation] | None:
    """Return the relation that a prompt asks for, told by its wording; `None` where no template is the same."""
    wanted = _wording(prompt)
    for kind in kinds:
        for relation in kind.relations:
            if any(_wording(template) == wanted for template in relation.templates):
                return kind, relation
    return None


def same_name(one: str, other: str) -> bool:
    """Say whether two names are equal but for an article and capital letters."""
    return _bare(one) == _bare(other)


def _bare(name: str) -> str:
    name = name.strip().casefold()
    return next((name.removeprefix(article) for article in _ARTICLES if name.startswith(article)), name)


def _wording(template: str) -> str:
    words = " ".join(template.casefold().split())
    return words.replace("the {}", "{}").replace("city of {}", "{}")


@torch.no_grad()
def _states(lm: "LM", front: str, subjects: Sequence[str]) -> Float[Tensor, "subject d_model"]:
    """Return the middle state at the last token of each subject, in fp32 on the CPU."""
    site = Site("state", int(_DEPTH * lm.n_layers))
    result = torch.empty(len(subjects), lm.d_model)
    order = sorted(range(len(subjects)), key=lambda i: len(subjects[i]))
    for begin in range(0, len(order), _BATCH):
        rows = order[begin : begin + _BATCH]
        encoded = lm.encode([f"{_OPENING}{front}{subjects[i]}" for i in rows])
        with record(lm, [site], stop=True) as seen:
            lm.forward(encoded.ids, mask=encoded.mask, keep=1)
        last = torch.tensor(encoded.lengths) - 1
        state = seen[site]
        result[rows] = state[torch.arange(len(rows)), last.to(state.device)].float().cpu()
    return result


def _similarity(
    states: Float[Tensor, "subject d_model"], centre: Float[Tensor, " d_model"], spread: Float[Tensor, " d_model"]
) -> Float[Tensor, " other"]:
    """Return the cosine of the first state with each other one; every dimension counts alike.

    Without that, a few dimensions that are large everywhere decide, and what is alike is how common a word is.
    """
    alike = torch.nn.functional.normalize((states - centre) / spread.clamp_min(1e-6), dim=1)
    return alike[1:] @ alike[0]
