"""Statistics in a folder of their own: `statistics.json` for people and machines, safetensors for the matrices."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engram.errors import DataError
from engram.storage import write_files

FORMAT = 1
JSON, TENSORS = "statistics.json", "statistics.safetensors"


def write_folder(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write both files in one piece; the JSON, which names the other's hash, takes its place last.

    Raises:
        DataError: the folder cannot be written.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    whole = {"format": FORMAT, **document, "tensors_sha256": hashlib.sha256(data).hexdigest()}
    try:
        write_files(folder, {TENSORS: data, JSON: json.dumps(whole, indent=1, ensure_ascii=False) + "\n"})
    except OSError as error:
        raise DataError(f"The statistics could not be saved in {str(folder)!r}: {error}.") from error
    return folder


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read both files back.

    Raises:
        DataError: missing, cut, changed, or of a newer format.
    """
    where = f"The statistics in {str(folder)!r}"
    if not (folder / JSON).is_file():
        raise DataError(
            f"There are no statistics in {str(folder)!r}: {JSON} was looked for. Give a folder that "
            f"`engram stats --out FOLDER` or KeyStatistics.save wrote."
        )
    try:
        document = json.loads((folder / JSON).read_bytes())
        data = (folder / TENSORS).read_bytes()
        if not isinstance(document, dict) or not isinstance(document.get("format"), int):
            raise DataError(f"{where} are damaged: {JSON} does not say its format.")
        if document["format"] > FORMAT:
            raise DataError(f"{where} were written by a newer version of Engram. Update Engram to read them.")
        if hashlib.sha256(data).hexdigest() != document.get("tensors_sha256"):
            raise DataError(f"{where} are damaged: {TENSORS} is not the file that {JSON} describes.")
        return document, load(data)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise DataError(f"{where} are damaged: {error}.") from error
