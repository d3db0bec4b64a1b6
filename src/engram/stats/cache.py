"""Statistics on disk: one safetensors file per layer, named by everything that they depend on, checked when read."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engram.errors import EngramError

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return where caches go: $ENGRAM_CACHE, else the user's cache folder."""
    return Path(os.environ.get("ENGRAM_CACHE") or platformdirs.user_cache_dir("engram"))


def file_for(folder: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """Return the file of a key (fingerprint, layer, corpus, count, dtype, version ...)."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return folder / "stats" / str(key["fingerprint"]) / f"{kind}-{digest}.safetensors"


def write(path: Path, key: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
    """Write tensors with their key, atomically. A full or read-only disk costs the cache, not the result."""
    meta = {"key": json.dumps(key, sort_keys=True), "facts": json.dumps(dict(facts))}
    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(save(data, meta))
        temporary.replace(path)
    except OSError as error:
        logger.warning("statistics could not be kept in %s: %s", path, error)
        return False
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return True


def read(path: Path, key: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and facts of a key, or None where there are none or the file is damaged (it is then ignored)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta: dict[str, str] = file.metadata() or {}
            if json.loads(meta["key"]) != json.loads(json.dumps(key)):
                raise EngramError("it belongs to other settings")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            facts = json.loads(meta["facts"])
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise EngramError("it contains NaN or infinity")
    except (OSError, SafetensorError, KeyError, ValueError, EngramError) as error:
        logger.warning("ignoring the damaged cache file %s: %s", path, error)
        return None
    return tensors, facts
