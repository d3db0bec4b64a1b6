"""The page without a browser, III: the model that visitors share, and the handlers between it and the page."""

import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest
import tolerance
import torch

from edits import golden_json, golden_lm, random_edit, unchanged, weights_of
from engram import web
from engram.editing import METHODS
from engram.editing.methods import method_kind
from engram.errors import EngramError, FactError, PromptTooLong, SettingError, SubjectNotFound, TokenizerError
from engram.web.answering import guarded, whole
from engram.web.ledger import Ledger
from engram.web.nextwords import next_words
from engram.web.turns import Stopped, Turns
from engram.web.workbench import Wish, Workbench
from test_models_chat import ASKED, TURN, chat_lm

PROMPT = "John Holzu comes from"


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(golden_lm(), corpus=golden_json("texts"))


# What visitors may ask


def test_an_empty_subject_is_guessed(bench: Workbench) -> None:
    assert bench.fact(PROMPT, " ").subject == "John Holzu"


def test_what_cannot_be_used_is_a_sentence(bench: Workbench) -> None:
    with pytest.raises(FactError, match="The prompt is empty"):
        bench.fact("", "")
    with pytest.raises(SubjectNotFound, match="Did you mean"):
        bench.fact(PROMPT, "John Holzer")
    with pytest.raises(FactError, match="The target is empty"):
        bench.fact(PROMPT, "", target=" ")
    with pytest.raises(SettingError, match="this page takes up to 400"):
        bench.fact("a" * 401, "")
    with pytest.raises(PromptTooLong, match="this page traces up to 64"):
        bench.tokens("a b c d e f g " * 10)
    with pytest.raises(SettingError, match="choose 1 to 8"):
        bench.locate(bench.fact(PROMPT, ""), window=9)


def test_every_method_tells_its_presets_default_first(bench: Workbench) -> None:
    for name in METHODS:
        kind, presets = method_kind(name), bench.presets(name)
        assert presets[0] == kind().preset
        assert len(set(presets)) == len(presets)
        for preset in presets:
            kind(preset=preset)
    assert set(bench.presets("rome")) == {"rrome", "code", "paper"}
    assert bench.presets("no such method") == ()


def test_an_edit_is_made_looked_at_and_leaves_the_model_alone(bench: Workbench) -> None:
    before, seen = weights_of(bench.lm), []
    wish = Wish(
        fact=bench.fact(PROMPT, "", target="Boston"), layer=2, neighborhood=("Mary Holzu comes from",), preset="rrome"
    )
    made = bench.make(wish, progress=lambda *told: seen.append(told))
    assert made.edit.facts[0].original == "Denver"
    assert made.edit.records[0].layers == (2,)
    assert made.before[0].token.strip() == "Denver"
    assert made.after[0].token.strip() != "Denver"
    assert made.check.health is not None
    kinds = {answer.kind for answer in made.check.facts[0].answers}
    assert {"prompt", "neighbor"} <= kinds
    assert seen[-1][0] == "looking at the next word"
    assert unchanged(bench.lm, before)


def test_voices_say_what_the_edited_model_says(bench: Workbench) -> None:
    lm = bench.lm
    a, b = random_edit(lm, seed=1), random_edit(lm, layer=3, seed=2)
    plain, first, both = bench.compare(PROMPT, {"unedited": None, "a": a, "both": a + b})
    assert plain.words[0].token == lm.next_tokens(PROMPT, k=1)[0][0]
    with a.applied(lm):
        assert first.text == lm.generate(PROMPT, max_new_tokens=30)[len(PROMPT) :]
        assert first.words[0].probability == pytest.approx(
            lm.next_tokens(PROMPT, k=1)[0][1], abs=tolerance.of_probability(lm)
        )
    with a.applied(lm), b.applied(lm):
        assert both.text == lm.generate(PROMPT, max_new_tokens=30)[len(PROMPT) :]


