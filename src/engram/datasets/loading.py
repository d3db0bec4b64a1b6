"""`load`: a data set by file or by name, its format told by its records' fields."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from engram.datasets.counterfact import counterfact
from engram.datasets.dataset import Dataset, Skipped
from engram.datasets.files import Row, require_file, rows
from engram.datasets.others import knowns, mini, wise, zsre
from engram.datasets.sources import SOURCES, download
from engram.datasets.userfacts import facts
from engram.errors import DataError, SettingError, did_you_mean

_FORMATS: tuple[tuple[str, frozenset[str], Callable[..., Dataset]], ...] = (
    ("CounterFact", frozenset({"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"}), counterfact),
    ("EasyEdit's CounterFact", frozenset({"prompt", "rephrase_prompt", "ground_truth", "target_new"}), counterfact),
    ("zsRE", frozenset({"src", "rephrase", "alt", "loc"}), zsre),
    ("known facts", frozenset({"subject", "attribute", "prompt", "template"}), knowns),
    ("WISE", frozenset({"prompt", "subject", "target_new", "locality_prompt"}), wise),
    ("your own facts", frozenset({"subject", "prompt"}), facts),
)
"""Formats with the fields that tell them, the more particular ones first."""

_LOOKED_AT = 100
"""Records at the beginning of a file that may tell its format."""

_BUILT_IN: dict[str, dict[str, Any]] = {"mini": {}, "mini-knowns": {"facts": "knowns"}}


def load(path_or_name: str | Path, **options: Any) -> Dataset:
    """Read a data set, whatever its format.

    Args:
        path_or_name: a file; `"mini"` or `"mini-knowns"` (built in); or the name of a download source
            (`engram.datasets.SOURCES`), fetched once and checked.
        **options: limit, sample, seed, skip_unknown, skip, and those of the format.

    Raises:
        DataError: the file is missing, broken or of no known format.
        SettingError: a name that is neither a file nor a data set.
    """
    name = str(path_or_name)
    if name in _BUILT_IN:
        return mini(**_BUILT_IN[name], **options)
    if name in SOURCES and not Path(name).exists():
        return load(download(name), **options)
    bare = isinstance(path_or_name, str) and "/" not in name and "\\" not in name and not Path(name).suffix
    if bare and not Path(name).exists():
        raise SettingError(f"There is no data set {name!r} and no such file. {did_you_mean(name, names())}")
    file = require_file(path_or_name)
    return detect(file)(file, **options)


def names() -> list[str]:
    """Return the names that `load` takes beside files."""
    return sorted([*_BUILT_IN, *SOURCES])


def detect(file: Path) -> Callable[..., Dataset]:
    """Return the reader for a file's format, told by the first record that has the fields of one.

    Raises:
        DataError: the file is broken, or no format has these fields.
    """
    looked_at = list(islice(rows(file), _LOOKED_AT))
    readable = [row for row in looked_at if isinstance(row, Row)]
    for row in readable:
        for _, fields, reader in _FORMATS:
            if fields <= set(row.fields):
                return reader
    for broken in looked_at:
        if isinstance(broken, Skipped):
            raise DataError(f"{broken.where}: {broken.reason}")
    given = ", ".join(sorted(readable[0].fields))
    wanted = "; ".join(f"{name}: {', '.join(sorted(fields))}" for name, fields, _ in _FORMATS)
    raise DataError(f"{readable[0].where}: no known format has the fields {given}. Known: {wanted}.")
