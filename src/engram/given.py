"""What callers hand in, checked at the door: a wrong type is a sentence that says what to type instead.

Knows the library's nouns by their names only, so that every part can ask here.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from engram.errors import SettingError
from engram.showing import cut

Kind = TypeVar("Kind")

_A_FACT = 'Give engram.Fact("Space Needle", "The {} is in", "Rome")'
_HINTS: Mapping[str, Mapping[str, str]] = {
    "LM": {
        "": 'Load one: lm = engram.load("mini").',
        "text": "Load it: lm = engram.load(VALUE).",
        "path": "Load it: lm = engram.load(VALUE).",
        "model": "Wrap it: lm = engram.LM(model, tokenizer).",
    },
    "Fact": {
        "": f"{_A_FACT}.",
        "text": f"{_A_FACT}, or for a whole prompt engram.Fact.from_text(text, subject).",
        "mapping": f"{_A_FACT}: engram.Fact(**values) where the keys are subject, prompt, target, original.",
        "Case": "Give its fact: case.fact.",
        "list": "Give one of them; engram.trace_many and engram.edit take several.",
    },
    "Case": {
        "": 'Give engram.Case(id="1", fact=fact), or read a file: engram.datasets.load(path).',
        "Fact": 'Wrap it: engram.Case(id="1", fact=fact).',
    },
    "Edit": {
        "": "Make one: edit = engram.edit(lm, fact).",
        "text": "Load it: edit = engram.Edit.load(VALUE).",
        "path": "Load it: edit = engram.Edit.load(VALUE).",
        "list": "Add them: edit = first + second.",
    },
    "Site": {"": 'Give engram.Site("mlp", 3), a kind and a layer.'},
    "str": {"": "Give a text in quotes."},
    "Mapping": {"": 'Give a dictionary, such as {engram.Site("mlp", 3): lambda x: x * 0}.'},
    "Module": {"": "Give a loaded transformers model, or let engram.load(name) do it all."},
    "int": {"": "Give a number, such as 3."},
    "float": {"": "Give a number, such as 0.5."},
}
"""What to type, by what is wanted and what was given."""

_NOUNS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "NoneType": "None",
    "Mapping": "a dictionary",
    "Module": "a torch model",
}


def require(value: object, wanted: type[Any] | tuple[type[Any], ...], name: str) -> None:
    """Check one argument.

    Args:
        value: what was given.
        wanted: its class; of several, the first is the one that messages speak of.
        name: the argument.

    Raises:
        SettingError: it is something else; the message says what to type.
    """
    if isinstance(value, wanted):
        return
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    nouns = " or ".join(_noun(kind) for kind in kinds)
    raise SettingError(f"{name} must be {nouns}; it is {_seen(value)}. {_hint(kinds[0].__name__, value)}")


def require_lm(lm: object) -> None:
    """Check that a model is wrapped.

    Raises:
        SettingError: it is something else; the message says what to type.
    """
    if not any(kind.__name__ == "LM" and kind.__module__.startswith("engram.") for kind in type(lm).__mro__):
        raise SettingError(f"lm must be an engram.LM; it is {_seen(lm)}. {_hint('LM', lm)}")


def require_list(values: object, wanted: type[Any], name: str) -> list[Any]:
    """Check that an argument holds several of something, and return them as a list.

    Raises:
        SettingError: it is a single one, a text, or nothing to go through.
    """
    noun, what = _noun(wanted), wanted.__name__
    if isinstance(values, wanted):
        raise SettingError(
            f"{name} must be a list; it is {_seen(values)} alone. Put it in brackets: [{_call(values)}]."
        )
    if isinstance(values, str | bytes | Mapping | Path) or not isinstance(values, Iterable):
        raise SettingError(f"{name} must be a list, each {noun}; it is {_seen(values)}. {_hint(what, values)}")
    return list(cast("Iterable[Any]", values))


def require_each(values: object, wanted: type[Kind] | tuple[type[Kind], ...], name: str) -> list[Kind]:
    """Check an argument that holds several, and return them as a list.

    Raises:
        SettingError: it is a single one, a text, or nothing to go through, or one of them is something else.
    """
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    for kind in kinds[1:]:
        if isinstance(values, kind):
            require_list(values, kind, name)
    every = require_list(values, kinds[0], name)
    for i, value in enumerate(every):
        require(value, wanted, f"{name}[{i}]")
    return every


def require_texts(values: object, name: str) -> None:
    """Check an argument that is one text, or several.

    Raises:
        SettingError: it is something else.
    """
    if not isinstance(values, str):
        require_each(values, str, name)


def _noun(kind: type[Any]) -> str:
    own = kind.__module__.startswith("engram.")
    return f"an engram.{kind.__name__}" if own else _NOUNS.get(kind.__name__, f"a {kind.__name__}")


def _call(value: object) -> str:
    if isinstance(value, str):
        return repr(cut(value))
    return repr(value) if isinstance(value, int) else type(value).__name__.lower()


def _seen(value: object) -> str:
    match value:
        case None:
            return "None"
        case str():
            return f"the text {cut(value, 40)!r}"
        case Path():
            return f"the path {cut(str(value), 40)!r}"
        case type():
            return f"the class {value.__name__} itself"
        case _:
            name = type(value).__name__
            return f"{'an' if name[0] in 'AEIOaeio' or name in ('LM', 'FT', 'FTL') else 'a'} {name}"


def _hint(wanted: str, value: object) -> str:
    match value:
        case str():
            seen = "text"
        case Path():
            seen = "path"
        case Mapping():
            seen = "mapping"
        case list() | tuple():
            seen = "list"
        case _ if hasattr(value, "forward") and hasattr(value, "config") and not hasattr(value, "encode"):
            seen = "model"
        case _:
            seen = type(value).__name__
    hints = _HINTS.get(wanted, {})
    text = hints.get(seen) or hints.get("", "")
    return text.replace("VALUE", repr(str(value)))
