"""The page without a browser, I: subjects, bounds, the ledger, words and figures."""

from dataclasses import replace

import pytest
import tolerance
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st

from edits import golden_lm, random_edit
from engram.editing.answers import Answer
from engram.editing.check import Check
from engram.editing.comparisons import Comparison, FactCheck
from engram.editing.parts.published import rome_layer
from engram.errors import EditError, FactError, SettingError
from engram.facts import Fact
from engram.locate import CausalTrace, trace
from engram.web import texts
from engram.web.figures import SITES, heat_map, in_words, number_table, number_tables, peaks
from engram.web.ledger import Ledger
from engram.web.limits import Limits, bounded, bounded_lines
from engram.web.nextwords import NextWord, merged
from engram.web.subjects import guessed, picked, word_around
from engram.web.suggestion import suggested
from engram.web.workbench import Tokens

LIMITS = Limits()


# Subjects


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The Space Needle is located in the city of", "Space Needle"),
        ("What is the capital of France", "France"),
        ("The Statue of Liberty's sculptor was", "Statue of Liberty"),
        ("In which city is the Brandenburg Gate", "Brandenburg Gate"),
        ("the boiling point of water is", "boiling"),
        ("It is", "It is"),
        ("", ""),
    ],
)
def test_a_subject_is_guessed(prompt: str, subject: str) -> None:
    assert guessed(prompt) == subject


def test_a_known_name_is_the_first_guess_and_the_longest_wins() -> None:
    assert guessed("She admired the blue tower of London", ["blue tower", "tower", "ondon"]) == "blue tower"


@given(st.text(max_size=80))
def test_a_guess_stands_in_its_prompt(prompt: str) -> None:
    assert guessed(prompt) in prompt


def test_clicks_choose_a_word_then_extend_it_then_begin_anew() -> None:
    prompt = "I know that Ann Lee's cat is"
    first = picked(prompt, (12, 13), None)
    assert first.subject == "Ann"
    both = picked(prompt, (16, 17), first)
    assert both.subject == "Ann Lee"
    assert picked(prompt, (22, 25), both).subject == "cat"
    assert picked("Another Ann", (8, 11), first).subject == "Ann"


def test_a_picked_subject_is_the_occurrence_that_was_clicked() -> None:
    assert picked("Ann knows Ann", (0, 3), None).occurrence == 1
    assert picked("Ann knows Ann", (10, 13), None).occurrence == 2


@given(st.text(min_size=1, max_size=40), st.data())
def test_a_word_around_a_token_touches_it(prompt: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(prompt) - 1))
    end = data.draw(st.integers(begin + 1, len(prompt)))
    low, high = word_around(prompt, (begin, end))
    assert 0 <= low < high <= len(prompt)


# Bounds


def test_long_and_broken_texts_are_refused_with_a_sentence() -> None:
    assert bounded("  a b ", "prompt", 5) == "a b"
    with pytest.raises(SettingError, match="has 6 characters; this page takes up to 5"):
        bounded("abcdef", "prompt", 5)
    with pytest.raises(FactError, match="broken character at place 2"):
        bounded("a\ud800", "prompt", 5)
    assert bounded_lines("a\n\n b \n", "paraphrases", LIMITS) == ("a", "b")
    with pytest.raises(SettingError, match="9 paraphrases; this page takes up to 8"):
        bounded_lines("a\n" * 9, "paraphrases", LIMITS)


# The ledger


def test_edits_are_numbered_switched_combined_and_removed() -> None:
    lm = golden_lm()
    a, b = random_edit(lm, seed=1), random_edit(lm, seed=2)
    ledger = Ledger().added(a, source="made here", limits=LIMITS).added(b, source="uploaded", limits=LIMITS)
    assert [entry.number for entry in ledger.active] == [1, 2]
    name = lm.mlp_out_name(1)
    total = ledger.total()
    assert total is not None
    assert torch.allclose(total.delta(name), a.delta(name) + b.delta(name), atol=tolerance.of_sum(4, total.norm(name)))
    only = ledger.switched({2})
    assert only.total() is b
    one = ledger.combined(LIMITS)
    assert [entry.number for entry in one.active] == [3]
    assert one.entries[-1].source == "combined from 1, 2"
    left = one.without_off()
    assert [entry.number for entry in left.entries] == [3]
    again = left.added(a, source="made here", limits=LIMITS)
    assert again.entries[-1].number == 4  # a number never names two edits


def test_edits_that_contradict_each_other_are_remarked_on_while_they_act_together() -> None:
    edit = random_edit(golden_lm())
    origin = edit.origins[0]
    other = replace(origin.facts[0], fact=origin.facts[0].fact.with_target("Tokyo"))
    tokyo = replace(edit, origins=(replace(origin, facts=(other,)),))
    ledger = Ledger().added(edit, source="a", limits=LIMITS).added(tokyo, source="b", limits=LIMITS)
    assert "'Rome' and 'Tokyo'" in ledger.contradictions()[0]
    assert ledger.switched({1}).contradictions() == ()
    assert ledger.combined(LIMITS).contradictions() == ledger.contradictions()


