"""Prompts that show what an edit did: from `mini`'s own world, or the little that can be said about any fact."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engram.errors import FactError
from engram.facts import Case, Fact
from engram.mini.records import template_for
from engram.mini.text import fill, shown_name
from engram.mini.world import World, WorldFact, load_world

if TYPE_CHECKING:
    from engram.models import LM

_PARAPHRASES, _NEIGHBORS, _FARTHER, _KEPT, _UNRELATED, _TEXTS = 4, 6, 18, 5, 12, 2
_ARTICLES = ("the ", "The ")


def case_for(lm: "LM", fact: Fact, number: int = 0) -> Case:
    """Return what to ask about a fact.

    For the built-in model: phrasings never trained with the subject, other subjects with the same answer and with other
    ones, the subject's other facts, facts about things of other kinds. For other models only texts that begin with the
    prompt and with the subject; `engram.editing.making` makes the rest.
    """
    plain = Case(id=str(number), fact=fact, generation=tuple(dict.fromkeys((fact.text, fact.subject))))
    if lm.name != "mini":
        return plain
    world = load_world()
    known = world_fact(world, fact)
    if known is None:
        return plain
    entity, relation = known.entity, known.relation
    rng = random.Random(f"check|{relation.id}|{entity.name}")
    phrasings = [*known.held_out, *rng.sample(known.trained, len(known.trained))]
    others = [f for f in world.by_relation[relation.id] if f.object == known.object and f.entity != entity]
    neighbors = rng.sample(others, min(len(others), _NEIGHBORS))
    farther = [f for f in world.by_relation[relation.id] if f.object != known.object and f.object != fact.target]
    neighbors += rng.sample(farther, min(len(farther), _FARTHER))
    apart = [f for f in world.facts if f.entity.kind != entity.kind]
    kept = [f for f in world.by_entity[entity] if f.relation.id != relation.id][:_KEPT]
    return Case(
        id=str(number),
        fact=replace(fact, original=fact.original or known.object),
        relation=relation.id,
        paraphrases=tuple(fill(p, entity).text for p in phrasings if not _same(p, fact.prompt))[:_PARAPHRASES],
        neighborhood=tuple(fill(rng.choice(f.trained), f.entity).text for f in neighbors),
        generation=tuple(fill(opener, entity).text for opener in world.openers[entity.kind][:_TEXTS]),
        kept=tuple(_asked(f, rng.choice(f.trained)) for f in kept),
        locality=tuple((fill(rng.choice(f.trained), f.entity).text, f.object) for f in rng.sample(apart, _UNRELATED)),
    )


def _asked(known: WorldFact, phrasing: str) -> Fact:
    entity = known.entity
    return Fact(shown_name(entity, phrasing), template_for(entity, phrasing), None, known.object)


def one_per_fact(cases: Sequence[Case], facts: Sequence[Fact]) -> Sequence[Case]:
    """Check that there is one case per fact.

    Raises:
        FactError: there are more, or fewer.
    """
    if len(cases) != len(facts):
        raise FactError(f"{len(cases)} case(s) for {len(facts)} fact(s); give one case per fact, in the edit's order.")
    return cases


def completed(lm: "LM", case: Case) -> Case:
    """Return a case in which the built-in prompts stand for those kinds that it has none of."""
    known = case_for(lm, case.fact)
    return replace(
        case,
        paraphrases=case.paraphrases or known.paraphrases,
        neighborhood=case.neighborhood or known.neighborhood,
        generation=case.generation or known.generation,
        kept=case.kept or known.kept,
        locality=case.locality or known.locality,
    )


def world_fact(world: World, fact: Fact) -> WorldFact | None:
    """Return what a fact is about in `mini`'s world: by phrasing, else by its old answer, else by its new one."""
    name = fact.subject.strip()
    name = name[4:] if name.startswith(_ARTICLES) else name
    entity = next((e for e in world.by_entity if name in (e.name, shown_name(e, "{}"))), None)
    if entity is None:
        return None
    facts = world.by_entity[entity]
    found = [f for f in facts if any(_same(p, fact.prompt) for p in f.relation.phrasings)]
    if fact.original:
        found += [f for f in facts if f.object == fact.original.strip()]
    if fact.target:
        wanted = fact.target.strip()
        found += [f for f in facts if any(o.object == wanted for o in world.by_relation[f.relation.id])]
    return found[0] if found else None


def _same(phrasing: str, prompt: str) -> bool:
    """Whether two templates are equal but for an article before the subject."""
    return _normal(phrasing) == _normal(prompt)


def _normal(template: str) -> str:
    return " ".join(template.replace("The {}", "{}").replace("the {}", "{}").split())


def cases_for(
    lm: "LM",
    facts: Sequence[Fact],
    *,
    paraphrases: Sequence[str] = (),
    neighborhood: Sequence[str] = (),
    generation: Sequence[str] = (),
) -> list[Case]:
    """Return one case per fact, with given prompts in place of the built-in ones of their kind.

    A paraphrase belongs to the fact whose subject stands in it, else to the first; neighbors and free texts are shown
    with the first fact.
    """
    cases = [case_for(lm, fact, i) for i, fact in enumerate(facts)]
    if paraphrases:
        given: dict[int, list[str]] = defaultdict(list)
        for text in paraphrases:
            given[next((i for i, fact in enumerate(facts) if fact.subject in text), 0)].append(text)
        cases = [replace(case, paraphrases=tuple(given[i])) for i, case in enumerate(cases)]
    if neighborhood:
        cases = [replace(case, neighborhood=() if i else tuple(neighborhood)) for i, case in enumerate(cases)]
    if generation:
        cases = [replace(case, generation=() if i else tuple(generation)) for i, case in enumerate(cases)]
    return cases
