"""Who works with the model: one visitor at a time, in the order of asking; each can stop, while working or waiting.

Gradio's own queue could do the first; but what it cancels ends in the browser and in the server apart, and now and then
a progress bar stays for good. Here work always ends by itself, with an answer.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from engram.errors import EngramError

_PATIENCE = 0.5  # seconds after which somebody who waits looks again


class Stopped(EngramError):
    """The visitor pressed Stop."""


@dataclass(eq=False, slots=True)
class _Work:
    whose: tuple[str, str]
    asked: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        if self.asked.is_set():
            raise Stopped("Stopped. Nothing was changed.")


class Turns:
    """The line of those who work with the model. No thread can be ended from outside, so work looks if it may go on."""

    def __init__(self) -> None:
        self._line: list[_Work] = []
        self._moved = threading.Condition()

    @contextmanager
    def taken(
        self, visitor: gr.Request | None, what: str, waits: Callable[[int], Any] | None = None
    ) -> Generator[Callable[[], None]]:
        """Wait for one's turn; give a function that raises `Stopped` once the visitor asked for it.

        Args:
            visitor: whose work it is.
            what: which of the visitor's works, as `stop` names it.
            waits: told how many are in front, again and again.

        Raises:
            Stopped: the visitor asked for it before the turn came.
        """
        work = _Work(_whose(visitor, what))
        with self._moved:
            self._line.append(work)
        try:
            self._wait(work, waits)
            yield work.look
        finally:
            with self._moved:
                self._line.remove(work)
                self._moved.notify_all()

    def stop(self, visitor: gr.Request | None, what: str) -> None:
        """Ask a visitor's work to end at its next step."""
        with self._moved:
            for work in self._line:
                if work.whose == _whose(visitor, what):
                    work.asked.set()
            self._moved.notify_all()

    def _wait(self, work: _Work, waits: Callable[[int], Any] | None) -> None:
        with self._moved:
            while ahead := self._line.index(work):
                work.look()
                if waits is not None:
                    waits(ahead)
                self._moved.wait(_PATIENCE)


def _whose(visitor: gr.Request | None, what: str) -> tuple[str, str]:
    return (str(visitor.session_hash) if visitor is not None else "", what)