def test_a_ledger_has_bounds() -> None:
    lm = golden_lm()
    edit = random_edit(lm)
    few = Limits(edits=1)
    with pytest.raises(EditError, match="There are 1 edits, the most"):
        Ledger().added(edit, source="", limits=few).added(edit, source="", limits=few)
    with pytest.raises(EditError, match="may take up to 0 MiB"):
        Ledger().added(edit, source="", limits=Limits(ledger_bytes=10))
    with pytest.raises(EditError, match="at least two"):
        Ledger().added(edit, source="", limits=LIMITS).combined(LIMITS)
    assert Ledger().total() is None


# Words


NASTY = "<img src=x onerror=alert(1)> {{value}} ${1+1} `a` & \\ \"'"


@pytest.mark.parametrize("show", [texts.safe, texts.refused, texts.said])
def test_nothing_that_is_shown_is_markup_or_a_template(show: object) -> None:
    shown = show(NASTY)  # type: ignore[operator]
    assert "<img" not in shown
    assert not {"{", "}", "$", "`", "\\"} & set(shown.replace("&#", ""))


def test_tokens_and_edits_are_shown_safely() -> None:
    tokens = Tokens(prompt=NASTY, texts=(NASTY,), spans=((0, len(NASTY)),))
    assert "<img" not in texts.token_buttons(tokens, None)
    edit = random_edit(golden_lm())
    named = replace(edit, origins=())
    ledger = Ledger().added(named, source=NASTY, limits=LIMITS)
    assert "<img" not in texts.ledger_table(ledger.entries)


def test_pressed_tokens_are_the_subjects() -> None:
    tokens = Tokens(prompt="An nie is", texts=("An", " n", "ie", " is"), spans=((0, 2), (3, 4), (4, 6), (7, 9)))
    shown = texts.token_buttons(tokens, (3, 6))
    assert [part.split('"')[0] for part in shown.split('aria-pressed="')[1:]] == ["false", "true", "true", "false"]


def test_differences_are_marked_word_by_word() -> None:
    old, new = texts.differences("in the city of Seattle today", "in the city of Rome today")
    assert old == "in the city of <del>Seattle</del> today"
    assert new == "in the city of <ins>Rome</ins> today"


@given(st.text(max_size=40), st.text(max_size=40))
def test_differences_lose_nothing(before: str, after: str) -> None:
    old, new = texts.differences(before, after)
    assert old.replace("<del>", "").replace("</del>", "") == texts.safe(before)
    assert new.replace("<ins>", "").replace("</ins>", "") == texts.safe(after)


# The verdict


def checked(**right: tuple[int, int]) -> Check:
    """A check whose kinds of prompts are right so many times."""
    answers = [
        Comparison(
            kind=kind.replace("_", " "),  # type: ignore[arg-type]
            text=f"{kind} {index}",
            target="Rome",
            original="Paris",
            before=Answer(says="Paris", probability=0.97),
            after=Answer(says="Rome", probability=0.6),
            ok=index < good,
        )
        for kind, (good, every) in right.items()
        for index in range(every)
    ]
    fact = Fact("Ann", "{} lives in", "Rome")
    return Check(model="m", facts=(FactCheck(fact=fact, mode="replace", answers=tuple(answers), texts=()),))


def test_the_verdict_counts_everything_and_names_a_worst_case() -> None:
    assert checked(prompt=(1, 1), paraphrase=(2, 2), neighbor=(3, 3)).verdict.ok
    found = checked(prompt=(1, 1), neighbor=(1, 5), other_fact=(1, 3)).verdict
    assert not found.ok
    assert found.reasons == (
        "1 of 5 neighbors stay (needed: 80 %), such as neighbor 1: Paris 97 % -> Rome 60 %",
        "1 of 3 other facts of the subject unchanged (needed: 50 %), such as other_fact 1: Paris 97 % -> Rome 60 %",
    )
    ledger = Ledger().added(random_edit(golden_lm()), source="made here", limits=LIMITS, verdict=found)
    assert "⚠ 1 of 5 neighbors stay" in texts.ledger_table(ledger.entries)
    assert "(and 1 more)" in texts.ledger_table(ledger.entries)


# Figures


@pytest.fixture(scope="module")
def traced() -> CausalTrace:
    lm = golden_lm()
    return trace(lm, Fact.from_text("John Holzu comes from", "John Holzu"), window=3, samples=4)


@pytest.mark.parametrize("site", ["state", "mlp", "attn"])
def test_the_picture_and_the_table_hold_the_same_numbers(traced: CausalTrace, site: str) -> None:
    picture = heat_map(traced, site).data[0]
    table = number_table(traced, site)
    scores = traced.scores[site]
    for row in range(scores.shape[0]):
        for layer in range(scores.shape[1]):
            assert picture.z[row][layer] == pytest.approx(float(scores[row, layer]), abs=1e-4)
            assert f'data-row="{row}" data-layer="{layer}">{float(scores[row, layer]):.2f}<' in table
    assert table.count('tabindex="0"') == 1


