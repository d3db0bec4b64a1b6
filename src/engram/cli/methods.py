"""`engram methods`: which methods there are, and every setting of one with its type, default and meaning."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from engram.cli.common import Json, emit_json, out
from engram.cli.watching import note

if TYPE_CHECKING:
    from engram.editing.parts.editor import Editor
    from engram.settings import Setting


def methods(
    name: Annotated[str | None, typer.Argument(help="One method: its settings are shown.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the methods, or the settings of one, which --set NAME=VALUE gives to edit, evaluate, sweep and tune.

    Example: engram methods rome
    """
    from engram.editing.methods import METHODS, method_kind
    from engram.settings import settings

    if name is None:
        kinds = {each: method_kind(each) for each in METHODS}
        if as_json:
            emit_json({"methods": [plain(kind) for kind in kinds.values()]})
            return
        show_methods(kinds)
        note("Settings of one: engram methods NAME. Give them with --set NAME=VALUE.")
        return
    kind = method_kind(name)
    known = settings(kind)
    if as_json:
        emit_json({**plain(kind), "settings": [setting_plain(setting) for setting in known.values()]})
        return
    out().print(f"[bold]{name}[/bold]: {summary(kind)}", soft_wrap=True)
    out().print(f"Changes {kind.changes}; facts at once: {kind.at_once}.", soft_wrap=True)
    show_settings(known)
    note(
        f"Example: engram edit MODEL PROMPT --subject WORDS --to WORDS --method {name} --set {next(iter(known))}=VALUE"
    )


def show_methods(kinds: "dict[str, type[Editor]]") -> None:
    """Draw a line per method."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("method", "what it changes", "facts at once", "needs training", "exports"):
        table.add_column(head)
    for name, kind in kinds.items():
        trained = "yes" if kind.trained else "no"
        table.add_row(name, kind.changes, kind.at_once, trained, ", ".join(("engram", *kind.exports)))
    out().print(table)


def show_settings(known: "dict[str, Setting]") -> None:
    """Draw a line per setting."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("setting", "type", "default", "meaning"):
        table.add_column(head, overflow="fold")
    for setting in known.values():
        default = "needed" if setting.required else repr(setting.default)
        table.add_row(*map(escape, (setting.name, setting.kind, default, setting.meaning)))
    out().print(table)


def summary(kind: type[object]) -> str:
    """Return the first line of what a method or a locator says of itself."""
    return (kind.__doc__ or "").strip().splitlines()[0]


def plain(kind: "type[Editor]") -> dict[str, Any]:
    """Return what the table of methods says, for `--json`."""
    return {
        "name": kind.name,
        "summary": summary(kind),
        "changes": kind.changes,
        "at_once": kind.at_once,
        "trained": kind.trained,
        "exports": ["engram", *kind.exports],
    }


def setting_plain(setting: "Setting") -> dict[str, Any]:
    """Return one setting for `--json`."""
    from engram.showing import short

    default = setting.default
    simple = default is None or isinstance(default, bool | int | float | str)
    return {
        "name": setting.name,
        "type": setting.kind,
        "default": None if setting.required else default if simple else short(default),
        "required": setting.required,
        "meaning": setting.meaning,
    }
