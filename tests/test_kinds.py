"""The built-in kinds: questions for any model, well formed and without repetition."""

from pathlib import Path

import pytest

from engram.errors import DataError
from engram.kinds import Kind, load_kinds

KINDS = load_kinds()


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_every_kind_has_many_subjects_and_a_few_relations(kind: Kind) -> None:
    assert len(kind.subjects) >= 40
    assert len(set(kind.subjects)) == len(kind.subjects)
    assert 3 <= len(kind.relations) <= 5
    for relation in kind.relations:
        assert 3 <= len(relation.paraphrases) <= 4
        assert len(set(relation.templates)) == len(relation.templates)
        assert relation.fact(kind.subjects[0]).text.count(kind.subjects[0]) == 1


def test_kinds_and_relations_have_names_of_their_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 12
    for kind in KINDS:
        assert len({relation.name for relation in kind.relations}) == len(kind.relations)


def test_a_subject_belongs_to_one_kind() -> None:
    subjects = [subject for kind in KINDS for subject in kind.subjects]
    assert sorted({s for s in subjects if subjects.count(s) > 1}) == []


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"a": {"subjects": ["x"]}}', '{"a": {"subjects": ["x"], "relations": {"r": ["no place for it"]}}}'],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kinds.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="kinds.json"):
        load_kinds(path)
