"""What is written to a results file for each case, and a run's settings and circumstances."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engram._version import __version__
from engram.datasets import Dataset
from engram.editing import Method
from engram.errors import RunError
from engram.evaluation.editors import described
from engram.evaluation.measuring import Scoring
from engram.evaluation.texts import References
from engram.evaluation.verdicts import verdict
from engram.evaluation.work import Done
from engram.facts import Case
from engram.runs import read_run

if TYPE_CHECKING:
    from engram.models import LM


def settings_of(
    lm: "LM", data: Dataset, method: Method, scoring: Scoring, protocol: str, **more: Any
) -> dict[str, Any]:
    """Return what decides a run's results, as plain values; a run is only continued under the same ones."""
    return {
        "protocol": protocol,
        "method": described(method),
        "model": {
            "name": lm.name,
            "fingerprint": lm.fingerprint,
            "dtype": str(lm.dtype).removeprefix("torch."),
        },
        "data": data.describe(),
        "scoring": scoring.describe(),
        **more,
    }


def recorded_method(folder: str | Path | None) -> Mapping[str, Any]:
    """Return the method's settings of the run that a folder holds; nothing where it holds none."""
    try:
        method = {} if folder is None else read_run(Path(folder))["settings"]["method"]
    except (RunError, KeyError, TypeError):  # the run itself says what is wrong with its folder
        return {}
    return method if isinstance(method, Mapping) else {}


def circumstances() -> dict[str, Any]:
    """Return versions, hardware and time, for people."""
    return {
        "engram": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "tokenizers", "nltk", "scikit-learn")},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def record_of(done: Done, *, references: References | None, when: str = "after") -> dict[str, Any]:
    """Return one case's line: what was asked, the verdict, and what it rests on.

    Args:
        done: the case.
        references: TF-IDF weights for RS.
        when: "after" the edit, or "before", which makes the unedited model's line.
    """
    record: dict[str, Any] = {"id": done.case.id, **asked(done.case)}
    scores = done.after if when == "after" else done.before
    if done.before is None or scores is None:
        return {**record, "error": done.error or "it was not scored"}
    return {
        **record,
        "metrics": verdict(done.case, done.before, scores, references=references),
        "scores": scores.plain(),
        "seconds": {name: round(value, 4) for name, value in done.seconds.items()},
        **({"notes": list(done.notes)} if done.notes else {}),
    }


def asked(case: Case) -> Mapping[str, Any]:
    """Return what people need to understand a case's line."""
    prompts = {"paraphrase": case.paraphrases, "neighborhood": case.neighborhood}
    return {
        "relation": case.relation,
        "subject": case.fact.subject,
        "prompt": case.fact.text,
        "target": case.fact.target,
        "original": case.fact.original,
        "prompts": {name: list(texts) for name, texts in prompts.items() if texts},
    }
