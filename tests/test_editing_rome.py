"""ROME equals the published code, keeps its promise W'k* = v*, and gives the same in every way it can be computed."""

from dataclasses import replace

import pytest
import tolerance
import torch
from families import FAMILIES, tiny

import engram
from edits import golden_fact, golden_json, golden_lm, golden_statistics, probabilities, unchanged, weights_of
from engram.editing import ROME
from engram.editing.parts.prompts import Wrap
from engram.editing.parts.published import untuned
from engram.editing.parts.targets import without_subject
from engram.errors import FactError, NumericalError, PromptTooLong, SettingError, TokenizerError
from engram.facts import Fact
from engram.models import LM
from engram.models.hooks import Site, record
from engram.stats import KeyStatistics

GOLDEN = golden_json("rome")
FACT = golden_fact(GOLDEN["edits"][1])


def code(**settings: object) -> ROME:
    return ROME(
        **{"preset": "code", "contexts": GOLDEN["contexts"], "covariance": golden_statistics(), "layer": 2, **settings}
    )


def identity(lm: LM, layer: int = 1) -> KeyStatistics:
    return KeyStatistics.of(lm, {layer: torch.eye(lm.d_mlp)})


@pytest.mark.parametrize("entry", GOLDEN["edits"], ids=lambda e: e["subject"])
def test_the_code_preset_equals_the_published_code(entry: dict) -> None:
    lm = golden_lm()
    before = weights_of(lm)
    assert torch.allclose(
        probabilities(lm, entry["queries"], entry["target"], entry["original"]),
        torch.tensor(entry["before"]),
        atol=tolerance.of_probability(lm),
    )
    edit = engram.edit(lm, golden_fact(entry), code(layer=entry["layer"]))
    losses = torch.tensor(edit.records[0].losses)
    assert (losses - torch.tensor(entry["losses"])).abs().max() < tolerance.of_losses(lm, losses)
    delta, wanted = (
        edit.delta(lm.mlp_out_name(entry["layer"])),
        torch.outer(torch.tensor(entry["u"]), torch.tensor(entry["v"])),
    )
    assert (delta - wanted).norm() < tolerance.of_descent(lm) * wanted.norm()
    assert edit.norm() == pytest.approx(entry["delta_norm"], rel=tolerance.of_descent(lm))
    with edit.applied(lm):
        after = probabilities(lm, entry["queries"], entry["target"], entry["original"])
    assert (after - torch.tensor(entry["after"])).abs().max() < tolerance.of_descent(lm)
    assert unchanged(lm, before)


