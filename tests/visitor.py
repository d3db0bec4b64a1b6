"""A visitor of the page with a real browser, for tests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from edits import golden_json, golden_lm
from engram.web import Workbench, serve

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
IN_A_BROWSER = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not tested in a browser"),
    pytest.mark.slow,
    # gradio's queue counts requests with options of pandas that pandas has deprecated.
    pytest.mark.filterwarnings(r"ignore:.*(no_silent_downcasting|copy keyword)"),
]
PROMPT = "John Holzu comes from"
PATIENCE = 240_000  # milliseconds; a busy machine is no failure


@contextmanager
def serving() -> Iterator[tuple[Workbench, str]]:
    """Serve a page with the golden model; give its workbench and its address."""
    bench = Workbench(golden_lm(), corpus=golden_json("texts"))
    running = serve(bench)
    try:
        yield bench, running.url
    finally:
        running.stop()


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a headless browser."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


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

    def open(self, step: int) -> None:
        """Open a step that is still closed."""
        if not self.page.locator(f"#engram-step-{step} > [data-testid=accordion-content]").is_visible():
            self.page.locator(f"#engram-step-{step} > button").click()
        self.page.wait_for_selector("#engram-edit" if step == 2 else "#engram-ledger", state="visible")

    def locate(self) -> None:
        self.click("locate")
        self.reads("words", "Clean, the model gives 'Denver'")
        self.page.wait_for_function("document.querySelectorAll('#engram-map .js-plotly-plot .xy').length >= 3")

    def edit(self, target: str) -> None:
        self.open(2)
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
