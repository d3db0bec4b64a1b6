"""Named data sets on the network: fetched once, checked against a recorded SHA-256, kept in the cache."""

import hashlib
import logging
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from engram.errors import DataError, SettingError, did_you_mean

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TIMEOUT = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a data set is published.

    Args:
        url: its address.
        records: what is in it.
        sha256: the checksum that the file must have. Where none is known, the first download's is kept beside the
            file, and a later download must have the same.
    """

    url: str
    records: str
    sha256: str | None = None


_ROME = "https://rome.baulab.info/data/dsets"

SOURCES: dict[str, Source] = {
    "counterfact": Source(url=f"{_ROME}/counterfact.json", records="21,919 CounterFact records"),
    "counterfact-snippets": Source(url=f"{_ROME}/attribute_snippets.json", records="reference texts for CounterFact"),
    "known-1000": Source(url=f"{_ROME}/known_1000.json", records="1,209 facts that GPT-2 XL knows"),
    "zsre": Source(url=f"{_ROME}/zsre_mend_eval.json", records="19,086 zsRE evaluation records"),
}
"""Data sets by name."""


def download(name: str, *, folder: Path | None = None) -> Path:
    """Return the local file of a named data set, fetching it when it is not there yet.

    Args:
        name: a key of `SOURCES`.
        folder: where to keep it; the user's cache folder otherwise.

    Raises:
        SettingError: an unknown name.
        DataError: no network, or a file with another checksum.
    """
    if name not in SOURCES:
        raise SettingError(f"There is no download source {name!r}. {did_you_mean(name, SOURCES)}")
    source = SOURCES[name]
    kept = (folder or user_cache_path("engram") / "datasets") / Path(source.url).name
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=kept.parent, suffix=".part")
    os.close(handle)
    try:
        found = _fetch(name, source, Path(part), kept)
        _check(name, source.sha256 or _recorded(kept), found)
        _checksum_file(kept).write_text(f"{found}  {kept.name}\n", encoding="utf-8")
        Path(part).replace(kept)
    finally:
        Path(part).unlink(missing_ok=True)
    logger.info("downloaded %s to %s (sha256 %s)", name, kept, found)
    return kept


def _fetch(name: str, source: Source, part: Path, kept: Path) -> str:
    checksum = hashlib.sha256()
    try:
        with urllib.request.urlopen(source.url, timeout=_TIMEOUT) as reply, part.open("wb") as file:  # noqa: S310  # addresses are those of SOURCES
            while block := reply.read(_BLOCK):
                checksum.update(block)
                file.write(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{name!r} ({source.records}) could not be fetched from {source.url}: {reason}. Without a network, put "
            f"the file at {kept} or give its path; 'mini' is built in and needs none."
        ) from error
    return checksum.hexdigest()


def _checksum_file(kept: Path) -> Path:
    return kept.with_name(kept.name + ".sha256")


def _recorded(kept: Path) -> str | None:
    """Return the checksum of an earlier download (a person may also put the published one there)."""
    file = _checksum_file(kept)
    return file.read_text(encoding="utf-8").split()[0] if file.is_file() else None


def _check(name: str, wanted: str | None, found: str) -> None:
    if wanted is not None and wanted != found:
        raise DataError(
            f"{name!r} was fetched, but its SHA-256 is {found}, not {wanted}: the download was damaged or the file "
            f"was changed at its source. Nothing was kept."
        )
