"""Tables of runs: methods by metrics with 95 % intervals, paired differences, relations, worst cases."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engram.errors import RunError, SettingError, did_you_mean
from engram.evaluation import tables
from engram.evaluation.verdicts import COLUMNS, FIRST_COLUMNS, Column, column_key
from engram.intervals import harmonic_interval, mean_interval, median_interval
from engram.runs import Record, read_records, read_run
from engram.showing import Shown, frame

if TYPE_CHECKING:
    from pandas import DataFrame

HARMONIC = ("ES", "PS", "NS")


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table, scaled as it is shown.

    Args:
        value: the average over cases.
        half_width: half the width of its 95 % interval; NaN for a single case.
        n: number of cases.
    """

    value: float
    half_width: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1f}" if math.isnan(self.half_width) else f"{self.value:.1f} ± {self.half_width:.1f}"


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """The results of one run.

    Args:
        name: what tables call it.
        settings: what decided the results.
        everything: all records, as they came.
        skipped: records of the data set that gave no case.
        circumstances: versions, hardware and time.
    """

    name: str
    settings: Mapping[str, Any]
    everything: Sequence[Record]
    skipped: int = 0
    circumstances: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """Read a run folder, which may be one that is still being written.

        Raises:
            RunError: it is no run folder, or is broken.
        """
        place = Path(folder)
        run = read_run(place)
        settings = run["settings"]
        name = "unedited" if settings["method"]["name"] == "none" else place.name
        return cls(name, settings, read_records(place), circumstances=run.get("circumstances", {}))

    @cached_property
    def records(self) -> list[Record]:
        """One record per case: of a sequential run, as the cases stand after all edits."""
        last = max((r["at"] for r in self.everything if "at" in r), default=None)
        if last is None:
            return [r for r in self.everything if "at" not in r]
        return [{**r, "id": r["case"]} for r in self.everything if r.get("at") == last]

    @property
    def scored(self) -> list[Record]:
        """The records of cases that did not fail."""
        return [record for record in self.records if "metrics" in record]

    @property
    def failed(self) -> list[Record]:
        """The records of cases that failed, with their `error`."""
        return [record for record in self.records if "error" in record]

    @property
    def columns(self) -> list[str]:
        """The columns that this run has."""
        seen = {key for record in self.scored for key in record["metrics"]}
        return [key for key in COLUMNS if key in seen or (key == "S" and seen.issuperset(HARMONIC))]

    def cell(self, key: str, records: Sequence[Record] | None = None) -> Cell | None:
        """Return one column's number over all cases (or some); `None` where no case has it.

        Raises:
            SettingError: there is no such column.
        """
        return averaged(COLUMNS[column_key(key)], self.scored if records is None else records)

    def retention(self) -> dict[int, list[Record]]:
        """Return a sequential run's records by the number of edits after which they were scored."""
        points: dict[int, list[Record]] = defaultdict(list)
        for record in self.everything:
            if "at" in record and "metrics" in record:
                points[record["at"]].append(record)
        return dict(sorted(points.items()))

    def by_relation(self, key: str) -> dict[str, Cell]:
        """Return one column's number for every relation, the lowest first."""
        groups: dict[str, list[Record]] = defaultdict(list)
        for record in self.scored:
            groups[record.get("relation") or "(none)"].append(record)
        cells = {name: cell for name, records in groups.items() if (cell := self.cell(key, records)) is not None}
        return dict(sorted(cells.items(), key=lambda item: (item[1].value, item[0])))

    def dataframe(self) -> "DataFrame":
        """Return a table for pandas, one row per scored case: id, relation, prompt, target, and every metric by key.

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(tables.run_rows(self))

    def _lines(self) -> Iterable[str]:
        return tables.run_lines(self)

    def worst(self, key: str, count: int = 5) -> list[Record]:
        """Return the cases with the worst numbers of a column (of "S": the lowest sum of its three parts).

        Raises:
            SettingError: there is no such column.
        """
        key = column_key(key)
        sign = -1 if COLUMNS[key].better == "lower" else 1
        valued = [(v, r) for r in self.scored if (v := _case_value(r, key)) is not None]
        return [record for _, record in sorted(valued, key=lambda item: (sign * item[0], str(item[1]["id"])))[:count]]


def averaged(column: Column, records: Sequence[Record]) -> Cell | None:
    """Return the average of a column over records, with its interval, scaled; `None` where no record has it."""
    if column.average == "harmonic":
        rows = [[r["metrics"][k] for k in HARMONIC] for r in records if all(k in r["metrics"] for k in HARMONIC)]
        if not rows:
            return None
        value, half = harmonic_interval(np.array(rows, dtype=np.float64))
    else:
        rows = [r["metrics"][column.key] for r in records if column.key in r["metrics"]]
        if not rows:
            return None
        value, half = (mean_interval if column.average == "mean" else median_interval)(rows)
    return Cell(value * column.scale, half * column.scale, len(rows))


def _case_value(record: Record, key: str) -> float | None:
    if key == "S":
        parts = [record["metrics"].get(k) for k in HARMONIC]
        return None if None in parts else float(sum(parts))
    value = record["metrics"].get(key)
    return None if value is None else float(value)


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """Runs side by side.

    Args:
        runs: the rows of the table.
        notes: sentences for the user (where a method's numbers come from).
    """

    runs: Sequence[Run]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folders: Sequence[str | Path]) -> "Report":
        """Read run folders; the same run twice (the unedited model beside a run of "none") counts once.

        Raises:
            RunError: no folder is a run folder, or one is broken.
        """
        places = [Path(folder) for folder in folders]
        found = [place for place in places if (place / "run.json").exists() or len(places) == 1]
        if not found:
            raise RunError("None of these is a run folder: " + ", ".join(map(str, places[:6])) + ".")
        runs = [Run.read(place) for place in found]
        runs.sort(key=lambda run: (run.settings["method"]["name"] != "none", run.name))
        kept: list[Run] = []
        for run in runs:
            plain = run.settings["method"]["name"] == "none"
            if not (plain and any(_same_base(run, other) for other in kept)):
                kept.append(run)
        return cls(kept)

    @property
    def columns(self) -> list[str]:
        """The columns that some run has, those of the data's own protocol first."""
        seen = {key for run in self.runs for key in run.columns}
        protocols = [str(run.settings.get("data", {}).get("protocol", "")) for run in self.runs]
        first = [key for p in dict.fromkeys(protocols) for key in FIRST_COLUMNS.get(p, ()) if key in seen]
        return list(dict.fromkeys([*first, *(key for key in COLUMNS if key in seen)]))

    def keys(self, columns: Sequence[str] | None = None) -> list[str]:
        """Return the keys of some columns, which may be given as tables print them; of all when not given.

        Raises:
            SettingError: there is no such column.
        """
        named = [columns] if isinstance(columns, str) else columns
        return [column_key(name) for name in named] if named else self.columns

    def run(self, name: str) -> Run:
        """Return a run by its name.

        Raises:
            SettingError: there is none of that name.
        """
        for run in self.runs:
            if run.name == name:
                return run
        raise SettingError(f"There is no run {name!r}. {did_you_mean(name, [run.name for run in self.runs])}")

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[Run, dict[str, Cell | None]]]:
        """Yield every run with its cells, by column.

        Raises:
            SettingError: there is no such column.
        """
        keys = self.keys(columns)
        for run in self.runs:
            yield run, {key: run.cell(key) for key in keys}

    def paired(self, first: str, second: str) -> dict[str, Cell]:
        """Return second minus first for every column, over the cases that both runs have.

        Cases are paired, so what makes them easy or hard for both drops out of the interval.

        Raises:
            SettingError: an unknown run.
            RunError: they have no case in common, or are about different data.
        """
        a, b = self.run(first), self.run(second)
        if a.settings["data"]["digest"] != b.settings["data"]["digest"]:
            raise RunError(f"{first!r} and {second!r} are runs over different data and cannot be paired.")
        before, after = ({str(r["id"]): r for r in run.scored} for run in (a, b))
        common = [name for name in before if name in after]
        if not common:
            raise RunError(f"{first!r} and {second!r} have no case in common.")
        differences: dict[str, Cell] = {}
        for key, column in COLUMNS.items():
            pairs = [(_case_value(before[n], key), _case_value(after[n], key)) for n in common]
            changes = [y - x for x, y in pairs if x is not None and y is not None]
            if changes and column.average != "harmonic":
                value, half = (mean_interval if column.average == "mean" else median_interval)(changes)
                differences[key] = Cell(value * column.scale, half * column.scale, len(changes))
        return differences

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "columns": {
                key: {"label": COLUMNS[key].label, "protocol": COLUMNS[key].protocol, "better": COLUMNS[key].better}
                for key in self.columns
            },
            "runs": [
                {
                    "name": run.name,
                    "cases": len(run.scored),
                    "failed": [{"id": r["id"], "error": r["error"]} for r in run.failed],
                    "skipped": run.skipped,
                    "settings": run.settings,
                    "metrics": {key: _plain_cell(cell) for key, cell in cells.items() if cell is not None},
                }
                for run, cells in self.rows()
            ],
        }

    def json(self) -> str:
        """Return the table as JSON."""
        return json.dumps(self.plain(), indent=2, ensure_ascii=False)

    def csv(self) -> str:
        """Return one line per run and metric: value, half width of the 95 % interval, n, protocol."""
        return tables.comma_separated(self)

    def markdown(self, columns: Sequence[str] | None = None) -> str:
        """Return the table in Markdown, each column's protocol below it.

        Args:
            columns: keys or printed names ("said", "Says it"); all when not given.

        Raises:
            SettingError: there is no such column.
        """
        return tables.markdown(self, self.keys(columns))

    def latex(self, columns: Sequence[str] | None = None) -> str:
        """Return the table in LaTeX (package booktabs); columns as for `markdown`."""
        return tables.latex(self, self.keys(columns))

    def dataframe(self) -> "DataFrame":
        """Return a table for pandas, one row per run and column.

        Columns: run, column (its key), label, value, its 95 % interval (low, high), n, protocol.

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(tables.report_rows(self))

    def _lines(self) -> Iterable[str]:
        return tables.report_lines(self)

    def _inside(self) -> Iterable[str]:
        return tables.report_html(self)


def _same_base(a: Run, b: Run) -> bool:
    keys = ("model", "scoring")
    same_data = a.settings["data"]["digest"] == b.settings["data"]["digest"]
    return same_data and b.name == "unedited" and all(a.settings[k] == b.settings[k] for k in keys)


def _plain_cell(cell: Cell) -> dict[str, Any]:
    half = None if math.isnan(cell.half_width) else cell.half_width
    return {"value": cell.value, "half_width_95": half, "n": cell.n}
