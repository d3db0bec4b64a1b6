"""Reports, runs and sweeps as text: Markdown, LaTeX, CSV, HTML, a few lines for a terminal, and rows for pandas."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from engram.evaluation.verdicts import COLUMNS
from engram.showing import WIDTH, around, columns_of, html_notes, html_table

if TYPE_CHECKING:
    from engram.evaluation.report import Cell, Report, Run
    from engram.evaluation.sweep import Sweep

_RUNS = 8
_SWEPT = ("S", "ES", "PS", "NS")
INTERVALS = "± is half a 95 % interval."


def protocols(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return for every protocol the labels of the columns that follow it, and the protocol."""
    labels: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        labels[COLUMNS[key].protocol].append(COLUMNS[key].label)
    return [(", ".join(names), protocol) for protocol, names in labels.items()]


# Reports


def markdown(report: "Report", keys: Sequence[str]) -> str:
    """Return a report's table in Markdown, numbers under their headers, each column's protocol below it."""
    head, *body = _cells(report, keys)
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(keys) + 1) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    lines += ["", *(f"- {labels}: {protocol}." for labels, protocol in protocols(keys))]
    return "\n".join(lines) + "\n"


def latex(report: "Report", keys: Sequence[str]) -> str:
    """Return a report's table in LaTeX (package booktabs)."""
    head = " & ".join(["", *(_tex(COLUMNS[k].label) for k in keys)])
    lines = [f"\\begin{{tabular}}{{l{'r' * len(keys)}}}", "\\toprule", f"{head} \\\\", "\\midrule"]
    for run, cells in report.rows(keys):
        shown = [_shown(cell).replace("±", "$\\pm$") for cell in cells.values()]
        lines.append(" & ".join([_tex(run.name), *shown]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def comma_separated(report: "Report") -> str:
    """Return one line per run and metric: value, half width of the 95 % interval, n, protocol."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "metric", "value", "half_width_95", "n", "protocol"])
    for run, cells in report.rows():
        for key, cell in cells.items():
            if cell is not None:
                half = "" if math.isnan(cell.half_width) else repr(cell.half_width)
                writer.writerow([run.name, key, repr(cell.value), half, cell.n, COLUMNS[key].protocol])
    return text.getvalue()


def report_lines(report: "Report") -> Iterator[str]:
    """Yield a table of as many columns as fit into a line, and what shows the others."""
    keys = report.columns
    table = _cells(report, keys)
    widths = list(accumulate(max(len(row[i]) for row in table) + 2 for i in range(len(table[0]))))
    fits = sum(width <= WIDTH for width in widths)
    yield from columns_of([row[:fits] for row in table[: _RUNS + 1]])
    hidden = [
        f"{many} more {what}"
        for many, what in ((len(keys) + 2 - fits, "columns"), (len(table) - 1 - _RUNS, "runs"))
        if many > 0
    ]
    yield INTERVALS + (f" And {', '.join(hidden)}: print(report.markdown())." if hidden else "")


def report_html(report: "Report") -> Iterator[str]:
    """Yield the whole table, its intervals, and every column's protocol."""
    head, *body = _cells(report, report.columns)
    yield html_table(head, body)
    yield html_notes([INTERVALS, *(f"{labels}: {protocol}." for labels, protocol in protocols(report.columns))])


def report_rows(report: "Report") -> Iterator[dict[str, object]]:
    """Yield one row per run and column."""
    for run, cells in report.rows():
        for key, cell in cells.items():
            if cell is not None:
                column = COLUMNS[key]
                what = {"run": run.name, "column": key, "label": column.label}
                yield {**what, **_numbers(cell), "protocol": column.protocol}


def _cells(report: "Report", keys: Sequence[str]) -> list[list[str]]:
    """Return the table's header and rows as text."""
    head = ["", "n", *(COLUMNS[k].label for k in keys)]
    return [head, *([r.name, str(len(r.scored)), *map(_shown, cells.values())] for r, cells in report.rows(keys))]


# Runs


def run_lines(run: "Run") -> Iterator[str]:
    """Yield what a run is about, and its numbers."""
    method = run.settings.get("method", {}).get("name", "?")
    parts = {"failed": len(run.failed), "left out": run.skipped}
    more = "".join(f", {many} {what}" for what, many in parts.items() if many)
    yield f"Run {run.name!r}: {method}, {len(run.scored)} cases{more}"
    yield "  " + ", ".join(f"{COLUMNS[key].label} {_shown(run.cell(key))}" for key in run.columns)


def run_rows(run: "Run") -> Iterator[dict[str, object]]:
    """Yield one row per scored case: what was asked, and a column for every metric."""
    for record in run.scored:
        asked = {name: record.get(name) for name in ("id", "relation", "prompt", "target")}
        yield {**asked, **{key: record["metrics"][key] for key in COLUMNS if key in record["metrics"]}}


# Sweeps


def sweep_lines(swept: "Sweep") -> Iterator[str]:
    """Yield the best places by S (by their first column where there is no S)."""
    table = _places(swept)
    yield f"Sweep of {swept.model}: {len(swept.runs)} places" + ("; the best by S:" if swept.cells("S") else "")
    yield from (f"  {line}" for line in columns_of(table[: _RUNS + 1]))
    if len(table) > _RUNS + 1:
        yield f"  and {len(table) - 1 - _RUNS} more: .plot() draws all, .dataframe() has every number"


def sweep_html(swept: "Sweep") -> Iterator[str]:
    """Yield the table of places, the best by S first."""
    head, *body = _places(swept)
    yield html_table(head, body)
    yield html_notes([INTERVALS])


def sweep_rows(swept: "Sweep") -> Iterator[dict[str, object]]:
    """Yield one row per place and column."""
    for place, run in swept.runs.items():
        for key in run.columns:
            if (cell := run.cell(key)) is not None:
                where = {"method": place.method, "layer": place.layer, "token": place.token}
                yield {**where, "column": key, **_numbers(cell)}


def _places(swept: "Sweep") -> list[list[str]]:
    """Return header and rows as text, the place with the highest S first."""
    scores = swept.cells("S")
    order = sorted(swept.runs, key=lambda place: -scores[place].value if place in scores else math.inf)
    return [["", *_SWEPT], *([p.name, *(_shown(swept.runs[p].cell(key)) for key in _SWEPT)] for p in order)]


# Numbers


def _numbers(cell: "Cell") -> dict[str, object]:
    return {"value": cell.value, **around(cell.value, cell.half_width), "n": cell.n}


def _shown(cell: "Cell | None") -> str:
    return "" if cell is None else str(cell)


def _tex(text: str) -> str:
    for mark in ("\\", "_", "%", "&", "#", "$"):
        text = text.replace(mark, "\\textbackslash{}" if mark == "\\" else f"\\{mark}")
    return text
