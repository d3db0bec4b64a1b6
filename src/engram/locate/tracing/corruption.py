"""The corrupted prompts of one fact, ready to run: token ids per sample and the noise that its subject gets."""

import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engram.errors import FactError
from engram.locate.tracing.noise import Draws, Noise, Swap, builtin_subjects, draw
from engram.models import Site, patch
from engram.models.continuations import Asked, asked

if TYPE_CHECKING:
    from engram.facts import Fact
    from engram.models import LM


@dataclass(frozen=True, slots=True)
class Corruption:
    """Corrupted prompts; the same ones for the baseline and for every restored run.

    Args:
        ids: token ids, one row per sample.
        first_token: first token that differs from the clean prompt.
        noise: what the embeddings of the tokens from `first_token` on get; `None` where the token ids differ instead.
        replace: put the noise in place of the embeddings instead of adding it.
    """

    ids: Int[Tensor, "sample pos"]
    first_token: int
    noise: Float[Tensor, "sample subject d_embed"] | None = None
    replace: bool = False

    @property
    def samples(self) -> int:
        """Number of corrupted prompts."""
        return self.ids.shape[0]

    def part(self, begin: int, end: int) -> "Corruption":
        """Return only some samples."""
        noise = None if self.noise is None else self.noise[begin:end]
        return replace(self, ids=self.ids[begin:end], noise=noise)

    @contextmanager
    def applied(self, lm: "LM") -> Generator[None]:
        """Corrupt the embeddings of every pass inside the `with` block, whose rows are [... × sample]."""
        noise = self.noise
        if noise is None:
            yield
            return
        where = slice(self.first_token, self.first_token + noise.shape[1])

        def disturb(embedded: Tensor) -> Tensor:
            changed = embedded.clone()
            rows = noise.to(embedded.device).repeat(len(embedded) // len(noise), 1, 1)
            if self.replace:
                changed[:, where] = rows.to(embedded.dtype)
            else:
                changed[:, where] += rows  # in place: float64 draws are added before rounding, as published
            return changed

        with patch(lm, {Site("embed"): disturb}):
            yield


def corrupt(
    lm: "LM",
    fact: "Fact",
    prompt: Asked,
    noise: Noise | Swap,
    *,
    samples: int,
    draws: Draws,
    seed: int,
    second: bool = False,
) -> tuple[Corruption, Noise | Swap]:
    """Make the corrupted prompts of a fact, and say which noise (resolved to numbers and names) it was.

    Args:
        lm: the model.
        fact: the fact.
        prompt: its clean prompt as tokens.
        noise: what to do to them; a swap has one sample per other subject.
        samples: number of noise samples, or the most subjects to choose for a swap.
        draws: where random numbers come from.
        seed: for `seeded` draws and for the choice of subjects.
        second: see `draw`.

    Raises:
        FactError: no other subject of the same number of tokens, or a given one differs in length.
    """
    if isinstance(noise, Swap):
        return _swapped(lm, fact, prompt, noise, samples=samples, seed=seed)
    used = noise.resolved(lm)
    drawn = draw(lm, used, samples=samples, tokens=len(prompt.subject), draws=draws, seed=seed, second=second)
    return Corruption(prompt.ids.repeat(samples, 1), prompt.subject.start, drawn, used.replace), used


def _swapped(lm: "LM", fact: "Fact", prompt: Asked, swap: Swap, *, samples: int, seed: int) -> tuple[Corruption, Swap]:
    if swap.subjects:
        rows = [_other_ids(lm, fact, prompt, subject) for subject in swap.subjects]
        for subject, row in zip(swap.subjects, rows, strict=True):
            if isinstance(row, str):
                raise FactError(f"{subject!r} cannot stand in for {fact.subject!r}: {row}")
        chosen = list(swap.subjects)
    else:
        names = builtin_subjects()
        random.Random(f"swap|{seed}").shuffle(names)
        fitting = [(name, row) for name in names if not isinstance(row := _other_ids(lm, fact, prompt, name), str)]
        if not fitting:
            raise FactError(
                f"No built-in subject has as many tokens as {fact.subject!r}. Name one: noise='swap:Other Name'."
            )
        chosen, rows = [name for name, _ in fitting[:samples]], [row for _, row in fitting[:samples]]
    ids = torch.stack([row for row in rows if isinstance(row, Tensor)])
    differs = (ids != prompt.ids).any(0).nonzero()
    return Corruption(ids, int(differs[0])), Swap(subjects=tuple(chosen))


def _other_ids(lm: "LM", fact: "Fact", clean: Asked, subject: str) -> Tensor | str:
    """Return the token ids of the prompt with another subject, or the reason why it cannot stand in."""
    other = asked(lm, replace(fact, subject=subject))
    if other.ids.shape != clean.ids.shape or other.subject != clean.subject:
        tokens, wanted = len(other.subject), len(clean.subject)
        return f"it has {tokens} tokens in this prompt, {fact.subject!r} has {wanted}. Choose one of equal length."
    if torch.equal(other.ids, clean.ids):
        return "they are the same tokens. Choose another subject."
    return other.ids[0]
