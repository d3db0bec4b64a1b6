"""The change of a weight that gives many keys their values and leaves ordinary keys alone, in closed form.

K holds a key per row (n x m), R a wanted change of value per row (n x d), C = E[k kᵀ] over ordinary text (m x m). The
change Δ (d x m) that minimises ‖KΔᵀ - R‖² + λ tr(ΔCΔᵀ) is

    Δ = Rᵀ K (λC + KᵀK)⁻¹                      a system of m x m: as wide as keys are
      = Rᵀ (λI + K C⁻¹ Kᵀ)⁻¹ K C⁻¹             the same, of n x n: as many as there are facts

(MEMIT paper, arXiv 2210.07229, eq. 14; the second line is the push-through identity). The smaller one is solved, in
fp64. One fact and λ -> 0 give ROME's update; for any λ its direction, shortened by κ / (λ + κ), κ = kᵀC⁻¹k.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.changes import Dense, LowRank, Update
from engram.errors import NumericalError
from engram.stats import KeyStatistics

if TYPE_CHECKING:
    from engram.models import LM


@torch.no_grad()
def solve(
    keys: Float[Tensor, "fact d_key"],
    residuals: Float[Tensor, "fact d_out"],
    covariance: KeyStatistics,
    layer: int,
    weight: float,
    *,
    by_facts: bool | None = None,
) -> Update:
    """Return the change of a weight, [d_out d_key], that moves the values of some keys.

    Args:
        keys: K.
        residuals: R.
        covariance: key statistics; C is the one of `layer`, with the ridge that it needs (`KeyStatistics.ridge`).
        layer: the layer.
        weight: λ, what ordinary text counts beside the facts.
        by_facts: solve for as many unknowns as there are facts, or as keys are wide; the fewer when not given.

    Returns:
        Two factors, or a matrix where that is smaller, in fp32.

    Raises:
        NumericalError: the system is singular, or NaN or infinity came out.
    """
    moment, wanted = covariance[layer].moment.double(), residuals.double()
    spread = keys.to(moment)
    if len(keys) < keys.shape[1] if by_facts is None else by_facts:
        solved = covariance.solve(layer, spread)
        gram = solved @ spread.T
        rows = _solved(gram + weight * torch.eye(len(gram)).to(gram), solved, layer)
    else:
        ridge = covariance.ridge(layer) * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        rows = _solved(weight * (moment + ridge) + spread.T @ spread, spread.T, layer).T
    return _smallest(wanted.to(rows), rows, layer)


def oriented(lm: "LM", change: Update) -> Update:
    """Return a change of shape [out in] in the orientation in which a model stores weights."""
    if not lm.weight_is_transposed:
        return change
    return LowRank(change.right, change.left) if isinstance(change, LowRank) else Dense(change.delta.T.contiguous())


def _solved(matrix: Tensor, right: Tensor, layer: int) -> Tensor:
    """Solve with a matrix that is positive definite but for λ -> 0 and equal keys."""
    factor, failed = torch.linalg.cholesky_ex((matrix + matrix.T) / 2)
    if int(failed):
        raise NumericalError(
            f"The update of layer {layer} has no unique solution: some facts have the same key, or NaN appeared. Give "
            f"ordinary text more weight, or write each subject's prompt once."
        )
    return torch.cholesky_solve(right, factor)


def _smallest(left: Float[Tensor, "rank d_out"], right: Float[Tensor, "rank d_key"], layer: int) -> Update:
    """Return leftᵀ @ right as factors, or as a matrix where that takes less memory."""
    whole = left.shape[0] * (left.shape[1] + right.shape[1]) >= left.shape[1] * right.shape[1]
    made: Update = (
        Dense((left.T @ right).float().cpu()) if whole else LowRank(*(x.T.float().cpu() for x in (left, right)))
    )
    if not all(torch.isfinite(part).all() for part in made.tensors().values()):
        raise NumericalError(f"The update of layer {layer} contains NaN or infinity.")
    return made
