"""Edits as zip files: what a visitor downloads, and what one may upload.

An uploaded zip is never extracted. The two files of an edit are read out of it by their own names, each only up to a
bound whatever the zip says about sizes, written under names of our own choice, and given to `Edit.load`.
"""

import io
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from engram.editing import Edit
from engram.editing.files import JSON, TENSORS
from engram.errors import EditError
from engram.web.limits import MIB, Limits

if TYPE_CHECKING:
    from engram.models import LM

FORMATS = ("engram", "peft")
_JSON_BYTES = 8 * MIB
_MOST_FILES = 50
_PEFT = "adapter_config.json"


def packed(edit: Edit, kind: str, lm: "LM") -> bytes:
    """Return a zip of an edit.

    Args:
        edit: the edit.
        kind: `engram` (what `Edit.load` reads) or `peft` (what `PeftModel.from_pretrained` reads).
        lm: the model it belongs to.

    Raises:
        EditError: the edit has no such form.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "edit"
        if kind == "engram":
            edit.save(folder)
        else:
            edit.export(kind, folder, lm)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
        return buffer.getvalue()


def unpacked(data: bytes, lm: "LM", limits: Limits) -> Edit:
    """Return the edit in a zip.

    Args:
        data: the zip.
        lm: the model that it has to belong to.
        limits: bounds of what is read.

    Raises:
        EditError: no zip, too large, not the two files of an edit, or anything that `Edit.load` refuses.
        EditMismatch: it belongs to another model.
    """
    if len(data) > limits.upload_bytes:
        raise EditError(f"The file has {_size(len(data))}; this page takes up to {_size(limits.upload_bytes)}.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive)
            texts = _read(archive, members[JSON], min(_JSON_BYTES, limits.unpacked_bytes))
            tensors = _read(archive, members[TENSORS], limits.unpacked_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, IndexError) as error:
        raise EditError("This is no intact zip file. Upload a zip that this page, or `zip -r`, made.") from error
    except (NotImplementedError, RuntimeError) as error:  # a compression that Python lacks; encryption
        raise EditError(f"This zip cannot be read ({error}). Make a plain one, without a password.") from error
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / JSON).write_bytes(texts)
        (Path(scratch) / TENSORS).write_bytes(tensors)
        try:
            return Edit.load(scratch, lm)
        except EditError as error:
            where = repr(str(Path(scratch)))[1:-1]
            raise type(error)(str(error).replace(f"{where}/", "").replace(where, "the zip")) from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Find the two files of an edit: at the top, or together in one folder."""
    files = [entry for entry in archive.infolist() if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")]
    if len(files) > _MOST_FILES:
        raise EditError(f"The zip has {len(files)} files; an edit has two, {JSON} and {TENSORS}.")
    found: dict[str, zipfile.ZipInfo] = {}
    for name in (JSON, TENSORS):
        matches = [entry for entry in files if PurePosixPath(entry.filename).name == name]
        if len(matches) > 1:
            raise EditError(f"The zip has {len(matches)} files called {name}. Upload one edit at a time.")
        if not matches:
            raise EditError(_missing(name, files))
        found[name] = matches[0]
    return found


def _missing(name: str, files: list[zipfile.ZipInfo]) -> str:
    if any(PurePosixPath(entry.filename).name == _PEFT for entry in files):
        return "This is a PEFT adapter. The page takes Engram folders back: download the edit in Engram's format."
    return f"The zip has no {name}. Upload a zip of a folder that Edit.save wrote: {JSON} and {TENSORS}."


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    with archive.open(entry) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        name = PurePosixPath(entry.filename).name
        raise EditError(f"{name} has more than {_size(limit)} when unpacked, which this page does not take.")
    return data


def _size(count: int) -> str:
    return f"{count / MIB:.3g} MiB"
