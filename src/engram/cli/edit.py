"""`engram edit`: facts and a method in, an edit out, as a folder of its own; the model is untouched."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
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
    say_error,
)
from engram.cli.options import (
    Cache,
    Chat,
    Corpus,
    Method,
    Seed,
    Set,
    Statistics,
    Strict,
    Tokens,
    method_settings,
    needs_keys,
    statistics_given,
    unlogged,
)
from engram.cli.watching import bars, interruptible, note
from engram.errors import DataError, FactError, SettingError

if TYPE_CHECKING:
    from engram.editing import Edit, FactRecord
    from engram.editing.check import Check
    from engram.editing.comparisons import Comparison
    from engram.facts import Case
    from engram.models import LM

_SHOWN = 10
STOPPED = "Nothing was saved. Key statistics that were counted stay in the cache; start the same command again."


def edit(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="The beginning of a sentence, with {} for the subject or the subject in it.")
    ] = None,
    *,
    subject: Annotated[str | None, typer.Option(help="The words that name what the fact is about.")] = None,
    to: Annotated[str | None, typer.Option(help="What the model shall say after the prompt.")] = None,
    was: Annotated[str | None, typer.Option(help="What it says now, where you know.")] = None,
    occurrence: Annotated[int | None, typer.Option(help="Which occurrence of the subject, from 1; the last.")] = None,
    facts: Annotated[Path | None, typer.Option(help="Several facts: a .jsonl, .json or .csv file.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Where to keep the edit.")] = None,
    method: Method = "rome",
    preset: Annotated[str | None, typer.Option(help="rome: rrome, code or paper.")] = None,
    typed: Set = None,
    layer: Annotated[int | None, typer.Option(help="Which layer to change, from 0.")] = None,
    corpus: Corpus = None,
    count: Tokens = None,
    statistics: Statistics = None,
    cache: Cache = None,
    erase: Annotated[bool, typer.Option("--erase", help="Take the answer away instead of writing another.")] = False,
    chat: Chat = False,
    force: Annotated[bool, typer.Option("--force", help="Also write what the model says already.")] = False,
    strict: Strict = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show tokens, the chosen one, layer, losses.")] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write a fact, or several from a file; the model itself stays as it is.

    Example: engram edit mini "{} is located in the city of" --subject "Space Needle" --to Rome --out needle/
    """
    cases = read_cases(prompt, subject, to, was, occurrence, facts, erase=erase)
    mode = "erase" if erase else None
    settings = method_settings(method, typed, preset=preset, layer=layer, mode=mode, chat=chat)
    needed = needs_keys(method, settings)
    counted = statistics_given(model, corpus=corpus, tokens=count, statistics=statistics, needed=needed)
    made = made_method(method, {"seed": seed, **settings, **counted})
    lm = load_model(
        model, device=device, dtype=dtype, device_map=device_map, revision=revision, trust_remote_code=trust_remote_code
    )
    with interruptible(None, nothing=STOPPED):
        run_edit(lm, cases, made, folder, force=force, strict=strict, explain=explain, seed=seed, as_json=as_json)


def read_cases(
    prompt: str | None,
    subject: str | None,
    to: str | None,
    was: str | None,
    occurrence: int | None,
    path: Path | None,
    *,
    erase: bool,
) -> "list[Case]":
    """Return what was typed, or what stands in the file, as cases.

    Raises:
        FactError: neither or both were given, or a part of the fact is missing.
        DataError: the file or one of its records is broken; the line is named. No fact is left out silently.
    """
    from engram.facts import Case, Fact

    if path is not None:
        if prompt or subject or to:
            raise SettingError("Give either a prompt with --subject and --to, or --facts FILE, not both.")
        from engram import datasets

        found = datasets.facts(path)
        with unlogged():
            cases = list(found)
        for skipped in found.skipped:
            raise DataError(f"{skipped.where}: {skipped.reason}")
        for case in cases:
            if case.fact.target is None and not erase:
                raise FactError(f"{path}: {case.fact.text!r} has no target. Give what the model shall say, or --erase.")
        return cases
    if prompt is None or subject is None or (to is None and not erase):
        raise FactError(
            'A fact needs a prompt, --subject and --to, as in: engram edit mini "{} is located in the city of" '
            '--subject "Space Needle" --to Rome. Several facts: --facts FILE.'
        )
    subject, to, was = subject.strip(), to and to.strip(), was and was.strip()
    if "{}" in prompt:
        if occurrence is not None:
            raise SettingError("--occurrence is for prompts in which the subject is written out; this one has {}.")
        return [Case(id="0", fact=Fact(subject, prompt, to, was))]
    return [Case(id="0", fact=Fact.from_text(prompt, subject, target=to, original=was, occurrence=occurrence))]


def made_method(name: str, settings: dict[str, Any]) -> Any:
    """Make the method; the seed, which also serves the check, is left out where it has none."""
    from engram.editing.methods import method_kind, method_named
    from engram.settings import settings as settings_of

    known = settings_of(method_kind(name))
    return method_named(name, **{key: value for key, value in settings.items() if key != "seed" or key in known})


