"""Where an Edit came from: the runs of methods that made it, and what they did for each fact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engram.facts import Fact
from engram.showing import Shown

Mode = Literal["insert", "modify", "erase"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FactRecord(Shown):
    """What a method did for one fact.

    Args:
        fact: the fact, with the target that was written.
        mode: insert (nothing known before), modify (an original answer is replaced) or erase.
        layers: the layers that were changed.
        text: the prompt as the model saw it, chat template included.
        tokens: its tokens.
        position: index of the token whose key was used, where there is one.
        losses: the total loss at every step.
        stopped: why the optimisation ended.
        numbers: norms and probabilities worth knowing, by name.
    """

    fact: Fact
    mode: Mode = "modify"
    layers: tuple[int, ...] = ()
    text: str = ""
    tokens: tuple[str, ...] = ()
    position: int | None = None
    losses: tuple[float, ...] = ()
    stopped: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def token(self) -> str | None:
        """The token whose key was used."""
        return None if self.position is None else self.tokens[self.position]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Origin(Shown):
    """One run of a method: its settings and what it did for each fact.

    Args:
        method: the method's name, such as `"rome"`.
        settings: its settings as plain values.
        facts: one record per fact.
        contexts: templates with one `{}` before which the prompts were put.
        factor: by how much its change was scaled afterwards.
        notes: sentences for the user (defaults taken, ridges added, facts already known).
    """

    method: str
    settings: Mapping[str, Any]
    facts: tuple[FactRecord, ...]
    contexts: tuple[str, ...] = ()
    factor: float = 1.0
    notes: tuple[str, ...] = ()
