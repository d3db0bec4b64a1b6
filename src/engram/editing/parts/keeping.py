"""Found values on disk, a file per fact, so that a search over thousands of facts goes on where it was.

A file's name is a hash of all that its value depends on: the weights, the site, the settings of the descent, contexts,
token, chat template, seed, and the fact itself. Nothing that was found under other circumstances is ever read; what an
edit beside the weights changes, which no hash knows of, `find_values` sees in the answer to the fact's prompt.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engram.editing.records import FactRecord, Mode
from engram.errors import DataError
from engram.facts import Fact
from engram.storage import write_file

if TYPE_CHECKING:
    from engram.models import LM

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder of found values; none at all keeps nothing.

    Args:
        folder: where they are.
        circumstances: what all of them depend on, as text.
    """

    folder: Path | None
    circumstances: str

    @classmethod
    def of(cls, folder: str | Path | None, lm: "LM", search: Any) -> "Kept":
        """Return the values that were found under some circumstances.

        Args:
            folder: where they are; `None` for nowhere.
            lm: the model.
            search: a dataclass of everything else that they depend on, the model in it (`lm`) left out.
        """
        if folder is None:
            return cls(None, "")
        shared = {name: getattr(search, name) for name in search.__slots__ if name not in ("lm", "plain")}
        whole = {"format": FORMAT, "model": lm.fingerprint, "dtype": str(lm.dtype), "search": shared}
        return cls(Path(folder), repr(whole))

    def read(self, fact: Fact, mode: Mode) -> dict[str, Any] | None:
        """Return one fact's arrays by name and its record, or `None` where it was not found yet."""
        if self.folder is None or not (path := self._path(fact, mode)).is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                record = _record(json.loads(file.metadata()["record"]))
                return {**{name: file.get_tensor(name) for name in file.keys()}, "records": (record,)}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None  # cut or damaged: found again, and written over

    def write(self, fact: Fact, mode: Mode, tensors: Mapping[str, Tensor], record: FactRecord) -> None:
        """Keep one fact's arrays, in one piece.

        Raises:
            DataError: the folder cannot be written.
        """
        if self.folder is None:
            return
        path = self._path(fact, mode)
        data = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            metadata={"record": json.dumps(asdict(record))},
        )
        try:
            write_file(path, data)
        except OSError as error:
            raise DataError(f"Values cannot be kept in {str(path.parent)!r}: {error}. Give another folder.") from error

    def _path(self, fact: Fact, mode: Mode) -> Path:
        name = hashlib.sha256(f"{self.circumstances}\n{mode}\n{fact!r}".encode()).hexdigest()[:24]
        return Path(self.folder or ".") / name[:2] / f"{name}.safetensors"


def _record(values: dict[str, Any]) -> FactRecord:
    whole: dict[str, Any] = {**values, "fact": Fact(**values["fact"])}
    for name in ("layers", "tokens", "losses"):
        whole[name] = tuple(values[name])
    return FactRecord(**whole)
