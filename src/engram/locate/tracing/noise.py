"""How a subject is made unreadable: noise on its token embeddings, or another subject in its place.

The settings are plain values; `draw` makes the random numbers. ROME paper, section 2.1.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import FactError, SettingError, did_you_mean
from engram.models.encoding import encode
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM

_NAMED = 4
NoiseKind = Literal["covariance", "gaussian", "uniform"]
Draws = Literal["published", "seeded"]

_FORM = re.compile(r"(?P<amount>\d+\.?\d*(?:e-?\d+)?|\.\d+)(?P<sigma>\s*(?:sigma|σ|s))?")
_EXAMPLES = "'3sigma', 0.1, 'uniform:0.25', 'covariance', 'replace:3sigma', 'swap', 'swap:Eiffel Tower'"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Noise(Shown):
    """Noise on the embeddings of the subject's tokens.

    Args:
        kind: `gaussian`, `uniform` in [-amount, amount], or `covariance`: Gaussian with the covariance of the model's
            token embeddings, times `amount`.
        amount: how much.
        unit: `sigma` (multiples of the standard deviation of subject-token embeddings) or `absolute`.
        replace: put the noise in place of the embeddings instead of adding it.
        subjects: the subjects whose tokens σ is measured on; a built-in list when empty.

    Raises:
        SettingError: an unknown kind, or an amount that is not a positive number.
    """

    kind: NoiseKind = "gaussian"
    amount: float = 3.0
    unit: Literal["absolute", "sigma"] = "sigma"
    replace: bool = False
    subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(NoiseKind):
            raise SettingError(f"There is no noise {self.kind!r}. {did_you_mean(self.kind, get_args(NoiseKind))}")
        if not 0 < self.amount < float("inf"):
            raise SettingError(f"The amount of noise is {self.amount}; it must be a positive number, such as 0.1.")

    def __str__(self) -> str:
        unit = "σ" if self.unit == "sigma" else ""
        return f"{'replace ' if self.replace else ''}{self.kind} {self.amount:g}{unit}"

    def resolved(self, lm: "LM") -> "Noise":
        """Return the same noise with its amount as a number for this model."""
        if self.unit == "absolute" or self.kind == "covariance":
            return replace(self, unit="absolute")
        return replace(self, amount=self.amount * subject_sigma(lm, self.subjects or None), unit="absolute")

    def record(self) -> dict[str, Any]:
        """Return what a file needs to say about this noise."""
        return {**asdict(self), "subjects": list(self.subjects)}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Swap(Shown):
    """Symmetric token replacement: the prompt with another subject of the same number of tokens.

    Args:
        subjects: the other subjects, one sample each; chosen from a built-in list when empty.
    """

    subjects: tuple[str, ...] = ()

    def __str__(self) -> str:
        if len(self.subjects) > _NAMED:
            return f"swap for {len(self.subjects)} subjects"
        return f"swap for {', '.join(self.subjects)}" if self.subjects else "swap"

    def record(self) -> dict[str, Any]:
        """Return what a file needs to say about this swap."""
        return {"kind": "swap", "subjects": list(self.subjects)}


def parse_noise(noise: "int | float | str | Noise | Swap") -> "Noise | Swap":
    """Turn what a user types into settings.

    A number is an absolute amount. A text is `[replace:][kind:]amount[sigma]`, `covariance`, `swap` or `swap:subject`.

    Raises:
        SettingError: anything else; the message shows examples.
    """
    if isinstance(noise, Noise | Swap):
        return noise
    if isinstance(noise, int | float):
        return Noise(amount=float(noise), unit="absolute")
    head, _, rest = noise.strip().partition(":")
    if head == "swap":
        return Swap(subjects=tuple(s.strip() for s in rest.split("|") if s.strip()))
    replacing = head == "replace"
    words = [w for w in (rest if replacing else noise.strip()).split(":") if w]
    kinds = get_args(NoiseKind)
    kind: Any = "gaussian"
    if words and not _FORM.fullmatch(words[0]):
        kind = words.pop(0)
        if kind not in kinds:
            names = (*kinds, "replace", "swap")
            raise SettingError(f"There is no noise {kind!r}. {did_you_mean(kind, names)} Examples: {_EXAMPLES}.")
    form = _FORM.fullmatch(words[0]) if len(words) == 1 else None
    if words and form is None:
        raise SettingError(f"The noise {noise!r} was not understood. Examples: {_EXAMPLES}.")
    if form is None:
        return Noise(kind=kind, amount=1.0 if kind == "covariance" else 3.0, replace=replacing)
    unit = "sigma" if form["sigma"] or kind == "covariance" else "absolute"
    return Noise(kind=kind, amount=float(form["amount"]), unit=unit, replace=replacing)


def noise_from(record: dict[str, Any]) -> "Noise | Swap":
    """Return the settings that `record()` wrote."""
    given: dict[str, Any] = {**record, "subjects": tuple(record["subjects"])}
    if given["kind"] == "swap":
        return Swap(subjects=given["subjects"])
    return Noise(**given)


def builtin_subjects() -> list[str]:
    """Return well-known people, places, works and companies on which σ is measured by default."""
    text = files("engram.locate.tracing").joinpath("subjects.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


@torch.no_grad()
def subject_sigma(lm: "LM", subjects: Sequence[str] | None = None) -> float:
    """Return σ, the standard deviation of the embeddings of subject tokens.

    As in the published code every subject is tokenised alone and all elements count alike; special tokens do not count.

    Args:
        lm: the model.
        subjects: whose tokens; a built-in list when not given.
    """
    texts = list(subjects) if subjects is not None else builtin_subjects()
    encoded = encode(lm.tokenizer, texts)
    real = torch.tensor([[end > begin for begin, end in row] for row in encoded.offsets])
    ids = encoded.ids[real]
    if not len(ids):
        raise FactError("None of the subjects on which σ is to be measured has a token. Give at least one word.")
    return float(lm.embed(ids.unsqueeze(0).to(lm.device)).double().std())


def draw(
    lm: "LM", noise: Noise, *, samples: int, tokens: int, draws: Draws, seed: int, second: bool = False
) -> Float[Tensor, "sample subject d_embed"]:
    """Return the noise itself.

    Args:
        lm: the model, for the width and (kind `covariance`) the spread of its embeddings.
        noise: which noise, its amount absolute.
        samples: how many samples.
        tokens: how many subject tokens.
        draws: `published` as the published code draws, the same numbers whatever the seed, or `seeded`.
        seed: for `seeded`.
        second: of the `published` draws, those that the published code's second pass gets.
    """
    shape = (samples, tokens, int(lm.embed.embedding_dim))
    if draws == "published":
        random = np.random.RandomState(1)
        both = (2, *shape)
        raw = random.uniform(-1, 1, both) if noise.kind == "uniform" else random.randn(*both)
        unit = torch.from_numpy(raw)[int(second)]
    else:
        generator = torch.Generator().manual_seed(seed)
        if noise.kind == "uniform":
            unit = torch.rand(shape, generator=generator) * 2 - 1
        else:
            unit = torch.randn(shape, generator=generator)
    if noise.kind == "covariance":
        unit = unit @ _spread(lm).to(unit.dtype)
    return unit * noise.amount


@torch.no_grad()
def _spread(lm: "LM") -> Float[Tensor, "d_embed d_embed"]:
    """Return the symmetric square root of the covariance of the vocabulary's embeddings, float64."""
    d_embed = int(lm.embed.embedding_dim)
    total, moment = torch.zeros(d_embed, dtype=torch.float64), torch.zeros(d_embed, d_embed, dtype=torch.float64)
    for ids in torch.arange(lm.vocab_size).split(4096):
        rows = lm.embed(ids.unsqueeze(0).to(lm.device))[0].double().cpu()
        total += rows.sum(0)
        moment += rows.T @ rows
    mean = total / lm.vocab_size
    values, vectors = torch.linalg.eigh(moment / lm.vocab_size - torch.outer(mean, mean))
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
