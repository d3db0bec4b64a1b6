"""What the documentation shows is true: Python blocks run, commands work, pages and links are there.

Blocks marked `python` run, one after the other on each page, and so do `engram` commands in blocks marked `sh`, on
fewer facts than the page says. What cannot run here (other libraries, other models) is marked `py` or not at all.
"""

import re
import shlex
from pathlib import Path

import pytest

from engram.cli import app, main
from engram.stats.counting import PER_DIMENSION

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RUN = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("start", "reading-a-trace", "limits", "security"))]
NEW = ("new-method", "new-change", "new-locator")
RUN += [DOCS / f"{name}.md" for name in ("coming-from", *NEW, "memit", "grace", "lens")]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIZE = re.compile(r"(\b(?:limit|sample)=|--limit )\d+")
FEW = r"\g<1>2"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def commands(block: str) -> list[list[str]]:
    """The `engram` commands of a block, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("engram ")]


@pytest.mark.parametrize("page", RUN, ids=[page.stem for page in RUN])
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    blocks = BLOCK.findall(SIZE.sub(FEW, page.read_text(encoding="utf-8")))
    assert blocks
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(page), "exec"), names)  # noqa: S102 (our own pages)
            continue
        for arguments in commands(text):
            if arguments[0] == "serve":
                continue
            with pytest.raises(SystemExit) as left:
                main(arguments)
            assert left.value.code == 0, arguments


def test_the_first_edit_shown_prints_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "editing.md").read_text(encoding="utf-8")
    (_, block), *_ = BLOCK.findall(text)
    exec(compile(block, "editing.md", "exec"), {"__name__": "page"})  # noqa: S102 (our own page)
    printed = capsys.readouterr().out.strip()
    assert printed.endswith("Rome.") and f'It prints "{printed}"' in text


def test_pages_name_the_amount_of_text_that_is_counted() -> None:
    for page, words in (
        ("editing", "at {} tokens for each key dimension"),
        ("start", "up to {} tokens per key dimension"),
    ):
        assert words.format(f"{PER_DIMENSION:g}") in (DOCS / f"{page}.md").read_text(encoding="utf-8")


def test_readme_is_short_and_its_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        found = [link for link in LINK.findall(text) if not link.startswith(("http", "mailto"))]
        assert [link for link in found if not (page.parent / link).exists()] == [], page.name
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    verbs = [c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands]
    verbs += [group.name or "" for group in app.registered_groups]
    assert [verb for verb in verbs if f"`{verb}`" not in text and f"`engram {verb}`" not in text] == []
