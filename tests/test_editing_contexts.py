"""Contexts that a model wrote once are kept; what is damaged or of another model is written anew."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import tiny

from engram.editing.contexts import sample_contexts
from engram.models import LM

LENGTHS = (2, 3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGRAM_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts were written, call by call."""
    counts: list[int] = []
    generate = LM.generate

    def watched(self: LM, prompts: list[str], **options: Any) -> Any:
        counts.append(len(prompts))
        return generate(self, prompts, **options)

    monkeypatch.setattr(LM, "generate", watched)
    return counts


def test_contexts_are_written_once(cache: Path, written: list[int]) -> None:
    lm = tiny("gpt2")
    first = sample_contexts(lm, LENGTHS)
    calls = len(written)
    assert calls >= 2 and first[0] == "{}" and len(first) == 3
    assert sample_contexts(lm, LENGTHS) == first and len(written) == calls
    for other in ({"seed": 1}, {"bare": False}):
        sample_contexts(lm, LENGTHS, **other)
        assert len(written) > calls
        calls = len(written)
    sample_contexts(lm, (2,))
    sample_contexts(tiny("llama"), LENGTHS)
    assert len(list(cache.glob("contexts/*/*.json"))) == 5


@pytest.mark.parametrize("damage", ["", "[]", '{"key": 1}', "short", "braces"])
def test_what_is_damaged_is_written_anew(damage: str, cache: Path, written: list[int]) -> None:
    lm = tiny("gpt2")
    first = sample_contexts(lm, LENGTHS)
    (path,) = cache.glob("contexts/*/*.json")
    whole = json.loads(path.read_text())
    changed = {"short": ["{}"], "braces": ["{}", "a", "b {}"]}
    path.write_text(json.dumps({**whole, "contexts": changed[damage]}) if damage in changed else damage)
    calls = len(written)
    assert sample_contexts(lm, LENGTHS) == first and len(written) > calls


def test_a_cache_that_cannot_be_written_costs_only_time(cache: Path) -> None:
    (cache / "contexts").write_text("in the way")
    assert len(sample_contexts(tiny("gpt2"), LENGTHS)) == 3
