"""`engram demo`: one fact located, edited, checked, saved, loaded and taken back, on any model."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engram.cli.common import Json, emit_json, load_model, out
from engram.cli.known import Known, known
from engram.cli.options import Corpus, statistics_given, unlogged
from engram.cli.watching import bars, interruptible, note, progress

if TYPE_CHECKING:
    from engram.editing import Edit
    from engram.facts import Fact
    from engram.models import LM


def demo(
    model: Annotated[str, typer.Option(help="'mini' (built in), a folder, a .gguf file, or a hub name.")] = "mini",
    corpus: Corpus = None,
    folder: Annotated[Path, typer.Option("--out", help="Where to write the picture and the edit.")] = Path(
        "engram-demo"
    ),
    *,
    as_json: Json = False,
) -> None:
    """See a fact located, edited, checked, saved, loaded and taken back, on the built-in model or on yours.

    Example: engram demo --out engram-demo
    Example: engram demo --model ./my-model --corpus wikipedia.csv
    """
    statistics_given(model, corpus=corpus, needed=True)
    lm = load_model(model)
    stopped = f"What was written so far is in {folder}; start the same command again to see the rest."
    with interruptible(None, nothing=stopped):
        _shown(lm, model, corpus, folder, as_json=as_json)


def _shown(lm: "LM", model: str, corpus: str | None, folder: Path, *, as_json: bool) -> None:
    console = Console(quiet=True) if as_json else out()

    _say(console, 1, f"What {lm.name} knows", "Asked about well-known things, it says with confidence:")
    knows = known(lm)
    fact = knows.fact
    console.print(_table(knows))
    result: dict[str, Any] = {"model": lm.name, "fact": fact.text, "target": fact.target}

    _say(console, 2, "Where is the first one?", "Noise on the subject, one clean state put back: is the answer back?")
    result["trace"] = _located(console, lm, fact, folder, as_json=as_json)

    _say(console, 3, f"Make it say {fact.target}", "ROME: one rank-one change of one MLP's output projection.")
    change = _edited(console, lm, fact, corpus, as_json=as_json)

    _say(console, 4, "Before and after", "The prompt, other phrasings, other subjects, other facts of the subject.")
    result["check"] = _checked(console, lm, change, as_json=as_json)

    _say(console, 5, "Save it, load it into a fresh model, take it back")
    result |= _saved_and_taken_back(console, lm, load_model(model), change, folder / "edit")
    if as_json:
        emit_json(result)
    else:
        note("Next: engram edit --help, or the ten lines of Python in README.md.")


def _located(console: Console, lm: "LM", fact: "Fact", folder: Path, *, as_json: bool) -> dict[str, Any]:
    from engram.locate import trace

    with progress("tracing", quiet=as_json) as update:
        found = trace(lm, fact, sites=("state", "mlp"), progress=update)
    console.print(found)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "trace.png"
    found.plot(path=picture)
    console.print(f"The picture: {picture}")
    return {"clean": found.clean, "corrupted": found.corrupted, "says": fact.original, "picture": str(picture)}


def _edited(console: Console, lm: "LM", fact: "Fact", corpus: str | None, *, as_json: bool) -> "Edit":
    from engram.editing.editor import edit

    with unlogged(), bars(quiet=as_json) as shown:
        change = edit(lm, fact, method="rome", corpus=corpus, progress=shown)
    _print_wrapped(console, change.describe())
    return change


def _checked(console: Console, lm: "LM", change: "Edit", *, as_json: bool) -> dict[str, Any]:
    from engram.editing.check import check

    with bars(quiet=as_json) as shown:
        report = check(lm, change, progress=shown)
    _print_wrapped(console, report.text(width=console.width))
    return report.to_dict()


def _answer(lm: "LM", prompt: str) -> str:
    """Return what the model names after a prompt."""
    from engram.editing.answers import Question, ask

    return ask(lm, [Question(text=prompt)])[0].says


def _say(console: Console, number: int, title: str, why: str = "") -> None:
    console.print(f"\n[bold cyan]{number}. {escape(title)}[/bold cyan]")
    if why:
        console.print(f"[dim]{why}[/dim]")


def _print_wrapped(console: Console, text: str) -> None:
    """Print with long lines broken between words, what follows indented a little more than they are."""
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        for part in textwrap.wrap(line, console.width, subsequent_indent=indent, break_on_hyphens=False) or [""]:
            console.print(part, markup=False, soft_wrap=True)


def _table(knows: Known) -> Table:
    from engram.editing.answers import percent

    table = Table(box=None, pad_edge=False)
    table.add_column("prompt")
    table.add_column("says", style="bold")
    table.add_column("probability", justify="right")
    for prompt, answer in knows.answers:
        table.add_row(escape(prompt), escape(answer.says), percent(answer.probability))
    return table


def _saved_and_taken_back(console: Console, lm: "LM", fresh: "LM", edit: "Edit", folder: Path) -> dict[str, Any]:
    import torch

    from engram.editing import Edit

    prompt = edit.facts[0].text
    edit.save(folder)
    loaded = Edit.load(folder)
    ids = lm.encode(prompt).ids
    with torch.no_grad():
        with edit.applied(lm):
            ours = lm.forward(ids)
        with loaded.applied(fresh):
            theirs = fresh.forward(ids)
            text = fresh.generate(prompt, max_new_tokens=12)
    same = torch.equal(ours, theirs)
    console.print(f"Saved to {folder} and loaded into a fresh model:", _verdict(same, "the same logits"))
    _print_wrapped(console, f"  {' '.join(text.split())} …")
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    edit.apply_(lm)
    changed = [name for name, p in lm.model.named_parameters() if not torch.equal(p, before[name])]
    says = _answer(lm, prompt)
    edit.revert_(lm)
    exact = all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    console.print(f"Written into {', '.join(changed)}: it says {says}.", markup=False)
    console.print(f"Taken back: it says {escape(_answer(lm, prompt))},", _verdict(exact, "every bit as before"))
    return {"edit": str(folder), "same_after_loading": same, "bit_identical_after_revert": exact}


def _verdict(good: bool, what: str) -> str:
    return f"[green]✓ {what}[/green]" if good else f"[red]✗ not {what}[/red]"
