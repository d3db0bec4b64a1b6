"""The health guard: does an edit do what was asked, and does the model still work?

Four things are looked at: how large the change is beside the weight it changes, how much worse held-out text is
predicted, whether generated text repeats itself more than before, and whether every target became the model's answer.
The thresholds were measured on `mini` by `benchmarks/guard.py`, which also makes edits that do damage; see
docs/check-and-guard.md for the table.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engram.editing.answers import Question, ask
from engram.editing.applying import projection, require_fit
from engram.editing.edit import Edit, FactRecord
from engram.errors import EditRefused, NumericalError, SettingError
from engram.models.generation import Generation, generate_batch
from engram.models.linear import is_quantised, weight_norm

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

HELD_OUT = Path(__file__).with_name("heldout.txt")
_BATCH = 16
_GRAM = 3
_MINI_TEXTS = 48
_OPENINGS = ("The", "In the beginning", "Some people say that")
_OWN_TEXTS = 24
_UNREADABLE = (
    1000.0  # perplexity of plain English for a model that does not read it (mini's relatives, other languages)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Above what an edit counts as unhealthy. Measured on `mini` (docs/check-and-guard.md has the distributions).

    Harmless edits reached a norm of 3.0, a perplexity ratio of 1.05 and a rise in repetition of 0.10; harmful ones
    began at 5.4 and 1.11, and at 0.3 once text collapses. In large models one fact is a smaller share of a weight.

    Args:
        relative_norm: Frobenius norm of the change over that of the weight, the largest of all changed parameters.
        perplexity_ratio: perplexity of held-out text after the edit over before.
        repetition: by how much the share of repeated three-token sequences in generated text may rise (0 to 1).
        require_target: whether every target must be the model's greedy answer to its prompt.

    Raises:
        SettingError: a number that is negative or NaN.
    """

    relative_norm: float | int = 4.0
    perplexity_ratio: float | int = 1.1
    repetition: float | int = 0.2
    require_target: bool = True

    def __post_init__(self) -> None:
        for name in ("relative_norm", "perplexity_ratio", "repetition"):
            if not getattr(self, name) >= 0:
                raise SettingError(f"{name}={getattr(self, name)}; a threshold is a number of 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the guard measured, and its verdict.

    Args:
        relative_norm: norm of the change over that of the weight, by parameter name.
        perplexity: of held-out text, before and after.
        held_out: which text that was.
        repetition: share of repeated three-token sequences in generated text, before and after.
        missed: prompts after which the model does not say the target.
        warnings: a sentence for everything that is above its threshold; empty when the edit is healthy.
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
            [f"health: {'good' if self.ok else 'WARNING'} ({figures})", *(f"  ! {w}" for w in self.warnings)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}


def guard(
    lm: "LM",
    edit: Edit,
    *,
    thresholds: Thresholds | None = None,
    strict: bool = False,
    held_out: Sequence[str] | None = None,
    seed: int = 0,
) -> Health:
    """Measure an edit's health. The model is the same afterwards, whatever happens.

    Args:
        lm: the model, without the edit.
        edit: the edit.
        thresholds: when to warn.
        strict: refuse an unhealthy edit instead of warning (in the log).
        held_out: texts that a healthy edit predicts as well as before. When not given: for `mini` passages about its
            world that mention no edited subject, for other models a page of plain English, and where a model cannot
            read that (perplexity above 1,000) text that it generates itself before the edit.
        seed: for the generated text.

    Raises:
        EditRefused: the edit is unhealthy and `strict` is set.
        EditMismatch: the edit was made for another model.
        SettingError: `held_out` has no text.
    """
    require_fit(lm, edit)
    source, texts = ("given text", [x for x in held_out if x.strip()]) if held_out is not None else _built_in(lm, edit)
    if not texts:
        raise SettingError("There is no held-out text. Give at least a few sentences.")
    if held_out is None and perplexity(lm, texts) > _UNREADABLE:
        source, texts = "the model's own text", own_texts(lm, seed=seed)
    prompts = [*_OPENINGS, *dict.fromkeys(record.fact.subject for record in edit.records[:3])]
    before = perplexity(lm, texts), repetition(lm, prompts, seed=seed)
    try:
        with edit.applied(lm):
            after = perplexity(lm, texts), repetition(lm, prompts, seed=seed)
            missed = missed_targets(lm, edit)
    except NumericalError:
        after = math.inf, 1.0
        missed = tuple(record.fact.text for record in edit.records)
    health = Health(
        relative_norm={name: relative_norm(lm, edit, name) for name in edit.updates},
        perplexity=(before[0], after[0]),
        repetition=(before[1], after[1]),
        held_out=source,
        missed=missed,
    )
    return judged(health, thresholds or Thresholds(), strict=strict)


def judged(health: Health, thresholds: Thresholds, *, strict: bool = False) -> Health:
    """Return measurements with the warnings that some thresholds give.

    Raises:
        EditRefused: there are any, and `strict` is set.
    """
    warnings = tuple(_warnings(health, thresholds))
    if warnings and strict:
        raise EditRefused(f"The edit was refused; the model is as it was. {' '.join(warnings)}")
    for warning in warnings:
        logger.warning(warning)
    return replace(health, warnings=warnings)


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
    if health.missed and limit.require_target:
        first, *others = health.missed
        more = f" and {len(others)} more" if others else ""
        found.append(f"The target did not become the model's answer to {first!r}{more}. Try another layer or method.")
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


@torch.no_grad()
def perplexity(lm: "LM", texts: Sequence[str]) -> float:
    """Return exp of the mean negative log-likelihood per token over some texts, each read alone.

    Raises:
        NumericalError: the model's output has NaN or infinity.
        SettingError: no text has two tokens.
    """
    total, count = 0.0, 0
    for begin in range(0, len(texts), _BATCH):
        encoded = lm.encode(list(texts[begin : begin + _BATCH]))
        logits = lm.forward(encoded.ids, mask=encoded.mask)[:, :-1].float()
        lm.require_finite(logits, "The output on held-out text")
        next_ids = encoded.ids[:, 1:].to(logits.device)
        real = encoded.mask[:, 1:].to(logits.device)
        nll = -logits.log_softmax(-1).gather(-1, next_ids.unsqueeze(-1)).squeeze(-1)
        total += float((nll * real).double().sum())
        count += int(real.sum())
    if not count:
        raise SettingError("The held-out texts have one token each. Give whole sentences.")
    return math.exp(min(total / count, 700.0))


def repetition(lm: "LM", prompts: Sequence[str], *, seed: int = 0, max_new_tokens: int = 40) -> float:
    """Return the share of three-token sequences that occurred before in the same generated text, 0 to 1.

    Args:
        lm: the model.
        prompts: what to continue; sampled among the five most probable tokens, the prompt itself is not counted.
        seed: for sampling.
        max_new_tokens: length of each text.

    Raises:
        NumericalError: the model's output has NaN or infinity.
    """
    texts = generate_batch(lm, list(prompts), Generation(max_new_tokens=max_new_tokens, top_k=5, seed=seed))
    repeated, count = 0, 0
    for text, prompt in zip(texts, prompts, strict=True):
        tail = text[len(prompt) :]
        ids: list[int] = lm.encode(tail).ids[0].tolist() if tail.strip() else []
        grams = [tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1)]
        repeated += len(grams) - len(set(grams))
        count += len(grams)
    return repeated / count if count else 0.0


def missed_targets(lm: "LM", edit: Edit) -> tuple[str, ...]:
    """Return the prompts of an edit after which the model does not say the target (for erasure: still the original)."""
    records = [record for record in edit.records if record.fact.target or record.fact.original]
    questions = [Question(text=record.text or record.fact.text, target=record.fact.target) for record in records]
    answers = ask(lm, questions)
    return tuple(
        record.fact.text for record, answer in zip(records, answers, strict=True) if not reached(record, answer.gives)
    )


def reached(record: FactRecord, gives: Any) -> bool:
    """Say whether an answer is what a record wanted; `gives` tells whether the model gives a phrase."""
    if record.mode == "erase":
        return not (record.fact.original and gives(record.fact.original))
    return bool(record.fact.target) and gives(record.fact.target)


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
