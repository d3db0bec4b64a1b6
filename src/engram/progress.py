"""Signs of life: what is being done, how much of it is done, and how much there is.

Whatever takes a while takes `progress`: a function of (what, done, total), or of (done, total). Without one, a notebook
gets a line that changes, and anything else a line in the log (logger `engram`, level INFO) every ten seconds.
"""

import inspect
import logging
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

logger = logging.getLogger("engram")

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and how much there is (an estimate where that is not known)."""
AnyProgress = Progress | Callable[[int, int], None]
"""What callers may give: also a function that wants no more than the two numbers."""

FIRST, EVERY = 2.0, 10.0
"""Seconds until something is said of a job, and between two lines."""
_REDRAWN = 0.5
_WIDTH = 24


class Doing(str):
    """What is being done, with what it is counted in: a plain text to everybody who needs no more.

    Args:
        what: as in "counting keys of layer 6".
        unit: what `done` and `total` count, as in "tokens"; nothing for a share of the whole.
        about: whether `total` is an estimate.
    """

    unit: str
    about: bool

    def __new__(cls, what: str, *, unit: str = "", about: bool = False) -> "Doing":
        """Make a text that knows more; see the class."""
        job = super().__new__(cls, what)
        job.unit, job.about = unit, about
        return job


class Timed:
    """Turns the numbers of jobs into sentences, and knows when it is time for one.

    Args:
        every: seconds between two sentences.
        clock: gives seconds.
    """

    def __init__(self, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._began: dict[str, tuple[float, int]] = {}
        self._next = clock() + FIRST

    def sentence(self, what: str, done: int, total: int) -> str | None:
        """Return "what: done of total, seconds, seconds left"; `None` while it is too soon to say something again."""
        now = self._clock()
        begun, first = self._began.setdefault(what, (now, done))
        if now < self._next:
            return None
        self._next = now + self._every
        parts = [f"{what}: {amount(what, done, total)}", f"{now - begun:.0f} s"]
        if done > first and total > done:
            parts.append(f"about {(total - done) * (now - begun) / (done - first):.0f} s left")
        return ", ".join(parts)


def amount(what: str, done: int, total: int) -> str:
    """Return how much is done: "12,288 of about 40,960 tokens", or "3 of 8"."""
    unit, about = (what.unit, what.about) if isinstance(what, Doing) else ("", False)
    return f"{done:,} of {'about ' if about else ''}{total:,}{f' {unit}' if unit else ''}"


def lines(say: Callable[[str], None], *, timed: Timed | None = None) -> Progress:
    """Return a progress function that says a line every ten seconds."""
    when = timed or Timed()

    def report(what: str, done: int, total: int) -> None:
        text = when.sentence(what, done, total)
        if text is not None:
            say(text)

    return report


def progress_for(given: AnyProgress | None, job: str | None = None) -> Progress:
    """Return a function of (what, done, total) from whatever a caller gave.

    Args:
        given: such a function, one of (done, total), or nothing: then a line in a notebook, else in the log.
        job: the only job that a function of (done, total), which cannot tell one from another, hears about.
    """
    if given is None:
        display = _notebook()
        return lines(logger.info) if display is None else _shown(display)
    return _whole(given, job)


def named(progress: Progress, what: str) -> Callable[[int, int], None]:
    """Return a function of (done, total) that tells what is being done."""
    return lambda done, total: progress(what, done, total)


def _whole(given: Any, job: str | None) -> Progress:
    """Give a function of (done, total) the shape of the others; the one place where the difference is looked for."""
    try:
        inspect.signature(given).bind("", 0, 0)
    except TypeError:
        return lambda what, done, total: given(done, total) if job in (None, what) else None
    except ValueError:  # a callable without a signature is taken at its word
        pass
    return given


def _notebook() -> Any:
    """Return IPython's `display` where a notebook's kernel runs this, else nothing."""
    shell = sys.modules.get("IPython")
    running = None if shell is None else shell.get_ipython()
    return None if getattr(running, "kernel", None) is None else import_module("IPython.display").display


def _shown(display: Callable[..., Any]) -> Progress:
    """Return a progress function that draws a bar of characters in one place, empty when a job is done."""
    when, handle = Timed(_REDRAWN), list[Any]()

    def report(what: str, done: int, total: int) -> None:
        finished = done >= total
        text = when.sentence(what, done, total)
        if text is None and not finished:
            return
        full = round(_WIDTH * done / max(1, total))
        bundle = {"text/plain": "" if finished else f"{'█' * full}{'░' * (_WIDTH - full)} {text}"}
        if handle:
            handle[0].update(bundle, raw=True)
        elif not finished:
            handle.append(display(bundle, raw=True, display_id=True))

    return report
