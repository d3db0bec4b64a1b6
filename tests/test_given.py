"""Wrong types are sentences that say what to type, at every public entry."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from families import golden_lm

import engram
from edits import random_edit
from engram.editing import FT, ROME
from engram.errors import EngramError
from engram.evaluation import sweep
from engram.facts import Case, Fact

FACT = Fact("Ann", "{} lives in", "Rome")
CASE = Case(id="1", fact=FACT)
TEXT = "The Space Needle is in"


@pytest.fixture(autouse=True)
def as_users_run_it() -> Iterator[None]:
    """Tests check the types of all arguments; users' programs do not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


Entry = Callable[[Any, Any], Any]
"""Called with the model and a wrong value."""


def entered(context: Any) -> None:
    with context:
        pass


TAKE_FACT: dict[str, Entry] = {
    "trace": lambda lm, x: engram.trace(lm, x),
    "edit": lambda lm, x: engram.edit(lm, x, "ft"),
    "edit several": lambda lm, x: engram.edit(lm, [x], "ft"),
    "trace_many": lambda lm, x: engram.trace_many(lm, [x]),
    "compare_severed": lambda lm, x: engram.compare_severed(lm, [x]),
}
TAKE_EDIT: dict[str, Entry] = {
    "check": lambda lm, x: engram.check(lm, x),
    "guard": lambda lm, x: engram.guard(lm, x),
    "add": lambda lm, x: random_edit(lm) + x,
}
TAKE_CASES: dict[str, Entry] = {
    "evaluate": lambda lm, x: engram.evaluate(lm, [x], method="none"),
    "sweep": lambda lm, x: sweep(lm, [x]),
    "check's cases": lambda lm, x: engram.check(lm, random_edit(lm), cases=[x]),
}
TAKE_LM: dict[str, Entry] = {
    "trace": lambda _, x: engram.trace(x, FACT),
    "trace_many": lambda _, x: engram.trace_many(x, [FACT]),
    "compare_severed": lambda _, x: engram.compare_severed(x, [FACT]),
    "edit": lambda _, x: engram.edit(x, FACT),
    "check": lambda lm, x: engram.check(x, random_edit(lm)),
    "guard": lambda lm, x: engram.guard(x, random_edit(lm)),
    "evaluate": lambda _, x: engram.evaluate(x, [CASE]),
    "sweep": lambda _, x: sweep(x, [CASE]),
    "statistics": lambda _, x: engram.statistics(x, [1], ["a text"]),
    "applied": lambda lm, x: entered(random_edit(lm).applied(x)),
    "apply_": lambda lm, x: random_edit(lm).apply_(x),
    "require_fit": lambda lm, x: random_edit(lm).require_fit(x),
    "record": lambda _, x: entered(engram.record(x, [engram.Site("mlp", 1)])),
    "patch": lambda _, x: entered(engram.patch(x, {engram.Site("mlp", 1): lambda t: t})),
}
TAKE_LIST: dict[str, Entry] = {
    "trace_many": lambda lm, x: engram.trace_many(lm, x),
    "compare_severed": lambda lm, x: engram.compare_severed(lm, x),
    "continuations": lambda lm, x: lm.score("Ann lives in", x),
    "paraphrases": lambda lm, x: engram.check(lm, random_edit(lm), paraphrases=x),
    "neighborhood": lambda lm, x: engram.check(lm, random_edit(lm), neighborhood=x),
    "generation": lambda lm, x: engram.check(lm, random_edit(lm), generation=x),
    "record": lambda lm, x: entered(engram.record(lm, x)),
    "patch": lambda lm, x: entered(engram.patch(lm, x)),
}
TAKE_TEXT: dict[str, Entry] = {
    "generate": lambda lm, x: lm.generate(x),
    "next_tokens": lambda lm, x: lm.next_tokens(x),
    "prompts": lambda lm, x: lm.score(x, ["Rome"]),
    "a continuation": lambda lm, x: lm.score("Ann lives in", ["Rome", x]),
    "encode": lambda lm, x: lm.encode(x),
    "Fact's subject": lambda _, x: Fact(x, "{} is"),
    "Fact's prompt": lambda _, x: Fact("Ann", x),
    "Fact's text": lambda _, x: Fact.from_text(x, "Ann"),
    "load": lambda _, x: engram.load(x) if not isinstance(x, Path) else lm_of_nothing(),
}


def lm_of_nothing() -> None:
    raise EngramError("a path is right here; give a text in quotes")


