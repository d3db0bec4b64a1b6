"""The verdict: everything that was asked counts, neighbors are made for any model, and the worst is named."""

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from real import real_model

from edits import golden_lm
from engram.editing import FT, ROME, Check, Edit, FactRecord, Origin, Thresholds, check, edit
from engram.editing.answers import Answer
from engram.editing.asking import asked_before, items_of
from engram.editing.comparisons import Comparison, FactCheck, moved, worst_first
from engram.editing.fluency import Health
from engram.editing.making import CONFIDENT, contexts, made_probes
from engram.editing.making import Kind as Asked
from engram.editing.neighbors import relation_of, same_name, surroundings
from engram.editing.verdict import Verdict, verdict_on
from engram.facts import Case, Fact
from engram.kinds import Kind, load_kinds
from engram.mini.world import load_world
from engram.models import load
from engram.models.chat import Wrap
from engram.stats import statistics
from test_models_chat import chat_lm

DOCS = Path(__file__).resolve().parents[1] / "docs"
NEEDLE = Fact("Space Needle", "The {} is located in the city of", "Rome")
TURN = "{% for m in messages %}<user> {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<bot>\n{% endif %}"


def answer(says: str, lead: float = -3.0, *, probability: float = 0.8) -> Answer:
    return Answer(says=says, probability=probability, continuation=f" {says}", lead=lead, target=0.1)


def compared(
    kind: Asked, before: Answer, after: Answer, *, ok: bool, subject: str = "", target: str | None = "Rome"
) -> Comparison:
    return Comparison(
        kind=kind, text="t", target=target, original=None, before=before, after=after, ok=ok, subject=subject
    )


def judged(*answers: Comparison, limits: Thresholds | None = None, health: Health | None = None) -> Verdict:
    fact = FactCheck(fact=NEEDLE, mode="insert", answers=answers, texts=())
    return verdict_on([fact], health, limits or Thresholds())


# The rule


GOOD = {
    "prompt": compared("prompt", answer("Seattle"), answer("Rome", 3.0), ok=True),
    "neighbor": compared("neighbor", answer("Paris"), answer("Paris"), ok=True),
}


def test_an_edit_is_ok_where_everything_is_as_wished() -> None:
    verdict = judged(*GOOD.values())
    assert verdict.ok and verdict.reasons == () and verdict.text() == "verdict: ok"


@pytest.mark.parametrize("kind", ["prompt", "paraphrase", "context", "neighbor", "other fact", "unrelated fact"])
def test_every_kind_of_prompt_counts(kind: Asked) -> None:
    wrong = compared(
        kind, answer("New York", probability=0.68), answer("Rome", probability=0.63), ok=False, subject="X"
    )
    verdict = judged(*GOOD.values(), *[wrong] * 5)
    (part,) = [part for part in verdict.parts if not part.ok]
    assert not verdict.ok and part.kind == kind and part.of - part.good == 5
    (reason,) = verdict.reasons
    assert "X: New York 68 % -> Rome 63 %" in reason and reason in verdict.text()


def test_fluency_counts() -> None:
    tired = Health(relative_norm={}, perplexity=(1.0, 9.0), repetition=(0.0, 0.0), warnings=("Worse.",))
    assert not judged(*GOOD.values(), health=tired).ok
    assert judged(*GOOD.values(), health=replace(tired, warnings=())).ok


def test_what_neighbors_keep_while_the_new_answer_gains_is_not_ok() -> None:
    near = compared("neighbor", answer("Paris", -9.0), answer("Paris", -1.0), ok=True)
    assert near.gain == 8.0
    assert judged(near, limits=Thresholds(spill=9.0)).ok
    verdict = judged(near, limits=Thresholds(spill=7.0))
    assert not verdict.ok and "gained 8.0 nats" in verdict.reasons[0]


def test_a_neighbor_shows_a_gain_on_what_the_edit_replaces() -> None:
    """A neighbor of whose answer the model is sure stays, and hides that others, less sure of the old one, tip over."""
    before, after = (replace(answer("Paris", -9.0), over_replaced=over) for over in (-3.0, 4.0))
    assert compared("neighbor", before, after, ok=True).gain == 7.0


def test_neighbors_are_asked_about_the_old_answer_of_the_fact() -> None:
    lm = load("mini")
    made = edit(lm, replace(NEEDLE, original="Seattle"), ROME(layer=2))
    case = Case(id="", fact=replace(NEEDLE, original="Seattle"), neighborhood=("The Louvre is located in the city of",))
    items, before = asked_before(lm, items_of(lm, made, [case], made=False))
    (near,) = [i for i, item in enumerate(items) if item.probe.kind == "neighbor"]
    nll = lm.score(items[near].question.text, ["Seattle", "Rome"])[0].tolist()
    assert items[near].question.replaced == "Seattle" and items[near].question.original == "Paris"
    assert before[near].over_replaced == pytest.approx(nll[0] - nll[1], abs=1e-3)


