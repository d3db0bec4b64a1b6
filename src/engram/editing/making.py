"""Prompts that show what an edit did to a model that nobody has described: made from the built-in kinds and the model.

Nothing is known about such a model but what it says. So a prompt serves where the model answers it with confidence, and
what it answered before the edit is what must stay.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from engram.editing.neighbors import Surroundings, relation_of, surroundings
from engram.editing.parts.contexts import sample_contexts
from engram.facts import Case, Fact
from engram.models.chat import Wrap
from engram.models.continuations import continuation_ids

if TYPE_CHECKING:
    from engram.models import LM

Kind = Literal["prompt", "paraphrase", "context", "neighbor", "other fact", "unrelated fact"]

CONFIDENT: Mapping[Kind, float] = {"neighbor": 0.2, "unrelated fact": 0.5}
"""A prompt serves where the first token of the model's answer has at least this probability."""

_CANDIDATES, _NEIGHBORS, _LEAST = 36, 16, 8
_ASKED_UNRELATED, _UNRELATED = 16, 8
_CONTEXTS = (12,) * 8
_SEED = 1000  # edits write their own contexts with seeds from 0
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt about a fact, a neighbor or something else, in plain words.

    Args:
        kind: what it is for.
        text: the prompt.
        subject: what it asks about.
        original: the answer that an edit replaces; the model's own one where `None`.
    """

    kind: Kind
    text: str
    subject: str
    original: str | None = None


def contexts(lm: "LM", *, seed: int = 0) -> tuple[str, ...]:
    """Return texts that the model writes, each with `{}` at its end for a prompt: none that an edit was made with."""
    return sample_contexts(lm, _CONTEXTS, seed=_SEED + seed, bare=False)


def probes_of(case: Case) -> list[Probe]:
    """Return the prompts that a case brings."""
    fact = case.fact
    return [
        *(Probe("paraphrase", text, fact.subject, fact.original) for text in case.paraphrases),
        *(Probe("neighbor", text, "") for text in case.neighborhood),
        *(Probe("other fact", other.text, other.subject, other.original) for other in case.kept),
        *(Probe("unrelated fact", text, "", answer) for text, answer in case.locality),
    ]


def made_probes(lm: "LM", case: Case, wrap: Wrap, *, seed: int = 0) -> list[Probe]:
    """Return prompts of those kinds that a case has none of: paraphrases, neighbors, unrelated facts.

    Other facts of the subject are not made: what a model says about it in relations that nobody vouches for is mostly
    made up ("plays in the position of a"), and a good edit moves it.

    Args:
        lm: the model, without an edit.
        case: what is there already.
        wrap: what a chat template puts around every prompt.
        seed: for the choice of unrelated facts.
    """
    fact = case.fact
    if case.neighborhood and case.locality:  # all is known
        return []
    around = surroundings(lm, fact)
    known = relation_of(fact.prompt, around.kinds)
    candidates: list[Probe] = []
    if not case.neighborhood:
        near = around.subjects[:_CANDIDATES]
        candidates += [Probe("neighbor", Fact(name, fact.prompt).text, name) for name in near]
    if not case.locality:
        candidates += _unrelated(around, fact, seed)
    if not case.paraphrases and known is not None:
        texts = (Fact(fact.subject, template).text for template in known[1].templates)
        candidates += [Probe("paraphrase", text, fact.subject, fact.original) for text in texts if text != fact.text]
    return _answered(lm, candidates, wrap, fact)


def _unrelated(around: Surroundings, fact: Fact, seed: int) -> list[Probe]:
    """Return questions about things of the kinds that are farthest from the subject."""
    rng = random.Random(f"unrelated|{seed}|{fact.text}")
    far = around.kinds[len(around.kinds) // 2 :]
    drawn = [(kind.relations[0], rng.choice(kind.subjects)) for _ in range(_ASKED_UNRELATED) for kind in far]
    asked = dict.fromkeys((relation.fact(name).text, name) for relation, name in drawn[:_ASKED_UNRELATED])
    return [Probe("unrelated fact", text, name) for text, name in asked]


def _answered(lm: "LM", candidates: Sequence[Probe], wrap: Wrap, fact: Fact) -> list[Probe]:
    """Return the prompts that the model answers in a way that shows something later.

    A paraphrase has the answer of the fact's own prompt. Everything else has an answer in which the model is confident,
    and which is not the new one. Where the model is confident about too few neighbors, the surest of the others join
    them.
    """
    most: Mapping[Kind, int] = {"neighbor": _NEIGHBORS, "unrelated fact": _UNRELATED}
    own, *best = _first_tokens(lm, [wrap.around(text) for text in (fact.text, *(probe.text for probe in candidates))])
    new = continuation_ids(lm, wrap.around(fact.text), fact.target)[0] if fact.target else None
    kept: dict[Kind, list[Probe]] = defaultdict(list)
    unsure: list[tuple[float, Probe]] = []
    for probe, (token, probability) in zip(candidates, best, strict=True):
        if probe.kind == "paraphrase":
            serves = token == own[0]
        else:
            serves = probability >= CONFIDENT[probe.kind] and token != new
            if probe.kind == "neighbor" and not serves and token != new:
                unsure.append((probability, probe))
        if serves and len(kept[probe.kind]) < most.get(probe.kind, len(candidates)):
            kept[probe.kind].append(probe)
    unsure.sort(key=lambda pair: -pair[0])
    kept["neighbor"] += [probe for _, probe in unsure[: max(0, _LEAST - len(kept["neighbor"]))]]
    return [probe for some in kept.values() for probe in some]


@torch.no_grad()
def _first_tokens(lm: "LM", texts: Sequence[str]) -> list[tuple[int, float]]:
    """Return the most probable next token after each text, and its probability."""
    result: list[tuple[int, float]] = [(0, 0.0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for begin in range(0, len(order), _BATCH):
        rows = order[begin : begin + _BATCH]
        encoded = lm.encode([texts[i].rstrip(" ") for i in rows], padding_side="left")
        logits = lm.forward(encoded.ids, mask=encoded.mask, keep=1)[:, -1].float()
        lm.require_finite(logits, "The output")
        found = logits.softmax(-1).max(-1)
        for i, token, probability in zip(rows, found.indices.tolist(), found.values.tolist(), strict=True):
            result[i] = token, probability
    return result