def key_and_value(lm: LM, text: str, position: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    key, value = Site("key", layer), Site("mlp", layer)
    with torch.no_grad(), record(lm, [key, value]) as seen:
        lm.forward(lm.encode(text).ids)
    return seen[key][0, position], seen[value][0, position]


@pytest.mark.parametrize("preset", ["code", "rrome", "paper"])
def test_the_edited_weight_maps_the_key_to_the_value(preset: str) -> None:
    lm, contexts = golden_lm(), GOLDEN["contexts"]
    edit = code(preset=preset)(lm, [FACT])
    chosen = edit.records[0]
    pairs = [key_and_value(lm, c.replace("{}", FACT.text), _last_token(lm, c), 2) for c in contexts]
    average = torch.stack([k for k, _ in pairs]).mean(0)
    bare = pairs[0][0]
    key = bare if preset == "code" else average
    old = pairs[0][1]
    with torch.no_grad():
        new = key @ (lm.mlp_out(2).weight + edit.delta(lm.mlp_out_name(2))) + lm.mlp_out(2).bias
    assert chosen.numbers["value_norm"] == pytest.approx(float(old.norm()), rel=tolerance.of_pass(lm))
    found = new - old  # v* - v0 is what the descent found; it is small beside them
    rounding = tolerance.of_pass(lm) * float(old.norm() / found.norm())
    assert float(found.norm()) == pytest.approx(chosen.numbers["change_norm"], rel=rounding)


def _last_token(lm: LM, context: str) -> int:
    begin = context.index("{}") + FACT.subject_chars[0]
    return lm.encode(context.replace("{}", FACT.text)).span(0, begin, begin + len(FACT.subject))[-1]


@pytest.mark.parametrize(("family", "layer"), [*((family, 1) for family in sorted(FAMILIES)), ("gemma3_text", 0)])
def test_the_short_way_equals_whole_passes_in_every_family(family: str, layer: int) -> None:
    """At layer 0 of a model whose MLP's output is normed there is no state below to go on from."""
    lm = tiny(family)
    settings = {"layer": layer, "contexts": ["{}", "It is so. {}", "A b c d. {}"], "covariance": identity(lm, layer)}
    settings |= {"steps": 4, "lr": 0.05, "decay": 0.0, "stop": 0.0}
    facts = [Fact("Ann Bell", "{} lives in the city of", "Rome"), Fact("Bo", "It is said that {} plays", "chess today")]
    short, whole = ROME(**settings)(lm, facts), ROME(**settings, plain=True)(lm, facts)
    for a, b in zip(short.records, whole.records, strict=True):
        assert a.losses == pytest.approx(b.losses, abs=tolerance.of_losses(lm, b.losses))
    name = lm.mlp_out_name(layer)
    assert (short.delta(name) - whole.delta(name)).norm() < tolerance.of_descent(lm) * whole.delta(name).norm()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_facts_in_one_call_equal_facts_alone_then_written_in_sequence(family: str) -> None:
    lm = tiny(family)
    facts = [
        Fact("Ann Bell", "{} lives in the city of", "Rome"),
        Fact("Bo", "It is said that {} plays", "chess"),
        Fact("Cy Dow", "{} works in", "Oslo today"),
    ]
    method = ROME(layer=1, contexts=["{}", "It is so. {}"], covariance=identity(lm), steps=5, facts_per_batch=2)
    together, alone = method(lm, facts), [method(lm, [fact]) for fact in facts]
    assert together.facts == tuple(facts)
    for record_, single in zip(together.records, alone, strict=True):
        wanted = single.records[0].losses
        assert record_.losses == pytest.approx(wanted, abs=tolerance.of_losses(lm, wanted))
    first = alone[0].updates[lm.mlp_out_name(1)]
    update = together.updates[lm.mlp_out_name(1)]
    one = update.left[:, :1] @ update.right[:, :1].T
    assert (one - first.dense()).norm() < tolerance.of_descent(lm) * first.norm()
    weight = lm.mlp_out(1).weight.detach()
    weight = weight.T if lm.weight_is_transposed else weight
    delta = together.delta(lm.mlp_out_name(1))
    edited = weight + (delta.T if lm.weight_is_transposed else delta)
    keys, values = zip(*(_average(lm, fact, method) for fact in facts), strict=True)
    moved = edited @ keys[-1] - weight @ keys[-1]  # the last fact is exact whatever came before
    assert float(moved.norm()) > 0
    wanted = _delta_of(alone[-1], lm) @ keys[-1]
    assert (moved - wanted).norm() < tolerance.of_descent(lm) * wanted.norm()


def test_edits_made_together_are_those_made_alone() -> None:
    lm = tiny("gpt2")
    facts = [Fact("Ann Bell", "{} lives in the city of", "Rome"), Fact("Bo", "It is said that {} plays", "chess")]
    method = ROME(layer=1, contexts=["{}", "It is so. {}"], covariance=identity(lm), steps=5)
    name = lm.mlp_out_name(1)
    for each, fact in zip(method.each(lm, facts), facts, strict=True):
        alone = method(lm, [fact])
        assert each.facts == (fact,) and each.origins[0].contexts == alone.origins[0].contexts
        assert (each.delta(name) - alone.delta(name)).norm() < tolerance.of_descent(lm) * alone.norm()


def _average(lm: LM, fact: Fact, method: ROME) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = []
    for context in method.contexts or ():
        text = context.replace("{}", fact.text)
        begin = context.index("{}") + fact.subject_chars[0]
        position = lm.encode(text).span(0, begin, begin + len(fact.subject))[-1]
        pairs.append(key_and_value(lm, text, position, 1))
    return torch.stack([k for k, _ in pairs]).mean(0), torch.stack([v for _, v in pairs]).mean(0)


def _delta_of(edit: engram.Edit, lm: LM) -> torch.Tensor:
    delta = edit.delta(lm.mlp_out_name(1))
    return delta.T if lm.weight_is_transposed else delta


def test_a_fact_that_is_done_leaves_the_batch_and_keeps_its_value() -> None:
    lm = golden_lm()
    facts = [golden_fact(e) for e in GOLDEN["edits"][:3]]
    alone = [code(stop=1.7)(lm, [fact]) for fact in facts]
    together = code(stop=1.7)(lm, facts)
    lengths = [len(r.losses) for r in together.records]
    assert lengths == [len(e.records[0].losses) for e in alone] and len(set(lengths)) > 1
    for a, b in zip(together.records, alone, strict=True):
        assert a.stopped == b.records[0].stopped
        wanted = b.records[0].numbers["change_norm"]
        assert a.numbers["change_norm"] == pytest.approx(wanted, rel=tolerance.of_descent(lm))


def test_the_default_preset_stops_by_the_target_alone_and_the_published_code_by_the_total() -> None:
    lm, heavy = golden_lm(), {"decay": 1.0, "stop": 1.0}  # a penalty that keeps every total above the bound
    published, ours = (code(preset=preset, **heavy)(lm, [FACT]).records[0] for preset in ("code", "rrome"))
    assert published.stopped == "20 steps" and published.numbers["target_loss"] < 1 < published.losses[-1]
    assert ours.stopped == "target loss below 1" and ours.numbers["target_loss"] < 1 and len(ours.losses) < 20


def test_contexts_written_by_the_model_are_seeded_kept_and_reusable() -> None:
    lm = golden_lm()
    method = ROME(layer=2, covariance=golden_statistics(), steps=2)
    first, again = method(lm, [FACT]), method(lm, [FACT])
    contexts = first.origins[0].contexts
    assert len(contexts) == 21 and contexts[0] == "{}" and all(c.endswith(". {}") for c in contexts[1:])
    assert again.origins[0].contexts == contexts and again.digest == first.digest
    other = replace(method, seed=1)(lm, [FACT])
    assert other.origins[0].contexts != contexts
    given = replace(method, contexts=contexts)(lm, [FACT])
    assert given.digest == first.digest
    assert len(replace(method, preset="paper")(lm, [FACT]).origins[0].contexts) == 50


def test_erasing_returns_the_answer_to_what_it_is_without_the_subject() -> None:
    lm = golden_lm()
    fact = Fact(FACT.subject, FACT.prompt, original=FACT.original)
    ignorant = without_subject(lm, fact, Wrap(), seed=0)
    assert ignorant.sum() == pytest.approx(1, abs=tolerance.of_sum(ignorant.numel()))

    def distance() -> float:
        with torch.no_grad():
            said = lm.forward(lm.encode(fact.text).ids, keep=1)[0, -1].log_softmax(-1)
        return float((ignorant * (ignorant.log() - said)).sum())

    before = distance()
    edit = engram.edit(lm, fact, code(mode="erase"))
    assert edit.records[0].mode == "erase" and "without knowing the subject" in edit.describe()
    assert edit.records[0].losses[-1] < edit.records[0].losses[0]
    with edit.applied(lm):
        assert distance() < 0.3 * before
        assert probabilities(lm, [fact.text], "Delhi") < 0.6


def test_insertion_and_modification_are_told_apart() -> None:
    lm = golden_lm()
    assert code(steps=1)(lm, [FACT]).records[0].mode == "modify"
    bare = Fact(FACT.subject, FACT.prompt, FACT.target)
    assert code(steps=1)(lm, [bare]).records[0].mode == "insert"
    with pytest.raises(FactError, match="original"):
        code(mode="modify")(lm, [bare])


def test_what_the_model_says_already_is_left_alone_and_said() -> None:
    lm = golden_lm()
    known = Fact(FACT.subject, FACT.prompt, FACT.original)
    edit = engram.edit(lm, known, code())
    assert not edit.updates and "already" in edit.notes[0] and "already" in edit.describe()
    both = engram.edit(lm, [known, FACT], code(steps=2))
    assert both.updates and len(both.facts) == 2 and any("already" in note for note in both.notes)
    assert engram.edit(lm, known, code(steps=2), force=True).updates


def test_the_layer_is_chosen_aloud() -> None:
    lm = golden_lm()
    layer = int(untuned(lm, "rome")["layer"])
    edit = code(layer=None, steps=1)(lm, [FACT])
    assert edit.records[0].layers == (layer,)
    assert f"Layer {layer}: the rule for models that nobody has tuned" in edit.describe()


def test_a_chat_template_goes_around_the_prompt() -> None:
    lm = golden_lm()
    with pytest.raises(TokenizerError, match="chat template"):
        code(chat=True)(lm, [FACT])
    import copy

    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}Ask. {{ m.content }} Say.{% endfor %}"
    chat = LM(lm.model, tokenizer)
    edit = code(chat=True, steps=3)(chat, [FACT])
    shown = edit.records[0]
    assert shown.text == f"Ask. {FACT.text} Say."
    plain = code(steps=1)(lm, [FACT]).records[0]
    assert shown.token == plain.token and shown.position != plain.position


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_get_a_full_precision_edit(dtype: torch.dtype) -> None:
    lm = engram.load(golden_lm().name, device="cpu", dtype=dtype)
    settings = {"contexts": GOLDEN["contexts"][:4], "steps": 6, "covariance": golden_statistics()[2].moment}
    edit = code(**settings)(lm, [FACT])
    assert edit.delta(lm.mlp_out_name(2)).dtype == torch.float32
    reference = code(**settings)(golden_lm(), [FACT])
    difference = edit.delta(lm.mlp_out_name(2)) - reference.delta(lm.mlp_out_name(2))
    assert difference.norm() < 0.5 * reference.norm()
    before = probabilities(lm, [FACT.text], "Lima")
    with edit.applied(lm):
        assert probabilities(lm, [FACT.text], "Lima") > before + 0.3


