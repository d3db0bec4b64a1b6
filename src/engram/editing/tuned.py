"""What `engram tune` found for a model: kept under the model's fingerprint, and found again by every later edit."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engram.errors import SettingError
from engram.showing import Shown, columns_of, html_table
from engram.stats.cache import default_folder
from engram.storage import write_file

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One candidate of a tuning run.

    Args:
        settings: its numbers, such as {"layer": 1, "clamp": 0.5}.
        cases: the number of records that it was tried on.
        score: S against the unedited model, in percent (`engram.evaluation.relative_score`).
        half_width: half the width of its 95 % interval.
        columns: ES, PS and NS in percent.
    """

    settings: Mapping[str, int | float]
    cases: int
    score: float | int
    half_width: float | int
    columns: Mapping[str, int | float]

    @property
    def name(self) -> str:
        """The numbers in words, as in "layer 1, clamp 0.5"."""
        return ", ".join(f"{name} {value:g}" for name, value in self.settings.items())

    @property
    def interval(self) -> str:
        """The score with half its 95 % interval, where there is more than one record."""
        return f"{self.score:.1f}" if math.isnan(self.half_width) else f"{self.score:.1f} ± {self.half_width:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tuned(Shown):
    """The numbers that a tuning run chose for one method on one model, and what they rest on.

    Args:
        method: the method's name.
        best: the candidate whose numbers edits use from now on.
        usual: what the method would use without tuning, tried on the same records.
        tried: all candidates, the one with the highest score first.
        unedited: ES, PS and NS of the unedited model on the same records, in percent.
        data: the data set's name.
        digest: its content.
        cases: ids of the records; leave them out of any table about these numbers.
        model: the model's name, for people.
        fingerprint: the model's identity.
        date: when it was done.
        version: the library's version.
    """

    method: str
    best: Tried
    usual: Tried
    tried: tuple[Tried, ...]
    unedited: Mapping[str, int | float]
    data: str
    digest: str
    cases: tuple[str, ...]
    model: str
    fingerprint: str
    date: str
    version: str

    def _lines(self) -> Iterable[str]:
        yield f"{self.method} of {self.model}: {self.best.name}, {self._found} of {self.data}, {self.date}"
        yield from columns_of(self._rows())
        if self.keeps_the_usual:
            yield "Nothing beats what is used without tuning by more than the interval of the difference, so it stays."

    @property
    def keeps_the_usual(self) -> bool:
        """Whether tuning found nothing that is shown to be better."""
        return self.best.settings == self.usual.settings

    def _inside(self) -> Iterable[str]:
        heads, *rows = self._rows()
        yield html_table(heads, rows)

    def _rows(self) -> list[list[str]]:
        """Return the table of all candidates that were tried on all records, its head first."""
        rows = [["", "n", "S", "ES", "PS", "NS"]]
        for tried in self.tried:
            if tried.cases == self.best.cases:
                name = f"{tried.name} (without tuning)" if tried.settings == self.usual.settings else tried.name
                rows.append([name, str(tried.cases), tried.interval, *_percent(tried.columns)])
        return [*rows, ["unedited", str(len(self.cases)), "", *_percent(self.unedited)]]

    @property
    def _found(self) -> str:
        return f"S {self.best.interval} on {len(self.cases)} records"

    @property
    def why(self) -> str:
        """Where the numbers come from, for an Edit's notes."""
        return f"tuned for this model on {len(self.cases)} records, S {self.best.interval} (engram tune)"

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_plain(cls, values: Any) -> "Tuned":
        """Return what `plain` gave.

        Raises:
            ValueError: it is of another format, or something is missing.
        """
        seen = cast("dict[str, Any]", values).get("format") if isinstance(values, dict) else None
        if seen != FORMAT:
            raise ValueError(f"it has format {seen!r}; this version of Engram reads format {FORMAT}")
        try:
            given: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
            tried = [Tried(**each) for each in given.pop("tried")]
            best, usual = Tried(**given.pop("best")), Tried(**given.pop("usual"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is incomplete: {error}") from error
        given["cases"] = tuple(given["cases"])
        return cls(best=best, usual=usual, tried=tuple(tried), **given)


def _percent(columns: Mapping[str, int | float]) -> list[str]:
    return [f"{columns[key]:.1f}" for key in ("ES", "PS", "NS")]


def tuned_file(lm: "LM", method: str) -> Path:
    """Return where a model's tuned numbers are kept: $ENGRAM_CACHE or the user's cache folder, by fingerprint."""
    return default_folder() / "tuned" / lm.fingerprint / f"{method}.json"


def tuned(lm: "LM", method: str = "rome") -> Tuned | None:
    """Return what was tuned for a model, or None; a damaged file is ignored with a warning."""
    file = tuned_file(lm, method)
    try:
        return Tuned.from_plain(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("ignoring %s: %s. Tune again, or remove it (engram tune --forget).", file, error)
        return None


def keep_tuned(lm: "LM", found: Tuned) -> Path:
    """Keep what was tuned, in one piece, and return the file.

    Raises:
        SettingError: the cache folder cannot be written.
    """
    file = tuned_file(lm, found.method)
    try:
        write_file(file, json.dumps(found.plain(), indent=1) + "\n")
    except OSError as error:
        raise SettingError(
            f"What was tuned cannot be kept in {file.parent}: {error.strerror}. Set ENGRAM_CACHE to a folder that can "
            "be written."
        ) from error
    return file


def forget_tuned(lm: "LM", method: str = "rome") -> bool:
    """Remove what was tuned for a model, and say whether there was anything."""
    file = tuned_file(lm, method)
    there = file.exists()
    with suppress(FileNotFoundError):
        file.unlink()
    return there
