"""Real models for tests marked `real`: what `scripts/real_models.sh` fetched, or a skip with a sentence.

Reading GGUF takes 12 s (SmolLM2) and 40 s (Gemma), so the first test that asks keeps a plain copy beside the files.
"""

import os
import tempfile
from functools import cache
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock

from engram.models import LM, load

FILES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma": "gemma-3-270m-q4_k_m.gguf"}


def real_file(name: str) -> Path:
    """The GGUF file of "smollm2" or "gemma"; the test is skipped where it is not."""
    path = _folder() / FILES[name]
    if not path.is_file():
        pytest.skip(f"the real model {name!r} is absent: scripts/real_models.sh {name} fetches it")
    return path


def real_folder(name: str) -> Path:
    """The same model as a plain folder (fp32), made once and kept beside the file."""
    place = _folder() / name
    if (place / "config.json").is_file():
        return place
    source = real_file(name)
    with FileLock(_folder() / f".{name}.lock"):
        if not (place / "config.json").is_file():
            _dequantise(source, place)
    return place


@cache
def real_model(name: str) -> LM:
    """ "smollm2" or "gemma" in fp32 on the CPU. Shared by the tests of a process: leave it unchanged."""
    return load(real_folder(name), device="cpu")


def _folder() -> Path:
    return Path(os.environ.get("ENGRAM_REAL_MODELS") or platformdirs.user_cache_path("engram") / "real-models")


def _dequantise(source: Path, place: Path) -> None:
    lm = load(source, device="cpu")
    staged = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    lm.model.save_pretrained(staged)
    lm.tokenizer.save_pretrained(staged)
    staged.rename(place)
