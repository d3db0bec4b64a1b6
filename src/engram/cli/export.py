"""`engram export`: an edit for other programs, as a LoRA adapter or as a whole model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from engram.cli.common import Device, Dtype, Json, Revision, TrustRemoteCode, emit_json, load_model, out
from engram.cli.options import EditFolder, named
from engram.cli.watching import note

_WHAT = {"hf": "a whole model that AutoModelForCausalLM loads", "peft": "a LoRA adapter that PeftModel loads"}


def export(
    edit: EditFolder,
    model: Annotated[str | None, typer.Argument(help="The model; the one that the edit names when not given.")] = None,
    *,
    kind: Annotated[str, typer.Option("--format", help="peft (a LoRA adapter) or hf (a whole model).")] = "peft",
    folder: Annotated[Path, typer.Option("--out", help="Where to write; new or empty.")],
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write an edit for other programs: a LoRA adapter for peft, or a whole model.

    Example: engram export needle/ --format peft --out lora/
    """
    from engram.editing.edit import Edit

    wanted = Edit.load(edit)
    lm = None
    if kind == "hf" or model is not None:  # an adapter needs no model; with one, the edit is checked against it
        name = model or wanted.model
        lm = load_model(name, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    wanted.export(kind, folder, lm)
    if as_json:
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        emit_json({"out": str(folder), "format": kind, "model": wanted.model, "files": files})
        return
    out().print(
        f"[bold]{escape(named(wanted))}[/bold] exported to {escape(str(folder))}: {_WHAT[kind]}", soft_wrap=True
    )
    if kind == "peft":
        note(f'Load it with: PeftModel.from_pretrained(model, "{folder}")')
