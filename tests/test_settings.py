"""Settings: what there is, read from typed text, and checked by name."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from torch import Tensor

from engram.errors import SettingError
from engram.settings import kind_named, made, parsed, plain, settings


@dataclass(frozen=True, kw_only=True)
class Base:
    """What some share.

    Args:
        seed: for the noise.
    """

    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Searcher(Base):
    """Look for something.

    Args:
        layer: which one; the model's own
            when not given.
        layers: several.
        rate: how fast.
        tokens: by name, or positions.
        style: of two.
        quiet: say nothing.
        names: of others.
        where: a place.

    Raises:
        SettingError: never.
    """

    layer: int | None = None
    layers: tuple[int, ...] = (1,)
    rate: float = 0.5
    tokens: str | tuple[int, ...] = "all"
    style: Literal["code", "paper"] = "code"
    quiet: bool = False
    names: tuple[str, ...] = field(default_factory=tuple)
    where: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Needy:
    """Wants to be told.

    Args:
        path: a folder.
    """

    path: str


def test_settings_are_the_fields_with_what_the_docstring_says() -> None:
    known = settings(Searcher)
    assert list(known) == ["seed", "layer", "layers", "rate", "tokens", "style", "quiet", "names", "where"]
    assert known["layer"].meaning == "which one; the model's own when not given."
    assert known["seed"].meaning == "for the noise."
    assert (known["layer"].kind, known["rate"].kind) == ("int | None", "float")
    assert known["style"].kind == "code | paper"
    assert known["names"].default == ()
    assert settings(Needy)["path"].required


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("layer=5", 5),
        ("layer=none", None),
        ("layers=3-5,8", (3, 4, 5, 8)),
        ("layers=4", (4,)),
        ("layers=[1, 2]", (1, 2)),
        ("rate=5e-3", 0.005),
        ("rate = 1", 1.0),
        ("tokens=subject_last", "subject_last"),
        ("tokens=3,4", (3, 4)),
        ("style=paper", "paper"),
        ("quiet=yes", True),
        ("names=Ann, Bob", ("Ann", "Bob")),
        ("names=7", ("7",)),
    ],
)
def test_typed_text_becomes_a_value_of_the_settings_type(text: str, value: Any) -> None:
    found = parsed(Searcher, "searcher", [text])[text.partition("=")[0].strip()]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer", "name=value"),
        ("layr=5", "Did you mean 'layer'?"),
        ("layer=five", "layer is int | None"),
        ("style=text", "style is code | paper"),
        ("where=here", "cannot be given as text"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=r".") as caught:
        parsed(Searcher, "searcher", [text])
    assert words in str(caught.value)


def test_the_last_of_several_values_counts() -> None:
    assert parsed(Searcher, "searcher", ["layer=5", "layer=6"]) == {"layer": 6}


def test_made_from_its_settings_or_told_what_is_wrong() -> None:
    assert made(Searcher, "searcher", layer=5) == Searcher(layer=5)
    with pytest.raises(SettingError, match="'searcher' has no setting 'layr'. Did you mean 'layer'"):
        made(Searcher, "searcher", layr=5)
    with pytest.raises(SettingError, match="'needy' needs path. a folder"):
        made(Needy, "needy")


def test_plain_settings_are_those_that_differ_and_make_the_same_again() -> None:
    searcher = Searcher(layer=5, layers=(1, 2), seed=3)
    assert plain(searcher) == {"seed": 3, "layer": 5, "layers": [1, 2]}
    assert plain(Searcher()) == {}


def test_a_registry_imports_what_it_names() -> None:
    registry = {"searcher": f"{__name__}:Searcher"}
    assert kind_named(registry, "searcher", "method") is Searcher
    with pytest.raises(SettingError, match="There is no method 'seeker'. Did you mean 'searcher'"):
        kind_named(registry, "seeker", "method")
