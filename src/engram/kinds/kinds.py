"""Reads `kinds.json`: for every kind its subjects, and its relations as a prompt followed by its paraphrases."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.errors import DataError
from engram.facts import Fact

_FILE = Path(__file__).with_name("kinds.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """Something that can be asked about every subject of a kind.

    Args:
        name: what is asked for, such as `"city"`; unique within its kind.
        prompt: a template with one `{}` for the subject; the answer follows right behind it.
        paraphrases: templates that ask for the same answer in other words.
    """

    name: str
    prompt: str
    paraphrases: tuple[str, ...]

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt and its paraphrases."""
        return (self.prompt, *self.paraphrases)

    def fact(self, subject: str) -> Fact:
        """Return the question about one subject, as a fact without answers."""
        return Fact(subject, self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Things of one kind.

    Args:
        name: such as `"landmark"`.
        subjects: well-known things of this kind, without an article; no two are the same.
        relations: what can be asked about them.
    """

    name: str
    subjects: tuple[str, ...]
    relations: tuple[Relation, ...]


def load_kinds(path: Path | None = None) -> tuple[Kind, ...]:
    """Return all kinds, in the order of the file.

    Args:
        path: a file in the format of the built-in one: `{kind: {"subjects": [...], "relations": {name: [prompt,
            paraphrase, ...]}}}`.

    Raises:
        DataError: the file is not like that.
    """
    path = _FILE if path is None else path
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_kind(name, entry) for name, entry in table.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(path)!r} is no file of kinds ({type(error).__name__}: {error}); expected "
            '{kind: {"subjects": [...], "relations": {name: [prompt, paraphrase, ...]}}}.'
        ) from error


def _kind(name: str, entry: dict[str, Any]) -> Kind:
    relations = tuple(
        Relation(name=relation, prompt=_template(prompt), paraphrases=tuple(_template(p) for p in paraphrases))
        for relation, (prompt, *paraphrases) in entry["relations"].items()
    )
    return Kind(name=name, subjects=tuple(map(str, entry["subjects"])), relations=relations)


def _template(text: str) -> str:
    if text.count("{}") != 1 or text != text.strip():
        raise ValueError(f"the template {text!r} needs exactly one '{{}}' and no white space around it")
    return text
