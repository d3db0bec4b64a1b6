"""Changes of weights: something is added to a parameter of a linear module.

Both forms know how to appear as a matrix, how to add to a projection's output without touching its weight (the side
path), and how to be combined. Which way round a weight is stored is the parameter's own: GPT-2's projections keep
[in, out], its unembedding [out, in].
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engram.editing.changes.change import Arrays, Change, Plain, array
from engram.editing.changes.rows import together
from engram.errors import EditError, EditMismatch
from engram.models.hooks import on_output
from engram.models.linear import is_conv1d, is_quantised, parameter_shape
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM

C = TypeVar("C", bound="WeightChange")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WeightChange(Shown, ABC):
    """What is added to one parameter, in the parameter's own orientation.

    Args:
        parameter: its name, as in `model.named_parameters()`; `Edit.of` fills it in from the mapping it is given.
        transposed: whether the parameter is stored as [in, out] (Conv1D) rather than [out, in]; `Edit.of` fills it in.
    """

    kind: ClassVar[str]

    parameter: str = field(default="", kw_only=True)
    transposed: bool = field(default=False, kw_only=True)

    @classmethod
    @abstractmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "WeightChange":
        """See `Change.of`."""

    @property
    def where(self) -> str:
        """The parameter's name."""
        return self.parameter

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that is changed."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The largest rank that the change can have (1 for a bias)."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "..."]:
        """Return the change as the parameter is stored."""

    @abstractmethod
    def scaled(self, factor: float) -> "WeightChange":
        """Return `factor` times this change."""

    @abstractmethod
    def norm(self) -> float:
        """Return the Frobenius norm."""

    @abstractmethod
    def added(self, inputs: Float[Tensor, "*rows pos in"]) -> Float[Tensor, "..."]:
        """Return what the changed weight or bias adds to its projection's output, in fp32: [*rows pos out] or [out].

        Args:
            inputs: what enters the projection, on the device of this change.
        """

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """What meets the input [in rank] and what is added to the output [out rank]; None where it has no such form."""
        return None

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays that it is made of."""

    @abstractmethod
    def to(self, device: torch.device) -> "WeightChange":
        """Return the same change on another device."""

    def parts(self) -> tuple[Arrays, Plain]:
        """See `Change.parts`."""
        return self.tensors(), {"shape": list(self.shape), "transposed": self.transposed}

    def placed(self, lm: "LM", parameter: str) -> "WeightChange":
        """Return the same change as that of a model's parameter, in whose orientation it is."""
        module = _module(lm, parameter)
        return replace(self, parameter=parameter, transposed=module is not None and is_conv1d(module))

    def require_fit(self, lm: "LM") -> None:
        """See `Change.require_fit`."""
        module, leaf = projection(lm, self.parameter)
        shape = parameter_shape(module, leaf)
        if shape != self.shape:
            raise EditMismatch(
                f"The edit changes {self.parameter!r} of shape {self.shape}; in {lm.name} it has {shape}."
            )
        if leaf == "weight" and is_conv1d(module) != self.transposed:
            raise EditMismatch(
                f"The change of {self.parameter!r} is said to be {_order(self.transposed)}, but {lm.name} stores it "
                f"{_order(not self.transposed)}. Make edits with Edit.of(lm, ...), which looks."
            )

    @classmethod
    @contextmanager
    def beside(cls, lm: "LM", rows: "Sequence[WeightChange | None]") -> Generator[None]:
        """See `Change.beside`; the sum is fp32 whatever the model's dtype."""
        name = next(change.parameter for change in rows if change is not None)
        with on_output(lm, name.rpartition(".")[0], together(rows), first=True):
            yield

    def merged(self, later: Change) -> Change | None:
        """Return the sum with a later change of the same parameter."""
        return combined(self, later) if isinstance(later, LowRank | Dense) else None

    def text(self) -> str:
        """See `Change.text`."""
        return f"{type(self).__name__}, rank {self.rank}, norm {self.norm():.4g}"

    def refuse_weights(self, doing: str) -> None:
        """A change of weights is never refused."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LowRank(WeightChange):
    """The change `left @ right.T` of a weight.

    Args:
        left: one column per rank, as long as the weight has rows.
        right: one column per rank (the same number; checked), as long as the weight has columns.
        parameter: see `WeightChange`.
        transposed: see `WeightChange`.

    Raises:
        EditError: the factors have different ranks.
    """

    kind: ClassVar[str] = "low-rank"

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "cols same_rank"]

    def __post_init__(self) -> None:
        if self.left.shape[1] != self.right.shape[1]:
            raise EditError(f"Factors of ranks {self.left.shape[1]} and {self.right.shape[1]} make no update.")

    @classmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "LowRank":
        """See `Change.of`."""
        left, right = array(arrays, "left", dims=2), array(arrays, "right", dims=2)
        return _checked(cls(left, right, parameter=where, transposed=_transposed(plain)), plain)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that is changed."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.left.shape[1]

    @property
    def factors(self) -> tuple[Float[Tensor, "in rank"], Float[Tensor, "out rank"]]:
        """What meets the input, and what is added to the output."""
        return (self.left, self.right) if self.transposed else (self.right, self.left)

    def dense(self) -> Float[Tensor, "rows cols"]:
        """Return the change as a matrix."""
        return self.left @ self.right.T

    def scaled(self, factor: float) -> "LowRank":
        """Return `factor` times this change."""
        return replace(self, left=self.left * factor)

    def norm(self) -> float:
        """Return the Frobenius norm, from the factors alone."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right.T @ right)).sum().clamp_min(0).sqrt())

    def added(self, inputs: Float[Tensor, "*rows pos in"]) -> Float[Tensor, "*rows pos out"]:
        """See `WeightChange.added`."""
        enter, leave = self.factors
        return (inputs.float() @ enter.float()) @ leave.float().T

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file needs to keep."""
        return {"left": self.left, "right": self.right}

    def to(self, device: torch.device) -> "LowRank":
        """Return the same change on another device."""
        return replace(self, left=self.left.to(device), right=self.right.to(device))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dense(WeightChange):
    """A change with no low-rank form, or of a bias.

    Args:
        delta: the change, shaped as the parameter.
        parameter: see `WeightChange`.
        transposed: see `WeightChange`.
    """

    kind: ClassVar[str] = "dense"

    delta: Float[Tensor, "..."]

    @classmethod
    def of(cls, where: str, arrays: Arrays, plain: Plain) -> "Dense":
        """See `Change.of`."""
        return _checked(cls(array(arrays, "delta"), parameter=where, transposed=_transposed(plain)), plain)

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
        return replace(self, delta=self.delta * factor)

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return float(self.delta.double().norm())

    def added(self, inputs: Float[Tensor, "*rows pos in"]) -> Float[Tensor, "..."]:
        """See `WeightChange.added`."""
        if self.delta.ndim == 1:
            return self.delta.float()
        return inputs.float() @ (self.delta if self.transposed else self.delta.T).float()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file needs to keep."""
        return {"delta": self.delta}

    def to(self, device: torch.device) -> "Dense":
        """Return the same change on another device."""
        return replace(self, delta=self.delta.to(device))


