"""Edits that a run keeps in its folder: checkpoints that a user can load, and from which an interrupted run goes on."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engram.editing import Edit
from engram.errors import EditError, RunError

if TYPE_CHECKING:
    from engram.models import LM

_NAME = "edit-"
_DOCUMENT = "edit.json"
_WEIGHTS = "weights.safetensors"
"""Where version 0.1 kept the changed weights of a sequential run."""


@dataclass(frozen=True, slots=True)
class KeptEdits:
    """The Edits of a run by the number of cases that are in them: `edit-10` is the one after ten cases.

    Args:
        folder: the run's folder; nothing is kept when `None`.
        lasting: after how many cases Edits stay; of the others only the newest does.
    """

    folder: Path | None
    lasting: Collection[int] = ()

    def require_readable(self) -> None:
        """Refuse a run that was begun with weights in place of Edits.

        Raises:
            RunError: the folder holds such weights and no Edit.
        """
        if self.folder is not None and (self.folder / _WEIGHTS).exists() and not self.steps():
            raise RunError(
                f"{self.folder} holds an unfinished run of Engram 0.1, which kept weights ({_WEIGHTS}) where this "
                "version keeps Edits; it cannot be continued. Give another folder."
            )

    def steps(self) -> list[int]:
        """Return after how many cases there are Edits, in order."""
        if self.folder is None:
            return []
        found = (place.parent.name.removeprefix(_NAME) for place in self.folder.glob(f"{_NAME}*/{_DOCUMENT}"))
        return sorted(int(name) for name in found if name.isdecimal())

    def get(self, lm: "LM", step: int) -> Edit | None:
        """Return the Edit after so many cases, where it was kept.

        Raises:
            RunError: it is broken, or belongs to another model.
        """
        if self.folder is None or step not in self.steps():
            return None
        try:
            return Edit.load(self._place(step), lm)
        except EditError as error:
            raise RunError(f"The run in {self.folder} cannot go on: {error} Give another folder.") from error

    def put(self, edit: Edit, step: int) -> None:
        """Keep an Edit in one piece, and let go of earlier ones that are not to last.

        Raises:
            RunError: it cannot be written.
        """
        if self.folder is None:
            return
        try:
            edit.save(self._place(step))
        except EditError as error:
            raise RunError(f"{error} Make room and start the same command again to continue.") from error
        for earlier in self.steps():
            if earlier < step and earlier not in self.lasting:
                shutil.rmtree(self._place(earlier), ignore_errors=True)

    def _place(self, step: int) -> Path:
        return (self.folder or Path()) / f"{_NAME}{step}"
