"""Edits on disk: `edit.json` for people and machines, `edit.safetensors` for the numbers. No pickle anywhere.

Both files are written beside their destination first and then moved, so a full disk leaves the old edit intact. The
JSON names the SHA-256 of the tensors, so a pair that does not belong together, or was cut or changed, is refused.
"""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from engram.editing.changes import KINDS, Change
from engram.editing.records import FactRecord, Mode, Origin
from engram.errors import EditError, EngramError
from engram.facts import Fact
from engram.storage import write_files

if TYPE_CHECKING:
    from engram.editing.edit import Edit

FORMAT = 2
"""Lists changes of any kind. Format 1 had changes of weights by name, and one orientation for all; it is read, too."""
JSON, TENSORS = "edit.json", "edit.safetensors"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=True)


class _Fact(_Strict):
    subject: str
    prompt: str
    target: str | None = None
    original: str | None = None


class _Record(_Strict):
    fact: _Fact
    mode: Mode
    layers: tuple[int, ...]
    text: str
    tokens: tuple[str, ...]
    position: int | None
    losses: tuple[float, ...]
    stopped: str
    numbers: dict[str, float]


class _Origin(_Strict):
    method: str
    settings: dict[str, Any]
    facts: tuple[_Record, ...]
    contexts: tuple[str, ...]
    factor: float
    notes: tuple[str, ...]


class _Change(_Strict):
    kind: str
    where: str
    plain: dict[str, Any]
    tensors: tuple[str, ...]


class _Head(_Strict):
    format: int = Field(ge=1)
    version: str
    model: str
    fingerprint: str
    tensors_sha256: str
    origins: tuple[_Origin, ...]


class _Document(_Head):
    changes: tuple[_Change, ...]


class _Update(_Strict):
    kind: str
    shape: tuple[int, ...]


class _First(_Head):
    transposed: bool
    updates: dict[str, _Update]


def save(edit: "Edit", folder: Path) -> Path:
    """See `Edit.save`."""
    parts = [change.parts() for change in edit.changes]
    data = save_tensors(
        {
            _key(i, name): array.detach().cpu().contiguous()
            for i, (arrays, _) in enumerate(parts)
            for name, array in arrays.items()
        }
    )
    document = _Document(
        format=FORMAT,
        version=edit.version,
        model=edit.model,
        fingerprint=edit.fingerprint,
        tensors_sha256=hashlib.sha256(data).hexdigest(),
        changes=tuple(
            _Change(kind=change.kind, where=change.where, plain=dict(plain), tensors=tuple(arrays))
            for change, (arrays, plain) in zip(edit.changes, parts, strict=True)
        ),
        origins=tuple(_Origin.model_validate(asdict(origin)) for origin in edit.origins),
    )
    text = json.dumps(document.model_dump(mode="json"), indent=1, ensure_ascii=False)
    try:
        write_files(folder, {TENSORS: data, JSON: text})
    except OSError as error:
        raise EditError(
            f"The edit could not be saved in {str(folder)!r}: {error}. What was there is unchanged."
        ) from error
    return folder


def load(folder: Path) -> dict[str, Any]:
    """Read what `save` wrote: the arguments of an Edit. See `Edit.load` for the errors."""
    document = _document(folder)
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise EditError(
            f"{str(folder / TENSORS)!r} cannot be read ({error.strerror}); the edit is incomplete."
        ) from error
    if hashlib.sha256(data).hexdigest() != document.tensors_sha256:
        raise EditError(
            f"{str(folder / TENSORS)!r} is not the file that {JSON} describes: it was cut, changed or replaced. "
            f"Save the edit again."
        )
    try:
        tensors = load_tensors(data)
        changes = _changes(document, tensors) if isinstance(document, _Document) else _first(document, tensors)
        origins = tuple(_origin(origin) for origin in document.origins)
    except (SafetensorError, KeyError, ValueError, RuntimeError, EngramError) as error:
        raise EditError(f"The edit in {str(folder)!r} is damaged: {error}") from error
    return {
        "changes": changes,
        "origins": origins,
        "model": document.model,
        "fingerprint": document.fingerprint,
        "version": document.version,
    }


def _document(folder: Path) -> _Document | _First:
    path = folder / JSON
    if not path.is_file():
        raise EditError(
            f"There is no edit in {str(folder)!r}: {JSON} was looked for. Give a folder that Edit.save wrote."
        )
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EditError(f"{str(path)!r} is damaged: {error}") from error
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
        raise EditError(
            f"{str(path)!r} was written by a newer version of Engram (format {raw['format']}, this one reads up to "
            f"{FORMAT}; made by {str(raw.get('version'))!r}). Update Engram to read it."
        )
    try:
        first = isinstance(raw, dict) and raw.get("format") == 1
        return (_First if first else _Document).model_validate(raw)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise EditError(f"{str(path)!r} is no edit: {where}: {first['msg']}.") from error


def _key(index: int, name: str) -> str:
    return f"{index}.{name}"


def _changes(document: _Document, tensors: dict[str, Tensor]) -> tuple[Change, ...]:
    return tuple(
        _change(entry.kind, entry.where, {name: _key(i, name) for name in entry.tensors}, entry.plain, tensors)
        for i, entry in enumerate(document.changes)
    )


def _first(document: _First, tensors: dict[str, Tensor]) -> tuple[Change, ...]:
    """Read format 1, whose one orientation was that of the projections; no unembedding is stored as [in, out]."""
    parts = {"LowRank": ("low-rank", ("left", "right")), "Dense": ("dense", ("delta",))}
    found: list[Change] = []
    for where, entry in document.updates.items():
        kind, names = parts.get(entry.kind, (entry.kind, ()))
        turned = document.transposed and not where.startswith("lm_head.")
        plain = {"shape": list(entry.shape), "transposed": turned}
        found.append(_change(kind, where, {name: f"{where}:{name}" for name in names}, plain, tensors))
    return tuple(found)


def _change(kind: str, where: str, keys: dict[str, str], plain: dict[str, Any], tensors: dict[str, Tensor]) -> Change:
    if kind not in KINDS:
        raise EditError(f"{where!r} has a change of unknown kind {kind!r}; known are {', '.join(sorted(KINDS))}.")
    for key in keys.values():
        if key not in tensors:
            raise EditError(f"{key!r} is missing from {TENSORS}.")
    return KINDS[kind].of(where, {name: tensors[key] for name, key in keys.items()}, plain)


def _origin(origin: _Origin) -> Origin:
    if not math.isfinite(origin.factor):
        raise EditError(f"a factor is {origin.factor}.")
    records: list[FactRecord] = []
    for record in origin.facts:
        values: dict[str, Any] = {**dict(record), "fact": Fact(**dict(record.fact))}
        if record.position is not None and not 0 <= record.position < len(record.tokens):
            raise EditError(f"token {record.position} of {len(record.tokens)} is named as the chosen one.")
        records.append(FactRecord(**values))
    rest: dict[str, Any] = {**dict(origin), "facts": tuple(records)}
    return Origin(**rest)
