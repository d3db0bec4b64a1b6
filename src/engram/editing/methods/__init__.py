"""How methods are found by name, and what all of them promise.

A method is a frozen, keyword-only dataclass of its settings whose call makes an Edit. A new one is one file here and
one line in `METHODS`; `engram.editing.parts` has what they share, and `Editor` the defaults for what they need not say.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from engram.editing.edit import Edit
from engram.errors import SettingError
from engram.facts import Fact
from engram.progress import Progress
from engram.settings import kind_named, made
from engram.showing import short

if TYPE_CHECKING:
    from engram.models import LM


@runtime_checkable
class Method(Protocol):
    """What makes an Edit from facts. The model is unchanged afterwards."""

    def __call__(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> Edit:
        """Make one Edit of all facts.

        One that can go on from another Edit (every `Editor` can) also takes `onto`, that Edit.

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


METHODS: dict[str, str] = {
    "ft": "engram.editing.methods.finetune:FT",
    "ft-l": "engram.editing.methods.finetune:FTL",
    "grace": "engram.editing.methods.grace:GRACE",
    "memit": "engram.editing.methods.memit:MEMIT",
    "rome": "engram.editing.methods.rome:ROME",
}
"""Methods by name: module and class, imported when named."""


def method_kind(name: str) -> type[Any]:
    """Return the class of a method.

    Raises:
        SettingError: unknown method.
    """
    return kind_named(METHODS, name, "method")


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
    return made(method_kind(name), name, **settings)
