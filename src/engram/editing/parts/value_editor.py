"""What methods share that look for values and write them under keys: ROME, MEMIT and their kin.

They differ in where the value stands, in which layers are changed, and in the closed form that changes them. Contexts,
key statistics, the search and its settings are here.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from engram.editing.parts.contexts import Contexts, flat, sample_contexts
from engram.editing.parts.descent import Descent
from engram.editing.parts.editor import Editor
from engram.editing.parts.key_statistics import Given, Text, statistics_for
from engram.editing.parts.lookups import Lookups, lookups
from engram.editing.parts.prompts import TOKENS
from engram.editing.parts.published import Choice
from engram.editing.parts.values import Values, bare_rows, find_values
from engram.editing.records import Origin
from engram.errors import SettingError
from engram.facts import Fact
from engram.models.chat import wrap_for
from engram.models.hooks import Site
from engram.progress import Progress
from engram.showing import Shown
from engram.stats import KeyStatistics

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

_NUMBERS = ("steps", "lr", "stop", "kl", "decay")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Preset(Shown):
    """What a paper's text, its published code and corrections do differently.

    Args:
        descent: how values are found.
        lengths: lengths of the context prefixes in tokens.
        bare: whether the bare prompt is one of the contexts.
        kl_at_subject: compare the essence prompt after the subject's last token (code) or at its end (paper).
        bare_key: whether the denominator's key is the bare prompt's (ROME's code: the cause of disabling edits).
        starts: words that contexts begin with; from the beginning-of-text token when there are none.
    """

    descent: Descent
    lengths: tuple[int, ...]
    bare: bool = True
    kl_at_subject: bool = True
    bare_key: bool = False
    starts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found for some facts, from which their edit is made.

    Args:
        choice: layers and numbers.
        contexts: templates in which prompts were put.
        counted: key statistics of the layers.
        values: keys and values, one row per fact.
        origin: where the edit comes from, without facts.
    """

    choice: Choice
    contexts: tuple[str, ...]
    counted: KeyStatistics
    values: Values
    origin: Origin


@dataclass(frozen=True, kw_only=True, repr=False)
class ValueEditor(Editor):
    """A method that looks for values and writes them under keys.

    Args:
        token: at which token to write; the subject's last one unless you want to compare (`engram sweep`).
        contexts: templates with one `{}` put in front of prompts, or groups of such; written by the model itself when
            not given.
        covariance: key statistics, the matrix E[k kᵀ] itself (or several by layer), or a folder that
            `KeyStatistics.save` or `engram stats --out` wrote; from the cache or counted when not given.
        corpus: text to count them on; see `engram.stats.open_corpus`.
        tokens: how many tokens of it to count; more from the cache serve as well. See
            `engram.stats.counting.Counting` when not given.
        seed: for contexts, statistics and erasing.
        steps: number of losses computed; the preset's when not given, as all that follow.
        lr: learning rate.
        stop: loss below which a fact is done.
        kl: weight of the essence term.
        decay: weight of the penalty on δ.
        clamp: bound of ‖δ‖ as a multiple of ‖v₀‖; found as layers are when not given.
        facts_per_batch: how many facts are optimised at once: bounds memory. More only helps on a GPU.
        plain: run the whole network at every step; for comparison.
        values: a folder in which found values are kept, so that thousands of facts go on where they were.

    Raises:
        SettingError: an unknown preset or token, or a number that is not positive.
    """

    presets: ClassVar[Mapping[str, Preset]]
    exports = ("hf", "peft")

    preset: str = "code"
    token: Literal["subject_first", "subject_middle", "subject_last", "last"] | str = "subject_last"
    contexts: Contexts | None = None
    covariance: Given | None = None
    corpus: Text | None = None
    tokens: int | None = None
    seed: int = 0
    steps: int | None = None
    lr: int | float | None = None
    stop: int | float | None = None
    kl: int | float | None = None
    decay: int | float | None = None
    clamp: int | float | None = None
    facts_per_batch: int = 4
    plain: bool = False
    values: str | Path | None = None

    def __post_init__(self) -> None:
        self._require_one_of("preset", tuple(self.presets))
        self._require_one_of("token", TOKENS)
        self._require_positive("tokens", "steps", "lr", "clamp", "facts_per_batch")
        if self.contexts is not None and not self.contexts:
            raise SettingError("contexts is empty; give at least the bare prompt, ['{}'].")

    def prepared(
        self, lm: "LM", *, layers: Sequence[int] | None = None, progress: Progress | None = None
    ) -> "ValueEditor":
        """Return the method with its contexts and key statistics; see `Editor.prepared`."""
        made = self if layers is not None else self.settled(lm)[0]
        return replace(made.counted(lm, layers=layers, progress=progress), contexts=self.contexts or self._contexts(lm))

    def counted(
        self,
        lm: "LM",
        *,
        layers: Sequence[int] | None = None,
        tokens: int | None = None,
        progress: Progress | None = None,
    ) -> "ValueEditor":
        """Return the method with its key statistics; see `Editor.counted`."""
        asked = replace(self, tokens=self.tokens or tokens)
        found = asked._counted(lm, layers or self.choice(lm).layers, progress)
        return replace(self, covariance=found, corpus=None, tokens=None)

    @property
    def _rule(self) -> Preset:
        return self.presets[self.preset]

    def _descent(self, choice: Choice) -> Descent:
        found = {name: choice.number(name) for name in (*_NUMBERS, "clamp") if name in choice.numbers}
        found |= {name: value for name in _NUMBERS if (value := getattr(self, name)) is not None}
        whole: dict[str, Any] = {name: value if name == "steps" else float(value) for name, value in found.items()}
        return replace(self._rule.descent, **whole)

    def _contexts(self, lm: "LM") -> tuple[str, ...]:
        rule = self._rule
        if self.contexts is not None:
            return flat(self.contexts)
        return sample_contexts(lm, rule.lengths, seed=self.seed, bare=rule.bare, starts=rule.starts)

    def _counted(self, lm: "LM", layers: Sequence[int], progress: Progress | None) -> KeyStatistics:
        return statistics_for(
            lm, layers, self.covariance, self.corpus, tokens=self.tokens, seed=self.seed, progress=progress
        )

    def findings(self, lm: "LM", facts: Sequence[Fact], kind: str, progress: Progress | None) -> Findings:
        """Find the values of facts at a site of the last layer that is edited, and all that a closed form needs.

        Args:
            lm: the model.
            facts: the facts; a bad one is found before anything takes long.
            kind: the site's kind, such as "mlp" or "state".
            progress: told what is being done.
        """
        bare_rows(lm, facts, mode=self.mode, wrap=wrap_for(lm, chat=self.chat))
        choice = self.choice(lm)
        how, contexts = self._descent(choice), self._contexts(lm)
        counted = self._counted(lm, choice.layers, progress)
        notes = self._remarks(choice, counted)
        values = find_values(
            lm,
            facts,
            Site(kind, choice.layer),
            how,
            contexts=contexts,
            token=self.token,
            mode=self.mode,
            chat=self.chat,
            kl_at_subject=self._rule.kl_at_subject,
            seed=self.seed,
            together=self.facts_per_batch,
            plain=self.plain,
            kept=self.values,
            progress=progress,
        )
        settings = self._settings(choice, how, counted)
        origin = Origin(method=self.name, settings=settings, facts=(), contexts=contexts, notes=notes)
        return Findings(choice, contexts, counted, values, origin)

    def lookups(self, lm: "LM", facts: Sequence[Fact], contexts: Contexts) -> Lookups:
        """Return the facts' prompts, to measure keys and states with as the model then is."""
        return lookups(lm, facts, contexts=contexts, token=self.token, mode=self.mode, chat=self.chat)

    def _remarks(self, choice: Choice, counted: KeyStatistics) -> tuple[str, ...]:
        """Return, and log, where numbers come from and what had to be done to the statistics."""
        ridges = {layer: counted.ridge(layer) for layer in choice.layers if counted.ridge(layer)}
        added = tuple(f"The key statistics are singular; a ridge of {ridge:g} was added." for ridge in ridges.values())
        notes = (*choice.notes, *([counted.remark] if counted.remark else []), *dict.fromkeys(added))
        for note in notes:
            logger.info(note)
        return notes

    def _settings(self, choice: Choice, how: Descent, counted: KeyStatistics) -> dict[str, Any]:
        """Return what an Edit's origin says of the settings."""
        moments = [counted[layer] for layer in choice.layers]
        changes = [moment.change for moment in moments if moment.change is not None]
        return {
            "preset": self.preset,
            **choice.numbers,
            "token": self.token,
            "chat": self.chat,
            "seed": self.seed,
            **{name: getattr(how, name) for name in (*_NUMBERS, "clamp")},
            "statistics": {
                "corpus": counted.corpus,
                "tokens": min(moment.tokens for moment in moments),
                "change": max(changes, default=None),
            },
        }