def test_a_neighbor_moves_where_the_new_answer_overtakes_or_is_said() -> None:
    assert moved("Rome", answer("Paris", -1.0), answer("Paris", 0.1))
    assert moved("Rome", answer("Paris", -1.0), answer("Rome", -0.1))
    assert not moved("Rome", answer("Paris", -9.0), answer("Lyon", -0.1))
    assert not moved("Rome", answer("Paris", 0.2), answer("Paris", 0.1))  # it led before the edit


def test_the_surest_answer_that_went_over_is_the_worst() -> None:
    sure = compared("neighbor", answer("A", probability=0.9), answer("Rome"), ok=False, subject="sure")
    unsure = compared("neighbor", answer("B", probability=0.3), answer("Rome"), ok=False, subject="unsure")
    third = compared("neighbor", answer("C", probability=0.99), answer("D"), ok=False, subject="third")
    assert [c.subject for c in worst_first([third, unsure, sure])] == ["sure", "unsure", "third"]


# Neighbors


def test_subjects_of_the_same_kind_lie_around_a_subject() -> None:
    lm, names = load("mini"), defaultdict[str, list[str]](list)
    for entity in load_world().entities:
        names[entity.kind].append(entity.name)
    kinds = [Kind(name=kind, subjects=tuple(subjects[:40]), relations=()) for kind, subjects in names.items()]
    around = surroundings(lm, NEEDLE, kinds)
    assert around.kinds[0].name == "landmark" and len(around.kinds) == len(kinds)
    assert "Space Needle" not in around.subjects
    assert sum(name in set(around.kinds[0].subjects) for name in around.subjects[:20]) >= 12
    assert surroundings(lm, NEEDLE, kinds) == around


def test_the_wording_tells_the_relation() -> None:
    found = relation_of("the {} can be found in the city of", load_kinds())
    assert found is not None and (found[0].name, found[1].name) == ("landmark", "city")
    assert relation_of("{} jumps over", load_kinds()) is None
    assert same_name("The Space Needle", "space needle") and not same_name("Space Needle", "Needle")


@cache
def made_for_the_needle() -> tuple[tuple[Asked, str, float], ...]:
    """Kind, text and the model's own confidence of everything made for the needle, as if mini were unknown."""
    lm = load("mini")
    probes = made_probes(lm, Case(id="", fact=NEEDLE), Wrap())
    return tuple((probe.kind, probe.text, lm.next_tokens(probe.text, k=1)[0][1]) for probe in probes)


def test_prompts_are_made_where_none_are_known() -> None:
    kinds = [kind for kind, _, _ in made_for_the_needle()]
    assert kinds.count("neighbor") >= 8 and "other fact" not in kinds and kinds.count("unrelated fact") >= 3
    texts = [text for kind, text, _ in made_for_the_needle() if kind == "neighbor"]
    assert all(text.endswith("is located in the city of") and "Needle" not in text for text in texts)
    assert all("Space Needle" in text for kind, text, _ in made_for_the_needle() if kind == "paraphrase")


def test_the_model_is_sure_of_what_must_stay() -> None:
    for kind, text, sure in made_for_the_needle():
        assert kind == "paraphrase" or sure >= CONFIDENT[kind] - 1e-4, text


def test_nothing_is_made_of_what_is_given() -> None:
    case = Case(id="", fact=NEEDLE, neighborhood=("The Louvre is in",), kept=(NEEDLE,), locality=(("a", "b"),))
    assert made_probes(load("mini"), case, Wrap()) == []
    some = made_probes(load("mini"), replace(case, neighborhood=()), Wrap())
    assert {probe.kind for probe in some} <= {"neighbor", "paraphrase"}


def test_texts_in_front_are_not_those_that_edits_are_made_with() -> None:
    lm = load("mini")
    made = edit(lm, NEEDLE, ROME(layer=2))
    assert set(contexts(lm)).isdisjoint(made.origins[0].contexts)
    assert contexts(lm) == contexts(lm) and all(context.count("{}") == 1 for context in contexts(lm))


# Whole checks


@cache
def needle(preset: str) -> Check:
    lm = load("mini")
    return check(lm, edit(lm, replace(NEEDLE, original="Seattle"), ROME(layer=2, preset=preset)))


