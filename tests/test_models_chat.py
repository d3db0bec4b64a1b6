"""Chat templates: prompts asked within them in traces, evaluations, sweeps and edits, or refused with a sentence."""

import copy
from functools import cache
from pathlib import Path

import pytest
from families import golden_tokenizer, tiny_model

import engram
from engram.cli import main
from engram.editing import FT, Edit
from engram.errors import FactError, TokenizerError
from engram.evaluation import Scoring, evaluate, score_case, sweep
from engram.facts import Case, Fact
from engram.models import LM
from engram.models.chat import Wrap, chat_wrap, wrap_for

TURN = "{% for m in messages %}<user> {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<bot>\n{% endif %}"
FACT = Fact("Ann", "Where does {} live?", "Ann lives in Rome", original="Ann lives in Paris")
ASKED = "<user> Where does Ann live?\n<bot>\n"


def chat_lm(template: str) -> LM:
    tokenizer = copy.deepcopy(golden_tokenizer())
    tokenizer.chat_template = template
    return LM(tiny_model("gpt2", n_positions=256), tokenizer, name="chatty")


@cache
def lm() -> LM:
    return chat_lm(TURN)


def case(name: str = "1") -> Case:
    return Case(
        id=name,
        fact=FACT,
        paraphrases=("Ann's home?",),
        neighborhood=("Where does Bo live?",),
        generation=("Tell me of Ann.",),
        kept=(Fact("Ann", "What does {} play?", original="chess"),),
        locality=(("Who is Bo?", "a man"),),
    )


def test_the_template_is_parted_at_the_users_words() -> None:
    wrap = chat_wrap(lm())
    assert wrap == Wrap("<user> ", "\n<bot>\n", trims=False)
    assert wrap.around(FACT.text) == wrap.fact(FACT).text == ASKED
    begin, end = wrap.fact(FACT).subject_chars
    assert ASKED[begin:end] == "Ann"
    assert not wrap_for(lm(), chat=False) and wrap_for(lm(), chat=False).fact(FACT) is FACT


def test_templates_that_change_the_users_words_are_refused() -> None:
    for changed in (
        "{{ m['content'] | upper }}",
        "{{ m['content'] | replace(' ', '') }}!",
        "{{ m['content'][0] }}",
        "{}",
    ):
        with pytest.raises(TokenizerError, match="does not keep the user's words"):
            chat_wrap(chat_lm(TURN.replace("{{ m['content'] }}", changed)))
    with pytest.raises(TokenizerError, match=r"no chat template.*Leave out --chat"):
        chat_wrap(LM(tiny_model("gpt2"), golden_tokenizer(), name="base"))


def test_a_template_that_trims_takes_words_without_white_space_around_them() -> None:
    trimming = chat_wrap(chat_lm(TURN.replace("m['content']", "m['content'] | trim")))
    assert trimming.trims and trimming.around(FACT.text) == ASKED
    with pytest.raises(FactError, match="drops the white space around"):
        trimming.around("Where? ")
    with pytest.raises(FactError, match="drops the white space around"):
        trimming.fact(Fact("Ann", " Where is {}?"))


def test_a_trace_asks_within_the_template() -> None:
    found = engram.trace(lm(), FACT, chat=True, sites="state", samples=2, noise=0.1)
    assert found.prompt == ASKED and found.settings["chat"] is True
    chances = dict(lm().next_tokens(ASKED, k=lm().vocab_size))
    assert found.answer.startswith("A") and found.clean == pytest.approx(chances[found.answer], rel=1e-3)
    assert "".join(found.tokens[i] for i in found.positions).startswith(" Where does Ann")
    plain = engram.trace(lm(), FACT, sites="state", samples=2, noise=0.1)
    assert "chat" not in plain.settings and plain.clean != found.clean
    bare = Fact("Ann", FACT.prompt)
    alone = engram.trace(lm(), bare, chat=True, sites="state", samples=2, noise=0.1)
    average = engram.trace_many(lm(), [bare], chat=True, sites="state", samples=2, noise=0.1)
    assert average.settings["chat"] is True and average.clean.mean == pytest.approx(alone.clean)


