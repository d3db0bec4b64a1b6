"""The plan of the fast path: every restoration in one row, no row twice, nothing that cannot matter."""

from hypothesis import given
from hypothesis import strategies as st

from engram.locate.tracing.staircase import Climb, Limits, effective, plan_climbs
from engram.locate.tracing.windows import Restoration, TraceSite, window_bounds

LAYERS, LENGTH = 12, 9


def restorations(site: TraceSite, window: int, first: int = 1) -> set[Restoration]:
    found = set[Restoration]()
    for position in range(first, LENGTH):
        for layer in range(LAYERS):
            low, high = window_bounds(layer, window=window, n_layers=LAYERS)
            restoration = effective(Restoration(site, position, low, high), n_layers=LAYERS, last=LENGTH - 1)
            found |= {restoration} if restoration else set()
    return found


def plan(wanted: set[Restoration], *, groups: int = 1000, per_block: float = 0.0) -> list[Climb]:
    limits = Limits(groups=[groups] * (LENGTH + 1), seconds_per_block=per_block, seconds_per_position=1.0)
    return plan_climbs(wanted, n_layers=LAYERS, length=LENGTH, limits=limits)


def simulated(climb: Climb) -> dict[Restoration, tuple[int, int, int]]:
    """Follow each row as a climb would: which layers were restored at which token when it arrives?"""
    rows: dict[int, tuple[int, int, int]] = {}
    for layer in range(1, LAYERS + 1):
        for index, group in enumerate(climb.groups):
            if group.joins == layer:
                start = (group.restoration.position, group.restoration.low, group.restoration.low + 1)
                rows[index] = start if group.source is None else rows[group.source]
            elif index in rows and layer <= group.restoration.high:
                rows[index] = (*rows[index][:2], layer)
    return {group.restoration: rows[index] for index, group in enumerate(climb.groups)}


@given(
    window=st.integers(1, 14),
    groups=st.integers(1, 30),
    per_block=st.sampled_from([0.0, 50.0, 1e9]),
)
def test_every_row_restores_exactly_its_cell(window: int, groups: int, per_block: float) -> None:
    wanted = restorations("mlp", window)
    climbs = plan(wanted, groups=groups, per_block=per_block)
    found = [group.restoration for climb in climbs for group in climb.groups]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    for climb in climbs:
        assert len(climb.groups) <= groups
        assert all(restoration.position >= climb.start for restoration in simulated(climb))
        assert [g.joins for g in climb.groups] == sorted(g.joins for g in climb.groups)
        for restoration, restored in simulated(climb).items():
            assert restored == (restoration.position, restoration.low, restoration.high)


def test_one_token_per_pass_when_passes_cost_nothing_and_one_pass_when_they_cost_much() -> None:
    wanted = restorations("state", 1)
    assert len(plan(wanted)) == LENGTH - 1
    assert len(plan(wanted, per_block=1e9)) == 1


def test_the_state_grid_needs_one_row_per_layer_and_no_block_twice() -> None:
    last, before, *_ = plan(restorations("state", 1))
    assert before.row_blocks(LAYERS) == sum(range(1, LAYERS))  # states of layers 0..10 join at 1..11
    assert last.row_blocks(LAYERS) == sum(range(LAYERS))  # and that of layer 11 only at the final norm


def test_windows_share_rows() -> None:
    shared = plan(restorations("mlp", 10))[1].row_blocks(LAYERS)
    alone = sum(LAYERS - c.low - 1 for c in restorations("mlp", 10) if c.position == LENGTH - 2)
    assert shared < 0.85 * alone


def test_nothing_is_run_that_cannot_reach_the_answer() -> None:
    assert effective(Restoration("state", 3, LAYERS - 1, LAYERS), n_layers=LAYERS, last=8) is None
    assert effective(Restoration("mlp", 3, 5, LAYERS), n_layers=LAYERS, last=8) == Restoration("mlp", 3, 5, LAYERS - 1)
    assert effective(Restoration("mlp", 8, 5, LAYERS), n_layers=LAYERS, last=8) == Restoration("mlp", 8, 5, LAYERS)
    assert plan(set()) == []
