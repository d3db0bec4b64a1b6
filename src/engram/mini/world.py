"""What `mini` knows: entities, relations and true facts, read from the plain files in `facts/` and `templates/`.

Notable: two phrasings of every fact are held out by a seeded hash, so that generalisation can be measured on sentences
that were never trained *with that subject*, although the same words were trained with others. No torch is needed here.
"""

import csv
import random
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from engram.errors import DataError

HELD_OUT_SEED = 20
HELD_OUT_PER_FACT = 2
PRONOUNS = ("It", "He", "She", "They")
_RESERVED_COLUMNS = ("name", "the", "pronoun")


@dataclass(frozen=True, kw_only=True)
class Entity:
    """Something with a name that facts are about.

    `the`: running text puts the article before the name ("the Space Needle"); `pronoun`: "It", "He", "She" or "They".
    """

    name: str
    kind: str
    the: bool
    pronoun: str


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One column of one kind: how its facts are asked and told.

    Every phrasing holds one `{}` (the subject) and is continued by a space and the object; follow-ups are the same with
    a pronoun in place of the name; headlines hold `{}` with `{object}` right after it, or almost.
    """

    kind: str
    name: str
    noun: str
    phrasings: tuple[str, ...]
    follow_ups: tuple[str, ...]
    headlines: tuple[str, ...]

    @property
    def id(self) -> str:
        """`kind.name`, such as `landmark.city`: unique in the world."""
        return f"{self.kind}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class WorldFact:
    """`entity` stands in `relation` to `object`; `held_out` are the phrasings never trained with this fact."""

    entity: Entity
    relation: Relation
    object: str
    held_out: tuple[str, ...]

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The phrasings that training may use for this fact."""
        return tuple(phrasing for phrasing in self.relation.phrasings if phrasing not in self.held_out)


@dataclass(frozen=True, kw_only=True)
class World:
    """All that `mini` is told, in file order."""

    entities: tuple[Entity, ...]
    relations: tuple[Relation, ...]
    facts: tuple[WorldFact, ...]
    openers: Mapping[str, tuple[str, ...]] = field(repr=False)

    @cached_property
    def by_entity(self) -> dict[Entity, tuple[WorldFact, ...]]:
        """The facts of every entity, in column order."""
        return {entity: tuple(facts) for entity, facts in _grouped(self.facts, lambda fact: fact.entity).items()}

    @cached_property
    def by_relation(self) -> dict[str, tuple[WorldFact, ...]]:
        """The facts of every relation id."""
        return {name: tuple(facts) for name, facts in _grouped(self.facts, lambda fact: fact.relation.id).items()}


Key = TypeVar("Key")


def _grouped(facts: Iterable[WorldFact], key: Callable[[WorldFact], Key]) -> dict[Key, list[WorldFact]]:
    groups: dict[Key, list[WorldFact]] = {}
    for fact in facts:
        groups.setdefault(key(fact), []).append(fact)
    return groups


def load_world(folder: Path | None = None) -> World:
    """Read `facts/*.tsv` and `templates/*.toml` under `folder` (default: the package's own).

    Raises `DataError` when a file, a column or a template is not as described in docs/mini.md.
    """
    folder = Path(__file__).parent if folder is None else folder
    entities: list[Entity] = []
    relations: list[Relation] = []
    facts: list[WorldFact] = []
    openers: dict[str, tuple[str, ...]] = {}
    for path in sorted((folder / "facts").glob("*.tsv")):
        kind = path.stem
        pronoun, kind_openers, kind_relations = _read_templates(folder / "templates" / f"{kind}.toml", kind)
        openers[kind] = kind_openers
        used: set[str] = set()
        for row in _read_rows(path):
            entity = Entity(
                name=row["name"], kind=kind, the=row.get("the") == "yes", pronoun=row.get("pronoun") or pronoun
            )
            if entity.pronoun not in PRONOUNS:
                raise DataError(f"{path.name}: {entity.name} has the pronoun {entity.pronoun!r}; allowed: {PRONOUNS}.")
            entities.append(entity)
            for column, value in row.items():
                if column in _RESERVED_COLUMNS or not value:
                    continue
                if column not in kind_relations:
                    raise DataError(f"{path.name} has a column {column!r} without [relations.{column}] in {kind}.toml.")
                used.add(column)
                facts.append(_fact(entity, kind_relations[column], value))
        relations += [relation for name, relation in kind_relations.items() if name in used]
    if not facts:
        raise DataError(f"No facts found under {folder / 'facts'}; expected one .tsv file per kind.")
    return World(entities=tuple(entities), relations=tuple(relations), facts=tuple(facts), openers=openers)


def _fact(entity: Entity, relation: Relation, value: str) -> WorldFact:
    chooser = random.Random(f"{HELD_OUT_SEED}|{relation.id}|{entity.name}")
    held_out = tuple(chooser.sample(relation.phrasings, HELD_OUT_PER_FACT))
    return WorldFact(entity=entity, relation=relation, object=value, held_out=held_out)


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not row.get("name"):
            raise DataError(f"{path.name}, line {number}: expected one name and one cell per column.")
    return [{column: value.strip() for column, value in row.items()} for row in rows]


def _read_templates(path: Path, kind: str) -> tuple[str, tuple[str, ...], dict[str, Relation]]:
    if not path.is_file():
        raise DataError(f"Facts of kind {kind!r} have no templates: expected {path}.")
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    relations = {
        name: Relation(
            kind=kind,
            name=name,
            noun=entry["noun"],
            phrasings=tuple(entry["phrasings"]),
            follow_ups=tuple(entry["follow_ups"]),
            headlines=tuple(entry["headlines"]),
        )
        for name, entry in table["relations"].items()
    }
    for relation in relations.values():
        for phrasing in relation.phrasings:
            if phrasing.count("{}") != 1:
                raise DataError(f"{path.name}: the phrasing {phrasing!r} of {relation.name} needs exactly one {{}}.")
        for headline in relation.headlines:
            if headline.count("{}") != 1 or headline.count("{object}") != 1:
                raise DataError(f"{path.name}: the headline {headline!r} needs one {{}} and one {{object}}.")
    return table.get("pronoun", "It"), tuple(table["openers"]), relations
