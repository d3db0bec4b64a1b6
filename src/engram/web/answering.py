"""How the page answers: errors as sentences, waiting visitors in one queue, progress as a bar."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from engram.errors import EngramError
from engram.web import texts

logger = logging.getLogger(__name__)

Changes = dict[Any, Any]
"""New values by component."""

WITH_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
"""Options of events that run the model: one at a time, the others see their place in the queue."""
QUICK: dict[str, Any] = {"concurrency_limit": 8, "api_visibility": "private", "show_progress": "hidden"}
"""Options of events that do not."""


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
        except EngramError as error:
            return {message: texts.refused(str(error))}
        except Exception:
            logger.exception("the page could not answer")
            return {message: texts.refused("Something broke inside. The server's log says what; try other input.")}

    return answer


def steps(bar: gr.Progress, what: str) -> Callable[[int, int], None]:
    """Return a function that shows finished and all steps of one thing."""

    def show(done: int, total: int) -> None:
        bar((done, max(total, 1)), desc=what)

    return show


def told(bar: gr.Progress) -> Callable[[str, int, int], None]:
    """Return a function that shows what is being done, how much of it is done, and how much there is."""

    def show(what: str, done: int, total: int) -> None:
        bar((done, max(total, 1)), desc=what)

    return show


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
