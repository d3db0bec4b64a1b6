"""`engram revert`: take edits out of a model that `engram apply` wrote; the original weights come back bit for bit."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from engram.cli.common import Json, TrustRemoteCode, emit_json, load_model, out
from engram.cli.options import named
from engram.cli.watching import note
from engram.errors import EditError


def revert(
    model: Annotated[Path, typer.Argument(help="A model folder that 'engram apply' wrote.")],
    *,
    edit: Annotated[Path | None, typer.Option(help="Take only this edit out; all of them otherwise.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Write to a new folder instead of in place.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Take edits out of a model again; the original weights come back bit for bit.

    Example: engram revert edited-model/ --out original-model/
    """
    from engram.editing.edit import Edit
    from engram.editing.edited import recall, save_edited, to_base_

    memory = recall(model)
    gone = list(memory.edits) if edit is None else [e for e in memory.edits if e.digest == Edit.load(edit).digest]
    if not gone:
        inside = "; ".join(named(e) for e in memory.edits)
        raise EditError(f"The edit {str(edit)!r} is not in {str(model)!r}, which holds: {inside}.")
    kept = [e for e in memory.edits if e not in gone]
    lm = load_model(str(model), device="cpu", dtype="auto", trust_remote_code=trust_remote_code)
    to_base_(lm, memory)
    place = model if folder is None else folder
    save_edited(lm, kept, place, replace=folder is None)
    if as_json:
        emit_json(
            {
                "out": str(place),
                "reverted": len(gone),
                "kept": len(kept),
                "base": memory.model,
                "changed": sorted(memory.originals),
            }
        )
        return
    console = out()
    for one in gone:
        console.print(f"taken out: [bold]{escape(named(one))}[/bold]", soft_wrap=True)
    state = (
        f"{len(kept)} edit{'s' if len(kept) > 1 else ''} left in it"
        if kept
        else f"its weights are those of {escape(memory.model)} again, bit for bit"
    )
    console.print(f"saved in {escape(str(place))}: {state}", soft_wrap=True)
    if folder is None:
        note("The folder was changed in place. --out FOLDER writes a new one instead.")
