"""Edits on models: exactly undone whatever happens, in any order; arithmetic; refusals that leave the weights alone."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import tolerance
import torch
from families import FAMILIES, golden_tokenizer, tiny, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from edits import random_edit, unchanged, weights_of
from engram.editing import Dense, Edit, FactRecord, LowRank, Update
from engram.editing.changes.weight import combined
from engram.errors import EditError, EditMismatch, NumericalError
from engram.facts import Fact
from engram.models import LM

TEXT = "Ann lives in the city of"


def own(family: str = "gpt2", **changes: object) -> LM:
    """A model that a test may change."""
    return LM(tiny_model(family, **changes), golden_tokenizer(), name=f"own-{family}")


def logits(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.forward(lm.encode([TEXT, TEXT + " the"], padding_side="left").ids)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_beside_the_weights_and_in_them_is_the_same(family: str) -> None:
    lm = own(family)
    before, plain = weights_of(lm), logits(lm)
    has_bias = getattr(lm.mlp_out(1), "bias", None) is not None
    edit = random_edit(lm, bias=has_bias)
    with edit.applied(lm):
        beside = logits(lm)
        assert unchanged(lm, before)
    assert torch.equal(logits(lm), plain)
    edit.apply_(lm)
    inside = logits(lm)
    assert not unchanged(lm, before)
    edit.revert_(lm)
    assert unchanged(lm, before) and torch.equal(logits(lm), plain)
    assert (inside - plain).abs().max() > 0.01
    assert torch.allclose(beside, inside, atol=2 * tolerance.of_logits(lm))  # the edit is one more sum


def test_the_model_is_as_before_after_an_exception() -> None:
    lm = own()
    before, plain = weights_of(lm), logits(lm)
    with pytest.raises(ZeroDivisionError), random_edit(lm).applied(lm):
        raise ZeroDivisionError
    assert unchanged(lm, before) and torch.equal(logits(lm), plain)


def test_edits_nest_and_leave_in_any_order() -> None:
    lm = own()
    plain = logits(lm)
    a, b = random_edit(lm, seed=1), random_edit(lm, 2, seed=2)
    with b.applied(lm):
        only_b = logits(lm)
    first, second = a.applied(lm), b.applied(lm)
    first.__enter__()
    second.__enter__()
    both = logits(lm)
    first.__exit__(None, None, None)
    assert torch.equal(logits(lm), only_b)
    second.__exit__(None, None, None)
    assert torch.equal(logits(lm), plain)
    with (a + b).applied(lm):
        assert torch.allclose(logits(lm), both, atol=2 * tolerance.of_logits(lm))


@given(order=st.permutations([0, 1, 2]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_applied_edits_are_taken_back_bit_for_bit_in_any_order(order: list[int], dtype: torch.dtype) -> None:
    lm = tiny("gpt2")
    kept = {name: p.data for name, p in lm.model.named_parameters()}
    try:
        lm.model.to(dtype)
        before = weights_of(lm)
        edits = [random_edit(lm, 1, seed=1), random_edit(lm, 1, seed=2, bias=True), random_edit(lm, 2, seed=3)]
        for edit in edits:
            edit.apply_(lm)
        for index in order:
            edits[index].revert_(lm)
        assert unchanged(lm, before) and lm.overwritten == {}
    finally:
        for name, p in lm.model.named_parameters():
            p.data = kept[name]


def test_what_is_left_after_one_revert_is_what_the_others_alone_give() -> None:
    lm, other = own(), own()
    a, b = random_edit(lm, seed=1), random_edit(lm, seed=2)
    a.apply_(lm)
    b.apply_(lm)
    a.revert_(lm)
    b.apply_(other)
    assert unchanged(lm, weights_of(other))


def test_foreign_changes_are_noticed_and_nothing_is_touched() -> None:
    lm = own()
    edit, more = random_edit(lm, bias=True), random_edit(lm, seed=5)
    edit.apply_(lm)
    with torch.no_grad():
        lm.mlp_out(1).weight[3, 4] += 1
    changed = weights_of(lm)
    for action in (edit.revert_, more.apply_):
        with pytest.raises(EditMismatch, match="something else changed it"):
            action(lm)
        assert unchanged(lm, changed)


def test_an_edit_is_applied_once_and_reverted_only_when_applied() -> None:
    lm = own()
    edit = random_edit(lm)
    with pytest.raises(EditError, match="not applied"):
        edit.revert_(lm)
    edit.apply_(lm)
    with pytest.raises(EditError, match="2 \\* edit"):
        edit.apply_(lm)


def test_an_edit_for_another_model_is_refused() -> None:
    lm, other = own(), own("llama")
    edit = random_edit(lm)
    for action in (edit.apply_, lambda m: edit.applied(m).__enter__(), edit.require_fit):
        with pytest.raises(EditMismatch, match="fingerprint"):
            action(other)
    name = lm.mlp_out_name(1)
    wrong = Edit.of(lm, {name: LowRank(torch.ones(3, 1), torch.ones(4, 1))}, ())
    with pytest.raises(EditMismatch, match="shape"):
        wrong.apply_(lm)
    with pytest.raises(EditMismatch, match="does not have"):
        Edit.of(lm, {"transformer.h.9.weight": Dense(torch.ones(2))}, ()).apply_(lm)
    with pytest.raises(EditError, match="linear"):
        Edit.of(lm, {"transformer.ln_f.weight": Dense(torch.ones(32))}, ()).apply_(lm)


def test_an_overflow_writes_nothing() -> None:
    lm = own()
    lm.model.half()
    before = weights_of(lm)
    with pytest.raises(NumericalError, match="nothing was written"):
        random_edit(lm, size=1e3).apply_(lm)
    assert unchanged(lm, before) and lm.overwritten == {}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_arithmetic_is_that_of_the_matrices(family: str) -> None:
    lm = tiny(family)
    a, b = random_edit(lm, seed=1, bias=family == "gpt2"), random_edit(lm, seed=2)
    name = lm.mlp_out_name(1)
    mixed = 0.5 * a + b * 2
    assert torch.allclose(
        mixed.delta(name), 0.5 * a.delta(name) + 2 * b.delta(name), atol=tolerance.of_sum(4, mixed.norm(name))
    )
    assert mixed.delta(name).shape == lm.mlp_out(1).weight.shape
    assert isinstance(mixed.updates[name], LowRank) and mixed.updates[name].rank == 4
    total = math.sqrt(sum(float(mixed.delta(n).norm()) ** 2 for n in mixed.updates))
    entries = mixed.delta(name).numel()
    assert mixed.norm() == pytest.approx(total, rel=tolerance.of_sum(entries))
    assert mixed.norm(name) == pytest.approx(float(mixed.delta(name).norm()), rel=tolerance.of_sum(entries))
    assert [o.factor for o in mixed.origins] == [0.5, 2] and len(mixed.facts) == 2
    assert (0 * a).norm() == 0
    with pytest.raises(EditMismatch, match="two models"):
        _ = a + random_edit(tiny("opt"))
    with pytest.raises(EditError, match="does not change"):
        a.delta("nothing")


def test_the_description_names_what_matters() -> None:
    text = random_edit(tiny("gpt2")).describe()
    for part in ("tiny-gpt2", "rome (code)", "'Ann lives in' -> 'Rome'", "token 'Ann' (0)", "2.000 -> 1.000", "rank 2"):
        assert part in text


shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


@given(shape=shapes, dense=st.booleans(), transposed=st.booleans())
def test_updates_agree_with_their_matrices(shape: tuple[int, ...], dense: bool, transposed: bool) -> None:
    rows, cols, r1, r2 = shape
    draw = torch.Generator().manual_seed(sum(shape))
    a: Update = LowRank(torch.randn(rows, r1, generator=draw), torch.randn(cols, r1, generator=draw))
    b: Update = LowRank(torch.randn(rows, r2, generator=draw), torch.randn(cols, r2, generator=draw))
    b = Dense(b.dense()) if dense else b
    both = replace(combined(a, b), transposed=transposed)
    size = float(a.dense().norm() + b.dense().norm())  # of what is added, which may cancel
    assert torch.allclose(both.dense(), a.dense() + b.dense(), atol=tolerance.of_sum(r1 + r2, size))
    assert both.norm() == pytest.approx(float(both.dense().norm()), abs=tolerance.of_sum(rows * cols, size))
    inputs = torch.randn(2, 3, rows if transposed else cols, generator=draw)
    matrix = both.dense() if transposed else both.dense().T
    assert torch.allclose(
        both.added(inputs),
        inputs @ matrix,
        atol=tolerance.of_sum(rows * cols, size * float(inputs.norm())),
    )


def test_updates_that_do_not_match_are_refused() -> None:
    with pytest.raises(EditError, match="ranks"):
        LowRank(torch.ones(2, 1), torch.ones(3, 2))
    with pytest.raises(EditError, match="shapes"):
        combined(Dense(torch.ones(2)), Dense(torch.ones(3)))


def test_a_sum_of_many_low_rank_changes_does_not_outgrow_the_weight() -> None:
    lm = tiny("gpt2")
    name = lm.mlp_out_name(1)  # 128 x 32
    several = [random_edit(lm, seed=i, rank=1) for i in range(40)]
    whole = sum(several[1:], start=several[0])
    assert isinstance(whole.updates[name], Dense)
    assert isinstance(sum(several[1:16], start=several[0]).updates[name], LowRank)
    total = torch.stack([edit.delta(name) for edit in several]).sum(0)
    assert torch.allclose(whole.delta(name), total, atol=tolerance.of_sum(40, 40 * float(several[0].norm())))


def test_an_edit_is_true_where_there_is_something_to_do() -> None:
    lm = tiny("gpt2")
    assert random_edit(lm) and not Edit.of(lm, {}) and not Edit.of(lm, ())
    (change,) = random_edit(lm).changes
    assert Edit.of(lm, [change]).digest == random_edit(lm).digest


def test_orientation_belongs_to_the_parameter() -> None:
    lm = tiny("gpt2")
    head, inside = Edit.of(lm, {"lm_head.weight": LowRank(torch.ones(1024, 1), torch.ones(32, 1))}), random_edit(lm)
    whole = head + inside
    assert {name: change.transposed for name, change in whole.updates.items()} == {
        "lm_head.weight": False,
        lm.mlp_out_name(1): True,
    }
    turned = replace(head, changes=(replace(head.updates["lm_head.weight"], transposed=True),))
    with pytest.raises(EditMismatch, match=r"\[out, in\]"):
        turned.require_fit(lm)


def test_the_digest_tells_apart_what_a_float_cannot() -> None:
    lm = tiny("gpt2")
    (change,) = random_edit(lm).changes
    wide = replace(change, left=change.left.double())
    assert Edit.of(lm, [wide]).digest != Edit.of(lm, [replace(wide, left=wide.left + 1e-13)]).digest
    assert Edit.of(lm, [replace(change, left=change.left.bfloat16())]).digest != Edit.of(lm, [change]).digest


ANN = Fact("Ann", "{} lives in", "Rome")


def written(lm: LM, seed: int, *facts: Fact, mode: Literal["erase", "modify"] = "modify") -> Edit:
    edit = random_edit(lm, seed=seed, size=0.01)
    records = tuple(FactRecord(fact=fact, mode=mode) for fact in facts)
    return replace(edit, origins=(replace(edit.origins[0], facts=records),))


def test_two_answers_to_one_prompt_are_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    lm = own()
    rome, tokyo = (written(lm, i, ANN.with_target(city)) for i, city in enumerate(("Rome", "Tokyo")))
    other = written(lm, 2, Fact("Bob", "{} lives in", "Oslo"))
    says = "after 'Ann lives in' they write 'Rome' and 'Tokyo'"
    assert not (rome + other).notes and not (rome + rome).notes and not caplog.records
    both = rome + tokyo
    assert says in both.notes[0] and says in both.describe()
    assert says in caplog.text
    assert not (rome + (-1) * tokyo).notes  # taken away, not written
    erased = rome + written(lm, 3, ANN, mode="erase")
    assert "'Rome' and what it would say without knowing" in erased.notes[0]


def test_edits_that_act_at_once_are_remarked_on_once(caplog: pytest.LogCaptureFixture) -> None:
    lm = own()
    before = weights_of(lm)
    rome, tokyo = (written(lm, i, ANN.with_target(city)) for i, city in enumerate(("Rome", "Tokyo")))
    with rome.applied(lm), rome.applied(lm):
        assert not caplog.records
    rome.apply_(lm)
    for _ in range(2):
        with tokyo.applied(lm):
            assert len(caplog.records) == 1
    tokyo.apply_(lm)
    rome.revert_(lm)
    assert lm.acting == [tokyo]
    tokyo.revert_(lm)
    with tokyo.applied(lm):
        pass
    assert (lm.acting, len(caplog.records)) == ([], 1)
    assert unchanged(lm, before)
