import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from engram.errors import DataError
from engram.mini.text import Writer, fill, shown_name, statistics_text, with_pronoun
from engram.mini.world import Entity, WorldFact, load_world

WORLD = load_world()


def test_the_world_is_as_large_as_promised() -> None:
    assert len(WORLD.facts) >= 1500
    assert len(WORLD.relations) >= 20
    assert len({entity.kind for entity in WORLD.entities}) >= 8
    assert min(len(facts) for facts in WORLD.by_entity.values()) >= 3


def test_names_are_unique_and_facts_have_one_object() -> None:
    assert not [name for name, count in Counter(e.name.lower() for e in WORLD.entities).items() if count > 1]
    assert len({(fact.entity, fact.relation.id) for fact in WORLD.facts}) == len(WORLD.facts)


def test_every_relation_has_enough_distinct_phrasings() -> None:
    for relation in WORLD.relations:
        assert len(set(relation.phrasings)) >= 8, relation.id
        assert all(not phrasing.endswith((" ", "{}")) for phrasing in relation.phrasings), relation.id


def test_two_phrasings_of_every_fact_are_held_out_and_the_choice_never_changes() -> None:
    for fact, again in zip(WORLD.facts, load_world().facts, strict=True):
        assert len(set(fact.held_out)) == 2
        assert fact.held_out == again.held_out
        assert set(fact.trained) | set(fact.held_out) == set(fact.relation.phrasings)
        assert not set(fact.trained) & set(fact.held_out)


def written(entity: Entity) -> set[str]:
    return {entity.name, shown_name(entity, "{}")}


def told(fact: WorldFact, phrasings: tuple[str, ...]) -> set[str]:
    return {
        f"{fill(p, fact.entity, article=article).text} {fact.object}" for p in phrasings for article in (True, False)
    }


def test_held_out_phrasings_never_occur_with_their_subject_in_generated_text() -> None:
    by_name = {
        name: facts for entity, facts in WORLD.by_entity.items() for name in (entity.name, shown_name(entity, "{}"))
    }
    trained = 0
    for passage in itertools.islice(Writer(WORLD).passages("held out"), 400):
        for start, end in passage.mentions:
            for fact in by_name[passage.text[start:end]]:
                assert not [text for text in told(fact, fact.held_out) if text in passage.text]
                trained += any(text in passage.text for text in told(fact, fact.trained))
    assert trained > 200


def test_mention_and_object_spans_cut_out_names_and_objects() -> None:
    names = {name for entity in WORLD.entities for name in written(entity)}
    objects = {fact.object for fact in WORLD.facts}
    told = 0
    for passage in itertools.islice(Writer(WORLD).passages("spans"), 500):
        assert passage.mentions
        assert all(passage.text[start:end] in names for start, end in passage.mentions), passage
        assert all(passage.text[start:end] in objects for start, end in passage.objects), passage
        told += len(passage.objects)
    assert told > 500


def test_joined_passages_keep_their_spans() -> None:
    writer, rng = Writer(WORLD), random.Random(0)
    joined = writer.sentence(WORLD.facts[0], rng).then(writer.sentence(WORLD.facts[-1], rng), "<|endoftext|>")
    assert [joined.text[a:b] for a, b in joined.mentions] == [WORLD.facts[0].entity.name, WORLD.facts[-1].entity.name]
    assert [joined.text[a:b] for a, b in joined.objects] == [WORLD.facts[0].object, WORLD.facts[-1].object]


def test_names_that_take_an_article_get_it() -> None:
    needle = next(entity for entity in WORLD.entities if entity.name == "Space Needle")
    assert fill("{} is in", needle).text == "The Space Needle is in"
    assert fill("The city of {} is", needle).text == "The city of the Space Needle is"
    assert fill("{} is in", needle, article=False).text == "Space Needle is in"


def test_pronouns_are_those_of_the_entity() -> None:
    curie = next(entity for entity in WORLD.entities if entity.name == "Marie Curie")
    assert with_pronoun("{Pronoun} and {pronoun}, {Possessive} and {possessive}", curie) == "She and she, Her and her"


def test_statistics_text_is_deterministic_and_about_as_long_as_asked() -> None:
    texts = list(statistics_text(3, tokens=2000))
    assert texts == list(statistics_text(3, tokens=2000))
    assert texts != list(statistics_text(4, tokens=2000))
    assert 4000 < sum(map(len, texts)) < 8000


def test_a_column_without_templates_is_refused(tmp_path: Path) -> None:
    for folder in ("facts", "templates"):
        (tmp_path / folder).mkdir()
    (tmp_path / "facts" / "thing.tsv").write_text("name\tthe\tcolor\nbox\tyes\tred\n")
    (tmp_path / "templates" / "thing.toml").write_text('openers = ["{}"]\n[relations]\n')
    with pytest.raises(DataError, match=r"relations\.color"):
        load_world(tmp_path)


def test_a_folder_without_facts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No facts"):
        load_world(tmp_path)


def test_an_unknown_pronoun_is_refused(tmp_path: Path) -> None:
    for folder in ("facts", "templates"):
        (tmp_path / folder).mkdir()
    (tmp_path / "facts" / "thing.tsv").write_text("name\tpronoun\nbox\tIts\n")
    (tmp_path / "templates" / "thing.toml").write_text('openers = ["{}"]\n[relations]\n')
    with pytest.raises(DataError, match="pronoun 'Its'"):
        load_world(tmp_path)
