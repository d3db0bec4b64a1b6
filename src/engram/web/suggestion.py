"""Which layer an edit would take, and what a trace has to say about that."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engram.editing.parts.published import rome_layer

if TYPE_CHECKING:
    from engram.locate import CausalTrace
    from engram.models import LM

_LEAST_SHARE = 0.1
_LEAST_EFFECT = 0.01
_LEAST_ERRORS = 2.0
_LEAST_CLEAN = 0.1
_MOST_LEFT = 0.8
_NOTHING_ASKED = frozenset(("", "a", "an", "the"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A layer to edit.

    Args:
        layer: the layer that ROME takes unless told otherwise.
        why: by which rule.
        peak: where the trace finds the fact, as information: what recalls a fact need not be the best to edit.
        clear: whether the trace finds it anywhere.
        doubts: why the model may not know such a fact at all, a sentence each.
    """

    layer: int
    why: str
    peak: str
    clear: bool
    doubts: tuple[str, ...] = ()


def suggested(lm: "LM", trace: "CausalTrace", *, asked: str, says: str, names: Collection[str] = ()) -> Suggestion:
    """Return ROME's own layer, and where restored MLP outputs at the last subject token bring back most of the answer.

    An effect below 0.01, below a tenth of the total effect, or below two standard errors is not clear.

    Args:
        lm: the model.
        trace: a trace with the site `mlp` at the last subject token.
        asked: the prompt, without a chat template around it.
        says: what the model says after it.
        names: everything that the model was told about, where that is known.

    Raises:
        SettingError: the trace has no MLP outputs.
    """
    last = trace.subject_range[1] - 1
    row = trace.positions.index(last)
    effect = trace.effect("mlp")
    peak = int(effect[row].argmax())
    strength, error = float(effect[row][peak]), float(effect.standard_error[row][peak])
    clear = strength > max(_LEAST_EFFECT, _LEAST_SHARE * trace.total_effect) and not strength < _LEAST_ERRORS * error
    layer, notes = rome_layer(lm, None)
    token = trace.tokens[last].strip()
    window = int(trace.settings["window"])
    return Suggestion(
        layer=layer,
        why=" ".join(notes) or f"Layer {layer}.",
        peak=(
            f"The MLPs recall the fact around layer {peak}: restored at the last subject token, {token!r}, "
            f"{window} layer{'s' if window > 1 else ''} bring back {strength:.2f} of {trace.total_effect:.2f}. "
            f"The layer that recalls a fact need not be the best one to edit."
            if clear
            else f"No MLP output at the last subject token, {token!r}, clearly brings the answer back: at most "
            f"{strength:.2f} of {trace.total_effect:.2f}."
        ),
        clear=clear,
        doubts=tuple(_doubts(lm, trace, asked, says, names)),
    )


def _doubts(lm: "LM", trace: "CausalTrace", asked: str, says: str, names: Collection[str]) -> Iterator[str]:
    """Yield reasons to think that a prompt asks for nothing that the model knows."""
    subject = trace.subject
    if asked.endswith(subject) and asked.removesuffix(subject).strip().lower() in _NOTHING_ASKED:
        yield f"The prompt asks for nothing about {subject!r}. Go on with it, as in '{subject} comes from'."
    elif not any(letter.isalnum() for letter in says):
        yield f"What the model says, {says!r}, is no answer."
    if names and subject not in names:
        yield f"{lm.name} was never told about {subject!r}: what it says is a guess."
    elif trace.clean < _LEAST_CLEAN:
        yield f"The model is not sure of its own answer ({trace.clean:.3f}): it may not know this fact."
    if trace.corrupted > _MOST_LEFT * trace.clean:
        yield (
            f"The answer hardly depends on the subject: {trace.corrupted:.3f} of {trace.clean:.3f} are left without it."
        )
