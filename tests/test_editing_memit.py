"""MEMIT equals the published code and solves what it says it solves; its facts meet in the solution alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tolerance
import torch
from families import tiny
from safetensors.torch import load_file

import engram
from edits import golden_fact, golden_json, golden_lm, golden_statistics, probabilities, unchanged, weights_of
from engram.editing import MEMIT, ROME
from engram.editing.changes import Dense, LowRank
from engram.editing.parts.contexts import sample_contexts, shares
from engram.editing.parts.lookups import lookups
from engram.editing.parts.solving import oriented, solve
from engram.errors import NumericalError, SettingError
from engram.facts import Fact
from engram.models.hooks import Site
from engram.stats import KeyStatistics

FACTS = [golden_fact(entry) for entry in golden_json("rome")["edits"][:3]]
CONTEXTS = ["{}", "It is so. {}", "They said it. {}"]


def moments(layers: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """C as the published code keeps it: in fp32."""
    return {layer: golden_statistics()[layer].moment.float() for layer in layers}


def memit(**settings: object) -> MEMIT:
    layers = settings.get("layers", (1, 2))
    assert isinstance(layers, tuple)
    return MEMIT(**{"contexts": CONTEXTS, "covariance": moments(layers), "layers": layers, "weight": 6.0, **settings})


@pytest.mark.parametrize("batch", ["A", "B"])
def test_a_batch_equals_the_published_code(golden: Path, batch: str) -> None:
    lm, document = golden_lm(), json.loads((golden / "memit.json").read_text(encoding="utf-8"))
    entry, arrays = document["batches"][batch], load_file(golden / "memit.safetensors")
    settings, layers = entry["hparams"], tuple(entry["layers"])
    method = memit(
        layers=layers,
        weight=settings["mom2_update_weight"],
        steps=settings["v_num_grad_steps"],
        lr=settings["v_lr"],
        decay=settings["v_weight_decay"],
        kl=settings["kl_factor"],
        clamp=settings["clamp_norm_factor"],
        contexts=document["contexts"],
    )
    before = weights_of(lm)
    edit = method(lm, [golden_fact(fact) for fact in entry["facts"]])
    assert unchanged(lm, before)
    for record, fact in zip(edit.records, entry["facts"], strict=True):
        losses, wanted = torch.tensor(record.losses), torch.tensor(fact["losses"])[:, 0]
        assert (losses - wanted).abs().max() < tolerance.of_losses(lm, wanted)
    for layer in layers:
        name = lm.mlp_out_name(layer)
        wanted = arrays[f"{batch}.delta.{name}"]
        assert (edit.delta(name) - wanted).norm() < tolerance.of_descent(lm) * wanted.norm()
    with edit.applied(lm):
        for fact in entry["facts"]:
            after = probabilities(lm, fact["queries"], fact["target"], fact["original"])
            assert (after - torch.tensor(fact["after"])).abs().max() < tolerance.of_descent(lm)


def test_the_facts_move_their_states_by_the_shares_of_the_layers() -> None:
    lm = golden_lm()
    edit = memit(weight=1e-6)(lm, FACTS)  # ordinary text counts nothing: the keys reach their values
    bare = lookups(lm, FACTS, contexts=["{}"])
    with memit(weight=1e-6, contexts=["{}"])(lm, FACTS).applied(lm):
        moved = bare.mean(lm, Site("state", 2))
    old = bare.mean(lm, Site("state", 2))
    found = [record.numbers["change_norm"] for record in memit(contexts=["{}"])(lm, FACTS).records]
    assert (moved - old).norm(dim=1).tolist() == pytest.approx(found, rel=0.02)
    assert edit.records[0].layers == (1, 2) and set(edit.updates) == {lm.mlp_out_name(1), lm.mlp_out_name(2)}


def test_one_fact_in_one_layer_goes_the_way_of_rome_shortened_by_its_share() -> None:
    lm, weight = golden_lm(), 5.0
    edit = memit(layers=(2,), weight=weight, contexts=["{}"])(lm, FACTS[:1])
    rome = ROME(preset="code", layer=2, contexts=["{}"], covariance=moments((2,)))(lm, FACTS[:1])
    ours, theirs = (each.delta(lm.mlp_out_name(2)).double() for each in (edit, rome))
    key = lookups(lm, FACTS[:1]).mean(lm, Site("key", 2)).double()
    direction = KeyStatistics.of(lm, moments((2,))).solve(2, key)
    assert torch.linalg.matrix_rank(ours, rtol=1e-4) == 1
    for change in (ours, theirs):  # rows along C⁻¹k, in [in, out]
        left = change @ change.T
        part = (direction @ left @ direction.T) / (direction.square().sum() * left.trace())
        assert float(part) == pytest.approx(1, abs=1e-4)
    share = float(direction @ key.T) / (weight + float(direction @ key.T))
    assert float((key @ ours).norm()) == pytest.approx(share * edit.records[0].numbers["change_norm"], rel=1e-3)


@pytest.mark.parametrize("count", [5, 40])
def test_as_many_unknowns_as_facts_or_as_keys_are_wide_give_the_same(count: int) -> None:
    lm, draw = tiny("llama"), torch.Generator().manual_seed(0)
    text = torch.randn(500, lm.d_mlp, generator=draw)
    counted = KeyStatistics.of(lm, {1: text.T @ text / 500})
    keys, wanted = (torch.randn(count, width, generator=draw) for width in (lm.d_mlp, lm.d_model))
    changes = [solve(keys, wanted, counted, 1, 3.0, by_facts=way).dense() for way in (True, False)]
    k, r, c = keys.double(), wanted.double(), counted[1].moment.double()
    plain = r.T @ k @ torch.linalg.inv(3.0 * c + k.T @ k)
    for change in changes:
        assert (change - plain).norm() < 1e-5 * plain.norm()
    order = torch.randperm(count, generator=draw)
    again = solve(keys[order], wanted[order], counted, 1, 3.0).dense()
    assert (again - plain).norm() < 1e-5 * plain.norm()


def test_a_repeated_fact_counts_twice_and_impossible_ones_are_refused() -> None:
    lm = tiny("llama")
    counted = KeyStatistics.of(lm, {1: torch.eye(lm.d_mlp)})
    keys, wanted = torch.ones(2, lm.d_mlp), torch.tensor([[1.0] * lm.d_model, [3.0] * lm.d_model])
    change = solve(keys, wanted, counted, 1, 2.0)
    mean = solve(keys[:1], wanted.mean(0, keepdim=True), counted, 1, 1.0)
    assert torch.allclose(change.dense(), mean.dense(), atol=1e-6)  # equal keys act as their mean, twice as heavy
    with pytest.raises(NumericalError, match="same key"):
        solve(keys, wanted, counted, 1, 0.0)
    with pytest.raises(NumericalError):
        solve(keys * torch.nan, wanted, counted, 1, 1.0)


def test_a_change_is_kept_as_factors_or_as_a_matrix_whichever_is_smaller() -> None:
    lm = tiny("gpt2")
    counted = KeyStatistics.of(lm, {1: torch.eye(lm.d_mlp)})
    draw = torch.Generator().manual_seed(1)
    for count, kind in ((2, LowRank), (lm.d_mlp, Dense)):
        keys, wanted = (torch.randn(count, width, generator=draw) for width in (lm.d_mlp, lm.d_model))
        change = oriented(lm, solve(keys, wanted, counted, 1, 1.0))
        assert isinstance(change, kind) and change.shape == tuple(lm.mlp_out(1).weight.shape)


def test_it_goes_on_from_another_edit_which_stays_as_it_was() -> None:
    lm, method = golden_lm(), memit(steps=8)
    first = method(lm, FACTS[:1])
    digest = first.digest
    both = engram.edit(lm, FACTS[1:], method, onto=first, verify=False, force=True)
    assert first.digest == digest and both.facts == tuple(FACTS)
    with first.applied(lm):
        second = method(lm, FACTS[1:])
    name = lm.mlp_out_name(2)
    assert torch.allclose(both.delta(name), (first + second).delta(name), atol=1e-6)


def test_the_paper_and_the_code_differ_in_the_penalty() -> None:
    lm = golden_lm()
    losses = {name: memit(preset=name, steps=4)(lm, FACTS[:1]).records[0].losses for name in ("code", "paper")}
    assert losses["code"][0] == losses["paper"][0] and losses["code"][-1] != losses["paper"][-1]


def test_contexts_count_by_group_and_the_model_writes_them_from_five_words() -> None:
    assert shares(["{}", "a {}", "b {}"]) == (0.5, 0.25, 0.25)
    assert shares([["{}"], ["a {}", "b {}"], ["c {}"]]) == pytest.approx((1 / 3, 1 / 6, 1 / 6, 1 / 3))
    assert shares(["a {}", "b {}"]) == (0.5, 0.5)
    rule = MEMIT.presets["code"]
    texts = sample_contexts(golden_lm(), rule.lengths, starts=rule.starts)
    assert texts[0] == "{}" and len(texts) == 6
    assert all(text.startswith(word) for text, word in zip(texts[1:], rule.starts, strict=True))


def test_layers_are_chosen_aloud_and_bad_ones_refused() -> None:
    lm = golden_lm()
    made, notes = MEMIT().settled(lm)
    assert made.layers == (1, 2) and made.weight == lm.d_mlp and made.clamp == 0.75
    assert notes[0].startswith("Layers 1-2") and "nobody has tuned" in notes[0] and "engram tune" not in notes[0]
    with pytest.raises(SettingError, match="counted 0 to 7"):
        MEMIT(layers=(2, 8)).settled(lm)
    with pytest.raises(SettingError, match="layers"):
        MEMIT(layers=()).settled(lm)
    with pytest.raises(SettingError, match="positive"):
        MEMIT(weight=0.0)
    assert replace(made, layers=(3, 2)).choice(lm).layers == (2, 3)


def test_a_config_may_name_layers_and_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2")
    monkeypatch.setattr(lm.config, "engram_memit_layers", [1, 2, 3], raising=False)
    monkeypatch.setattr(lm.config, "engram_memit_weight", 7.5, raising=False)
    made, notes = MEMIT().settled(lm)
    assert made.layers == (1, 2, 3) and made.weight == 7.5
    assert notes[0] == "Layers 1-3 and weight 7.5: named in the model's config."
    monkeypatch.setattr(lm.config, "engram_memit_layers", [1, 4])
    assert MEMIT().settled(lm)[0].layers == (1,)


def test_it_writes_in_a_family_whose_weights_lie_the_other_way() -> None:
    lm = tiny("llama")
    facts = [Fact("Ann Bell", "{} lives in the city of", "Rome"), Fact("Bo", "It is said that {} plays", "chess today")]
    method = MEMIT(layers=(1, 2), contexts=["{}"], covariance=torch.eye(lm.d_mlp), weight=1e-3, steps=8, lr=0.1)
    edit, nll = method(lm, facts), []
    for there in (False, True):
        prompts, targets = [fact.text for fact in facts], [[str(fact.target)] for fact in facts]
        if there:
            with edit.applied(lm):
                nll.append(lm.score(prompts, targets).sum())
        else:
            nll.append(lm.score(prompts, targets).sum())
    assert nll[1] < nll[0]
