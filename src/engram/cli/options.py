"""What the verbs about edits share: their options, and small things to say."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from engram.cli.common import err

if TYPE_CHECKING:
    from engram.editing import Edit
    from engram.models import LM
    from engram.stats import Progress as Report

EditFolder = Annotated[Path, typer.Argument(help="A folder that 'engram edit --out' wrote.")]
Seed = Annotated[int, typer.Option(help="For everything that is drawn at random.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask as a chat, in the tokenizer's template.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse an edit that the health guard warns about (exit code 1).")
]


@contextmanager
def bars(*, quiet: bool = False) -> Generator["Report"]:
    """Show one bar per job that takes a while, on standard error; yields what library functions call `progress`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    console = err()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def unlogged() -> Generator[None]:
    """Keep the library's log off the screen where the verb says the same in its own words."""
    logger = logging.getLogger("engram")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def load_edit(folder: Path, lm: "LM") -> "Edit":
    """Read an edit and check at once that it belongs to the model."""
    from engram.editing import Edit

    return Edit.load(folder, lm)


def named(edit: "Edit") -> str:
    """Say in a few words what is in an edit."""
    facts = edit.facts
    first = f"{facts[0].text} -> {facts[0].target}" if facts else "no fact"
    return first if len(facts) < 2 else f"{len(facts)} facts ({first}, ...)"


def settings_given(**values: Any) -> dict[str, Any]:
    """Keep the settings that were typed; the method's own defaults stand for the others."""
    return {name: value for name, value in values.items() if value is not None and value is not False}
