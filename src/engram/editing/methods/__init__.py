"""How methods are found by name, and what all of them promise.

A method is a frozen, keyword-only dataclass of its settings whose call makes an Edit. A new method is one file and one
line in `METHODS`; keys, values, contexts and statistics are shared.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from engram.editing.edit import Edit
from engram.editing.methods.finetune import FT, FTL
from engram.editing.methods.rome import ROME
from engram.errors import SettingError, did_you_mean
from engram.facts import Fact
from engram.progress import Progress
from engram.showing import short

if TYPE_CHECKING:
    from engram.models import LM


@runtime_checkable
class Method(Protocol):
    """What makes an Edit from facts. The model is unchanged afterwards."""

    def __call__(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> Edit:
        """Make one Edit of all facts.

        Args:
            lm: the model.
            facts: what shall be true afterwards.
            progress: told what is being done, how much of it is done, and how much there is.
        """
        ...


@runtime_checkable
class Separate(Protocol):
    """A method that makes many edits of one fact each in less time than one after the other."""

    def each(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> list[Edit]:
        """Make one Edit per fact, each as if it were alone; arguments as for a `Method`."""
        ...


@runtime_checkable
class Settled(Protocol):
    """A method some of whose numbers depend on the model unless they are given."""

    def settled(self, lm: "LM") -> tuple[Method, tuple[str, ...]]:
        """Return the method with all its numbers, and sentences about where those come from that were not given."""
        ...


METHODS: dict[str, type[Any]] = {"ft": FT, "ft-l": FTL, "rome": ROME}
"""Methods by name."""


def require_method(method: object) -> None:
    """Check what a caller gave as method.

    Raises:
        SettingError: a class in place of a method, or nothing that can be called.
    """
    if isinstance(method, type):
        raise SettingError(f"method is the class {method.__name__} itself; give {method.__name__}() with its settings.")
    if not (isinstance(method, str) or callable(method)):
        raise SettingError(
            f"method must be a name or a method, such as 'rome' or ROME(layer=5); it is {short(method)}."
        )


def method_named(name: str, **settings: Any) -> Method:
    """Make a method from its name and settings.

    Raises:
        SettingError: unknown method, unknown setting, or a value that is not allowed.
    """
    if name not in METHODS:
        raise SettingError(f"There is no method {name!r}. {did_you_mean(name, METHODS)}")
    known = [field.name for field in fields(METHODS[name])]
    for key in settings:
        if key not in known:
            raise SettingError(f"{name!r} has no setting {key!r}. {did_you_mean(key, known)}")
    return METHODS[name](**settings)
