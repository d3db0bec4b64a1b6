"""How results show themselves: a few lines in a terminal, tables and pictures in a notebook, rows for pandas.

Nothing here knows what it shows. Whatever a model or a user wrote is text in HTML, never markup.
"""

import base64
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from html import escape
from inspect import isroutine
from typing import TYPE_CHECKING, Any, cast

from engram.errors import needs_extra

if TYPE_CHECKING:
    from pandas import DataFrame

WIDTH, LINES = 110, 12
_TEXT, _ITEMS, _ROWS = 60, 4, 40


class Shown:
    """A value that a terminal shows in a few lines, and a notebook with its tables and pictures.

    A dataclass with this base and `repr=False` shows its fields in short. It may say more: `_lines` for people, and
    `_inside` for notebooks.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        wrapped = [part for line in self._lines() for part in _wrapped(line)]
        return "\n".join(wrapped if len(wrapped) <= LINES else [*wrapped[: LINES - 1], "  …"])

    def _repr_html_(self) -> str | None:
        inside = "".join(self._inside())
        return f"<div><pre>{escape(repr(self))}</pre>{inside}</div>" if inside else None

    def _lines(self) -> Iterable[str]:
        """Yield the lines of the text form."""
        yield f"{type(self).__name__}({', '.join(_fields(self))})"

    def _inside(self) -> Iterable[str]:
        """Yield what a notebook shows below the lines, as HTML."""
        return ()


def short(value: object, most: int = _TEXT) -> str:
    """Return a value as it stands in a line: numbers in four digits, tensors by type and shape, long things cut.

    Args:
        value: anything.
        most: characters of a text that are shown.

    >>> short([1.5, 2.0]), short("word " * 50)[-7:], short(list(range(100)))
    ('[1.5, 2]', "word …'", '[100 items]')
    """
    match value:
        case str():
            return repr(value if len(value) <= most else f"{value[: most - 1]}…")
        case bool() | int() | None:
            return repr(value)
        case float():
            return f"{value:.4g}"
        case Shown():
            text = repr(value)
            return text if len(text) <= _TEXT and "\n" not in text else f"{type(value).__name__}(…)"
        case Mapping():
            items = cast("Mapping[object, object]", value)
            return _group("{", [f"{short(k)}: {short(v)}" for k, v in _first(items.items())], len(items), "}")
        case list() | tuple():
            many = cast("Sequence[object]", value)
            left, right = "[]" if isinstance(value, list) else "()"
            return _group(left, [short(item) for item in _first(many)], len(many), right)
        case _ if hasattr(value, "shape") and hasattr(value, "dtype"):
            array = cast("Any", value)
            return f"{str(array.dtype).removeprefix('torch.')}[{', '.join(map(str, array.shape))}]"
        case _:
            text = repr(value)
            return text if len(text) <= _TEXT and "\n" not in text else f"{type(value).__name__}(…)"


def _first(items: Iterable[Any]) -> list[Any]:
    return [item for _, item in zip(range(_ITEMS), items, strict=False)]


def _group(left: str, shown: list[str], count: int, right: str) -> str:
    text = ", ".join(shown)
    fits = count <= len(shown) and len(text) <= _TEXT
    return f"{left}{text if fits else f'{count} items'}{right}"


def _fields(value: object) -> list[str]:
    """Return `name=value` for every field that is not what it is by default."""
    if not is_dataclass(value):
        return []
    shown = [(f, getattr(value, f.name)) for f in fields(value) if f.repr]
    return [f"{f.name}={short(v)}" for f, v in shown if not (isroutine(v) or _is_default(f, v))]


def _is_default(item: Field[Any], value: object) -> bool:
    if hasattr(value, "shape"):
        return 0 in cast("Any", value).shape
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return value is default or (type(value) is type(default) and value == default)


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def cut(text: str, most: int = 24) -> str:
    """Return a name on one line: line breaks and other controls as escapes, the middle of long ones left out.

    >>> cut("pneumonoultramicroscopicsilicovolcanoconiosis")
    'pneumonoultr…anoconiosis'
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return line if len(line) <= most else f"{line[: most // 2]}…{line[most // 2 + 1 - most :]}"


def columns_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns: the first left, the others right, under their headers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a table as HTML, everything in it as text; numbers stand under their headers.

    Args:
        heads: the header of each column.
        rows: their cells; no more than 40 rows are shown.
        left: how many columns, from the left, hold words rather than numbers.
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ("left" if i < left else "right" for i in range(len(cells)))
        return "".join(
            f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        )

    every = list(rows)
    body = "".join(f"<tr>{line('td', row)}</tr>" for row in every[:_ROWS])
    more = f"<p>and {len(every) - _ROWS} more rows</p>" if len(every) > _ROWS else ""
    return f"<table><thead><tr>{line('th', heads)}</tr></thead><tbody>{body}</tbody></table>{more}"


def html_picture(draw: Callable[[], Any], alt: str) -> str:
    """Return a figure as an inline picture.

    Args:
        draw: makes the figure.
        alt: what it shows, for those who cannot see it.
    """
    data: bytes = draw()._repr_png_()
    code = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}" style="max-width:100%" src="data:image/png;base64,{code}">'


def html_notes(notes: Iterable[str]) -> str:
    """Return remarks below a table as HTML."""
    return "".join(f"<p><small>{escape(note)}</small></p>" for note in notes)


def frame(rows: Iterable[Mapping[str, object]]) -> "DataFrame":
    """Return rows as a table for pandas.

    Raises:
        SettingError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise needs_extra("A table for pandas", "pandas") from error
    return pandas.DataFrame(list(rows))


def around(value: float, half_width: float) -> dict[str, float]:
    """Return the ends of an interval as columns; NaN where it is not known."""
    known = not math.isnan(half_width)
    return {"low": value - half_width if known else math.nan, "high": value + half_width if known else math.nan}
