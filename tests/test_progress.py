"""Signs of life: throttled sentences, functions of two or three arguments, the log by default, a line in notebooks."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from engram.progress import Doing, Timed, amount, lines, named, progress_for


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_is_said_every_ten_seconds_with_what_is_left() -> None:
    clock, heard = Clock(), list[str]()
    report = lines(heard.append, timed=Timed(clock=clock))
    what = Doing("counting keys of layer 6", unit="tokens", about=True)
    for clock.now, done in ((0.0, 0), (1.0, 500), (31.0, 12_288), (35.0, 14_000), (40.9, 15_000), (41.0, 16_000)):
        report(what, done, 40_960)
    assert heard == [
        "counting keys of layer 6: 12,288 of about 40,960 tokens, 31 s, about 72 s left",
        "counting keys of layer 6: 16,000 of about 40,960 tokens, 41 s, about 64 s left",
    ]
    clock.now = 60.0
    report("tracing", 3, 8)  # another job, of which nothing is known yet
    assert heard[-1] == "tracing: 3 of 8, 0 s"


def test_what_was_done_earlier_does_not_count_as_fast() -> None:
    clock, heard = Clock(), list[str]()
    report = lines(heard.append, timed=Timed(clock=clock))
    report("counting", 90, 100)  # a run that goes on
    clock.now = 10.0
    report("counting", 95, 100)
    assert heard == ["counting: 95 of 100, 10 s, about 10 s left"]


def test_amounts() -> None:
    assert amount("tracing", 3, 1200) == "3 of 1,200"
    assert amount(Doing("x", unit="cases"), 3, 8) == "3 of 8 cases"


def test_functions_of_two_and_of_three_arguments_are_taken() -> None:
    told: list[Any] = []
    for given, wanted in (
        (lambda what, done, total: told.append((what, done, total)), ("counting", 1, 2)),
        (lambda *seen: told.append(seen), ("counting", 1, 2)),
        (lambda done, total: told.append((done, total)), (1, 2)),
    ):
        told.clear()
        progress_for(given)("counting", 1, 2)
        assert told == [wanted]
    told.clear()
    only = progress_for(lambda done, total: told.append((done, total)), "cases")
    only("counting", 5, 6)
    only(Doing("cases", unit="cases"), 1, 2)
    assert told == [(1, 2)]
    named(lambda *seen: told.append(seen), "tracing")(1, 2)
    assert told[-1] == ("tracing", 1, 2)


def test_without_a_function_the_log_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("engram.progress.FIRST", 0.0)
    report = progress_for(None)
    with caplog.at_level(logging.INFO, logger="engram"):
        report("counting", 1, 2)
        report("counting", 2, 2)
    assert [record.name for record in caplog.records] == ["engram"]
    assert caplog.messages == ["counting: 1 of 2, 0 s"]


def test_in_a_notebook_one_bar_changes_in_place_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram.progress.FIRST", 0.0)
    monkeypatch.setattr("engram.progress._REDRAWN", 0.0)
    shown: list[str] = []
    places: list[object] = []

    def display(bundle: dict[str, str], **_: Any) -> Any:
        places.append(object())
        shown.append(bundle["text/plain"])
        return SimpleNamespace(update=lambda bundle, raw: shown.append(bundle["text/plain"]))

    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(__import__("sys").modules, "IPython", kernel)
    monkeypatch.setitem(__import__("sys").modules, "IPython.display", SimpleNamespace(display=display))
    report = progress_for(None)
    for done in (6, 12, 24):
        report("tracing", done, 24)
    assert shown[0] == f"{'█' * 6}{'░' * 18} tracing: 6 of 24, 0 s" and shown[1].startswith("█" * 12 + "░")
    assert shown[2] == "" and len(shown) == 3
    for done in (6, 24):  # the next fact's, in the same place: a cell does not fill with what is over
        report("tracing", done, 24)
    assert shown[3].endswith("6 of 24, 0 s") and shown[4] == "" and len(places) == 1
