"""FT and FT+L: gradient descent on one MLP output projection, the baselines of the ROME paper.

The change is optimised beside the weight, so the model is never touched; layers below the edited one run once.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.applying import require_gradients, require_plain
from engram.editing.changes import Dense, Update
from engram.editing.edit import Edit
from engram.editing.parts.above import above, target_losses
from engram.editing.parts.editor import Editor
from engram.editing.parts.prompts import Row, padded, target_rows
from engram.editing.parts.published import PUBLISHED_RATE, Choice, chosen
from engram.editing.parts.targets import mode_of
from engram.editing.records import Mode, Origin
from engram.errors import NumericalError
from engram.facts import Fact
from engram.models.chat import wrap_for
from engram.models.hooks import on_output
from engram.progress import Doing, Progress

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class FT(Editor):
    """Fine-tuning of one layer's MLP output projection, weight and bias.

    Args:
        layer: the layer; tuned for the model (`engram tune`), published for it, named in its config, or a rule's, when
            not given.
        preset: `"teacher"` scores each target token after the ones before it; `"published"` scores all of them at the
            prompt's last position, as the published code does.
        bound: largest change of any entry, enforced after every step; None for no bound.
        steps: number of steps at most.
        lr: Adam's learning rate; found as the layer is when not given. The preset `published` keeps 5e-4.
        stop: average loss below which it ends.
        mode: insert or modify; by whether a fact names its original when not given.
        facts_per_batch: facts per step; every batch takes its own step.

    Raises:
        SettingError: an unknown preset, a number that is not positive, or the mode `erase`.
    """

    name = "ft"
    changes = "one MLP output projection, weight and bias"
    at_once = "all together, in batches"
    exports = ("hf", "peft")

    layer: int | None = None
    preset: Literal["teacher", "published"] | str = "teacher"
    bound: float | None = None
    steps: int = 25
    lr: float | None = None
    stop: float = 1e-2
    facts_per_batch: int = 64

    def __post_init__(self) -> None:
        self._require_one_of("preset", ("published", "teacher"))
        self._require_positive("bound", "steps", "lr", "facts_per_batch")
        self._refuse_erasing("Fine-tuning")

    def find(self, lm: "LM", facts: Sequence[Fact], progress: Progress | None) -> Edit:
        """Make one Edit of all facts."""
        choice = self.choice(lm)
        require_plain(lm, lm.mlp_out_name(choice.layer), "fine-tuning")
        require_gradients(lm)
        for note in choice.notes:
            logger.info(note)
        modes: list[Mode] = [mode_of(fact, self.mode) for fact in facts]
        whole = target_rows(lm, facts, wrap_for(lm, chat=self.chat))
        rows = [_cut(row) for row in whole] if self.preset == "published" else whole
        batches = [rows[i : i + self.facts_per_batch] for i in range(0, len(rows), self.facts_per_batch)]
        updates, losses, stopped = self._train(
            lm, choice, [_Batch(lm, choice.layer, batch, self.preset) for batch in batches], progress
        )
        records = tuple(
            row.record(lm, fact, mode, choice.layer, losses=lost, stopped=stopped, looked_up=False)
            for fact, mode, row, lost in zip(facts, modes, whole, losses, strict=True)
        )
        origin = Origin(method=self.name, settings=self._settings(choice), facts=records, notes=choice.notes)
        return Edit.of(lm, updates, (origin,))

    def choice(self, lm: "LM") -> Choice:
        """Return the layer and numbers that are used on a model, and where they come from."""
        return chosen(lm, self.name, **self._given)

    @property
    def _given(self) -> dict[str, int | float | None]:
        rate = PUBLISHED_RATE if self.lr is None and self.preset == "published" else self.lr
        return {"layer": self.layer, "lr": rate}

    def _settings(self, choice: Choice) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("preset", "steps", "stop", "chat", "bound")}
        return {**plain, **choice.numbers}

    def _train(
        self, lm: "LM", choice: Choice, batches: "list[_Batch]", progress: Progress | None
    ) -> tuple[dict[str, Update], list[list[float]], str]:
        """Return the change by parameter name, each fact's losses, and why it ended."""
        module, name = lm.mlp_out(choice.layer), lm.mlp_out_name(choice.layer)
        deltas = {"weight": _zeros(module.weight)}
        if getattr(module, "bias", None) is not None:
            deltas["bias"] = _zeros(module.bias)
        adam = torch.optim.Adam(deltas.values(), lr=choice.number("lr"))
        losses: list[list[float]] = [[] for batch in batches for _ in batch.rows]
        bound, stopped = choice.number("bound") if "bound" in choice.numbers else self.bound, f"{self.steps} steps"
        for step in range(self.steps):
            for batch in batches:
                each = batch.losses(deltas)
                for row, loss in zip(batch.rows, each.tolist(), strict=True):
                    losses[row.fact].append(loss)
                if not torch.isfinite(each).all():
                    raise NumericalError(
                        f"Step {step + 1} of fine-tuning {lm.name} ({lm.dtype}): the loss is NaN or infinite."
                    )
                if each.mean().item() >= self.stop:
                    gradients = torch.autograd.grad(each.mean(), list(deltas.values()))
                    for delta, gradient in zip(deltas.values(), gradients, strict=True):
                        delta.grad = gradient
                    adam.step()
                if bound is not None:
                    for delta in deltas.values():
                        delta.data.clamp_(-bound, bound)
            if progress is not None:
                progress(Doing("fine-tuning", unit="steps"), step + 1, self.steps)
            if sum(row[-1] for row in losses) / len(losses) < self.stop:
                stopped = f"loss below {self.stop:g}"
                break
        path = name.rpartition(".")[0]
        return {f"{path}.{leaf}": Dense(delta.detach().cpu()) for leaf, delta in deltas.items()}, losses, stopped


@dataclass(frozen=True, kw_only=True, repr=False)
class FTL(FT):
    """FT+L: fine-tuning with a bound on every entry's change.

    Args:
        bound: the bound; found as the layer is when not given.
    """

    name = "ft-l"

    @property
    def _given(self) -> dict[str, int | float | None]:
        return {**super()._given, "bound": self.bound}


class _Batch:
    """Some facts with everything below the edited layer computed."""

    def __init__(self, lm: "LM", layer: int, rows: Sequence[Row], preset: str) -> None:
        self.rows = rows
        self._lm, self._layer, self._at_last = lm, layer, preset == "published"
        keep = 1 if self._at_last else max(len(row.targets) for row in rows)
        self._above = above(lm, padded(rows), layer, keep=keep)

    def losses(self, deltas: dict[str, Tensor]) -> Float[Tensor, " fact"]:
        """Return each fact's mean target loss under a change of the projection."""
        transposed = self._lm.weight_is_transposed

        def change(inputs: Tensor, output: Tensor) -> Tensor:
            total = output.float()
            for delta in deltas.values():
                total = total + Dense(delta, transposed=transposed).added(inputs.to(output.device))
            return total.to(output.dtype)

        path = self._lm.mlp_out_name(self._layer).rpartition(".")[0]
        with on_output(self._lm, path, change):
            logits = self._above.logits()
        return target_losses(logits, self.rows, at_last=self._at_last)


def _cut(row: Row) -> Row:
    """Leave the prompt alone: the published code reads every target token off its last position."""
    return Row(row.fact, row.prompt_ids, row.lookup, row.targets, row.text)


def _zeros(parameter: Tensor) -> Tensor:
    device = torch.device("cpu") if parameter.device.type == "meta" else parameter.device
    return torch.zeros(parameter.shape, device=device, requires_grad=True)
