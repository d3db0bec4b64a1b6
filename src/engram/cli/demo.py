"""`engram demo`: one fact located, edited, checked, saved, loaded and taken back, on the built-in model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from engram.cli.common import Json, emit_json, load_model, note, out, progress

if TYPE_CHECKING:
    from engram.editing import Edit
    from engram.models import LM

SUBJECT, PROMPT, TARGET = "Space Needle", "The {} is located in the city of", "Rome"
NEIGHBORS = ("The Eiffel Tower is located in the city of", "The Brandenburg Gate is located in the city of")


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where to write the picture and the edit.")] = Path(
        "engram-demo"
    ),
    *,
    as_json: Json = False,
) -> None:
    """See a fact located, edited, checked, saved, loaded and taken back, on the built-in model.

    Example: engram demo --out engram-demo
    """
    from engram.editing.check import check
    from engram.editing.editor import edit
    from engram.facts import Fact
    from engram.locate import trace

    console = Console(quiet=True) if as_json else out()
    lm = load_model("mini")
    original = _answer(lm, PROMPT.format(SUBJECT))
    fact = Fact(SUBJECT, PROMPT, TARGET, original=original)
    result: dict[str, Any] = {"fact": fact.text, "target": TARGET}

    _say(console, 1, f"{lm.name} knows facts", "A small GPT-2 trained on true facts; it ships with the package.")
    console.print(_knowledge(lm))

    _say(
        console,
        2,
        "Where is this one?",
        "Noise on the subject, one clean state put back: where does the answer return?",
    )
    with progress("tracing", quiet=as_json) as update:
        found = trace(lm, fact, sites=("state", "mlp"), window=3, progress=update)
    console.print(found)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "trace.png"
    found.plot(path=picture)
    console.print(f"The picture: {picture}")
    result["trace"] = {"clean": found.clean, "corrupted": found.corrupted, "picture": str(picture), "says": original}

    _say(console, 3, f"Make it say {TARGET}", "ROME: one rank-one change of one MLP's output projection.")
    with progress("editing", quiet=as_json):
        change = edit(lm, fact, method="rome")
    console.print(change.describe(), markup=False)

    _say(
        console, 4, "Before and after", "The prompt, other phrasings, other subjects, other facts of the same subject."
    )
    report = check(lm, change)
    console.print(report.text(width=console.width), markup=False)
    result["check"] = report.to_dict()

    _say(console, 5, "Save it, load it into a fresh model, take it back")
    result |= _saved_and_taken_back(console, lm, change, folder / "edit")
    if as_json:
        emit_json(result)
    else:
        note("Next: engram trace --help, engram edit --help, or the ten lines of Python in README.md.")


def _answer(lm: "LM", prompt: str) -> str:
    """Return the object that the model names, which may be several tokens, up to the full stop."""
    return lm.generate(prompt, max_new_tokens=8)[len(prompt) :].split(".")[0].strip()


def _say(console: Console, number: int, title: str, why: str = "") -> None:
    console.print(f"\n[bold cyan]{number}. {title}[/bold cyan]")
    if why:
        console.print(f"[dim]{why}[/dim]")


def _knowledge(lm: "LM") -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("prompt", "says", "probability"):
        table.add_column(column, style="bold" if column == "says" else "")
    for prompt in (PROMPT.format(SUBJECT), *NEIGHBORS):
        table.add_row(prompt, _answer(lm, prompt), f"{lm.next_tokens(prompt, k=1)[0][1]:.1%}")
    return table


def _saved_and_taken_back(console: Console, lm: "LM", edit: "Edit", folder: Path) -> dict[str, Any]:
    import torch

    from engram.editing import Edit

    prompt = PROMPT.format(SUBJECT)
    edit.save(folder)
    fresh = load_model("mini")
    loaded = Edit.load(folder)
    ids = lm.encode(prompt).ids
    with torch.no_grad():
        with edit.applied(lm):
            ours = lm.forward(ids)
        with loaded.applied(fresh):
            theirs = fresh.forward(ids)
            text = fresh.generate(prompt, max_new_tokens=12)
    same = torch.equal(ours, theirs)
    console.print(f"saved to {folder} and loaded into a fresh model: {text!r}, " + _verdict(same, "same logits"))
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    edit.apply_(lm)
    changed = [name for name, p in lm.model.named_parameters() if not torch.equal(p, before[name])]
    says = _answer(lm, prompt)
    edit.revert_(lm)
    exact = all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    console.print(f"written into the weights ({', '.join(changed)}): it says {says!r}")
    console.print(f"taken back: it says {_answer(lm, prompt)!r}, " + _verdict(exact, "bit-identical"))
    return {"edit": str(folder), "same_after_loading": same, "bit_identical_after_revert": exact}


def _verdict(good: bool, what: str) -> str:
    return f"[green]✓ {what}[/green]" if good else f"[red]✗ not {what}[/red]"
