"""Every registered locator keeps the contract of locators, and so does the one of docs/new-locator.md."""

import re
from pathlib import Path
from typing import Any

import pytest
from families import golden_lm

from contracts import check_locator
from engram.facts import Fact
from engram.locate import LOCATORS, locator_named

FACTS = [Fact("Michael Morfa", "Today {} took lessons in"), Fact("Holzu", "Today {} took lessons in")]
ASKED = {"tracing": {"samples": 2, "noise": 0.25, "window": 3, "tokens": "subject"}, "lens": {"top": 2}}


@pytest.mark.parametrize("name", LOCATORS)
def test_it_keeps_the_contract(name: str, tmp_path: Path) -> None:
    check_locator(golden_lm(), locator_named(name, **ASKED.get(name, {})), FACTS, tmp_path)


def test_the_locator_that_the_documentation_writes_keeps_it_too(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "new-locator.md"
    (file,) = re.findall(r"^```python\n(\"\"\"Attribution.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {"__name__": "attribution"}
    exec(compile(file, page.name, "exec"), names)  # noqa: S102 (our own page)
    check_locator(golden_lm(), names["Attribution"](site="attn"), FACTS, tmp_path)