def test_the_picture_says_token_layer_and_probability(traced: CausalTrace) -> None:
    picture = heat_map(traced, "mlp").data[0]
    assert "ohn*" in picture.text[1][2]
    assert "layer 2" in picture.text[1][2]
    assert "%{z" in picture.hovertemplate


def test_the_sentences_name_the_probabilities(traced: CausalTrace) -> None:
    words = in_words(traced, "Denver, Colorado")
    assert f"{traced.clean:.3f}" in words
    assert f"{traced.corrupted:.3f}" in words
    assert "gives 'Denver', the beginning of 'Denver, Colorado', a probability" in words
    for site in SITES:
        assert f"{float(traced.scores[site].max()):.3f}" in peaks(traced, site)


def test_all_maps_have_one_scale_and_ticks_that_do_not_collide(traced: CausalTrace) -> None:
    maps = [heat_map(traced, site) for site in SITES]
    assert len({figure.data[0].zmax for figure in maps}) == 1
    assert "3 layers at a time" in maps[1].layout.title.text
    deep = replace(traced, samples={site: x.repeat(1, 6, 1) for site, x in traced.samples.items()})
    assert [heat_map(each, "state").layout.xaxis.dtick for each in (traced, deep)] == [1, 10]
    assert number_tables(traced).count("<table") == 3


def test_an_unknown_site_is_a_sentence(traced: CausalTrace) -> None:
    with pytest.raises(SettingError, match="Did you mean 'state'"):
        heat_map(traced, "stat")


def test_the_layer_is_the_rules_and_the_peak_is_information(traced: CausalTrace) -> None:
    lm = golden_lm()
    clear = traced.samples["mlp"].clone()
    clear[traced.subject_range[1] - 1, 5] += 0.5
    clear[-1, 7] += 0.9  # more, but at another token
    found = suggested(lm, replace(traced, samples={**traced.samples, "mlp": clear}), asked=traced.prompt, says="Denver")
    layer, notes = rome_layer(lm, None)
    assert found.layer == layer
    assert found.why == " ".join(notes)
    assert found.clear
    assert "around layer 5" in found.peak
    assert "last subject token, 'zu'" in found.peak
    assert "need not be the best one to edit" in found.peak


def test_where_a_model_lies_is_not_told() -> None:
    name = golden_lm().name
    assert (
        texts.without_path(f"Better: engram tune {name} --data FILE", name)
        == "Better: engram tune golden_model --data FILE"
    )


def test_without_a_clear_effect_no_peak_is_named() -> None:
    lm = tiny("gpt2")  # random weights know no facts
    prompt = Fact.from_text("John Holzu comes from", "John Holzu")
    found = suggested(lm, trace(lm, prompt, window=1, samples=4, noise=1e-6), asked=prompt.text, says="x")
    assert not found.clear
    assert found.layer == rome_layer(lm, None)[0]
    assert "clearly brings the answer back" in found.peak
    assert any("hardly depends on the subject" in doubt for doubt in found.doubts)


@pytest.mark.parametrize(
    ("asked", "subject", "says", "names", "clean", "doubt"),
    [
        ("Ann Lee comes from", "Ann Lee", "Denver", ["Ann Lee"], 0.9, ""),
        ("The capital of France", "France", "is Paris", (), 0.9, ""),
        ("The Flibber Gorp is in", "Flibber Gorp", "Rome", ["Ann Lee"], 0.9, "never told about 'Flibber Gorp'"),
        ("The Flibber Gorp is in", "Flibber Gorp", "Rome", (), 0.05, "not sure of its own answer (0.050)"),
        ("The Flibber Gorp", "Flibber Gorp", "is", (), 0.9, "asks for nothing about 'Flibber Gorp'"),
        ("Hello", "Hello", "there", (), 0.9, "asks for nothing about 'Hello'"),
        ("Hello again", "Hello", ", ...", (), 0.9, "is no answer"),
    ],
)
def test_what_a_model_does_not_know_is_doubted(
    traced: CausalTrace, asked: str, subject: str, says: str, names: list[str], clean: float, doubt: str
) -> None:
    seen = replace(traced, subject=subject, clean=clean, baseline=torch.full_like(traced.baseline, 0.01))
    doubts = suggested(golden_lm(), seen, asked=asked, says=says, names=names).doubts
    assert len(doubts) == bool(doubt)
    assert doubt in "".join(doubts)


# The next word


def test_tokens_of_one_word_add_up_and_no_word_is_listed_twice() -> None:
    found = merged(
        [
            NextWord(" Rome", "", 0.5),
            NextWord(" Se", "attle", 0.3),
            NextWord(" R", "ome", 0.1),
            NextWord("Seattle", "", 0.25),
        ]
    )
    assert [(word.word, word.token) for word in found] == [("Rome", " Rome"), ("Seattle", " Se")]
    assert [word.probability for word in found] == pytest.approx([0.6, 0.55])


def test_words_that_come_to_more_stand_higher_and_white_space_stays() -> None:
    found = merged([NextWord(" a", "", 0.4), NextWord("\n", "", 0.3), NextWord(" b", "", 0.2), NextWord("b", "", 0.25)])
    assert [word.word or word.token for word in found] == ["b", "a", "\n"]
