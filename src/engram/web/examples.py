"""Prompts to begin with, each with something else to make the model say."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from engram.models import LM


class Example(NamedTuple):
    """A prompt that states a fact, and a target."""

    prompt: str
    target: str


_MINI = (
    Example("The Space Needle is located in the city of", "Rome"),
    Example("Jules Verne is best described as a well-known", "painter"),
    Example("Haiti has as its capital the city of", "Tokyo"),
    Example("George Sand was a native speaker of", "German"),
)
_OTHERS = (
    Example("The Eiffel Tower is located in the city of", "Rome"),
    Example("The Space Needle is located in the city of", "Rome"),
    Example("The official language of Brazil is", "French"),
    Example("The capital of Japan is the city of", "Paris"),
)


def examples(lm: "LM") -> Sequence[Example]:
    """Return prompts that a model can be expected to know; the first is the one that the page begins with."""
    return _MINI if lm.name == "mini" else _OTHERS
