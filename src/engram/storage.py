"""Writing files in one piece: whoever reads, or kills the writer, sees what was there before or all that is new."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def write_file(path: Path, data: bytes | str) -> None:
    """Write one file; its folder is made where it is missing. See `write_files`."""
    write_files(path.parent, {path.name: data})


def write_files(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Write several files of a folder; none replaces its old version before all are completely on disk.

    Args:
        folder: where to; made where it is missing.
        files: contents by name, in the order in which they take their places; text is written as UTF-8.

    Raises:
        OSError: the folder cannot be written, or the disk is full; what was there is unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staged: list[tuple[Path, Path]] = []
    try:
        for name, data in files.items():
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            staged.append((Path(temporary), folder / name))
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
        for temporary, final in staged:
            temporary.chmod(0o644)
            temporary.replace(final)
    finally:
        for temporary, _ in staged:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