def test_not_a_number_stops_with_the_step_named() -> None:
    lm = tiny("gpt2")
    fact = Fact("Ann", "{} lives in", "Rome")
    settings = {"layer": 1, "contexts": ["{}"], "covariance": identity(lm)}
    with pytest.raises(NumericalError, match="Step 2 of the search for a value"):
        ROME(**settings, lr=1e38, clamp=1e38)(lm, [fact])
    broken = torch.eye(lm.d_mlp)
    broken[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="statistics of layer 1"):
        ROME(**{**settings, "covariance": broken})(lm, [fact])
    lm.mlp_out(1).weight.data[0, 0], kept = float("inf"), lm.mlp_out(1).weight.data[0, 0].clone()
    try:
        with pytest.raises(NumericalError, match="layer 1|output before the edit"):
            ROME(**settings)(lm, [fact])
    finally:
        lm.mlp_out(1).weight.data[0, 0] = kept


BAD = [
    ({}, Fact("Ann", "{} lives in"), FactError, "no target"),
    ({}, Fact("Ann", "{} lives in", "  "), FactError, "no target"),
    ({}, Fact("Ann", "{} lives in " + "x " * 200, "Rome"), PromptTooLong, "positions"),
    ({"layer": 4}, None, SettingError, "0 to 3"),
    ({"layer": -1}, None, SettingError, "0 to 3"),
    ({"contexts": ["no place"]}, None, SettingError, "exactly one"),
    ({"covariance": torch.eye(3)}, None, SettingError, "shape"),
    ({"covariance": None}, None, SettingError, "corpus"),
]