Update = LowRank | Dense


def combined(a: WeightChange, b: WeightChange) -> Update:
    """Return the sum of two changes of one parameter: low-rank while that is the smaller form.

    Raises:
        EditError: their shapes differ.
    """
    if a.shape != b.shape:
        raise EditError(f"Updates of shapes {a.shape} and {b.shape} cannot be added.")
    name, turned = a.parameter, a.transposed
    if isinstance(a, LowRank) and isinstance(b, LowRank) and 2 * (a.rank + b.rank) <= min(a.shape):
        left, right = torch.cat([a.left, b.left], dim=1), torch.cat([a.right, b.right], dim=1)
        return LowRank(left, right, parameter=name, transposed=turned)
    return Dense(a.dense() + b.dense(), parameter=name, transposed=turned)


def projection(lm: "LM", name: str) -> tuple[nn.Module, str]:
    """Return the module of a parameter and the parameter's own name in it.

    Raises:
        EditMismatch: there is no such parameter.
        EditError: it is no weight or bias of a linear module.
    """
    module, leaf = _module(lm, name), name.rpartition(".")[2]
    kept = getattr(module, leaf, None)
    quantised = module is not None and is_quantised(module) and (leaf == "weight" or kept is not None)
    if module is None or not (quantised or isinstance(kept, nn.Parameter)):
        raise EditMismatch(f"The edit changes {name!r}, which {lm.name} does not have. Was it made for this model?")
    if not (quantised or isinstance(module, nn.Linear) or is_conv1d(module)) or leaf not in ("weight", "bias"):
        raise EditError(f"{name!r} is no weight or bias of a linear module ({type(module).__name__}); edits need one.")
    return module, leaf


def _module(lm: "LM", name: str) -> nn.Module | None:
    try:
        return lm.model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def _order(transposed: bool) -> str:
    return "[in, out]" if transposed else "[out, in]"


def _transposed(plain: Plain) -> bool:
    value = plain.get("transposed")
    if not isinstance(value, bool):
        raise EditError(f"transposed is {value!r}, not true or false.")
    return value


def _checked(change: C, plain: Plain) -> C:
    if list(change.shape) != plain.get("shape"):
        raise EditError(f"the change of {change.where!r} has shape {change.shape}, the file says {plain.get('shape')}.")
    return change
