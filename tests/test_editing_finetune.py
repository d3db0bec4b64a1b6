"""FT and FT+L equal the published code in its preset, and score each target token in its place by default."""

import pytest
import tolerance
import torch
from families import FAMILIES, tiny

import engram
from edits import golden_fact, golden_json, golden_lm, probabilities, unchanged, weights_of
from engram.editing import FT, FTL
from engram.errors import NumericalError, SettingError
from engram.facts import Fact


@pytest.mark.parametrize("entry", golden_json("finetune"), ids=lambda e: f"{e['subject']} {e['norm_constraint']}")
def test_the_published_preset_equals_the_published_code(entry: dict) -> None:
    lm, bound = golden_lm(), entry["norm_constraint"]
    found = tolerance.of_descent(lm)
    before = weights_of(lm)
    method = (
        FTL(layer=entry["layer"], preset="published", bound=bound)
        if bound
        else FT(layer=entry["layer"], preset="published")
    )
    edit = engram.edit(lm, golden_fact(entry), method)
    assert list(edit.updates) == entry["parameters"] and edit.origins[0].method == ("ft-l" if bound else "ft")
    for name in entry["parameters"]:
        assert edit.norm(name) == pytest.approx(entry["delta_norms"][name], rel=found)
        assert float(edit.delta(name).abs().max()) == pytest.approx(entry["delta_max"][name], rel=found)
    prompt = golden_fact(entry).text
    assert probabilities(lm, [prompt], entry["target"], entry["original"])[0].tolist() == pytest.approx(
        entry["before"], abs=tolerance.of_probability(lm)
    )
    with edit.applied(lm):
        after = probabilities(lm, [prompt], entry["target"], entry["original"])[0]
    assert after.tolist() == pytest.approx(entry["after"], abs=found)
    assert unchanged(lm, before)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fine_tuning_teaches_every_family_a_target_of_several_tokens(family: str) -> None:
    lm = tiny(family)
    before = weights_of(lm)
    facts = [Fact("Ann Bell", "{} lives in", "Rome"), Fact("Bo", "It is said that {} plays", "chess today")]
    edit = FT(layer=1, lr=0.05, steps=12, facts_per_batch=1)(lm, facts)
    assert all(r.losses[-1] < r.losses[0] for r in edit.records)
    for fact, shown in zip(facts, edit.records, strict=True):
        assert shown.losses[0] == pytest.approx(float(lm.score(fact.text, [fact.target])), rel=0.2) or fact is facts[1]
    with edit.applied(lm):
        after = lm.score([f.text for f in facts], [[f.target] for f in facts])
    assert (after < lm.score([f.text for f in facts], [[f.target] for f in facts])).all()
    assert unchanged(lm, before)


def test_one_step_equals_a_plain_optimiser_on_the_weights() -> None:
    """An independent computation: Adam on the model's own weight and bias."""
    import copy

    lm = golden_lm()
    fact = Fact("Zuholpe Castle", "{} is situated in", "Lima Rome")
    edit = FT(layer=3, steps=3, lr=1e-3, stop=1e-9)(lm, [fact])
    model = copy.deepcopy(lm.model)
    projection = model.transformer.h[3].mlp.c_proj
    adam = torch.optim.Adam([projection.weight, projection.bias], lr=1e-3)
    ids = lm.encode(fact.text + " Lima Rome").ids
    start = lm.encode(fact.text).ids.shape[1]
    for loss in edit.records[0].losses:
        adam.zero_grad()
        logp = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        nll = -logp.gather(1, ids[0, start:, None]).mean()
        assert loss == pytest.approx(nll.item(), abs=tolerance.of_losses(lm, edit.records[0].losses))
        nll.backward()
        adam.step()
    delta = projection.weight.detach() - lm.mlp_out(3).weight.detach()
    assert (edit.delta(lm.mlp_out_name(3)) - delta).norm() < tolerance.of_descent(lm) * delta.norm()


def test_the_bound_holds_for_every_entry() -> None:
    lm = tiny("llama")
    edit = FTL(bound=1e-3, lr=0.1, steps=3)(lm, [Fact("Ann", "{} lives in", "Rome")])
    assert edit.records[0].layers == (0,)
    assert all(float(edit.delta(name).abs().max()) <= 1.0001e-3 for name in edit.updates)


def test_bad_settings_and_numbers_stop() -> None:
    for settings in ({"preset": "x"}, {"steps": 0}, {"bound": -1.0}, {"mode": "erase"}):
        with pytest.raises(SettingError):
            FT(**settings)
    with pytest.raises(SettingError, match="0 to 3"):
        FT(layer=9)(tiny("gpt2"), [Fact("Ann", "{} lives in", "Rome")])
    with pytest.raises(NumericalError, match="Step 2 of fine-tuning"):
        FT(layer=1, lr=1e30)(tiny("gpt2"), [Fact("Ann", "{} lives in", "Rome")])
