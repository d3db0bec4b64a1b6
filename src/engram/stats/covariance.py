"""Key second moments C = E[k kᵀ] (ROME paper, §3.1): sums while text is read, and the finished statistics."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import DataError, EditMismatch, NumericalError, SettingError
from engram.showing import Shown
from engram.stats.files import read_folder, write_folder

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

Precision = Literal["float32", "float64"]
PANELS = 8
FIRST_RIDGE, LAST_RIDGE = 1e-10, 1.0


class RunningMoment:
    """The sum of k kᵀ over keys: products in fp32 or fp64, summed up in fp64.

    Only panels on and above the diagonal are multiplied (56 % of the work), and mirrored at the end.

    Args:
        size: the keys' width.
        precision: of the products.
        device: where to sum up; memory is 8 size² bytes.
    """

    def __init__(self, size: int, *, precision: Precision, device: torch.device) -> None:
        self.total = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.count = 0
        self._dtype = torch.float64 if precision == "float64" else torch.float32

    @torch.no_grad()
    def add(self, keys: Float[Tensor, "token d_mlp"]) -> None:
        """Count some keys."""
        keys = keys.to(self._dtype)
        size = keys.shape[1]
        edges = [round(i * size / PANELS) for i in range(PANELS + 1)]
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            self.total[begin:end, begin:] += keys[:, begin:end].T @ keys[:, begin:]
        self.count += keys.shape[0]

    def mean(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """Return the second moment so far, in fp64."""
        upper = self.total.triu()
        return (upper + upper.triu(1).T) / max(1, self.count)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LayerMoment(Shown):
    """The second moment of one layer's keys.

    Args:
        moment: E[k kᵀ].
        tokens: number of keys that were counted; 0 when given by the user.
        change: how much update directions still changed when counting stopped (1 - cosine between half and all of
            the text, averaged over probe keys); estimates the error that is left. None when it was not measured.
        whole: whether the corpus has no more text.
    """

    moment: Float[Tensor, "d_mlp d_mlp"]
    tokens: int = 0
    change: float | None = None
    whole: bool = False

    @property
    def words(self) -> str:
        """How much was counted, and how much it still changed."""
        if not self.tokens:
            return "given"
        still = "" if self.change is None else f", still changing by {100 * self.change:.2g} %"
        return f"{self.tokens:,} tokens{still}{', all there are' if self.whole else ''}"


@dataclass(frozen=True, eq=False, repr=False)
class KeyStatistics(Shown):
    """Key second moments of some layers of one model.

    Args:
        layers: the moment by layer.
        fingerprint: the model's identity.
        corpus: name and digest of the text.
        remark: what users should know about where they came from; nothing as a rule.
    """

    layers: Mapping[int, LayerMoment]
    fingerprint: str
    corpus: str = "given"
    remark: str = ""
    _factors: dict[int, tuple[Tensor, float]] = field(default_factory=dict[int, tuple[Tensor, float]], repr=False)

    def _lines(self) -> Iterator[str]:
        yield f"KeyStatistics over {self.corpus}, of the model {self.fingerprint}"
        yield from (f"  layer {layer}: {moment.words}" for layer, moment in self.layers.items())

    @classmethod
    def of(cls, lm: "LM", moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]) -> "KeyStatistics":
        """Wrap second moments that were computed elsewhere.

        Raises:
            SettingError: a matrix is not d_mlp by d_mlp.
        """
        for layer, moment in moments.items():
            if moment.shape != (lm.d_mlp, lm.d_mlp):
                raise SettingError(
                    f"The covariance of layer {layer} has shape {tuple(moment.shape)}; {lm.name} needs "
                    f"({lm.d_mlp}, {lm.d_mlp})."
                )
        return cls({layer: LayerMoment(moment) for layer, moment in moments.items()}, lm.fingerprint)

    def save(self, folder: str | Path) -> Path:
        """Write `statistics.json` and `statistics.safetensors` into a folder, and return the folder.

        Raises:
            DataError: the folder cannot be written; what was there before stays intact.
        """
        layers = {
            str(layer): {"tokens": m.tokens, "change": m.change, "whole": m.whole} for layer, m in self.layers.items()
        }
        moments = {f"layer {layer}": m.moment for layer, m in self.layers.items()}
        return write_folder(
            Path(folder), {"fingerprint": self.fingerprint, "corpus": self.corpus, "layers": layers}, moments
        )

    @classmethod
    def load(cls, folder: str | Path, lm: "LM | None" = None) -> "KeyStatistics":
        """Read statistics back; nothing is executed (JSON and safetensors only).

        Args:
            folder: what `save` or `engram stats --out` wrote.
            lm: check at once that they belong to this model.

        Raises:
            DataError: missing, truncated, changed, or written by a newer version.
            EditMismatch: they belong to another model than `lm`.
        """
        document, moments = read_folder(Path(folder))
        try:
            layers = {
                int(layer): LayerMoment(
                    moments[f"layer {layer}"], int(facts["tokens"]), facts["change"], bool(facts["whole"])
                )
                for layer, facts in document["layers"].items()
            }
            found = cls(layers, str(document["fingerprint"]), str(document["corpus"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"The statistics in {str(folder)!r} are damaged: {error!r}.") from error
        for layer, moment in layers.items():
            if moment.moment.ndim != 2 or len(set(moment.moment.shape)) != 1:
                raise DataError(f"The statistics in {str(folder)!r} are damaged: layer {layer} is no square matrix.")
        if lm is not None:
            found.require_fit(lm)
        return found

    def __getitem__(self, layer: int) -> LayerMoment:
        if layer not in self.layers:
            raise SettingError(f"These statistics are for layers {sorted(self.layers)}, not for layer {layer}.")
        return self.layers[layer]

    def require_fit(self, lm: "LM") -> None:
        """Check that the statistics belong to a model.

        Raises:
            EditMismatch: they do not.
        """
        if self.fingerprint != lm.fingerprint:
            raise EditMismatch(
                f"These statistics were made with another model (fingerprint {self.fingerprint}; {lm.name} has "
                f"{lm.fingerprint}). Compute them for this one."
            )

    def ridge(self, layer: int) -> float:
        """Return the ridge that the layer's factorisation needed, as a share of the mean diagonal; 0 for none."""
        return self._factor(layer)[1]

    def solve(self, layer: int, keys: Float[Tensor, "fact d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
        """Return C⁻¹k for each key, in fp64, by Cholesky factorisation (made once per layer).

        Where C is not positive definite in fp64 (fewer keys than dimensions, units that never fire) a ridge is added:
        the smallest of 1e-10, 1e-9, ..., 1 times the mean diagonal that makes it so. `ridge` tells which.

        Raises:
            NumericalError: C contains NaN or infinity, or stays singular.
        """
        factor, _ = self._factor(layer)
        return torch.cholesky_solve(keys.to(factor).T, factor).T

    def _factor(self, layer: int) -> tuple[Tensor, float]:
        if layer not in self._factors:
            self._factors[layer] = factorised(self[layer].moment, f"layer {layer}")
        return self._factors[layer]


def factorised(moment: Float[Tensor, "d_mlp d_mlp"], what: str) -> tuple[Float[Tensor, "d_mlp d_mlp"], float]:
    """Return the lower Cholesky factor in fp64, and the ridge that it needed (a share of the mean diagonal).

    Raises:
        NumericalError: the matrix contains NaN or infinity, or no ridge up to its mean diagonal helps.
    """
    matrix = moment.double()
    if not torch.isfinite(matrix).all():
        raise NumericalError(f"The key statistics of {what} contain NaN or infinity. Compute them again.")
    scale = float(matrix.diagonal().mean())
    smallest = matrix.shape[0] * torch.finfo(torch.float64).eps
    ridge = 0.0
    while ridge <= LAST_RIDGE:
        tried = (
            matrix
            if ridge == 0
            else matrix + ridge * scale * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        )
        factor, failed = torch.linalg.cholesky_ex(tried)
        pivots = factor.diagonal().square()
        if int(failed) == 0 and bool(pivots.min() > smallest * pivots.max()):
            if ridge:
                logger.warning(
                    "key statistics of %s are singular; a ridge of %g times the mean diagonal was added", what, ridge
                )
            return factor, ridge
        ridge = FIRST_RIDGE if ridge == 0 else ridge * 10
    raise NumericalError(f"The key statistics of {what} are singular even with a ridge. Use more text.")
