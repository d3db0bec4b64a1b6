"""A user's own facts, as JSONL, JSON or CSV (schema: `schemas.FactRecord`, explained in docs/evaluation.md)."""

from pathlib import Path
from typing import Any

from engram.datasets.dataset import Dataset, Selection, Skipped
from engram.datasets.files import Row, validated
from engram.datasets.others import from_file
from engram.datasets.schemas import FactRecord, fact_or_skip
from engram.errors import DataError
from engram.facts import Case, Fact


def facts(
    path: str | Path,
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    skip_unknown: Any = None,
) -> Dataset:
    """Read a file of your own facts: subject, prompt, target, and what else you have.

    Args:
        path: a .jsonl, .json or .csv file; in CSV, lists stand in one cell, separated by "|".
        limit: only the first so many cases.
        sample: only so many, drawn at random.
        seed: for the draw.
        skip_unknown: a model; leave out facts that it does not know.

    Raises:
        DataError: the file is missing or broken, or a field is missing, unknown or of another type; the line is named.
    """
    selection = Selection(limit=limit, sample=sample, seed=seed, skip_unknown=skip_unknown)
    return from_file(path, "counterfact", fact_case, selection)


def fact_case(row: Row) -> Case | Skipped:
    """Make a case of a user's record."""
    record = validated(FactRecord, row)
    name = record.id if record.id is not None else str(row.number)
    fact = fact_or_skip(
        row, name, subject=record.subject, prompt=record.prompt, target=record.target, original=record.original
    )
    if isinstance(fact, Skipped):
        return fact
    for other in record.kept:
        if other.prompt.count("{}") != 1:
            raise DataError(f"{row.where}: kept: the prompt {other.prompt!r} needs exactly one '{{}}'.")
    return Case(
        id=name,
        fact=fact,
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
