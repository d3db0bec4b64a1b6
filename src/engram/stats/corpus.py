"""Where texts for statistics come from: a list, a text, CSV, JSON or JSONL file, or a Hugging Face dataset by name."""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram.errors import DataError, SettingError, first_line

if TYPE_CHECKING:
    from engram.models import LM

MINI_TOKENS = 100_000
"""About how much text `mini` writes for its own statistics."""
BUFFER = 10_000
"""Texts among which the order is shuffled; a file sorted by topic must not decide what an early stop sees."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts that can be read again and again.

    Args:
        name: for people and records.
        digest: identity of the content, 16 hexadecimal digits.
        texts: gives the texts from the beginning, lazily.
    """

    name: str
    digest: str
    texts: Callable[[], Iterator[str]]

    def shuffled(self, seed: int) -> Iterator[str]:
        """Return the texts in an order that depends on the seed alone; at most `BUFFER` of them are held."""
        rng = random.Random(seed)
        held: list[str] = []
        for text in self.texts():
            if len(held) < BUFFER:
                held.append(text)
                continue
            index = rng.randrange(BUFFER)
            held[index], text = text, held[index]
            yield text
        rng.shuffle(held)
        yield from held


def open_corpus(source: "Corpus | str | Path | Iterable[str]", *, column: str = "text") -> Corpus:
    """Make a corpus from whatever the user has.

    Args:
        source: texts; or a file: .txt (one text per line), .csv or .tsv (with a header), .jsonl, .json (a list); or
            `"hf:name[:config[:split]]"` for a Hugging Face dataset, of which no more is fetched than is read.
        column: where the text is in a table.

    Raises:
        DataError: a missing, empty or broken file; the line is named.
        SettingError: an unknown kind of file, or a dataset that cannot be read.
    """
    if isinstance(source, Corpus):
        return source
    if isinstance(source, str) and source.startswith("hf:"):
        return _dataset(source.removeprefix("hf:"), column)
    if isinstance(source, str | Path):
        return _file(Path(source), column)
    texts = list(source)
    if not any(text.strip() for text in texts):
        raise DataError("The corpus has no text. Give at least a few thousand words.")
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return Corpus(f"{len(texts)} texts", digest.hexdigest()[:16], lambda: iter(texts))


def own_corpus(lm: "LM") -> Corpus | None:
    """Return the text that comes with a model, which only `mini` has."""
    if lm.name != "mini":
        return None
    from engram.mini.text import statistics_text

    return Corpus("mini's own text", f"mini-{MINI_TOKENS}", lambda: statistics_text(tokens=MINI_TOKENS))


def _file(path: Path, column: str) -> Corpus:
    readers: dict[str, Callable[[Path, str], Iterator[str]]] = {
        ".csv": _csv,
        ".json": _json,
        ".jsonl": _jsonl,
        ".tsv": _csv,
        ".txt": _lines,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SettingError(
            f"The corpus {str(path)!r} ends in {path.suffix!r}; allowed are {', '.join(sorted(readers))}, or "
            f"'hf:NAME' for a Hugging Face dataset."
        )
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"The corpus {str(path)!r} cannot be read: {error.strerror}.") from error
    corpus = Corpus(
        str(path), hashlib.sha256(f"{digest} {column}".encode()).hexdigest()[:16], lambda: reader(path, column)
    )
    if next(corpus.texts(), None) is None:
        raise DataError(f"The corpus {str(path)!r} has no text.")
    return corpus


def _lines(path: Path, _: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip():
                yield line.rstrip("\n")


def _csv(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        if column not in (rows.fieldnames or ()):
            raise DataError(f"{str(path)!r} has no column {column!r}, only {', '.join(rows.fieldnames or ('none',))}.")
        try:
            for row in rows:
                if row[column] and row[column].strip():
                    yield row[column]
        except csv.Error as error:
            raise DataError(f"{str(path)!r}, line {rows.line_num}: {error}.") from error


def _jsonl(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{str(path)!r}, line {number}: {error}.") from error
                yield from _text_of(value, column, f"{str(path)!r}, line {number}")


def _json(path: Path, column: str) -> Iterator[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise DataError(f"{str(path)!r}: {error}.") from error
    if not isinstance(values, list):
        raise DataError(f"{str(path)!r} holds no list of texts.")
    for number, value in enumerate(values):
        yield from _text_of(value, column, f"{str(path)!r}, entry {number}")


def _text_of(value: Any, column: str, where: str) -> Iterator[str]:
    text = value.get(column) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise DataError(f"{where}: expected a text, or an object with a text in {column!r}.")
    if text.strip():
        yield text


def _dataset(name: str, column: str) -> Corpus:
    """Read a split while it comes, so that an early stop has fetched no more than it read; a slice needs all of it."""
    try:
        import datasets
    except ImportError as error:
        raise SettingError(
            f"Reading the dataset {name!r} needs the library 'datasets': pip install datasets."
        ) from error
    path, config, split = (name.split(":", 2) + ["", ""])[:3]
    where, part = (path, config or None), split or "train"
    try:
        builder: Any = datasets.load_dataset_builder(*where)
        sliced = "[" in part
        table: Any = datasets.load_dataset(*where, split=part) if sliced else builder.as_streaming_dataset(part)
    except Exception as error:  # the library raises whatever its many sources raise
        raise SettingError(f"The dataset {name!r} could not be loaded: {first_line(error)}") from error
    identity = f"{path} {builder.config.name} {builder.hash} {part} {column}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Corpus(f"hf:{name}", digest, lambda: _column(table, column, name))


def _column(table: Iterable[dict[str, Any]], column: str, name: str) -> Iterator[str]:
    for row in _rows(table, name):
        if column not in row:
            raise DataError(f"The dataset {name!r} has no column {column!r}, only {', '.join(row)}.")
        if row[column] and row[column].strip():
            yield row[column]


def _rows(table: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from table
    except Exception as error:  # as above, while reading from a network
        raise DataError(f"Reading the dataset {name!r} broke off: {first_line(error)}") from error
