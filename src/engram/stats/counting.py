"""Counting: second moments of the keys of any layers, in one pass over a corpus.

The forward pass ends at the last layer needed. Texts are cut into windows, sorted by length within chunks of 32,768
tokens and run in batches of about 4,096 tokens; memory is one batch plus 8 d_mlp² bytes per layer (once more while a
checkpoint is written). Results do not depend on the batches beyond rounding.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engram.errors import DataError, SettingError
from engram.models.hooks import Site, record
from engram.progress import Doing, Progress
from engram.stats.cache import read, write
from engram.stats.corpus import Corpus
from engram.stats.covariance import LayerMoment, Precision, RunningMoment, factorised

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

CHUNK, BATCH, LONGEST, PROBES = 32_768, 4_096, 1_024, 32
PER_DIMENSION = 10.0
"""Tokens per key dimension after which counting stops when nothing else was said (docs/performance.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How text is counted.

    Args:
        tokens: count exactly so many tokens; otherwise until one of the next two says so, or the corpus ends.
        per_dimension: stop after so many tokens per key dimension (d_mlp); None never.
        tolerance: converged when the update directions C⁻¹k of probe keys changed by less than this (1 - cosine,
            averaged) while the amount of text doubled, which is also about the error that is left; None reads all,
            whatever `per_dimension` says.
        precision: of the products k kᵀ (`"float32"` or `"float64"`); they are always summed up in fp64. With
            `"float64"` rows are also never padded, which makes the result independent of batches to 1e-14.
        window: longest piece of text in tokens; 1,024 or what the model has when not given.
        seed: for the order of the texts.

    Raises:
        SettingError: a number that is not positive, an unknown precision.
    """

    tokens: int | None = None
    per_dimension: float | None = PER_DIMENSION
    tolerance: float | None = 0.01
    precision: Precision = "float32"
    window: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "per_dimension", "tolerance", "window"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingError(f"{name}={value}; it must be positive.")
        if self.precision not in ("float32", "float64"):
            raise SettingError(f"precision={self.precision!r}; allowed are 'float32' and 'float64'.")

    def most(self, size: int) -> int | None:
        """Return after how many tokens, for keys of a size, counting stops at the latest; `None`: the text decides."""
        if self.tokens is not None or self.tolerance is None or self.per_dimension is None:
            return self.tokens
        return max(1, round(self.per_dimension * size))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where an unfinished count is kept.

    Args:
        path: the file.
        key: everything that the count depends on.
        every: seconds between writes.
    """

    path: Path
    key: dict[str, Any]
    every: float


@dataclass(slots=True)
class _Count:
    """What was counted so far.

    Args:
        moments: sums by layer.
        probes: some keys by layer.
        directions: update directions of the probes when they were last looked at.
        change: how much they had changed then.
        tokens: counted tokens.
        windows: counted windows of finished chunks.
        begun: counted tokens of finished chunks.
        batches: counted batches of the chunk in progress.
        checked: tokens when convergence was last looked at.
        halfway: whether the others are being changed and do not agree.
    """

    moments: dict[int, RunningMoment] = field(default_factory=dict[int, RunningMoment])
    probes: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    directions: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    change: dict[int, float] = field(default_factory=dict[int, float])
    tokens: int = 0
    windows: int = 0
    begun: int = 0
    batches: int = 0
    checked: int = 0
    halfway: bool = False


def collect(
    lm: "LM",
    layers: Sequence[int],
    corpus: Corpus,
    how: Counting,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> dict[int, LayerMoment]:
    """Count keys in one pass, without the cache of finished statistics. See `statistics`."""
    count = _resumed(checkpoint, layers, lm, how) or _Count()
    most = how.most(lm.d_mlp)
    what = Doing(
        f"counting keys of layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}",
        unit="tokens",
        about=how.tokens is None,
    )
    logger.info("%s: %.0f MB for the sums", what, len(layers) * 8 * lm.d_mlp**2 / 1e6)
    expected = most or round(PER_DIMENSION * lm.d_mlp)
    saved, converged = time.monotonic(), False
    if progress is not None and count.tokens:
        progress(what, count.tokens, max(expected, count.tokens))
    try:
        for chunk in _chunks(_windows(lm, corpus, how), count, most):
            if not chunk:
                break
            for _ in _count_chunk(lm, layers, chunk, count, how):
                if progress is not None:
                    progress(what, count.tokens, max(expected, count.tokens))
                if checkpoint is not None and time.monotonic() - saved >= checkpoint.every:
                    _save(checkpoint, count)
                    saved = time.monotonic()
            if how.tokens is None and how.tolerance is not None:
                converged = _converged(count, how.tolerance)
            if converged:
                break
    except (DataError, KeyboardInterrupt):
        if checkpoint is not None and count.tokens and not count.halfway:
            _save(checkpoint, count)
        raise
    if not count.tokens:
        raise DataError(f"The corpus {corpus.name!r} has no tokens. Give at least a few thousand words.")
    if how.tokens is not None and count.tokens < how.tokens:
        logger.warning("%s: the corpus has %d tokens, %d were asked for", what, count.tokens, how.tokens)
    if progress is not None:
        progress(what, count.tokens, count.tokens)
    exact = torch.float64 if how.precision == "float64" else torch.float32
    whole = not converged and (most is None or count.tokens < most)
    return {
        layer: LayerMoment(count.moments[layer].mean().to(exact), count.tokens, count.change.get(layer), whole)
        for layer in layers
    }


_Window = tuple[list[int], list[bool]]
"""Token ids, and which of them are counted (special tokens are read, not counted)."""


def _windows(lm: "LM", corpus: Corpus, how: Counting) -> Iterator[_Window]:
    size = min(how.window or LONGEST, lm.max_positions or LONGEST)
    texts: list[str] = []
    for text in corpus.shuffled(how.seed):
        texts.append(text)
        if len(texts) == 256:
            yield from _cut(lm, texts, size)
            texts = []
    if texts:
        yield from _cut(lm, texts, size)


def _cut(lm: "LM", texts: list[str], size: int) -> Iterator[_Window]:
    out = lm.tokenizer(texts, return_special_tokens_mask=True, return_attention_mask=False, verbose=False)
    for ids, special in zip(out["input_ids"], out["special_tokens_mask"], strict=True):
        for begin in range(0, len(ids), size):
            end = begin + size
            yield ids[begin:end], [not s for s in special[begin:end]]


def _chunks(windows: Iterator[_Window], count: _Count, most: int | None) -> Iterator[list[_Window]]:
    """Group windows, leaving out those that were counted before, up to the wanted number of tokens."""
    for _ in range(count.windows):
        next(windows, None)
    size, done = _chunk_size(most), count.begun
    chunk: list[_Window] = []
    tokens = 0
    for ids, counted in windows:
        room = None if most is None else most - done - tokens
        if room is not None and room <= 0:
            break
        if room is not None and sum(counted) > room:
            last = [i for i, c in enumerate(counted) if c][room - 1]
            ids, counted = ids[: last + 1], counted[: last + 1]
        chunk.append((ids, counted))
        tokens += sum(counted)
        if tokens >= size:
            yield chunk
            done, chunk, tokens = done + tokens, [], 0
    yield chunk


def _chunk_size(most: int | None) -> int:
    """Return the largest chunk that goes a power of two times into all there is: the last look then doubles one."""
    return CHUNK if most is None else math.ceil(most / 2 ** max(1, math.ceil(math.log2(most / CHUNK))))


def _count_chunk(lm: "LM", layers: Sequence[int], chunk: list[_Window], count: _Count, how: Counting) -> Iterator[None]:
    """Count the batches of a chunk that were not counted before, and yield after each."""
    for index, rows in enumerate(_batches(chunk, equal=how.precision == "float64")):
        if index >= count.batches:
            _count_batch(lm, layers, rows, count, how)
            yield
    count.halfway = True
    count.windows, count.begun, count.batches = count.windows + len(chunk), count.tokens, 0
    count.halfway = False


@torch.no_grad()
def _count_batch(lm: "LM", layers: Sequence[int], rows: list[_Window], count: _Count, how: Counting) -> None:
    sites = [Site("key", layer) for layer in layers]
    longest = len(rows[0][0])
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    counted = torch.tensor([c + [False] * (longest - len(c)) for _, c in rows])
    whole = bool(counted.all())
    with record(lm, sites, stop=True) as seen:
        lm.forward(ids, keep=1)
    count.halfway = True
    for site in sites:
        keys = seen[site].flatten(0, 1) if whole else seen[site][counted.to(seen[site].device)]
        lm.require_finite(keys, f"The {site}")
        if site.layer not in count.moments:
            count.moments[site.layer] = RunningMoment(lm.d_mlp, precision=how.precision, device=keys.device)
        count.moments[site.layer].add(keys)
        _probe(count, site.layer, keys)
    count.tokens += int(counted.sum())
    count.batches += 1
    count.halfway = False


def _batches(chunk: list[_Window], *, equal: bool) -> Iterator[list[_Window]]:
    """Rows of similar length, longest first; padding on the right changes nothing in a causal model.

    Nothing but rounding, that is: 3e-9 of the result in fp32. Rows of `equal` length avoid even that.
    """
    rows: list[_Window] = []
    for row in sorted(chunk, key=lambda window: -len(window[0])):
        full = bool(rows) and (len(rows) + 1) * len(rows[0][0]) > BATCH
        if full or (equal and rows and len(row[0]) != len(rows[0][0])):
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def _probe(count: _Count, layer: int, keys: Tensor) -> None:
    """Keep some keys of the first batches, spread over them."""
    have = count.probes.get(layer, keys[:0])
    if len(have) < PROBES and len(keys):
        step = max(1, len(keys) // (PROBES // 4))
        count.probes[layer] = torch.cat([have, keys[::step][: PROBES - len(have)].float()])


def _converged(count: _Count, tolerance: float) -> bool:
    """Compare update directions whenever the amount of text has about doubled (chunks end with a window)."""
    size = next(iter(count.moments.values())).total.shape[0]
    if count.tokens < max(2 * size, 1.9 * count.checked):
        return False
    directions: dict[int, Tensor] = {}
    change: dict[int, float] = {}
    for layer, moment in count.moments.items():
        factor, _ = factorised(moment.mean(), f"layer {layer}")
        solved = torch.cholesky_solve(count.probes[layer].to(factor).T, factor).T
        directions[layer] = new = solved / solved.norm(dim=1, keepdim=True)
        if layer in count.directions:
            old = count.directions[layer]  # of the probes that there were
            change[layer] = float((1 - (new[: len(old)] * old).sum(1)).mean())
    count.halfway = True
    count.checked, count.directions, count.change = count.tokens, directions, change
    count.halfway = False
    changes = [change.get(layer, float("inf")) for layer in count.moments]
    logger.info("after %d tokens update directions changed by %s", count.tokens, changes)
    return max(changes) < tolerance


_COUNTERS = ("tokens", "windows", "begun", "batches", "checked")


def _save(checkpoint: Checkpoint, count: _Count) -> None:
    tensors: dict[str, Tensor] = {}
    for name, values in (("probes", count.probes), ("directions", count.directions)):
        tensors.update({f"{name} {layer}": tensor for layer, tensor in values.items()})
    tensors.update({f"total {layer}": moment.total for layer, moment in count.moments.items()})
    facts = {name: getattr(count, name) for name in _COUNTERS}
    write(checkpoint.path, checkpoint.key, tensors, {**facts, "change": list(count.change.items())})


def _resumed(checkpoint: Checkpoint | None, layers: Sequence[int], lm: "LM", how: Counting) -> _Count | None:
    stored = None if checkpoint is None else read(checkpoint.path, checkpoint.key)
    if stored is None:
        return None
    tensors, facts = stored
    count = _Count(**{name: facts[name] for name in _COUNTERS})
    count.change = {int(layer): float(change) for layer, change in facts["change"]}
    for layer in layers:
        moment = RunningMoment(lm.d_mlp, precision=how.precision, device=lm.device)
        moment.total, moment.count = tensors[f"total {layer}"].to(lm.device), count.tokens
        count.moments[layer] = moment
        count.probes[layer] = tensors[f"probes {layer}"].to(lm.device)
        if f"directions {layer}" in tensors:
            count.directions[layer] = tensors[f"directions {layer}"].to(lm.device)
    logger.info("going on after %d tokens counted earlier", count.tokens)
    return count