def run_edit(
    lm: "LM",
    cases: "Sequence[Case]",
    method: Any,
    folder: Path | None,
    *,
    force: bool,
    strict: bool,
    explain: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Make the edit, look at it, keep it, and say so."""
    from engram import editing
    from engram.editing.check import check

    begun = time.monotonic()
    with unlogged():
        with bars(quiet=as_json) as progress:
            made = editing.edit(lm, [case.fact for case in cases], method, force=force, progress=progress)
        seconds = time.monotonic() - begun
        if not as_json:
            say_edit(made, seconds)
        with bars(quiet=as_json) as progress:
            found = check(lm, made, texts=False, health=bool(made), made=bool(made), seed=seed, progress=progress)
    if strict and made and not found.ok:
        say_error(f"The edit was refused; the model is as it was. {' '.join(found.warnings)} Nothing was saved.")
        raise typer.Exit(1)
    if folder is not None and made:
        made.save(folder)
    if as_json:
        kept = str(folder) if folder is not None and made else None
        emit_json(as_plain(made, found, kept, seconds))
        return
    say_answers([c for fact in found.facts for c in fact.answers if c.kind == "prompt"])
    if made:
        say_verdict(found)
    if explain:
        for record in made.records:
            explain_record(record)
    say_kept(lm, made, folder)


def say_edit(made: "Edit", seconds: float) -> None:
    """Say what was done, in one line, and the remarks that came up."""
    changed = ", ".join(change.where or "the prompt" for change in made.changes)
    if changed:
        origin = made.origins[0]
        preset = origin.settings.get("preset")
        how = f"{origin.method}{f' ({preset})' if preset else ''}"
        count = sum(record.stopped != "known already" for record in made.records)
        out().print(
            f"[bold]{count} fact{'s' if count > 1 else ''}[/bold] written by {how} into {escape(changed)} "
            f"of {escape(made.model)}, in {seconds:.1f} s",
            soft_wrap=True,
        )
    for sentence in made.notes:
        note(sentence)


def say_answers(seen: "Sequence[Comparison]") -> None:
    """Show what the model says before and after, one line per fact."""
    from engram.editing.drawing import drawn

    lines = drawn(seen[:_SHOWN], width=out().width)
    for line in lines:
        out().print(Text(line), soft_wrap=True)
    if len(seen) > _SHOWN:
        done = sum(c.ok for c in seen)
        out().print(f"    ... and {len(seen) - _SHOWN} more; {done} of {len(seen)} prompts have their new answer")


def say_verdict(found: "Check") -> None:
    """Say whether the edit is ok, with a line for every kind of prompt that was asked."""
    for part in found.verdict.parts:
        if part.kind != "prompt":
            out().print(Text(f"  {part.text()}", style="" if part.ok else "yellow"), soft_wrap=True)
    for text in (() if found.health is None else (found.health.text(),)) + (found.verdict.text(),):
        out().print(Text(text, style="yellow" if "WARNING" in text or "NOT OK" in text else ""), soft_wrap=True)


def say_kept(lm: "LM", made: "Edit", folder: Path | None) -> None:
    """Say where the edit is and what to type next."""
    if not made:
        out().print("Nothing was changed and nothing saved. --force writes it all the same.")
    elif folder is None:
        note("Not kept. Give --out FOLDER to keep the edit.")
    else:
        out().print(f"saved in {escape(str(folder))}; the model is untouched", soft_wrap=True)
        note(f"Next: engram check {folder} {lm.name}   or: engram apply {folder} {lm.name} --out edited-model")


def explain_record(record: "FactRecord") -> None:
    """Show the tokens with the chosen one marked, the layer, and the losses."""
    console = out()
    line = Text("  tokens  ")
    for i, token in enumerate(record.tokens):
        chosen = i == record.position
        line.append(f"[{token}]" if chosen else token, style="bold reverse" if chosen else "")
        line.append("|" if i < len(record.tokens) - 1 else "", style="dim")
    console.print(line, soft_wrap=True)
    if record.position is not None:
        where = ", ".join(map(str, record.layers))
        console.print(Text(f"  chosen  position {record.position}, {record.token!r}; layer {where}"), soft_wrap=True)
    if record.losses:
        losses = " ".join(f"{loss:.3f}" for loss in record.losses)
        console.print(f"  losses  {losses} ({record.stopped})", soft_wrap=True)
    if record.numbers:
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in record.numbers.items())
        console.print(f"  numbers {numbers}", soft_wrap=True)


def as_plain(made: "Edit", found: "Check", kept: str | None, seconds: float) -> dict[str, Any]:
    """Return everything for `--json`."""
    from dataclasses import asdict

    return {
        "model": made.model,
        "fingerprint": made.fingerprint,
        "out": kept,
        "seconds": round(seconds, 3),
        "norm": made.norm(),
        "updates": {
            name: {"kind": type(u).__name__, "rank": u.rank, "norm": u.norm()} for name, u in made.updates.items()
        },
        "origins": [asdict(origin) for origin in made.origins],
        "answers": [asdict(c) for fact in found.facts for c in fact.answers if c.kind == "prompt"],
        "ok": found.ok,
        "verdict": found.verdict.to_dict(),
        "health": None if found.health is None else found.health.to_dict(),
        "notes": list(made.notes),
    }
