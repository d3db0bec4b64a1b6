"""GRACE: a codebook beside one module, an entry per fact (Hartvigsen et al. 2023, arXiv 2211.11031).

What enters the module at the prompt's last token is the key, and the value that the module shall give out instead is
found by gradient descent. Weights stay as they are, and so does, bit for bit, what is said to prompts near no key.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from engram.editing.applying import require_gradients
from engram.editing.changes import Codebook
from engram.editing.changes.codebook import RULES
from engram.editing.edit import Edit
from engram.editing.parts.editor import Editor
from engram.editing.parts.outputs import Outputs, layer_of, linear_in
from engram.editing.parts.prompts import Row, require_target, target_rows
from engram.editing.parts.published import Choice, chosen
from engram.editing.parts.targets import mode_of
from engram.editing.records import FactRecord, Mode, Origin
from engram.facts import Fact
from engram.models.chat import wrap_for
from engram.progress import Progress

if TYPE_CHECKING:
    from engram.models import LM

PLACES: Mapping[str, str] = {"gpt2": "mlp.c_fc"}
"""Where the published code writes, by architecture; elsewhere it is the MLP's output projection."""


@dataclass(frozen=True, kw_only=True, repr=False)
class GRACE(Editor):
    """A codebook beside one module: near a stored prompt a stored value is given out.

    Args:
        layer: the layer; published for the model, or a rule's, when not given, as `radius`, `steps` and `lr` are.
        place: a linear module of the layer, such as `"mlp.down_proj"`, or its whole path in the model; the published
            one when not given.
        preset: how entries that are near each other meet: `"repaired"`, `"code"` as in the authors' code, which takes
            targets for equal when the mean of their token ids is, or `"easyedit"`, which also looks at wrong entries.
        replacement: where the value stands: at the prompt's `"last"` token, at the `"prompt"` before it, or at `"all"`.
        expand: how an entry takes in a prompt with its own target: `"coverage"` or `"moving_average"`.
        start: what values start from: `"cold"`, a random vector, or `"warm"`, what the module gives out.
        radius: how near to a key another prompt must be.
        steps: Adam's steps.
        lr: Adam's learning rate.
        seed: for cold values.
        facts_per_batch: how many values are looked for together: bounds memory.

    Raises:
        SettingError: an unknown word, a number that is not positive, or the mode `erase`.
    """

    name = "grace"
    changes = "what a module gives out near stored prompts"
    at_once = "an entry of the codebook each"

    layer: int | None = None
    place: str | None = None
    preset: Literal["repaired", "code", "easyedit"] | str = "repaired"
    replacement: Literal["last", "prompt", "all"] | str = "last"
    expand: Literal["coverage", "moving_average"] | str = "coverage"
    start: Literal["cold", "warm"] | str = "cold"
    radius: int | float | None = None
    steps: int | None = None
    lr: int | float | None = None
    seed: int = 0
    facts_per_batch: int = 16

    def __post_init__(self) -> None:
        for name, allowed in {**RULES, "start": ("cold", "warm")}.items():
            self._require_one_of("preset" if name == "rule" else name, allowed)
        self._require_positive("radius", "steps", "lr", "facts_per_batch")
        self._refuse_erasing("GRACE")

    def find(self, lm: "LM", facts: Sequence[Fact], progress: Progress | None) -> Edit:
        """Make one Edit of all facts."""
        return self(lm, facts, progress=progress)

    def __call__(
        self, lm: "LM", facts: Sequence[Fact], *, onto: Edit | None = None, progress: Progress | None = None
    ) -> Edit:
        """Make one Edit of all facts, or let the codebook of another Edit grow; see `Editor`."""
        choice, changes = self.choice(lm), () if onto is None else onto.changes
        module = linear_in(lm, choice.layer, self.place or PLACES.get(lm.config.model_type, lm.layout.mlp_out))
        at = Outputs(lm, module, choice.layer, self.replacement, self.facts_per_batch)
        books = [c for c in changes if isinstance(c, Codebook) and (c.module, *c.rules) == (module, *self._rules)]
        held, rest = books[-1] if books else None, tuple(c for c in changes if c not in books[-1:])
        with nullcontext() if onto is None else replace(onto, changes=rest).applied(lm):
            book, records = self._grown(lm, facts, held, at, choice, progress)
        settings = {name: getattr(self, name) for name in ("preset", "replacement", "expand", "start", "seed", "chat")}
        settings |= {**choice.numbers, "place": module}
        new = Edit.of(lm, [book], (Origin(method=self.name, settings=settings, facts=records, notes=choice.notes),))
        if onto is None or held is None:
            return new if onto is None else onto + new
        grown = tuple(book if change is held else change for change in changes)
        return replace(onto, changes=grown, origins=onto.origins + new.origins)

    @property
    def _rules(self) -> tuple[str, str, str]:
        return self.replacement, self.expand, self.preset

    def choice(self, lm: "LM") -> Choice:
        """Return the layer and numbers that are used on a model, and where they come from."""
        given = {name: getattr(self, name) for name in ("layer", "radius", "steps", "lr")}
        if self.layer is None and self.place is not None:
            given["layer"] = layer_of(lm, self.place)
        return chosen(lm, self.name, **given)

    def _grown(
        self, lm: "LM", facts: Sequence[Fact], held: Codebook | None, at: Outputs, choice: Choice, told: Progress | None
    ) -> tuple[Codebook, tuple[FactRecord, ...]]:
        """Return a codebook with the facts in it, and what was done for each."""
        require_gradients(lm)
        modes: list[Mode] = [mode_of(fact, self.mode) for fact in facts]
        rows = target_rows(lm, facts, wrap_for(lm, chat=self.chat), token="last")
        keys, left = at.at(rows)
        cold = torch.rand(1, left.shape[1], generator=torch.Generator().manual_seed(self.seed))
        starts = left if self.start == "warm" else cold.expand_as(left)
        book = held or Codebook.empty(at.module, keys.shape[1], left.shape[1], *self._rules)
        entries: list[int] = []
        for row, fact, key, start in zip(rows, facts, keys, starts, strict=True):
            grown, entry = book.with_entry(key, start, float(choice.number("radius")), self._label(row, fact))
            taken_over = grown.labels == book.labels  # its value goes on from what it was
            book = grown.with_values(book.values) if taken_over else grown
            entries.append(entry)
        steps, lr = int(choice.number("steps")), float(choice.number("lr"))
        values, losses = at.search(rows, book.values, entries, steps=steps, lr=lr, progress=told)
        records = tuple(
            row.record(
                *(lm, fact, mode, at.layer),
                losses=lost,
                stopped=f"{steps} steps",
                numbers={"entry": float(entry), "radius": float(book.radii[entry])},
            )
            for fact, mode, row, lost, entry in zip(facts, modes, rows, losses, entries, strict=True)
        )
        return book.with_values(values), records

    def _label(self, row: Row, fact: Fact) -> str:
        """Return what tells targets apart: the words, or the mean of the published label tensor, in fp32."""
        if self.preset == "repaired":
            return require_target(fact).strip()
        return str(float(torch.tensor([-100.0] * len(row.prompt_ids) + row.targets).mean()))
