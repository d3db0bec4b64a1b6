"""Files are written in one piece: a failure or a kill leaves what was there before, and nothing beside it."""

import os
from pathlib import Path
from typing import Any

import pytest

from engram.storage import write_file, write_files


def test_files_take_their_places_together_and_the_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "place"
    write_files(folder, {"a.bin": b"\0", "b.txt": "Zürich\n"})
    write_file(folder / "a.bin", b"\1")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"a.bin": b"\1", "b.txt": "Zürich\n".encode()}
    assert (folder / "b.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    old = {"a": b"old a", "b": b"old b"}
    write_files(tmp_path, old)
    calls: list[int] = []

    def full(handle: int) -> Any:
        calls.append(handle)
        if len(calls) == at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_files(tmp_path, {"a": b"new a", "b": b"new b"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old
