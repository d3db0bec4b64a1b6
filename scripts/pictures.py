"""Make the documentation's pictures again: traces of `mini` drawn by Engram, and its page seen by a headless Chromium.

python scripts/pictures.py [--only traces | page]
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

import engram
from engram import web
from engram.locate import compare_severed, trace_many

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000  # milliseconds


def traces(lm: engram.LM) -> None:
    """Draw one fact's heat maps, the average over many, and the severed comparison."""
    fact = engram.Fact("Space Needle", "The {} is located in the city of", original="Seattle")
    engram.trace(lm, fact).plot(path=IMAGES / "trace.png")
    known = list(engram.datasets.load("mini-knowns", sample=40))
    trace_many(lm, known).plot(IMAGES / "average.png")
    compare_severed(lm, known).plot(IMAGES / "severed.png")


def page(lm: engram.LM) -> None:
    """Go through the page as a visitor would, and take pictures of it."""
    running = web.serve(web.Workbench(lm))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        seen = visit(chromium, running.url, width=1100, dark=False)
        seen.screenshot(path=IMAGES / "page-locate.png", clip=area(seen, "h1", "#engram-chosen"), full_page=True)
        seen.locator("#engram-target textarea, #engram-target input").first.fill("Rome")
        seen.click("#engram-edit")
        said(seen, "engram-edit-message", "Done.")
        said(seen, "engram-result", "What it writes")
        seen.mouse.move(0, 0)
        seen.screenshot(
            path=IMAGES / "page-edit.png", clip=area(seen, "#engram-target", "#engram-result"), full_page=True
        )
        phone = visit(chromium, running.url, width=390, dark=True)
        phone.evaluate("document.querySelector('#engram-words').scrollIntoView()")
        phone.screenshot(path=IMAGES / "page-phone.png")
        chromium.close()
    running.stop()


def visit(browser: Any, url: str, *, width: int, dark: bool) -> Any:
    """Open the page, locate the fact that it begins with, and point at a cell."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    there = context.new_page()
    there.set_default_timeout(PATIENCE)
    there.goto(f"{url}?__theme={'dark' if dark else 'light'}")
    there.wait_for_selector("#engram-tokens button")
    there.click("#engram-locate")
    said(there, "engram-words", "Clean, the model gives")
    plot = there.locator("#engram-map .js-plotly-plot .nsewdrag").first
    size = plot.bounding_box()
    cell = {"x": size["width"] * 2.5 / 10, "y": size["height"] * 5.5 / 12}  # layer 2, the last subject token
    plot.click(position=cell)
    said(there, "engram-chosen", "Layer 2 is chosen")
    plot.hover(position=cell)
    there.wait_for_selector("#engram-map .hoverlayer .hovertext")
    return there


def said(there: Any, name: str, text: str) -> None:
    """Wait until an area shows a text."""
    there.wait_for_function("([id, t]) => document.getElementById(id)?.innerText.includes(t)", arg=[name, text])


def area(there: Any, first: str, last: str) -> dict[str, float]:
    """Return the rectangle from the top of one element to the bottom of another, over the page's whole width."""
    top, bottom = (
        there.evaluate(
            "s => { const r = document.querySelector(s).getBoundingClientRect();"
            " return [r.top + scrollY, r.bottom + scrollY] }",
            selector,
        )
        for selector in (first, last)
    )
    return {"x": 0, "y": max(0, top[0] - 10), "width": there.viewport_size["width"], "height": bottom[1] - top[0] + 20}


def main() -> None:
    """Make all of them, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["traces", "page"])
    only = parser.parse_args().only
    lm = engram.load("mini")
    if only != "page":
        traces(lm)
    if only != "traces":
        page(lm)


if __name__ == "__main__":
    main()
