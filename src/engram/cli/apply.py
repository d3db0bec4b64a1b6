"""`engram apply`: an edited model as a folder of its own, which remembers what was overwritten."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from engram.cli.common import Device, Json, Model, Revision, TrustRemoteCode, emit_json, load_model, out, say_error
from engram.cli.options import EditFolder, Seed, Strict, load_edit, named, unlogged
from engram.cli.watching import bars, interruptible, note
from engram.errors import EditRefused

if TYPE_CHECKING:
    from engram.editing.edit import Edit
    from engram.editing.fluency import Health
    from engram.models import LM

STOPPED = "Nothing was written; start the same command again."


def apply(
    edit: EditFolder,
    model: Model,
    *,
    folder: Annotated[Path, typer.Option("--out", help="Where to write the edited model; new or empty.")],
    strict: Strict = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="As saved ('auto'), float32, bfloat16 or float16.")] = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write the edited model as a folder that any program loads; 'engram revert' takes the edit out again.

    Example: engram apply needle/ mini --out edited-model/
    """
    from engram.editing.edit import Edit
    from engram.editing.edited import is_edited, recall, save_edited, to_base_
    from engram.editing.words import contradictions

    wanted = Edit.load(edit)  # a broken file is found before a model is loaded
    lm = load_model(model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    earlier: tuple[Edit, ...] = ()
    if is_edited(model) and recall(model).fingerprint == wanted.fingerprint:  # made for the model below the edits
        memory = recall(model)
        to_base_(lm, memory)
        earlier = memory.edits
    wanted = load_edit(edit, lm)
    whole = sum((*earlier[1:], wanted), start=earlier[0]) if earlier else wanted
    health = _health(lm, whole, strict=strict, seed=seed, quiet=as_json)
    save_edited(lm, [*earlier, wanted], folder)
    if as_json:
        emit_json(
            {
                "out": str(folder),
                "edits": len(earlier) + 1,
                "changed": sorted(change.where for change in whole.changes),
                "health": health.to_dict(),
            }
        )
        return
    console = out()
    for remark in contradictions(whole.origins):
        note(remark)
    console.print(f"[bold]{escape(named(wanted))}[/bold] applied to {escape(model)}", soft_wrap=True)
    for warning in health.warnings:
        console.print(f"  [yellow]! {escape(warning)}[/yellow]", soft_wrap=True)
    more = f", after {len(earlier)} earlier edit{'s' if len(earlier) > 1 else ''}" if earlier else ""
    console.print(
        f"saved in {escape(str(folder))}{more}: loads with transformers; what was overwritten is kept in it",
        soft_wrap=True,
    )
    note(f"Take it back with: engram revert {folder}")


def _health(lm: "LM", edit: "Edit", *, strict: bool, seed: int, quiet: bool) -> "Health":
    """Ask the guard about an edit; refused, the command ends and has written nothing."""
    from engram.editing.guard import guard

    with interruptible(None, nothing=STOPPED), unlogged():
        try:
            with bars(quiet=quiet) as progress:
                return guard(lm, edit, strict=strict, seed=seed, progress=progress)
        except EditRefused as error:
            say_error(f"{error} Nothing was written.")
            raise typer.Exit(1) from error
