"""Signs of life on standard error: bars on a terminal, a line every ten seconds elsewhere; and what Ctrl-C says."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engram.progress import Progress as Told
from engram.progress import amount, lines, named


def err() -> Console:
    """Return the console for progress, notes and errors (standard error)."""
    return Console(stderr=True, highlight=False)


def note(message: str) -> None:
    """Print a remark that is no result."""
    err().print(f"[dim]{escape(message)}[/dim]", soft_wrap=True)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, and what was being done.

    Args:
        what: the job that was reported last; nothing where none was.
        done: how much of it was done.
    """

    def __init__(self, what: str, done: int) -> None:
        super().__init__()
        self.what, self.done = what, done


@contextmanager
def bars(*, quiet: bool = False) -> Generator[Told]:
    """Show what takes a while; yields what library functions call `progress`. Ctrl-C in between becomes `Stopped`."""
    last: list[tuple[str, int]] = []
    with _silence() if quiet else _drawn() if err().is_terminal else _written() as show:

        def report(what: str, done: int, total: int) -> None:
            last[:] = [(what, done)]
            show(what, done, total)

        try:
            yield report
        except KeyboardInterrupt:
            raise Stopped(*(last[0] if last else ("", 0))) from None


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Generator[Callable[[int, int], None]]:
    """Show how far one thing is; yields a function to call with (done, total)."""
    with bars(quiet=quiet) as report:
        yield named(report, what)


@contextmanager
def _silence() -> Generator[Told]:
    yield lambda _what, _done, _total: None


@contextmanager
def _written() -> Generator[Told]:
    yield lines(note)


@contextmanager
def _drawn() -> Generator[Told]:
    """One bar per job, while it is under way."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err(), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            text = amount(what, done, total)
            if what not in tasks:
                tasks[what] = bar.add_task(escape(what), total=total, amount=text)
            bar.update(tasks[what], completed=done, total=total, amount=text, visible=done < total)

        yield show


@contextmanager
def busy(what: str) -> Generator[None]:
    """Say at once what takes a while and cannot tell how far it is."""
    console = err()
    if not console.is_terminal:
        note(what)
        yield
        return
    with console.status(escape(what)):
        yield


@contextmanager
def interruptible(folder: Path | None, *, kept: str = "", nothing: str = "") -> Generator[None]:
    """Let Ctrl-C say what is kept and how to go on, and end with exit code 130.

    Args:
        folder: where finished work is kept, if anywhere.
        kept: what is kept there, as in "cases".
        nothing: what to say where nothing is kept.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        note(f"Interrupted. {_left(stop, folder, kept, nothing)}")
        raise typer.Exit(130) from None


def _left(stop: KeyboardInterrupt, folder: Path | None, kept: str, nothing: str) -> str:
    if isinstance(stop, Stopped) and stop.what.startswith("counting keys") and stop.done:
        return f"{stop.done:,} tokens counted so far are kept in the cache; start the same command again to continue."
    if folder is not None:
        return f"Finished {kept} are kept in {folder}; start the same command again to continue."
    return nothing or "Nothing was kept: give --out FOLDER to be able to continue."
