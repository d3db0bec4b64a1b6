"""One edit per case: methods by name, `none` among them, with what no fact changes done once."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from engram.editing import METHODS, ROME, Edit, Method, method_named
from engram.editing.methods import Separate, Settled, require_method
from engram.editing.methods.rome import PRESETS
from engram.editing.parts.contexts import sample_contexts
from engram.editing.parts.key_statistics import statistics_for
from engram.editing.parts.published import rome_layer
from engram.errors import SettingError, did_you_mean
from engram.facts import Fact
from engram.progress import Progress
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
        """Return an edit that changes nothing."""
        return Edit.of(lm, {}, ())


def method_of(method: str | Method, settings: Mapping[str, Any]) -> Method:
    """Return a method by name ("none" among them) or as given.

    Raises:
        SettingError: an unknown name or setting, or settings beside a finished method.
    """
    if isinstance(method, str):
        if method == NONE:
            if settings:
                raise SettingError(f"The method 'none' has no settings; {', '.join(settings)} was given.")
            return Unedited()
        if method not in METHODS:
            raise SettingError(f"There is no method {method!r}. {did_you_mean(method, [NONE, *METHODS])}")
        return method_named(method, **settings)
    require_method(method)
    if settings:
        raise SettingError(f"Settings {sorted(settings)} go into the method itself: {type(method).__name__}(...).")
    return method


def in_chat(method: Method) -> Method:
    """Return the method as it works within the chat template, where it has such a setting (`chat`)."""
    if not is_dataclass(method) or all(field.name != "chat" for field in fields(method)):
        return method
    changed: Any = replace(method, chat=True)
    return changed


def described(method: Method) -> dict[str, Any]:
    """Return a method's name and settings as plain values, for a run's settings."""
    if isinstance(method, Unedited):
        return {"name": NONE}
    names = {kind: name for name, kind in METHODS.items()}
    name = names.get(type(method), type(method).__name__)
    if not is_dataclass(method):
        return {"name": name, "settings": repr(method)}
    return {"name": name, **{f.name: _plain(getattr(method, f.name)) for f in fields(method)}}


def counted(
    lm: "LM", method: Method, *, before: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> Method:
    """Return the method with its key statistics, which every edit then uses and a run's settings name.

    Args:
        lm: the model.
        method: any method; only ROME needs statistics.
        before: the method as an interrupted run's settings describe it: the same count is then taken, even where the
            cache has come to have a larger one.
        progress: told about tokens counted.

    Raises:
        SettingError: there is no text to count, and nothing in the cache.
    """
    if not isinstance(method, ROME):
        return method
    layer = rome_layer(lm, method.layer)[0]
    asked = replace(method, tokens=method.tokens or _tokens_of(before or {}, layer))
    return _with_statistics(lm, asked, [layer], progress)


def _with_statistics(lm: "LM", method: ROME, layers: Sequence[int], progress: Progress | None) -> ROME:
    """Return ROME with the key statistics of some layers, counted in one pass where they are not known."""
    found = statistics_for(
        lm, layers, method.covariance, method.corpus, tokens=method.tokens, seed=method.seed, progress=progress
    )
    return replace(method, covariance=found, corpus=None, tokens=None)


def _tokens_of(method: Mapping[str, Any], layer: int) -> int | None:
    """Return how many tokens a run's settings name, if they do."""
    covariance = method.get("covariance")
    tokens = covariance.get("tokens") if isinstance(covariance, Mapping) else None
    found = tokens.get(str(layer)) if isinstance(tokens, Mapping) else None
    return found if isinstance(found, int) and found > 0 else None


def prepared(lm: "LM", method: Method, *, progress: Progress | None = None) -> Method:
    """Return the method with all that no fact changes already found: ROME's contexts and key statistics.

    Every worker then uses the same ones, and no edit pays for them.
    """
    if not isinstance(method, ROME):
        return method
    made, _ = method.settled(lm)
    ready = _with_statistics(lm, made, [rome_layer(lm, made.layer)[0]], progress)
    return replace(ready, contexts=_contexts(lm, made))


def shared_by_layers(lm: "LM", method: ROME, layers: Sequence[int], *, progress: Progress | None = None) -> ROME:
    """Return ROME with contexts, and with the key statistics of many layers from one pass where none are given."""
    return replace(_with_statistics(lm, method, layers, progress), contexts=_contexts(lm, method))


def _contexts(lm: "LM", method: ROME) -> tuple[str, ...]:
    rule = PRESETS[method.preset]
    return tuple(method.contexts or sample_contexts(lm, rule.lengths, seed=method.seed, bare=rule.bare))


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
