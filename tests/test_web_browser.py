"""The page in a real browser: from heat map to edit and back, bad input, two visitors, keyboard."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from edits import golden_lm, random_edit, unchanged, weights_of
from engram.editing import Edit
from engram.web.archives import packed
from visitor import IN_A_BROWSER, PROMPT, Visitor

pytestmark = IN_A_BROWSER


def switch(visitor: Visitor, number: int) -> None:
    visitor.page.locator(f"#engram-switches label:has-text('{number}: ') input").click()


def test_the_whole_way(browser: Any, url: str, visitor: Visitor, tmp_path: Path) -> None:
    before = weights_of(golden_lm())
    visitor.page.click("#engram-tokens button:has-text('ohn')")
    visitor.page.wait_for_function(
        "document.querySelector('#engram-subject input, #engram-subject textarea').value=='John'"
    )
    visitor.page.click("#engram-tokens button:has-text('zu')")
    visitor.page.wait_for_selector("#engram-tokens button[aria-pressed=true]:has-text('zu')")
    assert visitor.box("subject").input_value() == "John Holzu"
    visitor.locate()

    plot = visitor.page.locator("#engram-map .js-plotly-plot .nsewdrag").first
    size = plot.bounding_box()
    there = {"x": size["width"] * 2.5 / 8, "y": size["height"] * 3.5 / 6}  # token 3 of 6, layer 2 of 8
    plot.hover(position=there)
    visitor.page.wait_for_selector("#engram-map .hoverlayer .hovertext")
    hover = visitor.page.text_content("#engram-map .hoverlayer")
    assert "layer 2" in hover
    assert "p(Denver)" in hover
    plot.click(position=there)
    visitor.layer_is(2)

    visitor.edit("Boston")
    result = visitor.reads("result", "What it writes")
    assert "As wished" in result or "Look twice" in result
    assert visitor.page.locator("#engram-result del").count() > 0
    assert visitor.page.locator("#engram-result ins").count() > 0
    assert "layer 2" in visitor.reads("ledger", "✓ as wished" if "As wished" in result else "⚠")

    voices = visitor.compare(PROMPT)
    assert voices.count("Denver") >= 1
    assert "Boston" in voices
    visitor.edit("Paris")
    visitor.click("combine")
    visitor.reads("ledger", "combined from 1, 2")
    switch(visitor, 3)
    switch(visitor, 1)
    visitor.page.wait_for_function(
        "document.querySelectorAll('#engram-ledger tbody td:nth-child(2)')[2].innerText=='off'"
    )
    assert "Paris" not in visitor.compare(PROMPT).split("next word")[-1]

    (tmp_path / "edit").mkdir()
    with zipfile.ZipFile(io.BytesIO(saved := visitor.save("get-engram"))) as archive:
        archive.extractall(tmp_path / "edit")
    edit = Edit.load(tmp_path / "edit", golden_lm())
    assert [fact.target for fact in edit.facts] == ["Boston"]
    with zipfile.ZipFile(io.BytesIO(visitor.save("get-peft"))) as archive:
        assert json.loads(archive.read("adapter_config.json"))["peft_type"] == "LORA"

    other = Visitor(browser, url)
    other.open(3)
    (tmp_path / "edit.zip").write_bytes(saved)
    other.upload(tmp_path / "edit.zip")
    other.reads("ledger", "uploaded")
    assert "Boston" in other.compare(PROMPT)
    other.leave()
    assert unchanged(golden_lm(), before)


def test_wrong_input_gives_a_sentence(visitor: Visitor, tmp_path: Path) -> None:
    visitor.type("subject", "Jon Holzer")
    visitor.click("locate")
    assert "Did you mean 'John Holzu'?" in visitor.reads("locate-message", "is not there")
    visitor.type("subject", "")
    visitor.open(2)
    visitor.type("target", "")
    visitor.click("edit")
    visitor.reads("edit-message", "The target is empty")
    visitor.type("prompt", "")
    visitor.click("locate")
    visitor.reads("locate-message", "The prompt is empty")
    visitor.type("prompt", "<img src=x onerror=alert(1)> {{7*7}} ${7*7} is")
    visitor.click("locate")
    visitor.page.wait_for_selector("#engram-map .js-plotly-plot .xy")
    assert visitor.page.locator("#engram-tokens img, #engram-words img, #engram-map img").count() == 0
    assert "49" not in visitor.page.inner_text("#engram-words")
    visitor.open(3)
    visitor.click("get-engram")
    visitor.reads("ledger-message", "No edit is switched on")
    (tmp_path / "wrong.zip").write_bytes(b"no zip at all")
    visitor.upload(tmp_path / "wrong.zip")
    visitor.reads("ledger-message", "no intact zip")
    content = visitor.page.content()
    assert "Traceback" not in content
    assert golden_lm().name not in content  # nor where the model lies


def test_two_visitors_at_once_do_not_see_each_others_edits(browser: Any, url: str) -> None:
    before = weights_of(golden_lm())
    ann, bob = Visitor(browser, url), Visitor(browser, url)
    for somebody, target in ((ann, "Boston"), (bob, "Paris")):  # both are waiting for the model at the same time
        somebody.open(2)
        somebody.open(3)
        somebody.type("target", target)
    ann.click("edit")
    bob.click("edit")
    ann.reads("ledger", "Boston")
    bob.reads("ledger", "Paris")
    assert "Paris" not in ann.page.inner_text("#engram-ledger")
    assert "Boston" not in bob.page.inner_text("#engram-ledger")
    for somebody in (ann, bob):
        somebody.type("try", PROMPT)
    ann.click("compare")
    bob.click("compare")
    hers, his = ann.reads("voices", "Boston"), bob.reads("voices", "Paris")
    assert "Denver" in hers
    assert "Denver" in his
    assert "Paris" not in hers
    assert "Boston" not in his
    ann.leave()
    bob.leave()
    assert unchanged(golden_lm(), before)


def test_everything_can_be_done_with_the_keyboard(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#engram-tokens button:has-text('ohn')").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#engram-tokens button[aria-pressed=true]")
    page.locator("button#engram-locate").focus()
    page.keyboard.press("Enter")
    visitor.reads("words", "Clean, the model gives")
    page.locator("#engram-numbers button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#engram-grid td[tabindex='0']", state="visible")
    page.locator("#engram-grid td[tabindex='0']").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    visitor.layer_is(2)
    assert page.locator("#engram-grid td[aria-selected=true]").first.get_attribute("data-row") == "1"


def test_an_upload_for_another_model_is_refused(visitor: Visitor, tmp_path: Path) -> None:
    edit = random_edit(golden_lm())
    stranger = replace(edit, fingerprint="0" * 16)
    visitor.open(3)
    (tmp_path / "other.zip").write_bytes(packed(stranger, "engram", golden_lm()))
    visitor.upload(tmp_path / "other.zip")
    visitor.reads("ledger-message", "was made for")
