"""How the page looks in a real browser: columns, stale results, the dark, a phone, steps that open, a stop."""

import csv
import io
import threading
from typing import Any

import pytest
from PIL import Image

from engram.web.workbench import Workbench
from visitor import IN_A_BROWSER, PROMPT, Visitor

pytestmark = IN_A_BROWSER


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
    ".engram-lead, .engram-token, .engram-example, .engram-note, .engram-error, .engram-verdict, " +
    ".engram-result td, .engram-result th, " +
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
    cells = phone.page.evaluate(
        "[...document.querySelectorAll('#engram-ledger td')].map((e) => [e.clientWidth, e.scrollWidth])"
    )
    assert cells
    assert all(seen > 250 and inside <= seen for seen, inside in cells)  # no narrow column, nothing cut off
    phone.leave()


# Columns

EDGES = """() => [...document.querySelectorAll("#engram-grid table")].map((table) => {
  const edge = (cell) => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    const { left, right } = range.getBoundingClientRect();
    return [left, right];
  };
  const heads = [...table.querySelectorAll("thead th")].slice(1).map(edge);
  const rows = [...table.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")].map(edge));
  return [heads, rows];
})"""


def test_layer_numbers_stand_over_their_columns(visitor: Visitor) -> None:
    visitor.locate()
    visitor.page.locator("#engram-numbers button").first.click()
    visitor.page.wait_for_selector("#engram-grid table", state="visible")
    tables = visitor.page.evaluate(EDGES)
    assert len(tables) == 3
    for heads, rows in tables:
        assert len(heads) == 8
        for row in rows:
            for (_, head), (left, right) in zip(heads, row, strict=True):
                assert abs(head - right) < 2
                assert left < head


# Results of something else

OPACITY = "(id) => Number(getComputedStyle(document.getElementById(id)).opacity)"


def pale(visitor: Visitor, name: str) -> bool:
    return float(visitor.page.evaluate(OPACITY, f"engram-{name}")) < 0.6


def fresh(visitor: Visitor, name: str = "stale") -> None:
    visitor.page.wait_for_function("(id) => !document.getElementById(id)?.innerText.trim()", arg=f"engram-{name}")


def test_what_belongs_to_the_prompt_before_is_marked(visitor: Visitor) -> None:
    visitor.locate()
    assert not pale(visitor, "map")
    visitor.type("prompt", "Mary Holzu comes from")
    assert f"From the prompt before: '{PROMPT}'" in visitor.reads("stale", "From the prompt before")
    assert all(pale(visitor, name) for name in ("map", "words", "suggestion"))
    visitor.type("prompt", PROMPT)
    fresh(visitor)
    assert not pale(visitor, "map")
    visitor.box("window").fill("1")
    visitor.box("window").press("Tab")
    visitor.reads("stale", "window 2")
    visitor.locate()
    fresh(visitor)
    visitor.type("subject", "Nobody")
    visitor.click("locate")
    visitor.reads("locate-message", "is not there")
    assert "subject 'John Holzu'" in visitor.reads("stale", "From the prompt before")
    visitor.type("subject", "")
    visitor.type("prompt", PROMPT + " a" * 200)
    visitor.reads("locate-message", "this page takes up to 400. Shorten it")  # not cut without a word
    visitor.reads("stale", "From the prompt before")
    visitor.type("prompt", PROMPT)
    fresh(visitor)
    visitor.edit("Boston")
    assert not pale(visitor, "result")
    visitor.type("target", "Paris")
    assert f"'{PROMPT}' → 'Boston'" in visitor.reads("edit-stale", "From the edit before")
    assert pale(visitor, "result")


