"""How the page answers: errors as sentences, progress as a bar."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from engram.errors import EngramError
from engram.web import texts
from engram.web.turns import Stopped

logger = logging.getLogger(__name__)

Changes = dict[Any, Any]
"""New values by component."""

WITH_MODEL: dict[str, Any] = {"concurrency_limit": 16, "concurrency_id": "model", "api_visibility": "private"}
"""Options of events that run the model, which happens in turns."""
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


def told(bar: gr.Progress, look: Callable[[], None] | None = None) -> Callable[[str, int, int], None]:
    """Return a function that shows what is being done, how much of it is done, and how much there is.

    Args:
        bar: where it is shown.
        look: called before every step; see `Turns.taken`.
    """

    def show(what: str, done: int, total: int) -> None:
        if look is not None:
            look()
        bar((done, max(total, 1)), desc=what)

    return show


def waits(bar: gr.Progress) -> Callable[[int], Any]:
    """Return a function that shows how many are in front of a visitor."""
    return lambda ahead: bar((0, 1), desc=f"waiting: {ahead} before you")


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
