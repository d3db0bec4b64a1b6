"""Statistics on disk: one safetensors file per layer, which says what it depends on; checked when read.

    stats/FINGERPRINT/model.json            what the model was called, and its size
    stats/FINGERPRINT/layer-6-....safetensors
    stats/FINGERPRINT/unfinished-....safetensors

A count is found by what its file says, not by the file's name, so that a count that is better than what is asked is
found as well as the very same one.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engram.errors import EngramError
from engram.storage import write_file

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

ALGORITHM = 1
"""Number of the way in which keys are counted; a change that gives other numbers gets the next one."""
MODEL = "model.json"
_SIZES = ("vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer")


def default_folder() -> Path:
    """Return where caches go: $ENGRAM_CACHE, else the user's cache folder."""
    return Path(os.environ.get("ENGRAM_CACHE") or platformdirs.user_cache_dir("engram"))


def file_for(folder: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """Return the file of a key (fingerprint, layer, corpus, count, dtype ...)."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return _place(folder, str(key["fingerprint"])) / f"{kind}-{digest}.safetensors"


def _place(folder: Path, fingerprint: str) -> Path:
    return folder / "stats" / fingerprint


def write(path: Path, key: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
    """Write tensors with their key, atomically. A full or read-only disk costs the cache, not the result."""
    meta = {"key": json.dumps(key, sort_keys=True), "facts": json.dumps(dict(facts))}
    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return _written(path, save(data, meta))


def _written(path: Path, data: bytes) -> bool:
    try:
        write_file(path, data)
    except OSError as error:
        logger.warning("statistics could not be kept in %s: %s", path, error)
        return False
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
    except _DAMAGE as error:
        _ignore(path, error)
        return None
    return tensors, facts


_DAMAGE = (OSError, SafetensorError, KeyError, TypeError, ValueError, EngramError)


def _ignore(path: Path, error: Exception) -> None:
    logger.warning("ignoring the damaged cache file %s: %s", path, error)


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished count of one layer in the cache, of which only the header was read.

    Args:
        path: its file.
        key: what it depends on; files of version 0.1 also name the version, which decides nothing.
        tokens: how much was counted.
        change: see `LayerMoment`.
        whole: whether the corpus had no more text.
        corpus: the corpus by name, with its digest.
    """

    path: Path
    key: Mapping[str, Any]
    tokens: int
    change: float | None
    whole: bool
    corpus: str

    def moment(self, size: int) -> Tensor | None:
        """Read the matrix; `None` where the file is damaged."""
        stored = read(self.path, self.key)
        if stored is None or "moment" not in stored[0] or stored[0]["moment"].shape != (size, size):
            return None
        return stored[0]["moment"]


def kept_counts(folder: Path, fingerprint: str, layer: int) -> Iterator[Kept]:
    """Yield the finished counts of a model's layer, whatever was counted and how."""
    for path in sorted(_place(folder, fingerprint).glob(f"layer-{layer}-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                meta: dict[str, str] = file.metadata() or {}
            key, facts = json.loads(meta["key"]), json.loads(meta["facts"])
            change = None if facts["change"] is None else float(facts["change"])
            name = f"{facts.get('corpus', 'a corpus')} ({key['corpus']})"
            if key["fingerprint"] != fingerprint or key["layers"] != [layer]:
                raise EngramError("it belongs to another model or layer")
            everything = key["tokens"] is None and key["tolerance"] is None
            found = Kept(path, key, int(facts["tokens"]), change, bool(facts.get("whole", everything)), name)
        except _DAMAGE as error:
            _ignore(path, error)
            continue
        if key.get("algorithm", 1) == ALGORITHM:
            yield found


def remember_model(folder: Path, lm: "LM") -> None:
    """Note what a model was called and how large it is, beside its counts."""
    path = _place(folder, lm.fingerprint) / MODEL
    noted = _noted(path)
    names = list(dict.fromkeys([*noted.get("names", []), lm.name]))
    if names != noted.get("names"):
        _written(path, json.dumps({"names": names, "sizes": _sizes(lm.config.to_dict())}, indent=1).encode())


def may_be_kept(folder: Path, model: str) -> bool:
    """Say whether the cache may have counts of a model that is not loaded yet; `False` is certain.

    Args:
        folder: the cache.
        model: a model's folder or name.
    """
    sizes: dict[str, Any] = {}
    with suppress(OSError, ValueError, AttributeError):
        sizes = _sizes(json.loads((Path(model) / "config.json").read_bytes()))
    for place in sorted(folder.glob("stats/*")):
        if any(place.glob("layer-*.safetensors")):
            theirs = _noted(place / MODEL).get("sizes", {})
            if all(theirs.get(name, size) == size for name, size in sizes.items()):
                return True
    return False


def _noted(path: Path) -> dict[str, Any]:
    try:
        noted = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in _SIZES if isinstance(config.get(name), int)}