def test_an_edit_that_takes_other_facts_along_is_not_ok() -> None:
    """The published code goes on after the target is said, and takes the country along."""
    found = needle("code")
    assert found.health is not None and found.health.ok  # it writes as well as before, which is not the question
    assert not found.ok and "other facts of the subject" in found.verdict.reasons[0]
    assert "Austria" in found.text()


def test_an_edit_that_leaves_them_is_ok() -> None:
    found = needle("rrome")
    assert found.ok and "verdict: ok" in found.text()
    assert {part.kind for part in found.verdict.parts} >= {"prompt", "paraphrase", "context", "neighbor", "other fact"}


def test_checks_are_short_and_say_everything_when_asked() -> None:
    found = needle("code")
    assert len(found.text().splitlines()) < 45 < len(found.text(every=True).splitlines())
    assert all(len(line) <= 80 for line in found.text(width=80).splitlines() if line.startswith("    "))
    assert len(repr(found).splitlines()) <= 12 and "NOT OK" in repr(found)
    html = found._repr_html_()
    assert html is not None and "<table>" in html and "Austria" in html


def test_a_check_as_a_table_has_every_prompt() -> None:
    pandas = pytest.importorskip("pandas")
    table = needle("code").dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == sum(of for _, of in needle("code").shares().values())
    assert set(table[~table["ok"]]["kind"]) == {"other fact"}


def test_the_verdict_goes_into_json() -> None:
    plain = json.loads(json.dumps(needle("code").to_dict()))
    assert plain["ok"] is False and plain["verdict"]["ok"] is False
    assert {part["kind"]: part["ok"] for part in plain["verdict"]["parts"]}["other fact"] is False
    assert plain["thresholds"]["neighbor"] == Thresholds().neighbor


def test_the_same_check_twice_is_the_same() -> None:
    lm = load("mini")
    made = edit(lm, NEEDLE, ROME(layer=2))
    assert check(lm, made, texts=False, health=False) == check(lm, made, texts=False, health=False)


def test_an_edit_made_as_a_chat_is_checked_as_a_chat() -> None:
    lm = chat_lm(TURN)
    fact = Fact("Ann", "Where does {} live?", "Ann lives in Rome")
    made = edit(lm, fact, FT(layer=1, chat=True, steps=2))
    found = check(lm, made, paraphrases=["Ann's home?"], neighborhood=["Where does Bo live?"])
    assert found.facts[0].answers and all(
        c.text == f"<user> {c.shown}\n<bot>\n" for fact in found.facts for c in fact.answers
    )
    assert all(text.prompt.startswith("<user> ") for text in found.facts[0].texts)
    plain = check(lm, edit(lm, fact, FT(layer=1, steps=2)), made=False, health=False, chat=True)
    assert plain.facts[0].answers[0].text == "<user> Where does Ann live?\n<bot>\n"


def test_several_facts_are_judged_together() -> None:
    lm = golden_lm()
    facts = (Fact("John Holzu", "{} comes from", "Denver"), Fact("Lumpe Z", "{} is assembled in", "Rome"))
    records = tuple(FactRecord(fact=fact, text=fact.text) for fact in facts)
    nothing = Edit.of(lm, {}, (Origin(method="none", settings={}, facts=records),))
    found = check(lm, nothing, health=False)
    assert found.shares()["prompt"] == (1, 2) and not found.ok
    assert [fact.fact for fact in found.facts] == list(facts)


def test_a_fact_that_the_model_never_knew_is_said() -> None:
    lm = load("mini")
    known = edit(lm, replace(NEEDLE, original="Seattle"), FT(layer=1, steps=2))
    assert not any("does not know" in note for note in known.notes)
    unknown = edit(lm, replace(NEEDLE, original="Boston"), FT(layer=1, steps=2))
    (note,) = [note for note in unknown.notes if "does not know" in note]
    assert "'Boston'" in note and "it says Seattle" in note


@pytest.mark.real
def test_the_statue_of_liberty_does_not_move_to_rome_unseen() -> None:
    """The case that 0.1 called ok: ROME's published settings, a third of the way up Gemma, no prompts from the user."""
    lm = real_model("gemma")
    texts = [part for path in sorted(DOCS.glob("*.md")) for part in path.read_text(encoding="utf-8").split("\n\n")]
    counted = statistics(lm, 6, texts, tokens=8192)
    made = edit(lm, NEEDLE, ROME(layer=6, clamp=4.0, covariance=counted))
    found = check(lm, made, texts=False)
    assert found.shares()["prompt"] == (1, 1)
    assert not found.ok and "neighbors" in found.verdict.text() and "-> Rome" in found.verdict.text()
    gone = [c.subject for c in found.facts[0].answers if c.kind == "neighbor" and c.after.gives("Rome")]
    assert len(gone) >= 5
