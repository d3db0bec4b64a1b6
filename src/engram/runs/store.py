"""A run folder: settings beside results that are only ever appended, so that a run survives whatever ends it.

`run.json` says what the run is (settings, which decide whether it may be continued) and where it ran (circumstances,
which do not). `results.jsonl` has one record per line, each with an `id` that occurs once. A line is complete when it
ends with a newline: what a killed process left of one is cut off when the run is opened again. The lock is the
operating system's and goes with the process that holds it.
"""

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from engram.errors import RunError
from engram.storage import write_file

logger = logging.getLogger(__name__)

RUN, RESULTS, LOCK = "run.json", "results.jsonl", "lock"
FORMAT = 1

Record = Mapping[str, Any]


@runtime_checkable
class Store(Protocol):
    """Where results go: records with an `id`, each kept once."""

    def __contains__(self, identity: object) -> bool:
        """Say whether there is a record of this id."""
        ...

    def get(self, identity: str) -> Record | None:
        """Return the record of an id."""
        ...

    def append(self, records: Iterable[Record]) -> None:
        """Keep records; one whose id is there already is left out."""
        ...

    def records(self) -> list[Record]:
        """Return all records in the order of their arrival."""
        ...


class MemoryStore:
    """Results kept in memory only."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def __contains__(self, identity: object) -> bool:
        return identity in self._records

    def get(self, identity: str) -> Record | None:
        """Return the record of an id."""
        return self._records.get(identity)

    def append(self, records: Iterable[Record]) -> None:
        """Keep records; one whose id is there already is left out."""
        for record in records:
            self._records.setdefault(str(record["id"]), record)

    def records(self) -> list[Record]:
        """Return all records in the order of their arrival."""
        return list(self._records.values())


class RunStore:
    """A run folder, opened for writing.

    Args:
        folder: the run's folder; made if it is not there.
        settings: what decides the results, as plain values. A folder of other settings is refused.
        circumstances: versions, hardware, times: kept for people, never compared.
        shared: several processes may append: the lock is held only while something is read or written. Otherwise it
            is held until `close`, and a second process is refused.

    Raises:
        RunError: the folder belongs to other settings, is in use, cannot be written, or holds something broken.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        *,
        circumstances: Mapping[str, Any] | None = None,
        shared: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._results = self.folder / RESULTS
        self._places: dict[str, tuple[int, int]] = {}
        self._size = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run folder {self.folder} cannot be made: {error.strerror}.") from error
        self._lock = FileLock(self.folder / LOCK)
        self._shared = shared
        if not shared:
            self._acquire(timeout=0.0)
        try:
            with self._held():
                self._settle(settings, circumstances or {})
                self._index()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, identity: object) -> bool:
        return identity in self._places

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release(force=True)

    def get(self, identity: str) -> Record | None:
        """Return the record of an id, read from the file."""
        if identity not in self._places:
            return None
        begin, end = self._places[identity]
        with self._results.open("rb") as file:
            file.seek(begin)
            return json.loads(file.read(end - begin))

    def records(self) -> list[Record]:
        """Return all records in the order of their arrival."""
        with self._held():
            self._index()
        return read_records(self.folder)

    def append(self, records: Iterable[Record]) -> None:
        """Write records in one piece and wait until they are on the disk; known ids are left out.

        Raises:
            RunError: the disk is full or cannot be written. What was there before stays whole.
        """
        with self._held():
            self._index()
            new = {str(record["id"]): record for record in records if str(record["id"]) not in self._places}
            lines = [(name, (json.dumps(record, ensure_ascii=False) + "\n").encode()) for name, record in new.items()]
            if not lines:
                return
            self._write(b"".join(line for _, line in lines))
            for name, line in lines:
                self._places[name] = (self._size, self._size + len(line))
                self._size += len(line)

    def _write(self, data: bytes) -> None:
        try:
            with self._results.open("ab", buffering=0) as file:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self._results, self._size)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            what = "The disk is full" if full else f"{self._results} cannot be written ({error.strerror})"
            raise RunError(
                f"{what}. {len(self._places)} finished result(s) are kept in {self.folder}; "
                f"make room and start the same command again to continue."
            ) from error

    def _acquire(self, timeout: float | int) -> None:
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout as error:
            raise RunError(
                f"Another process is writing to {self.folder}. Wait for it, or give another folder."
            ) from error
        except OSError as error:
            raise RunError(f"The run folder {self.folder} cannot be written: {error.strerror}.") from error

    def _held(self) -> "_Held":
        return _Held(self._lock, wait=self._shared)

    def _settle(self, settings: Mapping[str, Any], circumstances: Mapping[str, Any]) -> None:
        """Write `run.json`, or check that what is there has the same settings."""
        plain = json.loads(json.dumps(dict(settings)))
        file = self.folder / RUN
        if file.exists():
            differences = differing(read_run(self.folder)["settings"], plain)
            if differences:
                raise RunError(
                    f"{self.folder} holds a run of other settings: {'; '.join(differences)}. "
                    f"Give another folder, or the same settings to continue it."
                )
            return
        if self._results.exists() and self._results.stat().st_size:
            raise RunError(f"{self.folder} has results but no {RUN}; it is no run folder. Give another folder.")
        content = {"format": FORMAT, "settings": plain, "circumstances": dict(circumstances)}
        write_atomically(file, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")

    def _index(self) -> None:
        """Read what is new in the file, and cut off an incomplete last line."""
        if not self._results.exists() or self._results.stat().st_size == self._size:
            return
        with self._results.open("rb") as file:
            file.seek(self._size)
            for line in file:
                if not line.endswith(b"\n"):
                    logger.warning("an unfinished line of %s was cut off; its case will be done again", self._results)
                    os.truncate(self._results, self._size)
                    return
                self._places[str(_parsed(line, self._results)["id"])] = (self._size, self._size + len(line))
                self._size += len(line)


class _Held:
    """The folder's lock for the length of a `with` block (reentrant)."""

    def __init__(self, lock: FileLock, *, wait: bool) -> None:
        self._lock, self._wait = lock, wait

    def __enter__(self) -> None:
        self._lock.acquire(timeout=-1 if self._wait else 0)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def read_run(folder: Path) -> dict[str, Any]:
    """Return `run.json`: format, settings, circumstances.

    Raises:
        RunError: it is not there, is broken, or was written by a newer version.
    """
    file = folder / RUN
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is no run folder: there is no {RUN} in it.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}. Give another folder.") from error
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        seen = run.get("format") if isinstance(run, dict) else "nothing"
        raise RunError(f"{file} has format {seen!r}; this version of Engram reads format {FORMAT}.")
    return run


