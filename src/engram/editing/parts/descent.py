"""v*: the value that makes the model say the target, found by gradient descent on a change δ (ROME paper, eq. 4).

Several facts are optimised at once: each has its own δ, its own loss and its own stop, and leaves the batch when done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.parts.passes import FirstPass, Tail
from engram.errors import NumericalError
from engram.progress import Doing, Progress

if TYPE_CHECKING:
    from engram.models import LM

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """How δ is found.

    Args:
        steps: number of losses that are computed; after the last one there is no step.
        lr: Adam's learning rate.
        stop: stop a fact when its loss is below; None never.
        decay_squared: penalise ‖δ‖²/‖v₀‖² where `decay_relative` is set (MEMIT's paper).
        stop_at_target: look at the target's own loss alone. The penalty on δ is in units of ‖v₀‖: where values are
            short it keeps the total above any bound, and a fact that is long said goes on drifting.
        kl: weight of KL(before ‖ after) on the prompt about the subject's essence.
        decay: weight of the penalty on δ.
        decay_relative: penalise ‖δ‖/‖v₀‖² (as the published code) rather than ‖δ‖² (as the paper).
        clamp: bound of ‖δ‖ as a multiple of ‖v₀‖.
    """

    steps: int
    lr: float
    stop: float | None
    kl: float
    decay: float
    decay_relative: bool
    clamp: float
    decay_squared: bool = False
    stop_at_target: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What the descent found.

    Args:
        delta: the change of the value, one per fact.
        losses: total loss at every step, per fact.
        likelihood: mean negative log-likelihood of the target at the last step, per fact.
        stopped: why each fact's descent ended.
    """

    delta: Float[Tensor, "fact width"]
    losses: tuple[tuple[float, ...], ...]
    likelihood: tuple[float, ...]
    stopped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aim:
    """What the last positions' logits are compared with.

    Args:
        soft: for facts without a target, the wanted next-token distribution by fact.
        before: log-probabilities of the essence prompt before the edit, by fact.
    """

    soft: dict[int, Float[Tensor, " vocab"]]
    before: dict[int, Float[Tensor, " vocab"]]


def descend(
    lm: "LM",
    first: FirstPass,
    start: Float[Tensor, "fact width"],
    aim: Aim,
    how: Descent,
    *,
    numbers: Sequence[int] | None = None,
    progress: Progress | None,
) -> Found:
    """Find δ for every fact of a batch.

    Args:
        lm: the model.
        first: the pass over all rows.
        start: v₀, the value before the edit.
        aim: what is wanted.
        how: the settings.
        numbers: what errors call each fact, from 0; its place in the batch when not given.
        progress: told about steps.

    Raises:
        NumericalError: a loss or gradient is NaN or infinite; fact and step are named.
    """
    count, tail = start.shape[0], first.tail
    delta, mean, square = (torch.zeros_like(start) for _ in range(3))
    sizes = start.norm(dim=1, keepdim=True)
    losses: list[list[float]] = [[] for _ in range(count)]
    likelihood, stopped = [0.0] * count, [f"{how.steps} steps"] * count
    active, named = list(range(count)), list(range(count) if numbers is None else numbers)
    objective = _Objective(tail, active, aim, how, start.device)
    for step in range(how.steps):
        free = delta.clone().requires_grad_()
        logits = tail.logits(free[tail.batch.fact.to(free.device)]).to(free.device)
        fit, rest = objective(logits, free[active], sizes[active])
        total = fit + rest
        for fact, loss, nll in zip(active, total.tolist(), fit.tolist(), strict=True):
            losses[fact].append(loss)
            likelihood[fact] = nll
        _require_finite(total, [named[f] for f in active], lm, step, "loss")
        judged = likelihood if how.stop_at_target else [row[-1] for row in losses]
        done = [f for f in active if how.stop is not None and judged[f] < how.stop]
        for fact in done:
            stopped[fact] = f"{'target ' if how.stop_at_target else ''}loss below {how.stop:g}"
        if progress is not None:
            progress(Doing("looking for values", unit="steps"), step + 1, how.steps)
        if step == how.steps - 1 or len(done) == len(active):
            break
        (gradient,) = torch.autograd.grad(total.sum(), free)
        if done:
            active = [f for f in active if f not in done]
            tail = tail.of(active)
            objective = _Objective(tail, active, aim, how, start.device)
        _require_finite(gradient[active], [named[f] for f in active], lm, step, "gradient")
        _adam(delta, gradient, mean, square, active, step + 1, how.lr)
        limit = how.clamp * sizes
        delta *= (limit / delta.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
    return Found(delta, tuple(tuple(row) for row in losses), tuple(likelihood), tuple(stopped))


class _Objective:
    """The loss of every active fact from one batch of logits; indices are laid out once per batch."""

    def __init__(self, tail: Tail, active: Sequence[int], aim: Aim, how: Descent, device: torch.device) -> None:
        place = {fact: i for i, fact in enumerate(active)}
        rows = list(enumerate(tail.batch.rows))
        self._how, self._facts = how, len(active)
        spoken = [(i, row) for i, row in rows if not row.essence and row.fact not in aim.soft]
        soft = [(i, row) for i, row in rows if not row.essence and row.fact in aim.soft]
        essence = [(i, row) for i, row in rows if row.essence]
        contexts = {fact: sum(row.fact == fact for _, row in spoken + soft) for fact in active}
        cells = [
            (i, column - len(row.targets), token, place[row.fact], 1 / (len(row.targets) * contexts[row.fact]))
            for i, row in spoken
            for column, token in enumerate(row.targets)
        ]
        self._row, self._column, self._token, self._fact = (
            torch.tensor([cell[:4] for cell in cells], dtype=torch.long, device=device).reshape(-1, 4).T
        )
        self._weight = torch.tensor([cell[4] for cell in cells], device=device)
        self._soft_row, self._soft_fact = _pairs([(i, place[row.fact]) for i, row in soft], device)
        self._soft_weight = torch.tensor([1 / contexts[row.fact] for _, row in soft], device=device)
        self._soft = _stacked([aim.soft[row.fact] for _, row in soft], device)
        self._essence_row, self._essence_fact = _pairs([(i, place[row.fact]) for i, row in essence], device)
        self._before = _stacked([aim.before[row.fact] for _, row in essence], device)

    def __call__(
        self,
        logits: Float[Tensor, "row keep vocab"],
        delta: Float[Tensor, "active width"],
        sizes: Float[Tensor, "active 1"],
    ) -> tuple[Float[Tensor, " active"], Float[Tensor, " active"]]:
        """Return the target's term and the sum of the other terms, per active fact."""
        normal = logits.log_softmax(-1)
        fit = delta.new_zeros(self._facts)
        if len(self._row):
            chosen = normal[self._row, self._column, self._token]
            fit = fit.index_add(0, self._fact, -chosen * self._weight)
        if len(self._soft_row):
            gap = self._soft.clamp_min(1e-30).log() - normal[self._soft_row, -1]
            fit = fit.index_add(0, self._soft_fact, (self._soft * gap).sum(-1) * self._soft_weight)
        rest = self._how.decay * self._penalty(delta, sizes)
        if len(self._essence_row):
            after = normal[self._essence_row, -1]
            kept = (after.exp() * (after - self._before)).sum(-1)
            rest = rest.index_add(0, self._essence_fact, self._how.kl * kept)
        return fit, rest

    def _penalty(self, delta: Tensor, sizes: Tensor) -> Tensor:
        if self._how.decay_relative:
            size = delta.norm(dim=1).square() if self._how.decay_squared else delta.norm(dim=1)
            return size / sizes.squeeze(1).square()
        return delta.square().sum(1)


def _pairs(pairs: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    both = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _stacked(rows: list[Tensor], device: torch.device) -> Tensor:
    return torch.stack(rows).to(device) if rows else torch.empty(0, device=device)


def _adam(
    delta: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, active: Sequence[int], step: int, lr: float
) -> None:
    """Take one step of Adam on some rows; every row is its own problem, so rows that left stay where they are."""
    first, second = BETAS
    g = gradient[active]
    mean[active] = first * mean[active] + (1 - first) * g
    square[active] = second * square[active] + (1 - second) * g * g
    denominator = (square[active] / (1 - second**step)).sqrt() + EPSILON
    delta[active] -= lr / (1 - first**step) * mean[active] / denominator


def _require_finite(values: Tensor, numbers: Sequence[int], lm: "LM", step: int, what: str) -> None:
    fine = torch.isfinite(values.reshape(len(numbers), -1)).all(dim=1)
    if not bool(fine.all()):
        fact = numbers[int((~fine).nonzero()[0])]
        raise NumericalError(
            f"Step {step + 1} of the search for a value: the {what} of fact {fact + 1} is NaN or infinite on {lm.name} "
            f"({lm.dtype}). Try dtype='float32' or 'bfloat16', or a smaller learning rate."
        )
