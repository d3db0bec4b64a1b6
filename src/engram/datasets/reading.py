"""From a file's records to cases: one that cannot be used is left out and named, the others go on."""

from collections.abc import Callable, Iterator
from pathlib import Path

from engram.datasets.dataset import Dataset, Selection, Skipped
from engram.datasets.files import Row, digest, require_file, rows
from engram.errors import DataError, FactError
from engram.facts import Case

Make = Callable[[Row], Case]
"""Makes a case of a record, or raises FactError or DataError where there is none in it."""


def from_file(path: str | Path, protocol: str, make: Make, selection: Selection) -> Dataset:
    """Return the data set of a file, given how one record becomes a case."""
    file = require_file(path)
    return Dataset(file.stem, protocol, digest(file), lambda: read_cases(file, make), selection)


def read_cases(file: Path, make: Make) -> Iterator[Case | Skipped]:
    """Yield the cases of a file, and what it has in place of one.

    Raises:
        DataError: the file as a whole is broken.
    """
    for row in rows(file):
        if isinstance(row, Skipped):
            yield row
            continue
        try:
            yield make(row)
        except (DataError, FactError) as error:
            yield Skipped(row.name, row.where, str(error))
