"""What an edit does to one parameter: a low-rank or a dense change, in the parameter's own orientation.

Both kinds know how to appear as a matrix, how to add to a projection's output without touching its weight (the side
path), and how to be combined. A method whose change is no matrix (a codebook, a gate) is a third kind with the same
methods.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import EditError
from engram.showing import Shown


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LowRank(Shown):
    """The change `left @ right.T` of a weight.

    Args:
        left: one column per rank, as long as the weight has rows.
        right: one column per rank (the same number; checked), as long as the weight has columns.

    Raises:
        EditError: the factors have different ranks.
    """

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "cols same_rank"]

    def __post_init__(self) -> None:
        if self.left.shape[1] != self.right.shape[1]:
            raise EditError(f"Factors of ranks {self.left.shape[1]} and {self.right.shape[1]} make no update.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that is changed."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.left.shape[1]

    def dense(self) -> Float[Tensor, "rows cols"]:
        """Return the change as a matrix."""
        return self.left @ self.right.T

    def scaled(self, factor: float) -> "LowRank":
        """Return `factor` times this change."""
        return LowRank(self.left * factor, self.right)

    def norm(self) -> float:
        """Return the Frobenius norm, from the factors alone."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right.T @ right)).sum().clamp_min(0).sqrt())

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file needs to keep."""
        return {"left": self.left, "right": self.right}

    def to(self, device: torch.device) -> "LowRank":
        """Return the same change on another device."""
        return LowRank(self.left.to(device), self.right.to(device))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dense(Shown):
    """A change with no low-rank form, or of a bias.

    Args:
        delta: the change, shaped as the parameter.
    """

    delta: Float[Tensor, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that is changed."""
        return tuple(self.delta.shape)

    @property
    def rank(self) -> int:
        """The largest rank that the change can have (1 for a bias)."""
        return min(self.delta.shape) if self.delta.ndim > 1 else 1

    def dense(self) -> Float[Tensor, "..."]:
        """Return the change itself."""
        return self.delta

    def scaled(self, factor: float) -> "Dense":
        """Return `factor` times this change."""
        return Dense(self.delta * factor)

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(self.delta.double().norm())

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file needs to keep."""
        return {"delta": self.delta}

    def to(self, device: torch.device) -> "Dense":
        """Return the same change on another device."""
        return Dense(self.delta.to(device))


Update = LowRank | Dense


def combined(a: Update, b: Update) -> Update:
    """Return the sum of two changes of one parameter: low-rank when both are.

    Raises:
        EditError: their shapes differ.
    """
    if a.shape != b.shape:
        raise EditError(f"Updates of shapes {a.shape} and {b.shape} cannot be added.")
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return LowRank(torch.cat([a.left, b.left], dim=1), torch.cat([a.right, b.right], dim=1))
    return Dense(a.dense() + b.dense())


def side_path(update: Update, inputs: Tensor, *, transposed: bool) -> Tensor:
    """Return what a changed weight or bias adds to its projection's output, in fp32.

    Args:
        update: the change of the projection's weight (or, when one-dimensional, its bias).
        inputs: what enters the projection, [... in].
        transposed: whether the weight is stored as [in, out].
    """
    if isinstance(update, LowRank):
        enter, leave = (update.left, update.right) if transposed else (update.right, update.left)
        return (inputs.float() @ enter) @ leave.T
    if update.delta.ndim == 1:
        return update.delta
    return inputs.float() @ (update.delta if transposed else update.delta.T)
