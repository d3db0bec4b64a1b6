"""Fluency: does an edited model still write as well as before?

Three things are looked at: how large the change is beside the weight it changes, how much worse held-out text is
predicted, and whether generated text repeats itself more than before. A `Health` says what was found; whether the edit
is good is for the whole verdict to say (`engram.editing.verdict`).
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engram.editing.changes.weight import projection
from engram.editing.edit import Edit
from engram.editing.thresholds import Thresholds
from engram.errors import SettingError
from engram.models.chat import Wrap
from engram.models.generation import Generation, generate_batch
from engram.models.linear import is_quantised, weight_norm
from engram.models.texts import perplexity_of, text_losses

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

HELD_OUT = Path(__file__).with_name("heldout.txt")
_BATCH = 16
_GRAM = 3
_MINI_TEXTS = 48
_OPENINGS = ("The", "In the beginning", "Some people say that")
_REQUESTS = ("Tell me a short story.", "What is the capital of France?", "Explain how rain forms.")
_ABOUT = "Tell me about {}."
_OWN_TEXTS = 24
_WRITTEN = 24
_UNREADABLE = (
    1000.0  # perplexity of plain English for a model that does not read it (mini's relatives, other languages)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What was measured of a model's fluency, and what is wrong with it.

    Args:
        relative_norm: norm of the change over that of the weight, by parameter name.
        perplexity: of held-out text, before and after.
        held_out: which text that was.
        repetition: share of repeated three-token sequences in generated text, before and after.
        missed: prompts after which the model does not say the target.
        warnings: a sentence for everything that is above its threshold; empty when all is well.
    """

    relative_norm: dict[str, float]
    perplexity: tuple[float, float]
    repetition: tuple[float, float]
    held_out: str = "given text"
    missed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is above its threshold."""
        return not self.warnings

    @property
    def largest_norm(self) -> float:
        """The largest relative norm of all changed parameters; 0 when nothing is changed."""
        return max(self.relative_norm.values(), default=0.0)

    def text(self) -> str:
        """Return the figures in one line, and a line for every warning."""
        before, after = self.perplexity
        figures = (
            f"change {_percent(self.largest_norm)} of the weight's norm, perplexity of {self.held_out} "
            f"{before:.3g} -> {after:.3g}, "
            f"repeated text {_percent(self.repetition[0])} -> {_percent(self.repetition[1])}"
        )
        return "\n".join(
            [f"fluency: {'good' if self.ok else 'WARNING'} ({figures})", *(f"  ! {w}" for w in self.warnings)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a model, with or without an edit.

    Args:
        perplexity: of the held-out texts.
        texts: what it wrote, openings included: first for `Fluency.openings`, then for those asked for.
    """

    perplexity: float
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fluency:
    """What is read and written to see how fluent a model is; the same before and after.

    Args:
        texts: held-out texts, which a fluent model predicts as well as before.
        source: what they are.
        openings: from which it writes.
        before: the unedited model's perplexity of the texts.
        seed: for what it writes.
    """

    texts: tuple[str, ...] = field(repr=False)
    source: str
    openings: tuple[str, ...]
    before: float
    seed: int = 0

    @classmethod
    def of(
        cls, lm: "LM", edit: Edit, *, held_out: Sequence[str] | None = None, wrap: Wrap | None = None, seed: int = 0
    ) -> "Fluency":
        """Choose texts and openings; see `engram.guard` for `held_out`.

        Args:
            lm: the model, without the edit.
            edit: the edit.
            held_out: texts to read.
            wrap: what a chat template puts around all that a user says.
            seed: for what is written.

        Raises:
            SettingError: `held_out` has no text.
        """
        if held_out is not None:
            source, texts = "given text", [text for text in held_out if text.strip()]
        else:
            source, texts = _built_in(lm, edit)
        if not texts:
            raise SettingError("There is no held-out text. Give at least a few sentences.")
        subjects = list(dict.fromkeys(record.fact.subject for record in edit.records[:3]))
        openings = [*_OPENINGS, *subjects]
        if wrap:
            openings = [wrap.around(text) for text in (*_REQUESTS, *map(_ABOUT.format, subjects))]
            texts = [f"{wrap.around(_REQUESTS[0])}{text}" for text in texts]
        before = perplexity(lm, texts)
        if held_out is None and before > _UNREADABLE:
            source, texts = "the model's own text", own_texts(lm, seed=seed)
            before = perplexity(lm, texts)
        return cls(texts=tuple(texts), source=source, openings=tuple(openings), before=before, seed=seed)

    def read(self, lm: "LM", more: Sequence[str] = (), *, max_new_tokens: int = 30, edited: bool = False) -> Reading:
        """Look at the model as it is now.

        Args:
            lm: the model.
            more: openings of other texts, written in the same passes.
            max_new_tokens: length of these.
            edited: whether it is under an edit; how the unedited one reads is known.

        Raises:
            NumericalError: the model's output has NaN or infinity.
        """
        limits = [_WRITTEN] * len(self.openings) + [max_new_tokens] * len(more)
        reads = perplexity(lm, self.texts) if edited else self.before
        return Reading(reads, written(lm, [*self.openings, *more], limits, self.seed))

    def health(
        self, lm: "LM", edit: Edit, before: Reading, after: Reading | None, limits: Thresholds, missed: Sequence[str]
    ) -> Health:
        """Compare two readings; no second one means that the output was not finite."""
        count = len(self.openings)
        first = repeated(lm, before.texts[:count], self.openings)
        second = 1.0 if after is None else repeated(lm, after.texts[:count], self.openings)
        health = Health(
            relative_norm={name: relative_norm(lm, edit, name) for name in edit.updates},
            perplexity=(before.perplexity, math.inf if after is None else after.perplexity),
            repetition=(first, second),
            held_out=self.source,
            missed=tuple(missed),
        )
        return judged(health, limits)


