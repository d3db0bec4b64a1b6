"""How the page answers: errors as sentences, waiting visitors in one queue, progress as a bar, a way to stop."""

import functools
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from engram.errors import EngramError
from engram.web import texts

logger = logging.getLogger(__name__)

Changes = dict[Any, Any]
"""New values by component."""

WITH_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
"""Options of events that run the model: one at a time, the others see their place in the queue."""
QUICK: dict[str, Any] = {"concurrency_limit": 8, "api_visibility": "private", "show_progress": "hidden"}
"""Options of events that do not, and are done at once."""
FILES: dict[str, Any] = {**QUICK, "show_progress": "full"}
"""Options of events that write or read files, which large edits make long."""


def guarded(handler: Callable[..., Changes], message: gr.HTML) -> Callable[..., Changes]:
    """Return a handler that answers every error with a sentence in a message area, and never with a stack trace.

    Args:
        handler: returns new values by component.
        message: where sentences go; cleared when all goes well and the handler says nothing itself.
    """

    @functools.wraps(handler)
    def answer(*inputs: Any, **special: Any) -> Changes:
        try:
            return {message: "", **handler(*inputs, **special)}
        except Stopped as stopped:
            return {message: texts.said(str(stopped))}
        except EngramError as error:
            return {message: texts.refused(str(error))}
        except Exception:
            logger.exception("the page could not answer")
            return {message: texts.refused("Something broke inside. The server's log says what; try other input.")}

    return answer


class Stopped(EngramError):
    """The visitor pressed Stop."""


class Stops:
    """Whose work is to end. A thread cannot be ended from outside, so work that tells its progress ends itself."""

    def __init__(self) -> None:
        self._working: dict[str, threading.Event] = {}

    @contextmanager
    def heard(self, visitor: gr.Request | None) -> Generator[Callable[[], None]]:
        """Give a function that raises `Stopped` once this visitor asked for it.

        Work of the same visitor that began before, and was not yet asked to stop, can no longer be asked.
        """
        name = _name(visitor)
        asked = self._working[name] = threading.Event()

        def look() -> None:
            if asked.is_set():
                raise Stopped("Stopped. Nothing was changed.")

        try:
            yield look
        finally:
            if self._working.get(name) is asked:
                del self._working[name]

    def ask(self, visitor: gr.Request | None) -> bool:
        """Ask a visitor's work to end at its next step; say whether any is under way."""
        asked = self._working.get(_name(visitor))
        if asked is not None:
            asked.set()
        return asked is not None


def stop_with(button: gr.Button, stops: Stops, events: list[Any], message: gr.HTML) -> None:
    """Let a button end a visitor's work, or take it out of the queue where it still waits for its turn.

    Work that runs is never cancelled as well: Gradio ends a running event in the browser and in the server apart,
    and its progress bar may stay for good.

    Args:
        button: it.
        stops: where the work looks.
        events: what starts the work.
        message: where it is said.
    """
    waiting = gr.State(0)

    def end(times: int, visitor: gr.Request) -> Changes:
        return {message: texts.said("Stopped."), waiting: times if stops.ask(visitor) else times + 1}

    button.click(end, [waiting], [message, waiting], **QUICK)
    waiting.change(None, None, None, cancels=events, **QUICK)


def _name(visitor: gr.Request | None) -> str:
    return str(visitor.session_hash) if visitor is not None else ""


def told(bar: gr.Progress, look: Callable[[], None] | None = None) -> Callable[[str, int, int], None]:
    """Return a function that shows what is being done, how much of it is done, and how much there is.

    Args:
        bar: where it is shown.
        look: called before every step; see `Stops.heard`.
    """

    def show(what: str, done: int, total: int) -> None:
        if look is not None:
            look()
        bar((done, max(total, 1)), desc=what)

    return show


def steps(bar: gr.Progress, what: str, look: Callable[[], None] | None = None) -> Callable[[int, int], None]:
    """Return a function that shows finished and all steps of one thing; see `told`."""
    return functools.partial(told(bar, look), what)


def handed_out(button: gr.DownloadButton, data: bytes, name: str) -> str:
    """Return where a file lies that a visitor may fetch, for a while."""
    return save_bytes_to_cache(data, name, cache_dir=button.GRADIO_CACHE)


def whole(value: Any, what: str) -> int:
    """Return a number that a browser sent.

    Raises:
        EngramError: it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise EngramError(f"The {what} is {value!r}, which is no whole number.")
    return int(value)


def sent(event: gr.EventData, name: str) -> int:
    """Return a number that came with an event of the browser.

    Raises:
        EngramError: it is not there, or no whole number.
    """
    try:
        value: Any = getattr(event, name)
    except (AttributeError, TypeError):
        value = None
    return whole(value, name)
