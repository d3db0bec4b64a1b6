"""What a module gives out at some positions of prompts, and what it would have to give out for targets to follow."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.changes.codebook import placed
from engram.editing.parts.above import above, target_losses
from engram.editing.parts.prompts import Batch, Row, padded
from engram.errors import NumericalError, SettingError, did_you_mean
from engram.models.hooks import on_output
from engram.models.linear import features
from engram.progress import Doing, Progress

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Outputs:
    """The output of one module.

    Args:
        lm: the model.
        module: the module's path.
        layer: the layer that it belongs to.
        replacement: where values stand; see `Codebook`.
        at_once: how many rows share a pass.
    """

    lm: "LM"
    module: str
    layer: int
    replacement: str
    at_once: int

    @torch.no_grad()
    def at(self, rows: Sequence[Row]) -> tuple[Float[Tensor, "row in"], Float[Tensor, "row out"]]:
        """Return what enters and leaves the module at the looked up token of every row, fp32 on the CPU.

        Raises:
            NumericalError: NaN or infinity is among it.
        """
        found = [self._at(padded(rows[begin : begin + self.at_once])) for begin in range(0, len(rows), self.at_once)]
        entered, left = (torch.cat([pair[i] for pair in found]) for i in (0, 1))
        self.lm.require_finite(entered, f"What enters {self.module}")
        self.lm.require_finite(left, f"What leaves {self.module}")
        return entered, left

    def _at(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor]] = []

        def keep(inputs: Tensor, outputs: Tensor) -> Tensor:
            here = torch.arange(len(inputs)), batch.lookup
            found.append((inputs[here].float().cpu(), outputs[here].float().cpu()))
            return outputs

        with on_output(self.lm, self.module, keep):
            self.lm.forward(batch.ids, mask=batch.mask, keep=1)
        return found[0]

    def search(
        self,
        rows: Sequence[Row],
        values: Float[Tensor, "entry out"],
        entries: Sequence[int],
        *,
        steps: int,
        lr: float,
        progress: Progress | None,
    ) -> tuple[Float[Tensor, "entry out"], list[list[float]]]:
        """Find values with which the rows' targets follow; return all values, and every row's loss at each step.

        Each row is a problem of its own, solved by Adam; what is below the module's layer runs once. Rows that share a
        value are taken in turn, each going on from what the one before left.

        Args:
            rows: prompts with targets, the prompt's last token looked up.
            values: the values to start from.
            entries: which of them each row trains.
            steps: number of steps.
            lr: learning rate.
            progress: told about rows that are done.

        Raises:
            NumericalError: a loss is NaN or infinite.
        """
        values, losses, done = values.clone(), [list[float]() for _ in rows], 0
        for wave in _waves(entries):
            for begin in range(0, len(wave), self.at_once):
                some = wave[begin : begin + self.at_once]
                index = [entries[i] for i in some]
                values[index], found = self._descent([rows[i] for i in some], values[index], steps, lr)
                for i, lost in zip(some, found, strict=True):
                    losses[i] = lost
                done += len(some)
                if progress is not None:
                    progress(Doing("looking for values", unit="facts"), done, len(rows))
        return values, losses

    def _descent(self, rows: Sequence[Row], start: Tensor, steps: int, lr: float) -> tuple[Tensor, list[list[float]]]:
        batch = padded(rows)
        upper = above(self.lm, batch, self.layer, keep=max(len(row.targets) for row in rows))
        here = placed(self.replacement, torch.arange(batch.ids.shape[1]), batch.lookup[:, None])[..., None]
        values = start.detach().clone().requires_grad_()
        adam = torch.optim.Adam([values], lr=lr)
        losses: list[list[float]] = [[] for _ in rows]

        def give(_: Tensor, outputs: Tensor) -> Tensor:
            return torch.where(here.to(outputs.device), values[:, None].to(outputs), outputs)

        for step in range(steps):
            with on_output(self.lm, self.module, give):
                each = target_losses(upper.logits(), rows)
            if not torch.isfinite(each).all():
                raise NumericalError(
                    f"Step {step + 1} of the search for what {self.module} gives out on {self.lm.name} "
                    f"({self.lm.dtype}): the loss is NaN or infinite. Try dtype='float32', or a smaller learning rate."
                )
            for row, loss in zip(losses, each.tolist(), strict=True):
                row.append(loss)
            (values.grad,) = torch.autograd.grad(each.sum(), values)
            adam.step()
        return values.detach(), losses


def _waves(entries: Sequence[int]) -> list[list[int]]:
    """Return rows in groups that can be trained together: those that share an entry are in groups of their own."""
    seen: Counter[int] = Counter()
    waves: list[list[int]] = []
    for i, entry in enumerate(entries):
        if seen[entry] == len(waves):
            waves.append([])
        waves[seen[entry]].append(i)
        seen[entry] += 1
    return waves


def linear_in(lm: "LM", layer: int, place: str) -> str:
    """Return the path in the model of a linear module of a layer.

    Args:
        lm: the model.
        layer: the layer.
        place: the module's path within the layer or in the model.

    Raises:
        SettingError: there is none.
    """
    head = f"{lm.layout.blocks}.{layer}."
    inside = place.removeprefix(head)
    linear = [name for name, module in lm.blocks[layer].named_modules() if features(module) is not None]
    if inside not in linear:
        raise SettingError(f"There is no linear module {place!r} in layer {layer}. {did_you_mean(inside, linear)}")
    return head + inside


def layer_of(lm: "LM", place: str) -> int | None:
    """Return the layer in which a module is by its whole path in the model; None if the path does not say it."""
    head = f"{lm.layout.blocks}."
    number = place.removeprefix(head).partition(".")[0] if place.startswith(head) else ""
    return int(number) if number.isdecimal() else None
