"""A user's own facts, as JSONL, JSON or CSV (schema: `schemas.FactRecord`, explained in docs/evaluation.md)."""

from pathlib import Path
from typing import Unpack

from engram.datasets.dataset import Dataset, Selection, SelectionOptions
from engram.datasets.files import Row, validated
from engram.datasets.reading import from_file
from engram.datasets.schemas import FactRecord, fact_of
from engram.errors import DataError
from engram.facts import Case, Fact


def facts(path: str | Path, **selection: Unpack[SelectionOptions]) -> Dataset:
    """Read a file of your own facts: subject, prompt, target, and what else you have.

    Args:
        path: a .jsonl, .json or .csv file; in CSV, lists stand in one cell, separated by "|".
        **selection: limit, sample, seed, skip_unknown, skip; see `Selection`.

    Raises:
        DataError: the file is missing or broken. A record with a field that is missing, unknown or of another type is
            left out; its line is named in `skipped`.
    """
    return from_file(path, "counterfact", fact_case, Selection(**selection))


def fact_case(row: Row) -> Case:
    """Make a case of a user's record.

    Raises:
        DataError: a field is missing, unknown or of another type.
        FactError: the subject does not stand in the prompt.
    """
    record = validated(FactRecord, row)
    for other in record.kept:
        if other.prompt.count("{}") != 1:
            raise DataError(f"kept: the prompt {other.prompt!r} needs exactly one '{{}}'.")
    return Case(
        id=row.name,
        fact=fact_of(subject=record.subject, prompt=record.prompt, target=record.target, original=record.original),
        relation=record.relation,
        paraphrases=record.paraphrases,
        neighborhood=record.neighborhood,
        attributes=record.attributes,
        generation=record.generation,
        references=record.references,
        essence=record.essence,
        kept=tuple(Fact(record.subject, other.prompt, None, other.original) for other in record.kept),
        locality=record.locality,
    )
