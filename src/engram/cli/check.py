"""`engram check`: what an edit did, before and after, and the verdict on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from engram.cli.common import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    emit_json,
    load_model,
    out,
)
from engram.cli.options import Chat, EditFolder, Seed, load_edit, unlogged
from engram.cli.watching import bars, interruptible
from engram.errors import DataError

if TYPE_CHECKING:
    from engram.editing import Edit
    from engram.facts import Case
    from engram.models import LM


def check(
    edit: EditFolder,
    model: Model,
    *,
    paraphrase: Annotated[list[str] | None, typer.Option(help="Another prompt for the fact; may be repeated.")] = None,
    neighbor: Annotated[
        list[str] | None, typer.Option(help="A prompt about something else, whose answer is to stay; may be repeated.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="An opening for free text; may be repeated.")] = None,
    facts: Annotated[Path | None, typer.Option(help="The facts file, for the paraphrases and neighbors in it.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 unless the verdict is ok.")] = False,
    chat: Chat = False,
    every: Annotated[bool, typer.Option("--all", help="Show all prompts, not the worst few of each kind.")] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """See what an edit does: the prompt, paraphrases, neighbors, other facts, free text, before and after.

    What you do not give is made: neighbors, other and unrelated facts that the model is sure of, texts of its own.

    Example: engram check needle/ mini
    """
    from engram.editing.check import check as look
    from engram.editing.edit import Edit

    Edit.load(edit)  # a broken file is found before a model is loaded
    lm = load_model(
        model, device=device, dtype=dtype, device_map=device_map, revision=revision, trust_remote_code=trust_remote_code
    )
    found = load_edit(edit, lm)
    stopped = "A check keeps nothing and changes nothing; start the same command again."
    with interruptible(None, nothing=stopped), unlogged(), bars(quiet=as_json) as progress:
        result = look(
            lm,
            found,
            paraphrases=paraphrase or (),
            neighborhood=neighbor or (),
            generation=text or (),
            cases=None if facts is None else _cases(lm, found, facts),
            chat=chat or None,
            seed=seed,
            progress=progress,
        )
    if as_json:
        emit_json(result.to_dict())
    else:
        console = out()
        for line in result.text(width=max(80, console.width), every=every).splitlines():
            console.print(Text(line, style=style(line)), soft_wrap=True)
    if strict and not result.ok:
        raise typer.Exit(1)


def style(line: str) -> str:
    """Return how a line of a check is shown."""
    if line.lstrip().startswith(("✗", "!")) or "WARNING" in line or "NOT OK" in line:
        return "yellow"
    return "bold" if line and not line.startswith((" ", "fluency")) else ""


def _cases(lm: "LM", found: "Edit", path: Path) -> "list[Case]":
    """Return the file's cases for an edit's facts, in the edit's order.

    Raises:
        DataError: a fact of the edit is not in the file.
    """
    from engram import datasets
    from engram.editing.probes import completed

    cases = {(case.fact.subject, case.fact.text): case for case in datasets.facts(path)}
    missing = [fact.text for fact in found.facts if (fact.subject, fact.text) not in cases]
    if missing:
        raise DataError(f"{str(path)!r} does not have the edit's fact {missing[0]!r}. Was it made from another file?")
    return [completed(lm, cases[fact.subject, fact.text]) for fact in found.facts]
