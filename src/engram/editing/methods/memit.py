"""MEMIT: many facts at once into a range of layers (Meng et al. 2023, arXiv 2210.07229).

For every fact a value z of the last layer's state is looked for, at the subject's last token. Then, layer by layer, the
MLP output projections are changed so that the states reach these values: each layer takes an equal share of what is
left, by Δ = R Kᵀ(λC + KKᵀ)⁻¹ (equations 14 and 20). Keys and states are measured anew on the model as edited so far;
C is the unedited model's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from engram.editing.edit import Edit
from engram.editing.parts.descent import Descent
from engram.editing.parts.published import Choice, chosen
from engram.editing.parts.solving import oriented, solve
from engram.editing.parts.value_editor import Preset, ValueEditor
from engram.facts import Fact
from engram.models.hooks import Site
from engram.progress import Doing, Progress

if TYPE_CHECKING:
    from engram.models import LM

_CODE = Preset(
    descent=Descent(steps=25, lr=0.5, stop=0.05, kl=0.0625, decay=0.5, decay_relative=True, clamp=0.75),
    lengths=(10,) * 5,
    starts=("The", "Therefore", "Because", "I", "You"),
)

PRESETS: Mapping[str, Preset] = {
    "code": _CODE,
    "paper": replace(_CODE, descent=replace(_CODE.descent, decay_squared=True)),
}


@dataclass(frozen=True, kw_only=True, repr=False)
class MEMIT(ValueEditor):
    """Mass editing of memory: many facts at once, spread over several layers.

    Args:
        layers: the layers to edit, as in `(3, 4, 5)`; published for the model, or a rule, when not given.
        weight: λ, what ordinary text counts beside the facts; found as the layers are.
        preset: `"code"`, as published, or `"paper"`, whose penalty on δ is squared.
        clamp: bound of ‖δ‖ as a multiple of ‖z₀‖; found as the layers are, as are `steps`, `lr` and `decay`.
    """

    name = "memit"
    changes = "the MLP output projections of several layers"
    at_once = "thousands, solved together"
    presets = PRESETS

    layers: tuple[int, ...] | None = None
    weight: int | float | None = None
    preset: Literal["code", "paper"] | str = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("weight")

    def choice(self, lm: "LM") -> Choice:
        """Return the layers and numbers that are used on a model, and where they come from."""
        names = ("weight", "clamp", "steps", "lr", "decay")
        layers = None if self.layers is None else tuple(sorted(set(self.layers)))
        return chosen(lm, self.name, layers=layers, **{name: getattr(self, name) for name in names})

    def find(self, lm: "LM", facts: Sequence[Fact], progress: Progress | None) -> Edit:
        """Make one Edit of all facts."""
        found = self.findings(lm, facts, "state", progress)
        layers, weight = found.choice.layers, found.choice.number("weight")
        everywhere, bare = self.lookups(lm, facts, self.contexts or found.contexts), self.lookups(lm, facts, ["{}"])
        edit = Edit.of(lm, {}, ())
        for done, layer in enumerate(layers):
            if progress is not None:
                progress(Doing("changing layers", unit="layers"), done, len(layers))
            with edit.applied(lm):
                keys = everywhere.mean(lm, Site("key", layer))
                left = found.values.wanted - bare.mean(lm, Site("state", layers[-1]))
            change = solve(keys, left / (len(layers) - done), found.counted, layer, weight)
            edit += Edit.of(lm, {lm.mlp_out_name(layer): oriented(lm, change)}, ())
        records = tuple(replace(record, layers=layers) for record in found.values.records)
        return replace(edit, origins=(replace(found.origin, facts=records),))
