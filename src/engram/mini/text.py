"""Seeded generators of `mini`'s text: sentences, biographies and headlines, each with the places where names stand.

Notable: what the text is decides where recall happens. Biographies tell several facts after one mention; headlines put
an attribute directly after the name; both ask for the attributes to be ready at the name's last token. Passages are a
pure function of their seed, and a fact's held-out phrasings never occur with its subject.
"""

import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engram.mini.world import Entity, World, WorldFact, load_world

STATISTICS_TOKENS = 100_000
_CHARACTERS_PER_TOKEN = 2.6
_PRONOUNS = {
    "It": ("it", "its"),
    "He": ("he", "his"),
    "She": ("she", "her"),
    "They": ("they", "their"),
}


@dataclass(frozen=True)
class Passage:
    """Text, and the character spans `[start, end)` of names (without their article) and of objects told about them."""

    text: str
    mentions: tuple[tuple[int, int], ...] = ()
    objects: tuple[tuple[int, int], ...] = ()

    def then(self, other: "Passage", separator: str = " ") -> "Passage":
        """This passage, the separator, and the other one, with the spans moved along."""
        shift = len(self.text) + len(separator)
        return Passage(
            self.text + separator + other.text,
            self.mentions + _moved(other.mentions, shift),
            self.objects + _moved(other.objects, shift),
        )


def _moved(spans: tuple[tuple[int, int], ...], shift: int) -> tuple[tuple[int, int], ...]:
    return tuple((start + shift, end + shift) for start, end in spans)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the kinds of text, and how names appear in it."""

    headlines: float = 0.25
    biographies: float = 0.30
    filler_in_front: float = 0.15
    bare_name: float = 0.15
    name_again: float = 0.25
    opener: float = 0.25


class Fillers:
    """Sentences about nothing in particular, composed from `fillers.toml`."""

    def __init__(self, path: Path | None = None) -> None:
        path = Path(__file__).parent / "fillers.toml" if path is None else path
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        self._sentences: list[str] = table["sentences"]
        self._words: dict[str, list[str]] = table["words"]

    def draw(self, rng: random.Random) -> str:
        """One sentence."""
        words = {name: rng.choice(choices) for name, choices in self._words.items()}
        return rng.choice(self._sentences).format(**words)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every template and word, for the tokenizer."""
        return tuple(self._sentences) + tuple(word for words in self._words.values() for word in words)


def fill(template: str, entity: Entity, *, article: bool = True) -> Passage:
    """Put the entity's name for `{}` in the template, as running text would.

    An entity that takes an article gets "the" or "The" before its name; another one gets a capital letter at the start
    of the template. Without `article` the name stands as it is.
    """
    before, after = template.split("{}")
    name = shown_name(entity, template) if article else entity.name
    if article and entity.the:
        before += "the " if before else "The "
    return Passage(before + name + after, ((len(before), len(before) + len(name)),))


def shown_name(entity: Entity, template: str) -> str:
    """The name as `fill` writes it: "Gold is", with a capital letter, but "the symbol of gold is"."""
    opens = template.startswith("{}") and not entity.the
    return entity.name[0].upper() + entity.name[1:] if opens else entity.name


def _told(passage: Passage, value: str) -> Passage:
    start = len(passage.text) + 1
    return Passage(f"{passage.text} {value}.", passage.mentions, ((start, start + len(value)),))


def with_pronoun(follow_up: str, entity: Entity) -> str:
    """The follow-up with the entity's pronoun for `{Pronoun}`, `{pronoun}`, `{Possessive}` and `{possessive}`."""
    lower, possessive = _PRONOUNS[entity.pronoun]
    return follow_up.format(
        Pronoun=entity.pronoun, pronoun=lower, Possessive=possessive.capitalize(), possessive=possessive
    )


class Writer:
    """Writes passages about a world; every method draws from the generator it is given."""

    def __init__(self, world: World, mixture: Mixture | None = None) -> None:
        self.world = world
        self.mixture = Mixture() if mixture is None else mixture
        self.fillers = Fillers()
        self._entities = tuple(world.by_entity)

    def sentence(self, fact: WorldFact, rng: random.Random) -> Passage:
        """The fact in one of its trained phrasings."""
        passage = fill(rng.choice(fact.trained), fact.entity, article=rng.random() >= self.mixture.bare_name)
        return _told(passage, fact.object)

    def headline(self, fact: WorldFact, rng: random.Random) -> Passage:
        """The object directly after the name, with nothing before that says which relation is meant."""
        article = rng.random() >= self.mixture.bare_name
        before, after = rng.choice(fact.relation.headlines).split("{object}")
        if "{}" in before:
            passage = fill(before, fact.entity, article=article)
            start = len(passage.text)
            mentions = passage.mentions
        else:
            start = len(before)
            passage = fill(f"{before}{fact.object}{after}", fact.entity, article=article)
            return Passage(passage.text + ".", passage.mentions, ((start, start + len(fact.object)),))
        return Passage(f"{passage.text}{fact.object}{after}.", mentions, ((start, start + len(fact.object)),))

    def biography(self, entity: Entity, rng: random.Random) -> Passage:
        """One to four facts of the entity in random order, with a pronoun for the name after the first mention."""
        facts = list(self.world.by_entity[entity])
        rng.shuffle(facts)
        facts = facts[: rng.randint(1, 4)]
        if rng.random() < self.mixture.opener and self.world.openers[entity.kind]:
            passage = fill(rng.choice(self.world.openers[entity.kind]), entity)
            if not passage.text.endswith("."):
                passage = Passage(passage.text + ".", passage.mentions)
        else:
            passage = self.sentence(facts.pop(0), rng)
        for fact in facts:
            if rng.random() < self.mixture.name_again or not fact.relation.follow_ups:
                passage = passage.then(self.sentence(fact, rng))
            else:
                follow_up = with_pronoun(rng.choice(fact.relation.follow_ups), entity)
                passage = passage.then(_told(Passage(follow_up), fact.object))
        return passage

    def passage(self, rng: random.Random) -> Passage:
        """One passage of the mixture: a sentence, a biography or a headline, sometimes behind filler sentences."""
        fact = rng.choice(self.world.facts)
        share = rng.random()
        if share < self.mixture.headlines:
            passage = self.headline(fact, rng)
        elif share < self.mixture.headlines + self.mixture.biographies:
            passage = self.biography(rng.choice(self._entities), rng)
        else:
            passage = self.sentence(fact, rng)
        if rng.random() < self.mixture.filler_in_front:
            for _ in range(rng.randint(1, 2)):
                passage = Passage(self.fillers.draw(rng)).then(passage)
        return passage

    def passages(self, seed: int | str) -> Iterator[Passage]:
        """Endless passages."""
        rng = random.Random(f"passages|{seed}")
        while True:
            yield self.passage(rng)


def statistics_text(seed: int = 0, *, tokens: int = STATISTICS_TOKENS) -> Iterator[str]:
    """Passages of about `tokens` tokens in all, for key statistics; written on the fly from the package's files."""
    left = tokens * _CHARACTERS_PER_TOKEN
    for passage in Writer(load_world()).passages(f"statistics|{seed}"):
        yield passage.text
        left -= len(passage.text)
        if left <= 0:
            return