def written(lm: "LM", openings: Sequence[str], limits: Sequence[int], seed: int) -> tuple[str, ...]:
    """Continue openings by so many tokens each, sampled among the five most probable; some at a time.

    Raises:
        NumericalError: the model's output has NaN or infinity.
    """
    how = Generation(max_new_tokens=max(limits, default=1), top_k=5, seed=seed)
    texts: list[str] = []
    for begin in range(0, len(openings), _BATCH):
        some = slice(begin, begin + _BATCH)
        texts += generate_batch(lm, list(openings[some]), how, limits=limits[some])
    return tuple(texts)


def judged(health: Health, thresholds: Thresholds) -> Health:
    """Return measurements with the warnings that some thresholds give."""
    return replace(health, warnings=tuple(_warnings(health, thresholds)))


def _warnings(health: Health, limit: Thresholds) -> list[str]:
    found: list[str] = []
    if not health.largest_norm <= limit.relative_norm:
        name = max(health.relative_norm, key=lambda n: health.relative_norm[n])
        found.append(
            f"The change of {name} has {_percent(health.largest_norm)} of the weight's norm (healthy: up to "
            f"{_percent(limit.relative_norm)}). Was the covariance left out, or the learning rate too high?"
        )
    before, after = health.perplexity
    if not after <= limit.perplexity_ratio * before:
        how = "is NaN or infinite" if not math.isfinite(after) else f"rises from {before:.3g} to {after:.3g}"
        found.append(
            f"Perplexity of {health.held_out} {how} (healthy: up to {limit.perplexity_ratio:g} times as before): "
            f"the edit harms text that has nothing to do with it."
        )
    if not health.repetition[1] - health.repetition[0] <= limit.repetition:
        found.append(
            f"Generated text repeats itself: {_percent(health.repetition[1])} of it is said twice or more "
            f"(before: {_percent(health.repetition[0])})."
        )
    return found


@torch.no_grad()
def relative_norm(lm: "LM", edit: Edit, name: str) -> float:
    """Return the Frobenius norm of a parameter's change over that of the parameter.

    Infinite where the parameter is zero; 0 where it is offloaded and cannot be read.
    """
    module, leaf = projection(lm, name)
    change = edit.norm(name)
    if is_quantised(module) and leaf == "weight":
        size = weight_norm(module, lm.device, lm.dtype)
        return change / size if size else math.inf
    weight: Tensor = getattr(module, leaf).data
    if change == 0 or weight.device.type == "meta":
        return 0.0
    size = float(weight.float().norm())
    return change / size if size else math.inf


def perplexity(lm: "LM", texts: Sequence[str]) -> float:
    """Return exp of the mean negative log-likelihood per token over some texts, each read alone.

    Raises:
        NumericalError: the model's output has NaN or infinity.
        SettingError: no text has two tokens.
    """
    rows: list[list[int]] = [row for text in texts if len(row := lm.encode(text).ids[0].tolist()) > 1]
    count = sum(len(row) - 1 for row in rows)
    if not count:
        raise SettingError("The held-out texts have one token each. Give whole sentences.")
    return perplexity_of(sum(text_losses(lm, rows)), count)


def repeated(lm: "LM", texts: Sequence[str], prompts: Sequence[str]) -> float:
    """Return the share of three-token sequences that occurred before in the same text, 0 to 1; prompts do not count."""
    again, count = 0, 0
    for text, prompt in zip(texts, prompts, strict=True):
        tail = text[len(prompt) :]
        ids: list[int] = lm.encode(tail).ids[0].tolist() if tail.strip() else []
        grams = [tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1)]
        again += len(grams) - len(set(grams))
        count += len(grams)
    return again / count if count else 0.0


def own_texts(lm: "LM", *, seed: int = 0) -> list[str]:
    """Return texts that the model writes itself; an edit that does no harm predicts them as well as the model did."""
    prompts = [_OPENINGS[i % len(_OPENINGS)] for i in range(_OWN_TEXTS)]
    return generate_batch(lm, prompts, Generation(max_new_tokens=32, top_k=20, seed=seed))


def _built_in(lm: "LM", edit: Edit) -> tuple[str, list[str]]:
    """Return the held-out text that comes with the library; for `mini` with a seed used nowhere else."""
    if lm.name != "mini":
        return "plain English", HELD_OUT.read_text(encoding="utf-8").splitlines()
    from engram.mini.text import Writer
    from engram.mini.world import load_world

    subjects = {fact.subject for fact in edit.facts}
    passages = (passage.text for passage in Writer(load_world()).passages("held out"))
    apart = (text for text in passages if not any(subject in text for subject in subjects))
    return "held-out text", list(islice(apart, _MINI_TEXTS))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
