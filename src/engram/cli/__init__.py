"""The command line: one verb per file, and one place where errors become sentences and exit codes.

Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted (what was finished is kept).
"""

import os
import sys
from collections.abc import Sequence

import typer

from engram._version import __version__
from engram.cli.apply import apply
from engram.cli.check import check
from engram.cli.common import say_error
from engram.cli.demo import demo
from engram.cli.edit import edit
from engram.cli.evaluate import evaluate
from engram.cli.export import export
from engram.cli.locate import locate, locators
from engram.cli.methods import methods
from engram.cli.options import CACHE
from engram.cli.report import report
from engram.cli.revert import revert
from engram.cli.serve import serve
from engram.cli.stats import stats
from engram.cli.sweep import sweep
from engram.cli.trace import trace
from engram.cli.tune import tune
from engram.errors import EngramError
from engram.mini.cli import app as mini

app = typer.Typer(
    name="engram",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find where a transformer language model stores a fact, and change it.",
    epilog="Start with [bold]engram demo[/bold]. Every verb has --help with an example. --debug shows tracebacks.",
)
app.command()(demo)
app.command()(trace)
app.command()(locate)
app.command()(locators)
app.command()(edit)
app.command()(methods)
app.command()(check)
app.command()(apply)
app.command()(revert)
app.command()(export)
app.command()(stats)
app.command()(evaluate)
app.command()(report)
app.command()(sweep)
app.command()(tune)
app.command()(serve)
app.add_typer(mini, name="mini")


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """Find where a transformer language model stores a fact, and change it."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code. `--debug` anywhere shows tracebacks."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' reader of GGUF draws a bar whatever it was told
    given = [argument for argument in given if argument != "--debug"]
    cache = os.environ.get(CACHE)
    try:
        app(given, prog_name="engram")
    except EngramError as error:
        if debug:
            raise
        say_error(str(error))
        sys.exit(2)
    finally:  # --cache is for this command only
        os.environ.pop(CACHE, None)
        if cache is not None:
            os.environ[CACHE] = cache
