"""The settings of methods and locators: what there is, read from typed text, and checked by name.

Settings are the fields of a frozen dataclass. This is the only place that looks at them: the command line, the page,
tables, records and errors ask here.

    settings(ROME)["layer"]                      # name, type, default and meaning
    parsed(ROME, "rome", ["layer=5", "lr=1e-1"]) # {"layer": 5, "lr": 0.1}
    made(ROME, "rome", layer=5)                  # ROME(layer=5), or a sentence about what is wrong
"""

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from engram.errors import SettingError, did_you_mean
from engram.showing import short

Kind = TypeVar("Kind")

_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_ENTRY = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?: *(.*)$")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a method or locator.

    Args:
        name: what it is called.
        type: the annotation of its field.
        default: its value where none is given; `dataclasses.MISSING` where one must be.
        meaning: what the docstring of its class says about it.
    """

    name: str
    type: Any
    default: Any
    meaning: str

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING

    @property
    def kind(self) -> str:
        """Its type as one reads it, `int | None`; of words the words that are allowed, `code | paper`."""
        return " | ".join(dict.fromkeys(_read(self.type)))

    @property
    def default_text(self) -> str:
        """Its default as one reads it."""
        return "must be given" if self.required else short(_plain(self.default))

    def read(self, text: str) -> Any:
        """Read its value from typed text: a number, `yes`, `none`, words, JSON, or several as `3-8` or `a,b`.

        Raises:
            SettingError: the text is no such value.
        """
        from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

        try:
            adapter: TypeAdapter[Any] = TypeAdapter(self.type)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise SettingError(f"{self.name} cannot be given as text; give it in Python.") from error
        several = json.dumps(_several(text))
        plain = "null" if text.strip().lower() == "none" else text
        tries = [(adapter.validate_json, plain), (adapter.validate_strings, text), (adapter.validate_json, several)]
        if _NUMBERS.fullmatch(text) and not text.isdigit():
            tries.insert(1, tries.pop())  # "3-8" is words only where it cannot be numbers
        for validate, given in tries:
            try:
                return validate(given)
            except ValidationError:
                continue
        raise SettingError(f"{self.name}={text} is not allowed: {self.name} is {self.kind}. {self.meaning}".strip())


def _read(annotation: Any) -> list[str]:
    """Return what an annotation allows, a word or a type each; text beside words means no more than the words."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(word) for word in parts]
    if get_origin(annotation) in (Union, UnionType):
        words = any(get_origin(part) is Literal for part in parts)
        return [text for part in parts if not (words and part is str) for text in _read(part)]
    if isinstance(annotation, type) and not parts:
        return [annotation.__name__.replace("NoneType", "None")]
    return [re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", str(annotation)).replace("NoneType", "None")]


def settings(kind: type[Any]) -> dict[str, Setting]:
    """Return the settings of a method or locator by name, in their order.

    Args:
        kind: a dataclass.
    """
    hints, meanings = get_type_hints(kind), _meanings(kind)
    return {
        f.name: Setting(f.name, hints[f.name], _default(f), meanings.get(f.name, "")) for f in fields(kind) if f.init
    }


def parsed(kind: type[Any], name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Read what was typed as `setting=value`.

    Args:
        kind: the dataclass.
        name: what messages call it.
        texts: such as `["layer=5", "layers=3-8"]`; a later one stands for an earlier one of the same name.

    Raises:
        SettingError: no `=`, an unknown setting, or a value of another type.
    """
    known, values = settings(kind), dict[str, Any]()
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise SettingError(f"{text!r} is no setting. Write name=value, such as {next(iter(known), 'seed')}=...")
        _require_known(known, name, key)
        values[key] = known[key].read(value)
    return values


def made(kind: type[Kind], name: str, /, **given: Any) -> Kind:
    """Make a method or locator from its settings.

    Args:
        kind: the dataclass.
        name: what messages call it.
        **given: its settings.

    Raises:
        SettingError: an unknown setting, one that must be given and is not, or a value that is not allowed.
    """
    known = settings(kind)
    for key in given:
        _require_known(known, name, key)
    missing = [key for key, setting in known.items() if setting.required and key not in given]
    if missing:
        raise SettingError(f"{name!r} needs {', '.join(missing)}. {known[missing[0]].meaning}".strip())
    return kind(**given)


def plain(value: object, *, every: bool = False) -> dict[str, Any]:
    """Return the settings of a method or locator that are not what they are by default, as short plain values.

    Args:
        value: an instance of the dataclass.
        every: the defaults, too.
    """
    known = settings(type(value))
    held = {name: getattr(value, name) for name in known}
    return {name: _plain(found) for name, found in held.items() if every or not _equal(found, known[name].default)}


def kind_named(registry: Mapping[str, str], name: str, noun: str) -> type[Any]:
    """Import the class that a registry names.

    Args:
        registry: "module:Class" by name.
        name: the one that is wanted.
        noun: what messages call such a class: "method", "locator".

    Raises:
        SettingError: the registry has no such name.
    """
    if name not in registry:
        raise SettingError(f"There is no {noun} {name!r}. {did_you_mean(name, registry)}")
    module, _, attribute = registry[name].partition(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def _require_known(known: Mapping[str, Setting], name: str, key: str) -> None:
    if key not in known:
        raise SettingError(f"{name!r} has no setting {key!r}. {did_you_mean(key, known)}")


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _equal(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and value == default)


def _plain(value: object) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return short(value)


def _several(text: str) -> list[str]:
    """Return the parts of "a,b", with ranges of whole numbers written out."""
    parts: list[str] = []
    for part in (p.strip() for p in text.split(",")):
        low, dash, high = part.partition("-")
        whole = dash and low.isdigit() and high.isdigit()
        parts += map(str, range(int(low), int(high) + 1)) if whole else [part]
    return parts


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Return what the `Args` of a class's docstring, and of those it is made from, say about each name."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        inside, name = False, ""
        for line in inspect.cleandoc(vars(owner).get("__doc__") or "").splitlines():
            if not line.startswith(" "):
                inside = line.strip() == "Args:" if line.strip() else inside
            elif inside and (entry := _ENTRY.match(line)):
                name = entry[1]
                found[name] = entry[2].strip()
            elif inside and name:
                found[name] += f" {line.strip()}"
    return found
