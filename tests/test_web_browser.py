"""The page in a real browser: from heat map to edit and back, bad input, two visitors, keyboard, phone."""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from edits import golden_json, golden_lm, random_edit, unchanged, weights_of
from engram import web
from engram.editing import Edit
from engram.web.archives import packed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not tested in a browser"),
    pytest.mark.slow,
    # gradio's queue counts requests with options of pandas that pandas has deprecated.
    pytest.mark.filterwarnings(r"ignore:.*(no_silent_downcasting|copy keyword)"),
]
PROMPT = "John Holzu comes from"
PATIENCE = 120_000  # milliseconds; a busy machine is no failure


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    running = web.serve(web.Workbench(golden_lm(), corpus=golden_json("texts")))
    yield running.url
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visitor:
    """Somebody with a browser of their own, who notices foreign servers and errors in the browser's console."""

    def __init__(self, browser: Any, url: str, *, width: int = 1100, path: str = "") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url + path)
        self.page.wait_for_selector("#engram-locate")
        self.type("prompt", PROMPT)
        self.page.wait_for_selector("#engram-tokens button:has-text('comes')")

    def box(self, name: str) -> Any:
        return self.page.locator(f"#engram-{name}").locator("textarea, input").first

    def type(self, name: str, text: str) -> None:
        self.box(name).fill(text)

    def click(self, name: str) -> None:
        """Click a button once nothing is under way: a click on a button that still works is not counted."""
        self.page.wait_for_function("!document.querySelector('.engram-area .wrap:not(.hide)')")
        self.page.locator(f"button#engram-{name}, #engram-{name} button").first.click()

    def reads(self, name: str, text: str) -> str:
        """Wait until an area shows a text; return all of what it shows."""
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id)?.innerText.includes(text)", arg=[f"engram-{name}", text]
        )
        return str(self.page.inner_text(f"#engram-{name}"))

    def locate(self) -> None:
        self.click("locate")
        self.reads("words", "Clean, the model gives 'Denver'")
        self.page.wait_for_selector("#engram-map .js-plotly-plot .xy")

    def edit(self, target: str) -> None:
        self.type("target", target)
        self.click("edit")
        self.reads("edit-message", "Done. It is edit")
        self.reads("ledger", target)

    def layer_is(self, layer: int) -> None:
        self.page.wait_for_function(
            "text => document.querySelector('#engram-layer input').value == text", arg=f"layer {layer}"
        )

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as waiting:
            self.click("upload")
        waiting.value.set_files(path)

    def save(self, name: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.click(name)
        return Path(waiting.value.path()).read_bytes()

    def compare(self, text: str) -> str:
        self.type("try", text)
        self.click("compare")
        return self.reads("voices", text)

    def leave(self) -> None:
        """Go, and say whether anything was wrong behind the scenes."""
        self.context.close()
        assert self.errors == []
        foreign = [u for u in self.asked if not u.startswith(("http://127.0.0.1:", "data:", "blob:"))]
        assert foreign == []


@pytest.fixture
def visitor(browser: Any, url: str) -> Iterator[Visitor]:
    somebody = Visitor(browser, url)
    yield somebody
    somebody.leave()


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
    assert "Healthy" in result or "Look twice" in result
    assert visitor.page.locator("#engram-result del").count() > 0
    assert visitor.page.locator("#engram-result ins").count() > 0
    assert "layer 2" in visitor.reads("ledger", "healthy" if "Healthy" in result else "look twice")

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
    visitor.click("get-engram")
    visitor.reads("ledger-message", "No edit is switched on")
    (tmp_path / "wrong.zip").write_bytes(b"no zip at all")
    visitor.upload(tmp_path / "wrong.zip")
    visitor.reads("ledger-message", "no intact zip")
    assert "Traceback" not in visitor.page.content()


def test_two_visitors_at_once_do_not_see_each_others_edits(browser: Any, url: str) -> None:
    before = weights_of(golden_lm())
    ann, bob = Visitor(browser, url), Visitor(browser, url)
    for somebody, target in ((ann, "Boston"), (bob, "Paris")):  # both are waiting for the model at the same time
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
    page.locator("#engram-grid td[tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    visitor.layer_is(2)
    assert page.locator("#engram-grid td[aria-selected=true]").get_attribute("data-row") == "1"


CONTRAST = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const worst = {};
  for (const e of document.querySelectorAll(
    ".engram-lead, .engram-token, .engram-note, .engram-error, .engram-health, .engram-result td, .engram-result th, " +
    "ins, del, #engram-locate, label span, .engram-ledger td")) {
    if (!e.innerText?.trim()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) worst[e.className + ": " + e.innerText.slice(0, 30)] = ratio;
  }
  return worst;
}"""


def unreadable(page: Any) -> dict[str, float]:
    """Texts with too little contrast, once colors that are still changing have come to rest."""
    for _ in range(20):
        found: dict[str, float] = page.evaluate(CONTRAST)
        if not found:
            break
        page.wait_for_timeout(250)
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_in_light_in_the_dark_and_on_a_phone(browser: Any, url: str, theme: str) -> None:
    phone = Visitor(browser, url, width=390, path=f"?__theme={theme}")
    phone.type("subject", "nobody")
    phone.click("locate")
    phone.reads("locate-message", "is not there")
    assert phone.page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")
    assert unreadable(phone.page) == {}
    phone.type("subject", "")
    phone.locate()
    phone.edit("Boston")
    phone.reads("result", "What it writes")
    assert unreadable(phone.page) == {}
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.leave()


def test_an_upload_for_another_model_is_refused(visitor: Visitor, tmp_path: Path) -> None:
    edit = random_edit(golden_lm())
    stranger = replace(edit, fingerprint="0" * 16)
    (tmp_path / "other.zip").write_bytes(packed(stranger, "engram", golden_lm()))
    visitor.upload(tmp_path / "other.zip")
    visitor.reads("ledger-message", "was made for")
