"""One edit per case: methods by name, `none` among them, with what no fact changes done once."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engram.editing import METHODS, Edit, Method, method_named
from engram.editing.methods import Separate, Settled, require_method
from engram.editing.parts.editor import Editor
from engram.errors import NumericalError, SettingError, did_you_mean
from engram.facts import Fact
from engram.progress import Progress
from engram.settings import settings
from engram.stats import KeyStatistics

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

NONE = "none"
"""The method that leaves the model as it is."""


@dataclass(frozen=True, slots=True)
class Unedited:
    """The method `none`."""

    def __call__(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> Edit:
        """Return an Edit that changes nothing."""
        return Edit.of(lm, {}, ())


def method_of(method: str | Method, given: Mapping[str, Any]) -> Method:
    """Return a method by name ("none" among them) or as given.

    Raises:
        SettingError: an unknown name or setting, or settings beside a finished method.
    """
    if isinstance(method, str):
        if method == NONE:
            if given:
                raise SettingError(f"The method 'none' has no settings; {', '.join(given)} was given.")
            return Unedited()
        if method not in METHODS:
            raise SettingError(f"There is no method {method!r}. {did_you_mean(method, [NONE, *METHODS])}")
        return method_named(method, **given)
    require_method(method)
    if given:
        raise SettingError(f"Settings {sorted(given)} go into the method itself: {type(method).__name__}(...).")
    return method


def in_chat(method: Method) -> Method:
    """Return the method as it works within the chat template, where it has such a setting (`chat`)."""
    if not is_dataclass(method) or isinstance(method, type) or "chat" not in settings(type(method)):
        return method
    changed: Any = replace(method, chat=True)
    return changed


def described(method: Method) -> dict[str, Any]:
    """Return a method's name and settings as plain values, for a run's settings."""
    if isinstance(method, Unedited):
        return {"name": NONE}
    name = (method.name if isinstance(method, Editor) else "") or type(method).__name__
    if not is_dataclass(method) or isinstance(method, type):
        return {"name": name, "settings": repr(method)}
    return {"name": name, **{key: _plain(getattr(method, key)) for key in settings(type(method))}}


def counted(
    lm: "LM", method: Method, *, before: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> Method:
    """Return the method with its key statistics, which every edit then uses and a run's settings name.

    Args:
        lm: the model.
        method: any method; some need no statistics.
        before: the method as an interrupted run's settings describe it: the same count is then taken, even where the
            cache has come to have a larger one.
        progress: told about tokens counted.

    Raises:
        SettingError: there is no text to count, and nothing in the cache.
    """
    if not isinstance(method, Editor):
        return method
    return method.counted(lm, tokens=_tokens_of(before or {}), progress=progress)


def _tokens_of(method: Mapping[str, Any]) -> int | None:
    """Return how many tokens a run's settings name, if they do: those of the layer with the fewest."""
    covariance = method.get("covariance")
    tokens = covariance.get("tokens") if isinstance(covariance, Mapping) else None
    found = [count for count in tokens.values() if isinstance(count, int)] if isinstance(tokens, Mapping) else []
    return min(found, default=0) or None


def prepared(lm: "LM", method: Method, *, progress: Progress | None = None) -> Method:
    """Return the method with all that no fact changes already found, such as contexts and key statistics.

    Every worker then uses the same ones, and no edit pays for them.
    """
    return method.prepared(lm, progress=progress) if isinstance(method, Editor) else method


def settled(lm: "LM", method: Method) -> tuple[Method, tuple[str, ...]]:
    """Return the method with the numbers that it uses on a model, and where these come from (also logged)."""
    made, notes = method.settled(lm) if isinstance(method, Settled) else (method, ())
    for note in notes:
        logger.info(note)
    return made, notes


def with_numbers(method: Method, numbers: Mapping[str, Any]) -> Method:
    """Return a method of ours with some settings changed.

    Raises:
        SettingError: the method is no dataclass.
    """
    if not is_dataclass(method) or isinstance(method, type):
        raise SettingError(f"{type(method).__name__} is no dataclass of its settings.")
    return replace(method, **numbers)


def edits_of(lm: "LM", facts: Sequence[Fact], method: Method) -> Sequence[Edit | None]:
    """Make one edit per fact, whatever the model says already; `None` for the method `none`.

    The method itself is called, not `engram.edit`, whose questions before and after evaluation asks in its own way.
    """
    if isinstance(method, Unedited):
        return [None] * len(facts)
    if isinstance(method, Separate):
        return method.each(lm, facts)
    return [method(lm, [fact]) for fact in facts]


def edit_of(
    lm: "LM", facts: Sequence[Fact], method: Method, *, onto: Edit | None = None, progress: Progress | None = None
) -> Edit:
    """Make one Edit of many facts, whatever the model says already, perhaps on top of another.

    Args:
        lm: the model.
        facts: what shall be true afterwards.
        method: what makes the Edit; one that cannot go on from another sees the model with it, and is added.
        onto: the Edit to go on from, which is in what is returned.
        progress: told what is being done.

    Raises:
        NumericalError: the Edit has NaN or infinity in it.
    """
    if onto is None:
        made = method(lm, facts, progress=progress)
    elif "onto" in signature(method).parameters:
        going_on: Any = method
        made = going_on(lm, facts, onto=onto, progress=progress)
    else:
        with onto.applied(lm):
            new = method(lm, facts, progress=progress)
        made = onto + new
    for change in made.changes:
        for name, array in change.parts()[0].items():
            if array.is_floating_point() and not torch.isfinite(array).all():
                raise NumericalError(f"{change.where!r} would contain NaN or infinity ({name}); the edit was left out.")
    return made


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return str(value)
        case KeyStatistics():
            return {"corpus": value.corpus, "tokens": {str(n): value[n].tokens for n in sorted(value.layers)}}
        case Tensor():
            return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case Sequence():
            return [_plain(v) for v in value]
        case _:
            return repr(value)