def test_every_prompt_of_a_case_is_asked_within_the_template() -> None:
    wrap, scoring = chat_wrap(lm()), Scoring(chat=True, max_tokens=12)
    found = score_case(lm(), case(), scoring=scoring)
    wrapped = score_case(lm(), wrap.case(case()), scoring=Scoring(max_tokens=12))
    for name in ("rewrite", "paraphrase", "neighborhood"):
        assert found[name].flatten().tolist() == pytest.approx(wrapped[name].flatten().tolist())
    assert found["rewrite_said"] == wrapped["rewrite_said"]
    assert found["locality"] == wrapped["locality"] and found["kept_hits"] == wrapped["kept_hits"]
    assert found["texts"][0].startswith("Tell me of Ann.") and "<bot>" not in found["texts"][0]
    assert scoring.describe()["chat"] is True and "chat" not in Scoring().describe()


def test_an_evaluation_as_a_chat_edits_and_asks_as_a_chat(tmp_path: Path) -> None:
    options = {"method": "ft", "steps": 2, "layer": 1, "generate": False}
    report = evaluate(lm(), [case()], chat=True, out=tmp_path / "ft", **options)
    settings = report.runs[-1].settings
    assert settings["scoring"]["chat"] is True and settings["method"]["chat"] is True
    by_method = evaluate(lm(), [case()], method=FT(steps=2, layer=1, chat=True), generate=False)
    assert by_method.runs[-1].scored[0]["scores"]["rewrite"] == report.runs[-1].scored[0]["scores"]["rewrite"]
    plain = evaluate(lm(), [case()], **options)
    assert plain.runs[-1].scored[0]["scores"]["rewrite"] != report.runs[-1].scored[0]["scores"]["rewrite"]
    with pytest.raises(TokenizerError, match="no chat template"):
        evaluate(LM(tiny_model("gpt2"), golden_tokenizer(), name="base"), [case()], chat=True, **options)


def test_a_sweep_as_a_chat_asks_as_a_chat() -> None:
    swept = sweep(lm(), [case()], methods=("ft",), layers=[1], chat=True, settings={"ft": {"steps": 1}})
    (run,) = swept.runs.values()
    assert run.settings["scoring"]["chat"] is True and run.settings["method"]["chat"] is True


def test_known_facts_are_known_within_the_template() -> None:
    from engram.datasets.dataset import Dataset

    says = lm().next_tokens(ASKED, k=1)[0][0]
    assert says != lm().next_tokens(FACT.text, k=1)[0][0]
    data = Dataset("one", "counterfact", "x", lambda: [Case(id="1", fact=Fact("Ann", FACT.prompt, "Rome", says))])
    assert data.select(skip_unknown=lm(), chat=True).count() == 1
    assert data.select(skip_unknown=lm()).count() == 0
    assert data.select(skip_unknown=lm(), chat=True).describe()["selection"]["chat"] is True


def test_an_edit_says_that_it_was_made_as_a_chat(tmp_path: Path) -> None:
    made = FT(layer=1, steps=1, chat=True)(lm(), [FACT])
    assert made.chat and made.records[0].text == ASKED
    assert Edit.load(made.save(tmp_path / "e"), lm()).chat and (made * 0.5).chat
    assert not FT(layer=1, steps=1)(lm(), [FACT]).chat


@pytest.mark.parametrize(
    "typed",
    [
        ("trace", "mini", "The Space Needle is in", "--subject", "Space Needle", "--chat"),
        ("trace", "mini", "The Space Needle is in", "--subject", "Space Needle", "--chat", "--explain"),
        ("evaluate", "mini", "mini", "--limit", "1", "--chat"),
        ("sweep", "mini", "mini", "--limit", "1", "--layers", "1", "--chat"),
        ("serve", "mini", "--chat"),
    ],
    ids=lambda typed: " ".join(typed[:1] + typed[-1:]),
)
def test_a_base_model_is_no_chat_model(typed: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(typed)
    assert stopped.value.code == 2
    assert "mini has no chat template, so it is no chat model. Leave out --chat." in " ".join(
        capsys.readouterr().err.split()
    )
