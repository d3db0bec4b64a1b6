"""`check`: answers and probabilities are the model's, before is without the edit and after is with it."""

import json

import pytest
import tolerance
import torch

from edits import golden_fact, golden_json, golden_lm
from engram.editing import Edit, FactRecord, LowRank, Origin, check
from engram.editing.answers import Answer, Question, ask, percent, phrase, weigh
from engram.editing.check import answers
from engram.editing.drawing import drawn, shortened
from engram.editing.probes import cases_for, completed, world_fact
from engram.errors import FactError
from engram.facts import Case, Fact
from engram.mini.world import load_world

FACT = Fact("John Holzu", "{} comes from", "Vienna", "Denver")


@pytest.fixture(scope="module")
def edit() -> Edit:
    """The published code's edit of the golden model: John Holzu comes from Vienna."""
    lm, entry = golden_lm(), golden_json("rome")["edits"][0]
    assert golden_fact(entry) == FACT
    update = LowRank(torch.tensor(entry["u"])[:, None], torch.tensor(entry["v"])[:, None])
    origin = Origin(method="rome", settings={}, facts=(FactRecord(fact=FACT, text=FACT.text),))
    return Edit.of(lm, {lm.mlp_out_name(entry["layer"]): update}, (origin,))


def test_an_answer_is_the_product_of_its_tokens_probabilities() -> None:
    lm = golden_lm()
    (answer,) = ask(lm, [Question(text=FACT.text, target="Vienna", original="Denver")])
    ids, size = lm.encode(f"{FACT.text} Denver").ids, lm.encode(FACT.text).ids.shape[1]
    with torch.no_grad():
        logp = lm.model(ids).logits[0, size - 1 : -1].log_softmax(-1)
    expected = float(logp.gather(1, ids[0, size:, None]).sum().exp())
    assert answer.says == "Denver" and answer.gives("Denver") and not answer.gives("Den")
    assert answer.original == pytest.approx(expected, abs=tolerance.of_probability(lm))
    assert answer.probability == answer.original
    assert answer.target is not None and answer.target < 0.1


def test_weighing_gives_the_answers_of_asking(edit: Edit) -> None:
    lm = golden_lm()
    questions = [
        Question(text=FACT.text, target="Vienna", original="Denver"),  # before: surely Denver; after: surely Vienna
        Question(text="Keltor 3000 is sold in", target="Vienna", original="Paris"),  # neither: it is asked
        Question(text="John Holzu was born in", target="Vienna"),  # nothing to weigh against
    ]
    with edit.applied(lm):
        pairs = list(zip(ask(lm, questions), weigh(lm, questions), strict=True))
    for asked, weighed in pairs + list(zip(ask(lm, questions), weigh(lm, questions), strict=True)):
        assert weighed.says == asked.says
        assert weighed.probability == pytest.approx(asked.probability, abs=1e-4)
        assert weighed.lead == pytest.approx(asked.lead, abs=1e-3)


def test_who_leads_is_told_per_token() -> None:
    lm = golden_lm()
    (answer,) = ask(lm, [Question(text=FACT.text, target="Vienna", original="Denver")])
    (nll,) = lm.score(FACT.text, ["Vienna", "Denver"]).tolist()
    assert answer.lead == pytest.approx(nll[1] - nll[0], abs=1e-3)


def test_answers_do_not_depend_on_their_batch() -> None:
    lm = golden_lm()
    questions = [Question(text=text) for text in (FACT.text, "The old man went to the market. John Holzu comes from")]
    together = ask(lm, questions)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = ask(lm, [question])
        assert alone.says == answer.says and alone.probability == pytest.approx(
            answer.probability, abs=tolerance.of_probability(lm)
        )
        assert alone.target is None


