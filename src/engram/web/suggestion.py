"""Which layer a trace speaks for, and why."""

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
        layer: the layer.
        why: sentences.
        traced: whether the trace speaks for it, rather than the method's own rule.
    """

    layer: int
    why: str
    traced: bool


def suggested(lm: "LM", trace: "CausalTrace") -> Suggestion:
    """Return the layer where restored MLP outputs at the last subject token bring back most of the answer.

    ROME writes there: into an MLP, with the last subject token's key. Where that effect is not clear (below 0.01, below
    a tenth of the total effect, or below two standard errors) the method's own rule decides.

    Args:
        lm: the model.
        trace: a trace with the site `mlp` at the last subject token.

    Raises:
        SettingError: the trace has no MLP outputs.
    """
    last = trace.subject_range[1] - 1
    row = trace.positions.index(last)
    effect = trace.effect("mlp")
    errors = effect.standard_error[row]
    layer = int(effect[row].argmax())
    strength, error = float(effect[row][layer]), float(errors[layer])
    own, notes = rome_layer(lm, None)
    rule = notes[0].split(":", 1)[1].strip().split(". ")[0] if notes else "the default"
    least = max(_LEAST_EFFECT, _LEAST_SHARE * trace.total_effect)
    token = trace.tokens[last].strip()
    if strength > least and not strength < _LEAST_ERRORS * error:
        window = int(trace.settings["window"])
        why = (
            f"Restored MLP outputs ({window} layer{'s' if window > 1 else ''} around it) at the last subject token, "
            f"{token!r}, bring back most here: {strength:.2f} of {trace.total_effect:.2f}. "
            f"Without a trace ROME would take layer {own} ({rule.rstrip('.')})."
        )
        return Suggestion(layer=layer, why=why, traced=True)
    why = (
        f"No MLP output at the last subject token, {token!r}, clearly brings the answer back (at most {strength:.2f} "
        f"of {trace.total_effect:.2f}), so ROME's own rule decides: {rule.rstrip('.')}."
    )
    return Suggestion(layer=own, why=why, traced=False)