WRONG: dict[str, tuple[dict[str, Entry], list[tuple[Any, str]]]] = {
    "fact": (
        TAKE_FACT,
        [
            (TEXT, "engram.Fact.from_text(text, subject)"),
            ({"subject": "Ann", "prompt": "{} is"}, "engram.Fact(**values)"),
            (None, "engram.Fact("),
            (Path("fact.json"), "engram.Fact("),
            (7, "engram.Fact("),
        ],
    ),
    "edit": (
        TAKE_EDIT,
        [
            (Path("needle"), "engram.Edit.load('needle')"),
            ("needle/", "engram.Edit.load('needle/')"),
            (FACT, "engram.edit(lm, fact)"),
            (None, "engram.edit(lm, fact)"),
            ({}, "engram.edit(lm, fact)"),
            ([1], "edit = first + second"),
        ],
    ),
    "cases": (
        TAKE_CASES,
        [
            (FACT, 'engram.Case(id="1", fact=fact)'),
            (TEXT, "engram.Case("),
            ({}, "engram.Case("),
            (None, "engram.Case("),
        ],
    ),
    "lm": (
        TAKE_LM,
        [
            ("mini", "engram.load('mini')"),
            (Path("model"), "engram.load('model')"),
            (FACT, "engram.load("),
            (None, "engram.load("),
            ({}, "engram.load("),
        ],
    ),
    "list": (TAKE_LIST, [(TEXT, ""), (None, ""), (7, "")]),
    "text": (TAKE_TEXT, [(None, "a text in quotes"), (7, "a text in quotes"), ({1: 2}, "a text in quotes")]),
}
ROWS = [
    pytest.param(entry, value, types, id=f"{noun}: {name}, {type(value).__name__}")
    for noun, (entries, values) in WRONG.items()
    for name, entry in entries.items()
    for value, types in values
]


@pytest.mark.parametrize(("entry", "value", "types"), ROWS)
def test_a_wrong_type_is_a_sentence_that_says_what_to_type(entry: Entry, value: Any, types: str) -> None:
    with pytest.raises(EngramError) as caught:
        entry(golden_lm(), value)
    message = str(caught.value)
    assert types in message and message.endswith((".", "?")), message
    assert len(message) < 400


@pytest.mark.parametrize("entry", TAKE_LM.values(), ids=TAKE_LM)
def test_a_raw_model_is_told_how_to_be_wrapped(entry: Entry) -> None:
    lm = golden_lm()
    with pytest.raises(EngramError, match=r"lm must be an engram.LM; it is a \w+. Wrap it: lm = engram.LM\(model"):
        entry(lm, lm.model)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (lambda lm: engram.trace_many(lm, FACT), "in brackets"),
        (lambda lm: engram.evaluate(lm, CASE), "in brackets"),
        (lambda lm: engram.edit(lm, CASE, "ft"), "case.fact"),
        (lambda lm: engram.trace(lm, CASE), "case.fact"),
        (lambda lm: engram.trace(lm, [FACT]), "engram.trace_many"),
        (lambda lm: engram.edit(lm, FACT, ROME), "ROME() with its settings"),
        (lambda lm: engram.evaluate(lm, [CASE], method=FT), "FT() with its settings"),
        (lambda lm: engram.edit(lm, FACT, None), "a name or a method"),
        (lambda lm: lm.score("Ann lives in", "Rome"), "in brackets: ['Rome']"),
        (lambda lm: entered(engram.record(lm, engram.Site("mlp", 1))), "in brackets"),
        (lambda lm: entered(engram.record(lm, ["mlp"])), 'engram.Site("mlp", 3)'),
        (lambda lm: sweep(lm, [CASE], layers=3), "in brackets: [3]"),
        (lambda lm: random_edit(lm) * "2", "a number"),
        (lambda lm: engram.LM("gpt2", lm.tokenizer), "engram.load"),
    ],
)
def test_near_misses_are_told_the_right_form(entry: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(EngramError) as caught:
        entry(golden_lm())
    assert says in str(caught.value)


def test_names_of_one_method_or_token_need_no_brackets() -> None:
    with pytest.raises(EngramError, match="no method 'roma'"):
        sweep(golden_lm(), [CASE], methods="roma")


def test_right_types_pass() -> None:
    lm = golden_lm()
    assert lm.score(["Ann lives in"], [["Rome", "Oslo"]]).shape == (1, 2)
    assert lm.score("Ann lives in", ("Rome",)).shape == (1, 1)
    assert isinstance(lm.generate(("Ann",), max_new_tokens=1), list)
    with engram.record(lm, (engram.Site("mlp", i) for i in range(2))) as seen:
        lm.next_tokens("Ann")
    assert len(seen) == 2