def test_next_tokens_are_completed_to_the_words_they_begin(bench: Workbench) -> None:
    lm, edit = bench.lm, random_edit(bench.lm, seed=1)
    plain, edited = next_words(lm, PROMPT, [None, edit])
    tokens = dict(lm.next_tokens(PROMPT))
    assert {word.token for word in plain} <= set(tokens)
    assert sum(word.probability for word in plain) == pytest.approx(sum(tokens.values()), abs=tolerance.of_logits(lm))
    assert len({word.word for word in plain}) == len(plain)
    assert lm.generate(PROMPT).removeprefix(PROMPT).split()[0].startswith(plain[0].word)
    assert any(word.rest for word in plain) and not any(" " in word.rest for word in plain)
    with edit.applied(lm):
        again = next_words(lm, PROMPT, [None])[0]
    assert [(word.token, word.rest) for word in again] == [(word.token, word.rest) for word in edited]


def test_next_words_at_the_end_of_the_positions_stay_tokens(bench: Workbench) -> None:
    lm = bench.lm
    assert lm.max_positions is not None
    each = lm.encode(PROMPT + " a").ids.shape[1] - lm.encode(PROMPT).ids.shape[1]
    long = PROMPT + " a" * ((lm.max_positions - 4 - lm.encode(PROMPT).ids.shape[1]) // each)
    assert lm.max_positions - lm.encode(long).ids.shape[1] in range(4, 4 + each)
    assert {word.rest for word in next_words(lm, long, [None])[0]} == {""}


def test_a_chat_model_is_asked_in_its_template_when_a_visitor_wants_it() -> None:
    plain = Workbench(golden_lm())
    assert not plain.chats
    with pytest.raises(TokenizerError):
        Workbench(golden_lm(), chat=True)
    bench = Workbench(chat_lm(TURN))
    assert bench.chats and not bench.chat
    fact = bench.fact("Where does Ann live?", "Ann", target="Ann lives in Rome")
    assert bench.locate(fact, window=1, chat=True).trace.prompt == ASKED
    assert bench.locate(fact, window=1).trace.prompt == fact.text
    made = bench.make(Wish(fact=fact, method="ft", chat=True))
    assert made.edit.records[0].text == ASKED
    voice = bench.compare(fact.text, {"edited": made.edit}, chat=True)[0]
    with made.edit.applied(bench.lm):
        assert voice.text == bench.lm.generate(ASKED, max_new_tokens=30)[len(ASKED) :]


# Many visitors at once


def test_visitors_at_once_never_meet_each_others_edits(bench: Workbench) -> None:
    lm = bench.lm
    before = weights_of(lm)
    edits = {f"visitor {i}": random_edit(lm, seed=i, size=0.5) for i in range(4)}
    alone = {name: bench.compare(PROMPT, {name: edit})[0] for name, edit in edits.items()}
    bare = bench.compare(PROMPT, {"bare": None})[0]
    assert len({voice.text for voice in [*alone.values(), bare]}) > 2  # the edits can be told apart
    start = threading.Barrier(5)

    def visit(name: str) -> list[Any]:
        start.wait()
        return [bench.compare(PROMPT, {name: edits.get(name)})[0] for _ in range(6)]

    with ThreadPoolExecutor(5) as pool:
        visits = {name: pool.submit(visit, name) for name in [*edits, "bare"]}
    for name, visited in visits.items():
        for voice in visited.result():
            assert voice.text == (bare if name == "bare" else alone[name]).text
    assert unchanged(lm, before)


def test_the_model_is_free_again_after_an_error(bench: Workbench) -> None:
    wrong = random_edit(bench.lm)
    stranger = replace(wrong, fingerprint="0" * 16)
    with pytest.raises(EngramError):
        bench.compare(PROMPT, {"wrong": stranger})
    assert bench.compare(PROMPT, {"bare": None})[0].says == "Denver"


# Handlers


def test_errors_become_sentences_and_never_stack_traces(caplog: pytest.LogCaptureFixture) -> None:
    area = gr.HTML()

    def refuse(text: str) -> dict[Any, Any]:
        raise SettingError(f"{text} is not allowed.")

    def break_down(text: str) -> dict[Any, Any]:
        raise RuntimeError(f"secret {text}")

    assert "&lt;b&gt; is not allowed." in guarded(refuse, area)("<b>")[area]
    with caplog.at_level(logging.ERROR):
        shown = guarded(break_down, area)("x")[area]
    assert "secret" not in shown
    assert "Something broke" in shown
    assert "secret x" in caplog.text


def test_visitors_take_turns_and_a_stop_is_heard_by_whom_it_is_for() -> None:
    turns, said = Turns(), list[str]()
    ann, bob, eve = (gr.Request(session_hash=name) for name in ("ann", "bob", "eve"))

    def work(visitor: gr.Request) -> str:
        try:
            with turns.taken(visitor, "edit", lambda ahead: said.append(f"{visitor.session_hash} {ahead}")):
                return "done"
        except Stopped as stopped:
            return str(stopped)

    def until(text: str) -> None:
        while text not in said:
            time.sleep(0.01)

    with ThreadPoolExecutor(2) as pool:
        with turns.taken(ann, "locate") as look:
            one = pool.submit(work, bob)
            until("bob 1")
            two = pool.submit(work, eve)
            until("eve 2")
            turns.stop(bob, "locate")  # another work than bob's
            turns.stop(bob, "edit")
            assert one.result().startswith("Stopped")
            until("eve 1")
            look()
            turns.stop(ann, "locate")
            with pytest.raises(Stopped):
                look()
        assert two.result() == "done"
    turns.stop(ann, "locate")  # nothing runs: nothing happens
    with turns.taken(ann, "locate") as later:
        later()


@pytest.mark.parametrize("value", [None, "1", 1.5, True, float("nan"), [1]])
def test_numbers_from_a_browser_are_checked(value: Any) -> None:
    with pytest.raises((EngramError, ValueError)):
        whole(value, "layer")
    assert whole(2.0, "layer") == 2


# Serving


@pytest.fixture(scope="module")
def running() -> Iterator[web.Running]:
    page = web.serve(Workbench(golden_lm(), corpus=golden_json("texts")))
    yield page
    page.stop()


def fetch(url: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - our own page
            return answer.status, answer.read().decode("utf-8", "replace"), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode("utf-8", "replace"), error.headers


def test_only_this_machine_can_reach_it(running: web.Running) -> None:
    assert running.url.startswith("http://127.0.0.1:")
    port = int(running.url.rstrip("/").rsplit(":", 1)[1])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert address.startswith("127.") or probe.connect_ex((address, port)) != 0


def test_the_browser_is_told_to_ask_no_other_server(running: web.Running) -> None:
    status, text, headers = fetch(running.url)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "fonts.googleapis" not in text
    assert "cdn" not in text.lower()
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "../../etc/passwd"])
def test_files_of_the_machine_are_not_served(running: web.Running, path: str) -> None:
    status, text, _ = fetch(f"{running.url}gradio_api/file={path}")
    assert status in (403, 404)
    assert "root:" not in text


def test_a_taken_port_is_a_sentence(running: web.Running) -> None:
    port = int(running.url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(SettingError, match="cannot be served"):
        web.serve(Workbench(golden_lm()), port=port)


# gradio does not close the socket that it could not bind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_port_that_is_taken_between_look_and_launch_is_passed_over(
    running: web.Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(running.url.rstrip("/").rsplit(":", 1)[1])
    monkeypatch.setattr("engram.web.app._PORT", taken)
    monkeypatch.setattr("engram.web.app._require_free", lambda host, port: None)
    other = web.serve(Workbench(golden_lm()))
    try:
        assert other.url != running.url
        assert fetch(other.url)[0] == 200
    finally:
        other.stop()


def test_a_visit_begins_with_an_empty_ledger() -> None:
    assert Ledger().entries == ()
    assert torch.is_grad_enabled()
