"""`engram locate`: any way of locating by its name; `engram locators`: which there are, and their settings."""

from typing import Annotated

import typer
from rich.table import Table

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
from engram.cli.methods import show_settings, summary
from engram.cli.trace import (
    AnswerOption,
    Facts,
    Folder,
    Limit,
    Occurrence,
    Plot,
    Prompt,
    Subject,
    cases_of,
    fact_of,
    say_where,
)
from engram.cli.watching import bars, interruptible
from engram.errors import SettingError

By = Annotated[str, typer.Option(help="The way of locating; 'engram locators' lists them.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting, name=value; may be given several times.")]
Name = Annotated[str | None, typer.Argument(help="One of them, for its settings.")]


def locate(
    model: Model,
    prompt: Prompt = None,
    *,
    subject: Subject = None,
    occurrence: Occurrence = None,
    answer: AnswerOption = None,
    facts: Facts = None,
    limit: Limit = None,
    by: By = "tracing",
    settings: Set = None,
    folder: Folder = None,
    plot: Plot = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Find where a fact is, by any way of locating, for one prompt or averaged over many facts.

    Example: engram locate mini "The Space Needle is in" --subject "Space Needle" --by lens --plot lens.png

    Example: engram locate mini --facts known --limit 50 --by tracing --set samples=5 --out runs/locate
    """
    from engram.locate import LOCATORS, locator_named
    from engram.locate import locate as one
    from engram.locate import locate_many as many
    from engram.settings import kind_named, parsed

    if facts is not None and prompt is not None:
        raise SettingError("Give a prompt or --facts, not both.")
    locator = locator_named(by, **parsed(kind_named(LOCATORS, by, "locator"), by, settings or []))
    fact = None if facts is not None else fact_of("locate", prompt, subject, occurrence, answer)
    place: dict[str, str | None] = {"device": device, "dtype": dtype, "device_map": device_map, "revision": revision}
    lm = load_model(model, **place, trust_remote_code=trust_remote_code)
    kept = folder if fact is None else None
    stopped = "" if fact is None else "One grid is kept when it is finished; start the same command again."
    with interruptible(kept, kept="facts", nothing=stopped), bars(quiet=as_json) as progress:
        if fact is not None:
            found = one(lm, fact, by=locator, progress=progress)
        else:
            found = many(lm, cases_of(str(facts), limit), by=locator, out=folder, progress=progress)
    if plot is not None:
        found.plot(path=plot)
    if folder is not None:
        found.save(folder)
    if as_json:
        emit_json(found.to_dict())
        return
    out().print(found)
    say_where(plot, folder)


def locators(name: Name = None, *, as_json: Json = False) -> None:
    """Show the ways of locating, or all settings of one with type, default and meaning.

    Example: engram locators lens
    """
    from engram.locate import LOCATORS
    from engram.settings import kind_named
    from engram.settings import settings as settings_of

    if name is None:
        first = {each: summary(kind_named(LOCATORS, each, "locator")) for each in sorted(LOCATORS)}
        if as_json:
            emit_json(first)
            return
        table = Table("locator", "what it does", box=None)
        for each, line in first.items():
            table.add_row(each, line)
        out().print(table)
        return
    known = settings_of(kind_named(LOCATORS, name, "locator"))
    if as_json:
        rows = {k: {"type": s.kind, "default": s.default_text, "meaning": s.meaning} for k, s in known.items()}
        emit_json(rows)
        return
    show_settings(known)
