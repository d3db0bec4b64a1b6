"""What every test may use: data, the shared material, and settings that make a run offline, repeatable and tidy.

This file must not import `engram` at module level: shape checks are installed when the package is first imported.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from platformdirs import user_cache_path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests start processes; forked tokenizers warn
os.environ["MPLBACKEND"] = "Agg"  # no test may need a screen

settings.register_profile("engram", deadline=None)
settings.register_profile("engram-ci", parent=settings.get_profile("engram"), derandomize=True)
settings.load_profile("engram-ci" if os.environ.get("CI") else "engram")

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
RUN_FOLDER = pytest.StashKey[Path]()
WRITERS = {
    "ENGRAM_CACHE": "engram",  # key statistics: counted once in a run, whoever asks for them
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "IPYTHONDIR": "ipython",
    "JUPYTER_RUNTIME_DIR": "jupyter",
    "GRADIO_TEMP_DIR": "gradio",
}
"""Environment variables that say where Engram and libraries write, each with its folder in that of the run."""


def pytest_configure(config: pytest.Config) -> None:
    """Give the run one folder for everything that is kept between tests; xdist's workers inherit it."""
    if hasattr(config, "workerinput"):
        return
    real = user_cache_path("engram") / "real-models"  # what a run only reads may lie where the user keeps it
    os.environ.setdefault("ENGRAM_REAL_MODELS", str(real))
    folder = Path(tempfile.mkdtemp(prefix="engram-tests-"))
    config.stash[RUN_FOLDER] = folder
    os.environ.update({name: str(folder / place) for name, place in WRITERS.items()})


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the run's folder."""
    folder = config.stash.get(RUN_FOLDER, None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what compares with published results, and give slow tests and real models more time."""
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker("golden")
        if item.get_closest_marker("slow") or item.get_closest_marker("real"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published data beside the repository, or the one that ENGRAM_SHARED names."""
    folder = Path(os.environ.get("ENGRAM_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip("../shared is absent: this test reads published data kept there (or set ENGRAM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Results of the published code on a small fixed model, in the folder that ENGRAM_GOLDEN names."""
    folder = Path(os.environ.get("ENGRAM_GOLDEN") or ROOT.parent / "shared" / "golden")
    if not folder.is_dir():
        pytest.skip("../shared/golden is absent: this test compares with the results kept there (or set ENGRAM_GOLDEN)")
    return folder


@pytest.fixture(scope="session")
def counterfact() -> Path:
    """A dozen records in CounterFact's format about the world of the golden model, which knows these facts."""
    return DATA / "counterfact.json"


@pytest.fixture(scope="session")
def zsre() -> Path:
    """The same dozen facts as questions in zsRE's format; one has no target, as happens in the published file."""
    return DATA / "zsre.json"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    from visitor import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """A page that is being served: its workbench and its address."""
    from visitor import serving

    with serving() as found:
        yield found


@pytest.fixture
def url(served: Any) -> str:
    """The address of a page."""
    return str(served[1])


@pytest.fixture
def visitor(browser: Any, url: str) -> Iterator[Any]:
    """Somebody on the page, who is asked at the end whether anything was wrong behind the scenes."""
    from visitor import Visitor

    somebody = Visitor(browser, url)
    yield somebody
    somebody.leave()