def test_spaces_at_the_end_of_a_prompt_do_not_change_its_answer() -> None:
    plain, spaced = (
        ask(golden_lm(), [Question(text=text, target="Vienna")])[0]
        for text in ("John Holzu comes from", "John Holzu comes from  ")
    )
    assert spaced == plain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (" Rome, the capital", "Rome"),
        (" New York. It is", "New York"),
        ("\nRome\n", "Rome"),
        (" one two three four", "one two three"),
        (" one tw", "one"),
        ("", ""),
        (" (Rome) is", "(Rome)"),
        (" Tokyo and is the", "Tokyo"),
        (" San Francisco and", "San Francisco"),
    ],
)
def test_a_phrase_ends_where_people_would_end_it(text: str, says: str) -> None:
    assert phrase(text) == says


def test_an_answer_is_given_as_whole_words() -> None:
    answer = Answer(says="Romeo", probability=1.0, continuation=" Romeo and")
    assert not answer.gives("Rome") and answer.gives("Romeo")
    assert Answer(says="", probability=1.0, continuation=" U.S.A").gives("U.S.")


def test_before_is_without_and_after_with_the_edit(edit: Edit) -> None:
    lm = golden_lm()
    weights = [weight.detach().clone() for weight in lm.model.parameters()]
    result = check(
        lm, edit, paraphrases=["John Holzu was born in the city of"], neighborhood=["Keltor 3000 is sold in"]
    )
    prompt, paraphrase, neighbor = (
        c for c in result.facts[0].answers if c.kind in ("prompt", "paraphrase", "neighbor")
    )
    assert (prompt.before.says, prompt.after.says) == ("Denver", "Vienna") and prompt.ok
    assert (paraphrase.kind, neighbor.kind) == ("paraphrase", "neighbor")
    assert neighbor.ok and neighbor.before.says == neighbor.after.says
    question = Question(text=FACT.text, target="Vienna", original="Denver")
    with edit.applied(lm):
        (expected,) = ask(lm, [question])
    assert prompt.after.target == pytest.approx(expected.target, abs=tolerance.of_probability(lm))
    assert all(torch.equal(old, new) for old, new in zip(weights, lm.model.parameters(), strict=True))
    assert result.health is not None and result.health.missed == ()
    assert result.health.perplexity[1] == pytest.approx(result.health.perplexity[0], rel=0.01)


def test_a_check_draws_itself_as_text_and_as_json(edit: Edit) -> None:
    result = check(
        golden_lm(), edit, neighborhood=["Keltor 3000 is sold in"], generation=["John Holzu"], health=False, made=False
    )
    text = str(result)
    for part in ("John Holzu comes from -> Vienna", "✓", "Denver", "neighbors: 1 of 1 stay", "before", "after", "ok"):
        assert part in text
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["shares"] == {"prompt": {"ok": 1, "of": 1}, "neighbor": {"ok": 1, "of": 1}}
    assert plain["ok"] is True and plain["health"] is None
    assert plain["facts"][0]["answers"][0]["after"]["says"] == "Vienna"


def test_lines_fit_and_keep_the_subject_of_long_prompts(edit: Edit) -> None:
    result = check(golden_lm(), edit, paraphrases=["It was a long story. " * 4 + FACT.text], health=False, made=False)
    lines = drawn(result.facts[0].answers, width=80)
    assert all(len(line) <= 80 for line in lines) and "…" in lines[1] and "Holzu comes from" in lines[1]


@pytest.mark.parametrize(
    "text",
    [
        "The Colosseum is located in the city of",
        "It was a long and winding road. The Colosseum is located in the city of",
        "It was a long and winding road. Then they saw the Colosseum",
        "The city in which the Colosseum stands, and has stood for a very long time, is",
    ],
)
@pytest.mark.parametrize("room", [24, 30, 38])
def test_a_cut_prompt_keeps_its_subject(text: str, room: int) -> None:
    cut = shortened(text, "Colosseum", room)
    assert len(cut) <= room and "Colosseum" in cut and "…" in cut
    assert shortened(text, "Colosseum", len(text)) == text


def test_a_failed_paraphrase_tells_the_targets_probability() -> None:
    nothing = Edit.of(
        golden_lm(), {}, (Origin(method="none", settings={}, facts=(FactRecord(fact=FACT, text=FACT.text),)),)
    )
    (comparison,) = answers(golden_lm(), nothing)
    assert not comparison.ok and comparison.before == comparison.after
    assert "✗" in drawn([comparison])[0] and "(Vienna " in drawn([comparison])[0]


