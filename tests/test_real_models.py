"""The real models that scripts/real_models.sh brings."""

import hashlib
import re
from pathlib import Path

import pytest
from real import FILES, real_file, real_model

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "real_models.sh"


@pytest.mark.real
@pytest.mark.parametrize("name", FILES)
def test_the_file_is_the_one_that_was_meant(name: str) -> None:
    wanted = dict(re.findall(r"file=(\S+)\n\s+sha256=(\w+)", SCRIPT.read_text(encoding="utf-8")))
    path = real_file(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted[path.name]


@pytest.mark.real
@pytest.mark.parametrize("name", FILES)
def test_it_knows_a_capital(name: str) -> None:
    token, probability = real_model(name).next_tokens("The capital of France is the city of", k=1)[0]
    assert token == " Paris"
    assert probability > 0.3