def test_spaces_at_the_end_of_prompt_and_target_change_nothing() -> None:
    spaced = replace(FACT, prompt=f"{FACT.prompt}  ", target=f"{FACT.target} ")
    lm, method = golden_lm(), code(steps=3)
    plain, other = method(lm, [FACT]), method(lm, [spaced])
    assert torch.equal(plain.delta(lm.mlp_out_name(2)), other.delta(lm.mlp_out_name(2)))
    assert other.records[0].text == plain.records[0].text


@pytest.mark.parametrize(("settings", "fact", "error", "message"), BAD)
def test_bad_input_is_refused_with_a_sentence(settings: dict, fact: Fact | None, error: type, message: str) -> None:
    lm = tiny("gpt2")
    given = {"layer": 1, "contexts": ["{}"], "covariance": identity(lm), **settings}
    with pytest.raises(error, match=message):
        engram.edit(lm, fact or Fact("Ann", "{} lives in", "Rome"), ROME(**given))


@pytest.mark.parametrize("settings", [{"preset": "cod"}, {"steps": 0}, {"clamp": -1.0}, {"contexts": []}])
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(SettingError):
        ROME(**settings)


def test_methods_are_found_by_name() -> None:
    lm = tiny("gpt2")
    fact = Fact("Ann", "{} lives in", "Rome")
    edit = engram.edit(lm, fact, "rome", layer=1, contexts=["{}"], covariance=torch.eye(lm.d_mlp), steps=1)
    assert edit.origins[0].method == "rome"
    with pytest.raises(SettingError, match="Did you mean 'rome'"):
        engram.edit(lm, fact, "rom")
    with pytest.raises(SettingError, match="Did you mean 'layer'"):
        engram.edit(lm, fact, "rome", layr=1)
    with pytest.raises(SettingError, match="go into the method"):
        engram.edit(lm, fact, ROME(layer=1), steps=3)
    with pytest.raises(FactError, match="No fact"):
        engram.edit(lm, [])


def test_the_clamp_is_the_published_one_or_the_one_a_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2")
    fact = Fact("Ann Bell", "{} lives in the city of", "Rome")
    method = ROME(layer=1, contexts=["{}"], covariance=identity(lm), steps=3)

    def clamp(of: ROME) -> float:
        return of(lm, [fact]).origins[0].settings["clamp"]

    assert clamp(method) == 4.0
    monkeypatch.setattr(lm.config, "engram_edit_clamp", 8.0, raising=False)
    assert clamp(method) == 8.0
    assert clamp(replace(method, clamp=2.0)) == 2.0
    assert clamp(replace(method, preset="paper")) == 4.0
    monkeypatch.setattr(lm.config, "engram_edit_clamp", "wide")
    assert clamp(method) == 4.0
