"""Which rows a trace needs and where they join: the plan of the fast path, without any tensor.

A row starts as the corrupted run's states of the positions from its token on, with one of them restored, and climbs the
layers above. So a restored state of layer l joins at block l + 1; the first restored layer of a window costs nothing
either (`passes.run_lone_outputs`). Windows that start at the same layer are one row until the first of them ends; there
the row forks. Restorations that cannot reach the last position's logits need no row at all.

    layer    0   1   2   3   4   5   6
    [0, 3)       ├───┬───┬───────────────►   trunk of low 0: restored in layers 0-2
    [0, 2)           └───────────────────►   fork: restored in layers 0-1
    [1, 4)           ├───┬───┬───────────►   another trunk
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from engram.locate.tracing.windows import Restoration, TraceSite


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of all samples that follow one restoration.

    Args:
        restoration: what is restored, clipped to what matters.
        joins: the block that the rows enter first (number of layers: only the final norm and unembedding).
        source: index of the group of which they are a copy when they join; `None` where they start from their own
            restored state.
    """

    restoration: Restoration
    joins: int
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Climb:
    """One pass up the network.

    Args:
        start: first position that runs.
        groups: the rows, in the order in which they join.
    """

    start: int
    groups: tuple[Group, ...]

    def row_blocks(self, n_layers: int) -> int:
        """Number of (group, block) pairs that are computed."""
        return sum(n_layers - group.joins for group in self.groups)

    @property
    def entry_block(self) -> int:
        """The first block that runs."""
        return self.groups[0].joins


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one pass may hold and what it costs, for deciding how to divide the work.

    Args:
        groups: for each number of positions that run (index; 0 unused) how many groups a pass may hold.
        seconds_per_block: fixed cost of running one block.
        seconds_per_position: cost of one position of one group in one block.
    """

    groups: Sequence[int]
    seconds_per_block: float
    seconds_per_position: float


def effective(restoration: Restoration, *, n_layers: int, last: int) -> Restoration | None:
    """Clip a restoration to the layers that can change the last position's logits; `None` where none can.

    In the last block only the last position's own outputs matter.
    """
    if restoration.position == last:
        return restoration
    high = min(restoration.high, n_layers - 1)
    return replace(restoration, high=high) if restoration.low < high else None


def plan_climbs(restorations: Iterable[Restoration], *, n_layers: int, length: int, limits: Limits) -> list[Climb]:
    """Divide restorations (distinct, already clipped) into passes.

    One token per pass needs the least arithmetic; several tokens per pass need fewer passes. Neighbouring tokens are
    merged while that is estimated to save time and the limits allow it.

    Args:
        restorations: what is restored.
        n_layers: number of layers.
        length: number of tokens of the prompt.
        limits: of one pass.
    """
    ordered = sorted(restorations, key=lambda each: each.position)
    by_token = {t: sorted(group) for t, group in groupby(ordered, lambda each: each.position)}
    parts: list[list[Climb]] = []
    merged: list[Restoration] = []
    for position in sorted(by_token, reverse=True):
        alone = _packed(by_token[position], position, n_layers, length, limits)
        together = _packed([*by_token[position], *merged], position, n_layers, length, limits)
        if merged and _seconds(together, n_layers, length, limits) < _seconds(
            [*alone, *parts[-1]], n_layers, length, limits
        ):
            parts[-1] = together
            merged = [*by_token[position], *merged]
        else:
            parts.append(alone)
            merged = list(by_token[position])
    return [climb for part in parts for climb in part]


def _seconds(climbs: Iterable[Climb], n_layers: int, length: int, limits: Limits) -> float:
    return sum(
        (n_layers - climb.entry_block) * limits.seconds_per_block
        + climb.row_blocks(n_layers) * (length - climb.start) * limits.seconds_per_position
        for climb in climbs
    )


def _packed(restorations: Sequence[Restoration], start: int, n_layers: int, length: int, limits: Limits) -> list[Climb]:
    """Fill passes with whole families; a family larger than a pass is divided, its trunk then runs twice."""
    room = max(1, limits.groups[length - start])
    packs: list[list[list[Restoration]]] = [[]]
    for family in _families(restorations):
        for begin in range(0, len(family), room):
            piece = family[begin : begin + room]
            if packs[-1] and sum(map(len, packs[-1])) + len(piece) > room:
                packs.append([])
            packs[-1].append(piece)
    return [Climb(start, _ordered(pack)) for pack in packs if pack]


def _families(restorations: Iterable[Restoration]) -> list[list[Restoration]]:
    """Return restorations that share site, token and lowest layer, the one that restores longest first."""

    def trunk(restoration: Restoration) -> tuple[int, TraceSite, int]:
        return restoration.low, restoration.site, restoration.position

    return [sorted(family, key=lambda c: -c.high) for _, family in groupby(sorted(restorations, key=trunk), trunk)]


def _ordered(families: Iterable[Sequence[Restoration]]) -> tuple[Group, ...]:
    """Put groups in the order in which they join, a trunk before its forks, and say which group each one copies."""
    joining: list[tuple[int, Restoration, Restoration | None]] = []
    for trunk, *forks in families:
        joining.append((trunk.low + 1, trunk, None))
        for fork in forks:
            same = fork.high == trunk.low + 1  # nothing more to restore: starts like the trunk, not from it
            joining.append((fork.high, fork, None if same else trunk))
    joining.sort(key=lambda item: item[0])
    place = {each: index for index, (_, each, _) in enumerate(joining)}
    return tuple(Group(each, joins, None if source is None else place[source]) for joins, each, source in joining)
