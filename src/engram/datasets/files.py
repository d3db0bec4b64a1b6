"""Reading data files record by record, each with the line where it begins. JSON arrays are streamed, not loaded whole.

A JSON array is read in growing pieces, so that a record is decoded at most a few times and the reading stays linear.
Where a broken record leaves no doubt about where the next one begins, as in a .jsonl or .csv file, the others go on.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from engram.datasets.dataset import Skipped
from engram.errors import DataError, did_you_mean

_PIECE = 1 << 18
_SPACE = re.compile(r"\s*")
_SEPARATOR = "|"
_IDS = ("case_id", "known_id", "id")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file.

    Args:
        path: the file.
        line: the line on which the record begins, counted from 1.
        number: how many records precede it.
        fields: the record itself.
    """

    path: Path
    line: int
    number: int
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        """File, line and record, for messages."""
        return f"{self.path}, line {self.line} (record {self.number + 1})"

    @property
    def name(self) -> str:
        """The record's own id, or how many records precede it."""
        own = (self.fields.get(key) for key in _IDS)
        return next((str(value) for value in own if value not in (None, "")), str(self.number))


@dataclass(frozen=True, slots=True)
class _Broken:
    """A record that could not be read, and why."""

    reason: str


def require_file(path: str | Path) -> Path:
    """Check that a data file is there.

    Raises:
        DataError: it is not, or it is a folder.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        inside = ", ".join(sorted(p.name for p in file.iterdir() if p.suffix in (".json", ".jsonl", ".csv"))[:8])
        raise DataError(f"{file} is a folder; give one file of it" + (f": {inside}." if inside else "."))
    if not file.is_file():
        raise DataError(f"There is no file {str(file)!r}. Give a .json, .jsonl or .csv file, or a data set's name.")
    return file


def digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def rows(path: Path) -> Iterator[Row | Skipped]:
    """Yield the records of a `.json` (a list), `.jsonl` (one per line) or `.csv` file in their order.

    A record that cannot be read is yielded as `Skipped`, where the others can.

    Raises:
        DataError: the file as a whole is broken, truncated, empty or not text; it names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
            number = -1
            for number, (line, fields) in enumerate(_reader(path)(path, file)):
                row = Row(path, line, number, fields if isinstance(fields, dict) else {})
                if isinstance(fields, _Broken):
                    yield Skipped(row.name, row.where, fields.reason)
                elif not isinstance(fields, dict):
                    yield Skipped(row.name, row.where, f"a record must be an object {{...}}, not {_short(fields)}.")
                else:
                    yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    if number < 0:
        raise DataError(f"{path} holds no records.")


def validated(model: type[Model], row: Row) -> Model:
    """Return a record as its schema's object.

    Raises:
        DataError: a field is missing, unknown or of another type; it is named.
    """
    try:
        return model.model_validate(row.fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        hint = f" {did_you_mean(field, model.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise DataError(f"{field}: {first['msg'].lower()}{more}.{hint}") from error


def _reader(path: Path) -> Any:
    match path.suffix.lower():
        case ".json":
            return _json_list
        case ".jsonl" | ".ndjson":
            return _json_lines
        case ".csv":
            return _csv
        case suffix:
            raise DataError(f"{path}: {suffix or 'a name without ending'} is not known; use .json, .jsonl or .csv.")


def _json_lines(_: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text.rstrip())
        except json.JSONDecodeError as error:
            yield line, _Broken(f"broken JSON at column {error.colno}: {error.msg}.")


def _json_list(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    pieces = _Pieces(path, file)
    if not pieces.take("["):
        raise DataError(
            f"{path}, line {pieces.line}: a .json file must hold a list of records [...]. "
            f"For one record per line name it .jsonl."
        )
    if pieces.take("]"):
        return
    while True:
        yield pieces.value()
        if pieces.take("]"):
            return
        pieces.require_comma()


class _Pieces:
    """A file as a buffer that grows where a value is not complete, and that knows the line of its beginning."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self.line = 1

    def _skip(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self, size: int) -> None:
        piece = self._file.read(size)
        self._ended = len(piece) < size
        self._text, self._at = self._text[self._at :] + piece, 0

    def _peek(self) -> str:
        """Return the next character that is no white space ('' at the end)."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._skip(match.end() if match else self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(_PIECE)

    def take(self, mark: str) -> bool:
        found = self._peek() == mark
        if found:
            self._skip(self._at + 1)
        return found

    def require_comma(self) -> None:
        seen = self._peek()
        if seen != ",":
            what = "the file ends inside the list (truncated?)" if not seen else f"',' or ']' expected, not {seen!r}"
            raise DataError(f"{self._path}, line {self.line}: {what}.")
        self._skip(self._at + 1)

    def value(self) -> tuple[int, Any]:
        size = _PIECE
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._ended:
                    self._more(size)
                    size *= 2
                    continue
                line = self.line + self._text.count("\n", self._at, error.pos)
                cut = " The file ends here: is it truncated?" if error.pos >= len(self._text.rstrip()) - 1 else ""
                raise DataError(f"{self._path}, line {line}: broken JSON: {error.msg}.{cut}") from error
            line = self.line
            self._skip(end)
            return line, value


def _csv(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """Yield rows as dictionaries; empty cells are left out, and cells of list fields are split at '|'."""
    reader = csv.DictReader(file, strict=True)
    try:
        header = ", ".join(reader.fieldnames or ())
    except csv.Error as error:
        raise DataError(f"{path}, line 1: broken CSV: {error}.") from error
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            yield line, _Broken(f"broken CSV: {error}.")
            continue
        if record is None:
            return
        if None in record or None in record.values():
            yield line, _Broken(f"the row has another number of cells than the header ({header}).")
        else:
            yield line, {key.strip(): cell for key, cell in record.items() if cell.strip()}


def split_cell(value: Any) -> Any:
    """Turn a CSV cell into a list at each '|'; anything but text stays as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(_SEPARATOR) if part.strip()]
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
