"""ROME: rank-one edits of an MLP's output projection (Meng et al. 2022, arXiv 2202.05262, section 3.1, appendix E).

Ŵ = W + Λ (C⁻¹k*)ᵀ with Λ = (v* - W k*) / ((C⁻¹k*)ᵀ k*): the smallest change, measured on text, after which the key of
the subject's last token gives the value v*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from engram.editing.changes import LowRank
from engram.editing.edit import Edit
from engram.editing.parts.descent import Descent
from engram.editing.parts.published import Choice, chosen, published_clamp
from engram.editing.parts.solving import oriented
from engram.editing.parts.value_editor import Preset, ValueEditor
from engram.editing.parts.values import Values
from engram.editing.records import Origin
from engram.errors import NumericalError
from engram.facts import Fact
from engram.progress import Progress
from engram.stats import KeyStatistics

if TYPE_CHECKING:
    from engram.models import LM

_CODE = Preset(
    descent=Descent(steps=20, lr=0.5, stop=0.05, kl=0.0625, decay=0.5, decay_relative=True, clamp=4.0),
    lengths=(5,) * 10 + (10,) * 10,
    bare_key=True,
)

PRESETS: Mapping[str, Preset] = {
    "code": _CODE,
    "paper": Preset(
        descent=Descent(steps=20, lr=0.5, stop=None, kl=100.0, decay=1.5e-3, decay_relative=False, clamp=4.0),
        lengths=tuple(2 + i % 9 for i in range(50)),
        bare=False,
        kl_at_subject=False,
    ),
    "rrome": replace(_CODE, descent=replace(_CODE.descent, stop=0.02, stop_at_target=True), bare_key=False),
}


@dataclass(frozen=True, kw_only=True, repr=False)
class ROME(ValueEditor):
    """Rank-one model editing: a fact at a time into one layer.

    Args:
        layer: the layer to edit; what was tuned for the model (`engram tune`), what was published for it, what its
            config names, or a rule, when not given.
        preset: `"rrome"` (the published code with the same key everywhere), `"code"` or `"paper"`. The last two keep
            the published clamp.
    """

    name = "rome"
    changes = "one MLP output projection, a rank per fact"
    at_once = "several, written one after the other"
    presets = PRESETS

    layer: int | None = None
    preset: Literal["code", "paper", "rrome"] | str = "rrome"

    def find(self, lm: "LM", facts: Sequence[Fact], progress: Progress | None) -> Edit:
        """Make one Edit of all facts."""
        return self.solution(lm, facts, progress=progress).edit(range(len(facts)))

    def each(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> list[Edit]:
        """Make one Edit per fact, as if each were alone; their values are looked for together, which is faster."""
        solution = self.solution(lm, facts, progress=progress)
        return [solution.edit([i]) for i in range(len(facts))]

    def choice(self, lm: "LM") -> Choice:
        """Return the layer and clamp that are used on a model, and where they come from."""
        clamp = self.clamp
        if clamp is None and self.preset != "rrome":  # the others stand for what was published
            clamp = published_clamp(lm) if self.preset == "code" else self._rule.descent.clamp
        return chosen(lm, "rome", layer=self.layer, clamp=clamp)

    def solution(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> "Solution":
        """Find the keys and values of all facts, from which edits of some or all of them are made."""
        found = self.findings(lm, facts, "mlp", progress)
        return Solution(lm, found.choice.layer, found.values, found.counted, self._rule.bare_key, found.origin)


@dataclass(frozen=True, slots=True)
class Solution:
    """Keys and values of facts.

    Args:
        lm: the model.
        layer: the layer to edit.
        values: key and value of each fact.
        counted: key statistics.
        bare_key: whether the denominator's key is the bare prompt's.
        origin: where the edits come from, without facts.
    """

    lm: "LM"
    layer: int
    values: Values
    counted: KeyStatistics
    bare_key: bool
    origin: Origin

    def edit(self, chosen: Sequence[int]) -> Edit:
        """Make one Edit of some facts, written one after the other: each sees the weight that the earlier ones left.

        Raises:
            NumericalError: a key has no part along its direction C⁻¹k.
        """
        some = self.values.of(chosen)
        directions = self.counted.solve(self.layer, some.keys)
        directions = directions / directions.norm(dim=1, keepdim=True)
        keys, old = (some.bare_keys, some.start) if self.bare_key else (some.keys, some.old)
        keys, old, wanted = (part.to(directions) for part in (keys, old, some.wanted))
        columns: list[Tensor] = []
        records = list(some.records)
        for i, record in enumerate(records):
            now = old[i]
            for direction, column in zip(directions[:i], columns, strict=True):
                now = now + (direction @ keys[i]) * column
            along = directions[i] @ keys[i]
            columns.append((wanted[i] - now) / along)
            numbers = {"key_along_direction": float(along), "update_norm": float(columns[-1].norm())}
            records[i] = replace(record, numbers={**record.numbers, **numbers})
        change = LowRank(torch.stack(columns, dim=1).float().cpu(), directions.T.float().cpu())
        if not all(torch.isfinite(part).all() for part in change.tensors().values()):
            raise NumericalError(
                f"The update of layer {self.layer} contains NaN or infinity: a key has no part along C⁻¹k."
            )
        origin = replace(self.origin, facts=tuple(records))
        return Edit.of(self.lm, {self.lm.mlp_out_name(self.layer): oriented(self.lm, change)}, (origin,))