# The dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_maps_are_as_dark_as_the_page(browser: Any, url: str, theme: str) -> None:
    somebody = Visitor(browser, url, path=f"?__theme={theme}")
    somebody.locate()
    for at in range(3):
        plot = somebody.page.locator("#engram-map .js-plotly-plot .nsewdrag").nth(at)
        plot.scroll_into_view_if_needed()
        pixels = Image.open(io.BytesIO(plot.screenshot())).convert("L").histogram()
        bright = sum(pixels[128:]) / sum(pixels)
        assert bright < 0.4 if theme == "dark" else bright > 0.6
    text = somebody.page.locator("#engram-map .xtick text").first
    colour = text.evaluate("(e) => getComputedStyle(e).fill.match(/[0-9]+/g).map(Number)")
    assert min(colour) > 180 if theme == "dark" else max(colour) < 90
    somebody.leave()


# One step after the other


def test_steps_open_one_after_the_other_and_the_result_comes_into_view(browser: Any, url: str) -> None:
    phone = Visitor(browser, url, width=390)
    page = phone.page
    assert page.locator("#engram-edit, #engram-compare").count() == 0
    assert page.evaluate("document.documentElement.scrollHeight") < 1400
    phone.locate()
    page.wait_for_selector("#engram-edit", state="visible")
    assert page.locator("#engram-compare").count() == 0
    phone.edit("Boston")
    page.wait_for_selector("#engram-compare", state="visible")
    top = "document.getElementById('engram-result').getBoundingClientRect().top"
    page.wait_for_function(f"{top} >= 0 && {top} < innerHeight")
    assert page.locator("#engram-result details[open]").count() == 0  # folded on a phone
    assert (
        page.evaluate("document.documentElement.scrollHeight") < 5400
    )  # 6,100 in version 0.1, before the verdict had parts
    phone.leave()


def test_an_example_fills_in_prompt_and_target(visitor: Visitor) -> None:
    visitor.page.click("#engram-tokens button:has-text('comes')")
    visitor.page.click("#engram-examples button >> nth=1")
    visitor.page.wait_for_function("document.querySelector('#engram-prompt textarea').value.includes('Space Needle')")
    visitor.page.wait_for_function("!document.querySelector('#engram-subject textarea').value")
    visitor.page.wait_for_selector("#engram-tokens button:has-text('S')")
    visitor.open(2)
    assert visitor.box("target").input_value() == "Rome"


# Files


def test_maps_can_be_taken_home(visitor: Visitor) -> None:
    visitor.locate()
    lines = list(csv.DictReader(io.StringIO(visitor.save("get-csv").decode())))
    assert {line["site"] for line in lines} == {"state", "mlp", "attn"}
    assert {int(line["layer"]) for line in lines} == set(range(8))
    assert len(lines) == 3 * 8 * len({line["position"] for line in lines})
    assert visitor.save("get-png").startswith(b"\x89PNG")
    assert not visitor.page.locator("#engram-trace-file").is_visible()


# A stop


def test_long_work_can_be_stopped_while_it_runs_and_while_it_waits(
    browser: Any, served: Any, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench: Workbench = served[0]
    ended: list[str] = []

    def endless(fact: Any, *, window: int, chat: bool, progress: Any) -> Any:
        try:
            for step in range(100_000):
                progress(min(step, 99), 100)
                threading.Event().wait(0.02)
        finally:
            ended.append(fact.subject)

    def begin(who: Visitor, shows: str) -> None:
        assert not who.page.locator("#engram-locate-stop").is_visible()
        who.page.click("#engram-locate")
        who.page.wait_for_selector("#engram-locate-stop", state="visible")
        who.reads("locate-message", shows)

    def stop(who: Visitor) -> None:
        who.page.click("#engram-locate-stop")
        who.reads("locate-message", "Stopped")
        who.page.wait_for_selector("#engram-locate-stop", state="hidden")

    waiting = Visitor(browser, served[1])
    with monkeypatch.context() as patch:
        patch.setattr(bench, "locate", endless)
        begin(visitor, "tracing")
        begin(waiting, "waiting: 1 before you")
        stop(waiting)
        assert ended == []
        stop(visitor)
        assert len(ended) == 1
    visitor.locate()
    waiting.leave()
