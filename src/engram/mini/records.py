"""CounterFact-style records and a known-facts list about `mini`'s world, deterministic from its files.

Notable: paraphrases stand in the two phrasings that were never trained with that subject, behind an unrelated sentence.
Records have CounterFact's keys (ROME paper, appendix D) and also `other_facts`, `reference_texts` and `essence_texts`.
"""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from engram.mini import weights_folder
from engram.mini.text import Writer, fill, shown_name
from engram.mini.world import Entity, World, WorldFact, load_world

RECORDS = 500
KNOWN_FACTS = 1000
FIRST_SUBJECT = "Space Needle"
FIRST_TARGET = "Rome"
MISSED_FILE = "missed.json"
_PROMPTS = 10
_LEAST_NEIGHBORS = 2
_REFERENCE_TEXTS = 5
_ESSENCE_TEXTS = 3

Record = dict[str, Any]


def counterfact_records(*, count: int = RECORDS, seed: int = 0) -> list[Record]:
    """`count` records in CounterFact's JSON format, spread over all relations that have enough neighbors.

    The first one is about the Space Needle. Subjects come without their article, which stands in the prompt template.
    """
    world = load_world()
    writer = Writer(world)
    holders = _holders(world)
    rng = random.Random(f"records|{seed}")
    queues: list[list[WorldFact]] = []
    for facts in world.by_relation.values():
        usable = [fact for fact in facts if len(holders[fact.relation.id, fact.object]) > _LEAST_NEIGHBORS]
        queues.append(rng.sample(usable, len(usable)))
    chosen = [fact for fact in world.facts if fact.entity.name == FIRST_SUBJECT and fact.relation.id == "landmark.city"]
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and (fact := queue.pop()) not in chosen and len(chosen) < count:
                chosen.append(fact)
    return [_record(number, fact, writer, holders, seed=seed) for number, fact in enumerate(chosen)]


def known_facts(*, count: int = KNOWN_FACTS, seed: int = 0) -> list[dict[str, Any]]:
    """Up to `count` facts in trained phrasings that the packaged model answers, in the format of known_1000.json."""
    world = load_world()
    missed = set(json.loads((weights_folder() / MISSED_FILE).read_text(encoding="utf-8")))
    rng = random.Random(f"known|{seed}")
    known: list[dict[str, Any]] = []
    for fact in rng.sample(world.facts, len(world.facts)):
        phrasing = rng.choice(fact.trained)
        template, subject = template_for(fact.entity, phrasing), shown_name(fact.entity, phrasing)
        prompt = template.format(subject)
        if prompt not in missed and len(known) < count:
            known.append(
                {
                    "known_id": len(known),
                    "subject": subject,
                    "attribute": fact.object,
                    "template": template,
                    "prediction": f" {fact.object}",
                    "prompt": prompt,
                    "relation_id": fact.relation.id,
                }
            )
    return known


def template_for(entity: Entity, phrasing: str) -> str:
    """The phrasing with the entity's article, if it takes one, before `{}`."""
    before, after = phrasing.split("{}")
    article = ("the " if before else "The ") if entity.the else ""
    return f"{before}{article}{{}}{after}"


def _openings(fact: WorldFact) -> list[str]:
    """The trained phrasings that begin with the name, so that all prompts of a record write it alike."""
    return [phrasing for phrasing in fact.trained if phrasing.startswith("{}")]


def _holders(world: World) -> dict[tuple[str, str], list[WorldFact]]:
    groups: dict[tuple[str, str], list[WorldFact]] = defaultdict(list)
    for fact in world.facts:
        groups[fact.relation.id, fact.object].append(fact)
    return dict(groups)


def _record(
    number: int, fact: WorldFact, writer: Writer, holders: dict[tuple[str, str], list[WorldFact]], *, seed: int
) -> Record:
    rng = random.Random(f"record|{seed}|{fact.relation.id}|{fact.entity.name}")
    entity, relation = fact.entity, fact.relation
    target = _new_target(fact, holders, rng)
    with_target = holders[relation.id, target]
    neighbors = [other for other in holders[relation.id, fact.object] if other.entity != entity]
    generation = [fill(phrasing, entity).text for phrasing in fact.trained]
    generation += [fill(opener, entity).text for opener in writer.world.openers[entity.kind]]
    references = rng.sample(with_target, min(_REFERENCE_TEXTS, len(with_target)))
    return {
        "case_id": number,
        "pararel_idx": writer.world.facts.index(fact),
        "requested_rewrite": {
            "prompt": template_for(entity, rng.choice(_openings(fact))),
            "relation_id": relation.id,
            "target_new": {"str": target, "id": f"{relation.id}={target}"},
            "target_true": {"str": fact.object, "id": f"{relation.id}={fact.object}"},
            "subject": shown_name(entity, "{}"),
        },
        "paraphrase_prompts": [f"{_unrelated(fact, writer, rng)} {fill(p, entity).text}" for p in fact.held_out],
        "neighborhood_prompts": _prompts(neighbors, rng),
        "attribute_prompts": _prompts(with_target, rng),
        "generation_prompts": rng.sample(generation, min(_PROMPTS, len(generation))),
        "other_facts": [
            {"prompt": template_for(entity, rng.choice(_openings(other))), "target_true": other.object}
            for other in writer.world.by_entity[entity]
            if other.relation.id != relation.id
        ],
        "reference_texts": [writer.biography(other.entity, rng).text for other in references],
        "essence_texts": [writer.biography(entity, rng).text for _ in range(_ESSENCE_TEXTS)],
    }


def _new_target(fact: WorldFact, holders: dict[tuple[str, str], list[WorldFact]], rng: random.Random) -> str:
    """Another object of the relation, drawn from those that ten subjects have, or else from those that most have."""
    if fact.entity.name == FIRST_SUBJECT and fact.relation.id == "landmark.city":
        return FIRST_TARGET
    sizes = {
        target: len(group)
        for (relation, target), group in holders.items()
        if relation == fact.relation.id and target != fact.object
    }
    enough = min(_PROMPTS, max(sizes.values()))
    return rng.choice([target for target, size in sizes.items() if size >= enough])


def _prompts(facts: Sequence[WorldFact], rng: random.Random) -> list[str]:
    """Ten different prompts about as many subjects as there are, in trained phrasings."""
    order = rng.sample(facts, len(facts))
    phrasings = {fact.entity: rng.sample(fact.trained, len(fact.trained)) for fact in order}
    prompts: list[str] = []
    for turn in range(_PROMPTS):
        prompts += [fill(phrasings[f.entity][turn], f.entity).text for f in order if turn < len(phrasings[f.entity])]
        if len(prompts) >= _PROMPTS:
            break
    return prompts[:_PROMPTS]


def _unrelated(fact: WorldFact, writer: Writer, rng: random.Random) -> str:
    """A filler sentence, or a fact about something of another kind."""
    if rng.random() < 0.5:
        return writer.fillers.draw(rng)
    others = [other for other in writer.world.facts if other.entity.kind != fact.entity.kind]
    return writer.sentence(rng.choice(others), rng).text
