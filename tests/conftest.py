"""What every test may use: the shared material, and settings that make a run offline and repeatable.

This file must not import `engram` at module level: shape checks are installed when the package is first imported.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests start processes; forked tokenizers warn
os.environ["MPLBACKEND"] = "Agg"  # no test may need a screen

settings.register_profile("engram", deadline=None)
settings.register_profile("engram-ci", parent=settings.get_profile("engram"), derandomize=True)
settings.load_profile("engram-ci" if os.environ.get("CI") else "engram")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and reference results beside the repository, or the one that ENGRAM_SHARED names."""
    folder = Path(os.environ.get("ENGRAM_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip("../shared is absent: this test compares with material kept there (or set ENGRAM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Results of the published code on a small fixed model."""
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip("../shared/golden is absent: this test compares with the results kept there")
    return folder
