"""Tables by hand: cells, intervals, pairs, relations, worst cases, and every form they are written in."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from engram.errors import RunError, SettingError
from engram.evaluation import COLUMNS, Report, Run
from engram.evaluation.figures import bars, retention
from engram.runs import RunStore


def settings(method: str, **changes: Any) -> dict[str, Any]:
    return {
        "protocol": "single",
        "method": {"name": method},
        "model": {"fingerprint": "f"},
        "data": {"digest": "d", "protocol": "counterfact"},
        "scoring": {},
        **changes,
    }


def record(name: str, es: float, ps: float, ns: float, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "relation": more.pop("relation", "P1"),
        "prompt": "A is in",
        "target": "B",
        "metrics": {"ES": es, "PS": ps, "NS": ns, **more},
        "scores": {},
    }


ROME = Run(
    "rome", settings("rome"), [record("1", 1, 0.5, 0.8), record("2", 1, 1, 0.6, relation="P2"), record("3", 1, 1, 1)]
)
FT = Run("ft", settings("ft"), [record("2", 1, 0.5, 0.1), record("1", 1, 0.5, 0.2), {"id": "3", "error": "NaN"}])


def test_cells_by_hand() -> None:
    cell = ROME.cell("NS")
    assert cell is not None
    assert cell.value == pytest.approx(80)
    assert cell.half_width == pytest.approx(1.96 * 20 / 3**0.5, rel=1e-3)
    assert (cell.n, str(cell)) == (3, "80.0 ± 22.6")
    score = ROME.cell("S")
    assert score is not None
    assert score.value == pytest.approx(100 * 3 / (1 / 1 + 1 / (2.5 / 3) + 1 / 0.8))
    assert ROME.cell("GE") is None
    assert ROME.columns == ["S", "ES", "PS", "NS"]


def test_failed_cases_are_counted_and_not_averaged() -> None:
    assert [r["id"] for r in FT.failed] == ["3"]
    cell = FT.cell("NS")
    assert cell is not None
    assert (round(cell.value, 6), cell.n) == (15.0, 2)
    assert Report([FT]).plain()["runs"][0]["failed"] == [{"id": "3", "error": "NaN"}]


def test_pairs_are_matched_by_case() -> None:
    cells = Report([FT, ROME]).paired("ft", "rome")
    assert cells["NS"].value == pytest.approx(55)  # (0.6 + 0.5) / 2
    assert cells["NS"].half_width == pytest.approx(1.96 * 7.0710678 / 2**0.5, rel=1e-3)
    assert cells["PS"].value == pytest.approx(25)
    assert cells["NS"].n == 2
    other = Run("other", settings("rome", data={"digest": "e", "protocol": "counterfact"}), ROME.everything)
    with pytest.raises(RunError, match="different data"):
        Report([FT, other]).paired("ft", "other")
    with pytest.raises(SettingError, match="Did you mean 'rome'"):
        Report([FT, ROME]).paired("ft", "roma")


def test_relations_and_worst_cases() -> None:
    assert {name: cell.value for name, cell in ROME.by_relation("NS").items()} == pytest.approx({"P2": 60, "P1": 90})
    assert next(iter(ROME.by_relation("NS"))) == "P2"
    assert [r["id"] for r in ROME.worst("S", 2)] == ["1", "2"]
    assert [r["id"] for r in ROME.worst("NS", 1)] == ["2"]


def test_every_form_has_the_same_numbers() -> None:
    report = Report([FT, ROME])
    plain = json.loads(report.json())
    assert plain["runs"][1]["metrics"]["NS"]["value"] == pytest.approx(80)
    assert plain["columns"]["ES"]["protocol"] == COLUMNS["ES"].protocol
    lines = list(csv.DictReader(io.StringIO(report.csv())))
    assert {(row["run"], row["metric"]) for row in lines} >= {("ft", "S"), ("rome", "NS")}
    assert float(next(r["value"] for r in lines if (r["run"], r["metric"]) == ("rome", "NS"))) == pytest.approx(80)
    markdown = report.markdown(["ES", "NS"])
    assert "| rome | 3 | 100.0 ± 0.0 | 80.0 ± 22.6 |" in markdown
    assert COLUMNS["NS"].protocol in markdown
    latex = report.latex(["NS"])
    assert "rome & 80.0 $\\pm$ 22.6 \\\\" in latex
    assert latex.count("&") == 3


def test_columns_go_by_the_names_that_tables_print() -> None:
    run = Run("rome", settings("rome"), [record("1", 1, 1, 1, said=1.0, unchanged=0.5)])
    report = Report([run])
    assert report.markdown(["Unchanged", "says it"]) == report.markdown(["unchanged", "said"])
    assert report.latex("es") == report.latex(["ES"])
    assert str(run.cell("Says it")) == str(run.cell("said")) == "100.0"
    assert [row["id"] for row in run.worst("unchanged ")] == ["1"]
    assert "| --" not in report.markdown() and "|---:|" in report.markdown()  # numbers under their headers
    with pytest.raises(SettingError, match="no column 'Unchanced'. Did you mean 'Unchanged'"):
        report.markdown(["Unchanced"])
    with pytest.raises(SettingError, match="no column 'Nope'"):
        bars(report, columns=["Nope"])


def test_the_unedited_model_is_one_row_however_it_came(tmp_path: Path) -> None:
    for name, what in (("unedited-1", "none"), ("none", "none"), ("rome", "rome")):
        with RunStore(tmp_path / name, settings(what)) as store:
            store.append(ROME.everything)
    report = Report.read(sorted(tmp_path.iterdir()))
    assert [run.name for run in report.runs] == ["unedited", "rome"]


def test_things_that_are_no_runs_are_passed_over_or_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path / "rome", settings("rome")) as store:
        store.append(ROME.everything)
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    assert [run.name for run in Report.read(sorted(tmp_path.iterdir())).runs] == ["rome"]
    with pytest.raises(RunError, match="no run folder"):
        Report.read([tmp_path / "absent"])
    with pytest.raises(RunError, match="None of these"):
        Report.read([tmp_path / "absent", tmp_path / "notes.txt"])


def test_a_sequential_run_shows_how_things_stand_at_the_end(tmp_path: Path) -> None:
    at = [
        {**record(f"{c} after {n}", 1, 1, ns), "case": c, "at": n}
        for c, n, ns in (("1", 1, 1.0), ("1", 2, 0.5), ("2", 2, 0.7))
    ]
    run = Run(
        "seq", settings("rome", protocol="sequential"), [record("1", 1, 1, 1), at[0], record("2", 1, 1, 1), *at[1:]]
    )
    cell = run.cell("NS")
    assert cell is not None
    assert (round(cell.value, 6), cell.n) == (60.0, 2)
    assert [r["id"] for r in run.records] == ["1", "2"]
    assert {n: len(records) for n, records in run.retention().items()} == {1: 1, 2: 2}
    retention(run, tmp_path / "retention.png")
    assert (tmp_path / "retention.png").stat().st_size > 1000
    with pytest.raises(RunError, match="no checkpoints"):
        retention(ROME)


def test_bars_have_one_colour_per_run_and_end_at_the_values(tmp_path: Path) -> None:
    figure = bars(Report([FT, ROME]), tmp_path / "bars.png")
    axes = figure.axes[0]
    heights = [patch.get_height() for patch in axes.patches]  # pyright: ignore
    assert heights[-1] == pytest.approx(80)
    assert len(heights) == 2 * 4
    assert [label.get_text() for label in axes.get_xticklabels()] == ["S", "ES", "PS", "NS"]
