"""Ways of locating: one protocol, one dictionary of names, and the verb `locate`.

A locator is a frozen dataclass of its settings whose call turns a fact into a Grid. A new one is one file and one line
in `LOCATORS`; sites, resuming, grids, pictures, files and averages are shared.
"""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from engram.errors import SettingError
from engram.facts import Fact
from engram.given import require, require_lm
from engram.locate.grid import Grid
from engram.progress import AnyProgress, Doing, Progress, progress_for
from engram.settings import kind_named, made
from engram.showing import short

if TYPE_CHECKING:
    from engram.models import LM

LOCATING = Doing("locating")


@runtime_checkable
class Locator(Protocol):
    """What finds where in a network a fact is. The model is unchanged afterwards."""

    def __call__(self, lm: "LM", fact: Fact, *, progress: Progress | None = None) -> Grid:
        """Locate one fact.

        Args:
            lm: the model.
            fact: the fact; the answer is its `original`, else what the model says.
            progress: told what is being done, how much of it is done, and how much there is.
        """
        ...


LOCATORS: dict[str, str] = {
    "lens": "engram.locate.lens:Lens",
    "tracing": "engram.locate.tracing.causal:CausalTracing",
}
"""Where the class of each locator is, by name; imported when it is asked for."""


def locator_named(name: str, **settings: Any) -> Locator:
    """Make a locator from its name and settings.

    Raises:
        SettingError: unknown locator, unknown setting, or a value that is not allowed.
    """
    return made(kind_named(LOCATORS, name, "locator"), name, **settings)


def locator_of(by: str | Locator, settings: dict[str, Any]) -> Locator:
    """Return the locator that a caller asks for, by name or as it is.

    Raises:
        SettingError: a class, nothing that can be called, or settings beside a locator that has its own.
    """
    if isinstance(by, str):
        return locator_named(by, **settings)
    if isinstance(by, type):
        raise SettingError(f"by is the class {by.__name__} itself; give {by.__name__}() with its settings.")
    if not callable(by):
        raise SettingError(f"by must be a name or a locator, such as 'lens'; it is {short(by)}.")
    if settings:
        raise SettingError(f"Give {', '.join(settings)} to the locator itself: {type(by).__name__}(...).")
    return by


def locate(
    lm: "LM", fact: Fact, *, by: str | Locator = "tracing", progress: AnyProgress | None = None, **settings: Any
) -> Grid:
    """Find where in the network a fact is.

    Args:
        lm: the model.
        fact: the fact; the answer is its `original`, else what the model says.
        by: a name out of `LOCATORS`, or a locator.
        progress: a function of (what, done, total), or of (done, total); the log when not given.
        **settings: of the locator, where it is given by name.

    Raises:
        SettingError: unknown locator or setting, or a value that is not allowed.
        FactError: the prompt, its subject or its answer cannot be used.
        NumericalError: NaN or infinity in the model's output.
    """
    require_lm(lm)
    require(fact, Fact, "fact")
    return locator_of(by, settings)(lm, fact, progress=progress_for(progress, LOCATING))