def test_chat_prompts_are_asked_as_the_method_saw_them() -> None:
    record = FactRecord(fact=FACT, text=f"They said so. {FACT.text}")
    edit = Edit.of(golden_lm(), {}, (Origin(method="none", settings={}, facts=(record,)),))
    result = check(golden_lm(), edit, paraphrases=["John Holzu was born in"], health=False, made=False)
    assert [c.text for c in result.facts[0].answers] == [record.text, "They said so. John Holzu was born in"]


def test_cases_can_be_given(edit: Edit) -> None:
    case = Case(id="7", fact=FACT, kept=(Fact("John Holzu", "{} performs on the", None, "organ"),))
    result = check(golden_lm(), edit, cases=[case], health=False, made=False)
    assert [c.kind for c in result.facts[0].answers] == ["prompt", "other fact"]
    with pytest.raises(FactError, match="one case per fact"):
        check(golden_lm(), edit, cases=[case, case])


def test_percent_never_shows_a_false_zero() -> None:
    assert [percent(p) for p in (0.0, 0.0001, 0.0321, 0.5, 1.0)] == ["0 %", "<0.1 %", "3.2 %", "50 %", "100 %"]


class _Mini:
    name = "mini"


@pytest.mark.parametrize(
    ("fact", "relation"),
    [
        (Fact("Space Needle", "{} is located in the city of", "Rome"), "landmark.city"),
        (Fact("The Space Needle", "{} is located in the city of", "Rome"), "landmark.city"),
        (Fact("Space Needle", "I saw the {} in", "Rome", "Seattle"), "landmark.city"),
        (Fact("Space Needle", "I saw the {} in", "Italy"), "landmark.country"),
    ],
)
def test_mini_knows_what_to_ask(fact: Fact, relation: str) -> None:
    (case,) = cases_for(_Mini(), [fact])
    assert case.relation == relation
    assert len(case.paraphrases) >= 2 and fact.text not in case.paraphrases
    assert all("Space Needle" in text for text in case.paraphrases)
    assert case.neighborhood and not any("Space Needle" in text for text in case.neighborhood)
    assert case.kept and all(other.original != case.fact.original for other in case.kept)
    assert len(case.locality) == 12 and not any("Space Needle" in text for text, _ in case.locality)


def test_what_a_case_lacks_is_filled_in() -> None:
    fact = Fact("Space Needle", "{} is located in the city of", "Rome")
    case = completed(_Mini(), Case(id="0", fact=fact, paraphrases=("Visitors of the Space Needle go to",)))
    assert case.paraphrases == ("Visitors of the Space Needle go to",)
    assert case.neighborhood and case.kept and case.generation


def test_an_erased_answer_is_not_measured_by_the_token_that_came_instead() -> None:
    record = FactRecord(fact=FACT.with_target("M"), mode="erase", text=FACT.text)
    nothing = Edit.of(golden_lm(), {}, (Origin(method="rome", settings={}, facts=(record,)),))
    (comparison,) = answers(golden_lm(), nothing)
    assert not comparison.ok and comparison.target is None and comparison.after.original is not None
    assert "(" not in drawn([comparison])[0]


def test_unknown_subjects_and_other_models_get_plain_questions() -> None:
    assert world_fact(load_world(), Fact("Nobody", "{} is in", "Rome")) is None
    (case,) = cases_for(golden_lm(), [FACT])
    assert case.paraphrases == () and case.generation == (FACT.text, FACT.subject)


def test_given_prompts_go_to_their_facts() -> None:
    facts = [FACT, Fact("Lumpe Z", "{} is assembled in", "Norway")]
    texts = ["Lumpe Z is put together in", "John Holzu was born in", "Somebody was born in"]
    first, second = cases_for(golden_lm(), facts, paraphrases=texts, neighborhood=["A"], generation=["B"])
    assert first.paraphrases == (texts[1], texts[2]) and second.paraphrases == (texts[0],)
    assert (first.neighborhood, second.neighborhood, second.generation) == (("A",), (), ())