def read_records(folder: Path) -> list[Record]:
    """Return a run's complete records without locking it; an unfinished last line is left out.

    Raises:
        RunError: a line in the middle is broken.
    """
    file = folder / RESULTS
    if not file.exists():
        return []
    seen: dict[str, Record] = {}
    with file.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                record = _parsed(line, file)
                seen.setdefault(str(record["id"]), record)
    return list(seen.values())


def _parsed(line: bytes, file: Path) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or "id" not in record:
        raise RunError(f"{file} has a broken line: {line[:60]!r}... Remove the line to have its case done again.")
    return record


def differing(old: Any, new: Any, name: str = "") -> list[str]:
    """Return a sentence for every setting in which two settings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        parts = (differing(old.get(key), new.get(key), f"{name}.{key}" if name else str(key)) for key in keys)
        return [sentence for part in parts for sentence in part]
    return [] if old == new else [f"{name} was {_brief(old)} and is now {_brief(new)}"]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def write_atomically(path: Path, text: str) -> None:
    """Write a file in one piece or not at all.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_file(path, text)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.") from error


def in_order(records: Sequence[Record], ids: Iterable[str]) -> Iterator[Record]:
    """Yield the records of some ids in the ids' order; missing ones are left out."""
    by_id = {str(record["id"]): record for record in records}
    return (by_id[name] for name in ids if name in by_id)
