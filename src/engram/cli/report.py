"""`engram report`: one table of several runs, and what lies behind it."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram.cli.common import Json, emit_json, out
from engram.cli.evaluate import show
from engram.cli.watching import note
from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.evaluation import Report


class Form(StrEnum):
    """How the table is written."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"


def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, as in runs/*.")],
    *,
    form: Annotated[Form, typer.Option("--format", help="How the table is written.")] = Form.terminal,
    columns: Annotated[str | None, typer.Option(help="Columns, as in S,ES,PS,NS; all when not given.")] = None,
    pair: Annotated[str | None, typer.Option(help="Two runs, as in ft,rome: differences over the same cases.")] = None,
    relations: Annotated[str | None, typer.Option(help="A column, as in PS: its numbers by relation.")] = None,
    worst: Annotated[str | None, typer.Option(help="A column, as in S: the worst cases with their texts.")] = None,
    count: Annotated[int, typer.Option(help="How many worst cases.")] = 5,
    figure: Annotated[Path | None, typer.Option(help="Draw bars with intervals to a .png, .svg or .pdf.")] = None,
    retention: Annotated[Path | None, typer.Option(help="Draw retention curves of a sequential run.")] = None,
    as_json: Json = False,
) -> None:
    """Show runs side by side with 95 % intervals, and look into them.

    Example: engram report runs/* --pair ft,rome
    """
    from engram.evaluation import Report
    from engram.evaluation.figures import bars
    from engram.evaluation.verdicts import column_key

    found = Report.read(folders)
    keys = chosen(columns, found)
    if figure is not None:
        bars(found, figure, columns=keys)
    if retention is not None:
        draw_retention(found, retention)
    if as_json:
        emit_json(found.plain())
        return
    match form:
        case Form.terminal:
            show(found, keys)
        case Form.markdown:
            typer.echo(found.markdown(keys), nl=False)
        case Form.csv:
            typer.echo(found.csv(), nl=False)
        case Form.latex:
            typer.echo(found.latex(keys), nl=False)
    if pair is not None:
        say_pair(found, pair)
    if relations is not None:
        say_relations(found, column_key(relations, found.columns))
    if worst is not None:
        say_worst(found, column_key(worst, found.columns), count)


def chosen(columns: str | None, found: "Report") -> list[str] | None:
    """Return the columns that were typed, by key or as printed.

    Raises:
        SettingError: the runs have no such column.
    """
    from engram.evaluation.verdicts import COLUMNS, column_key

    if columns is None:
        return None
    commas = [column.label for column in COLUMNS.values() if "," in column.label]
    pattern = "|".join([*map(re.escape, commas), "[^,]+"])
    typed = [part.strip() for part in re.findall(pattern, columns, re.IGNORECASE)]
    return [column_key(name, found.columns) for name in typed if name]


def draw_retention(found: "Report", path: Path) -> None:
    """Draw the curves of the first sequential run."""
    from engram.evaluation.figures import retention

    sequential = [run for run in found.runs if run.settings["protocol"] == "sequential"]
    if not sequential:
        raise SettingError("None of these runs is sequential: evaluate with --keep first.")
    retention(sequential[0], path)


def say_pair(found: "Report", pair: str) -> None:
    """Show differences between two runs."""
    names = [name.strip() for name in pair.split(",")]
    if len(names) != 2:
        raise SettingError(f"--pair needs two runs, as in ft,rome; {pair!r} was given.")
    out().print(f"\n[bold]{names[1]} minus {names[0]}[/bold], paired over the same cases")
    for key, cell in found.paired(names[0], names[1]).items():
        out().print(f"  {key:<20}{cell!s:>16}   n {cell.n}")


def say_relations(found: "Report", key: str) -> None:
    """Show a column by relation, for every run."""
    for run in found.runs:
        out().print(f"\n[bold]{run.name}[/bold]: {key} by relation")
        for relation, cell in run.by_relation(key).items():
            out().print(f"  {relation:<30}{cell!s:>16}   n {cell.n}", markup=False)


def say_worst(found: "Report", key: str, count: int) -> None:
    """Show the worst cases of every run with what was asked and what the model wrote."""
    for run in found.runs:
        if run.settings["method"]["name"] == "none":
            continue
        out().print(f"\n[bold]{run.name}[/bold]: worst cases by {key}")
        for record in run.worst(key, count):
            numbers = ", ".join(f"{name} {value:.2f}" for name, value in record["metrics"].items())
            out().print(f"  {record['id']}: {record['prompt']} -> {record['target']}", markup=False, soft_wrap=True)
            note(f"    {numbers}")
            for said in record["scores"].get("paraphrase_said", []):
                note(f"    paraphrased, it says:{said}")
            for text in record["scores"].get("texts", [])[:1]:
                note(f"    {text}")
