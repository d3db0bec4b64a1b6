"""Edited models on disk: an ordinary model folder that remembers what was overwritten and which edits are in it.

    edited-model/              what `save_pretrained` writes: loads with plain transformers
      engram/edited.json       the base model's name and fingerprint, the edits in order, a hash of every changed weight
      engram/original.safetensors    the base model's values of those weights, bit for bit
      engram/edits/01/ ...     the edits

An edited model is always its base plus edits in their order, so each of them can be taken out again.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from engram.editing.applying import apply_, parameter, require_fit, revert_
from engram.editing.edit import Edit
from engram.editing.export import write_model
from engram.errors import EditError, EditMismatch, first_line
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM

FORMAT = 1
_DOING = "writing an edited model"
MEMORY, DOCUMENT, ORIGINAL, EDITS = "engram", "edited.json", "original.safetensors", "edits"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int
    model: str
    fingerprint: str
    edits: tuple[str, ...]
    original_sha256: str
    edited_sha256: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Memory(Shown):
    """What an edited model's folder remembers.

    Args:
        model: the base model's name.
        fingerprint: the base model's identity.
        edits: in the order in which they were applied.
        originals: the base model's values of every changed parameter.
        hashes: SHA-256 of the edited values, by parameter.
    """

    model: str
    fingerprint: str
    edits: tuple[Edit, ...]
    originals: Mapping[str, Tensor]
    hashes: Mapping[str, str]


def is_edited(folder: str | Path) -> bool:
    """Say whether a folder is an edited model that `save_edited` wrote."""
    return (Path(folder) / MEMORY / DOCUMENT).is_file()


def save_edited(lm: "LM", edits: Sequence[Edit], folder: str | Path, *, replace: bool = False) -> Path:
    """Write a model under some edits as a folder of its own; with no edits, as the plain model. `lm` stays as it is.

    Args:
        lm: the base model.
        edits: in the order in which they are applied.
        folder: where to.
        replace: replace the model that is there, file by file; otherwise the folder must be new or empty.

    Raises:
        EditMismatch: an edit was made for another model.
        EditError: the folder is in use or cannot be written.
    """
    folder = Path(folder)
    for edit in edits:
        require_fit(lm, edit)
        for change in edit.changes:
            change.refuse_weights("writing an edited model")
    if folder.exists() and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise EditError(f"{str(folder)!r} is in use already. Choose a new folder with --out, or empty this one first.")
    originals = {name: parameter(lm, name, _DOING).detach().cpu().clone() for edit in edits for name in edit.updates}
    applied: list[Edit] = []
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        for edit in edits:
            apply_(lm, edit)
            applied.append(edit)
        write_model(lm, temporary)
        if edits:
            _remember(lm, edits, originals, temporary / MEMORY)
        temporary.chmod(0o755)
        _move(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise EditError(f"The model could not be written to {str(folder)!r}: {error}.") from error
    finally:
        for edit in reversed(applied):
            revert_(lm, edit)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _remember(lm: "LM", edits: Sequence[Edit], originals: Mapping[str, Tensor], folder: Path) -> None:
    data = save_tensors({name: tensor.contiguous() for name, tensor in originals.items()})
    names = [f"{i:02d}" for i in range(1, len(edits) + 1)]
    for name, edit in zip(names, edits, strict=True):
        edit.save(folder / EDITS / name)
    document = _Document(
        format=FORMAT,
        model=lm.name,
        fingerprint=lm.fingerprint,
        edits=tuple(names),
        original_sha256=hashlib.sha256(data).hexdigest(),
        edited_sha256={name: _digest(parameter(lm, name, _DOING)) for name in originals},
    )
    (folder / ORIGINAL).write_bytes(data)
    (folder / DOCUMENT).write_text(json.dumps(document.model_dump(mode="json"), indent=1), encoding="utf-8")


def _move(source: Path, folder: Path) -> None:
    """Put a finished folder in its place: at once where nothing is there, else file by file, the memory last."""
    if not folder.exists() or not any(folder.iterdir()):
        source.replace(folder)
        return
    for path in sorted(source.iterdir()):
        if path.name != MEMORY:
            path.replace(folder / path.name)
    old = folder / MEMORY
    if old.exists():
        shutil.rmtree(old)
    if (source / MEMORY).exists():
        (source / MEMORY).replace(old)


def recall(folder: str | Path) -> Memory:
    """Read what an edited model's folder remembers.

    Raises:
        EditError: it is no edited model, or its memory was damaged or written by a newer version.
    """
    inside = Path(folder) / MEMORY
    if not is_edited(folder):
        raise EditError(
            f"{str(folder)!r} is no edited model: {MEMORY}/{DOCUMENT} was looked for. Give a folder that "
            f"`engram apply` wrote."
        )
    try:
        raw = json.loads((inside / DOCUMENT).read_bytes())
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise EditError(f"{str(folder)!r} was written by a newer version of Engram. Update Engram to read it.")
        document = _Document.model_validate(raw)
        data = (inside / ORIGINAL).read_bytes()
        if hashlib.sha256(data).hexdigest() != document.original_sha256:
            raise EditError(f"{str(inside / ORIGINAL)!r} was cut or changed; the original weights cannot be trusted.")
        originals = load_tensors(data)
    except (OSError, ValueError, ValidationError, SafetensorError) as error:
        raise EditError(f"The memory of {str(folder)!r} is damaged: {first_line(error)}") from error
    return Memory(
        model=document.model,
        fingerprint=document.fingerprint,
        edits=tuple(Edit.load(inside / EDITS / Path(name).name) for name in document.edits),
        originals=originals,
        hashes=document.edited_sha256,
    )


@torch.no_grad()
def to_base_(lm: "LM", memory: Memory) -> None:
    """Write the base model's weights back into an edited model that was just loaded; nothing is written if any differs.

    Raises:
        EditMismatch: a changed weight is not what was saved, or the model that results is not the base.
    """
    for name, original in memory.originals.items():
        weight = parameter(lm, name, _DOING)
        same = weight.shape == original.shape and weight.dtype == original.dtype
        if not same or _digest(weight) != memory.hashes.get(name):
            raise EditMismatch(
                f"{name!r} is not what `engram apply` saved (another dtype, or somebody changed it since). Nothing was "
                f"touched. Load it with dtype='auto', or take the base model {memory.model!r} itself."
            )
    for name, original in memory.originals.items():
        parameter(lm, name, _DOING).copy_(original)
    if lm.fingerprint != memory.fingerprint:
        raise EditMismatch(
            f"Without its edits this is not {memory.model!r} (fingerprint {lm.fingerprint}, expected "
            f"{memory.fingerprint}): other weights of the folder were changed, too."
        )


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    return hashlib.sha256(
        f"{data.dtype}{tuple(data.shape)}".encode() + data.view(torch.uint8).numpy().tobytes()
    ).hexdigest()
