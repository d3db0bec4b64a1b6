"""Which layer an edit would take, and what a trace has to say about that."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engram.editing.layers import rome_layer

if TYPE_CHECKING:
    from engram.locate import CausalTrace
    from engram.models import LM

_LEAST_SHARE = 0.1
_LEAST_EFFECT = 0.01
_LEAST_ERRORS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A layer to edit.

    Args:
        layer: the layer that ROME takes unless told otherwise.
        why: by which rule.
        peak: where the trace finds the fact, as information: what recalls a fact need not be the best to edit.
        clear: whether the trace finds it anywhere.
    """

    layer: int
    why: str
    peak: str
    clear: bool


def suggested(lm: "LM", trace: "CausalTrace") -> Suggestion:
    """Return ROME's own layer, and where restored MLP outputs at the last subject token bring back most of the answer.

    An effect below 0.01, below a tenth of the total effect, or below two standard errors is not clear.

    Args:
        lm: the model.
        trace: a trace with the site `mlp` at the last subject token.

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
    )
