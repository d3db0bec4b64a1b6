"""The guard: the verdict of `check` without its tables, as figures and warnings; in strict mode it refuses."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engram.editing.check import check
from engram.editing.edit import Edit
from engram.editing.fluency import Health
from engram.editing.thresholds import Thresholds
from engram.errors import EditRefused
from engram.facts import Case
from engram.progress import AnyProgress

if TYPE_CHECKING:
    from engram.models import LM

__all__ = ["Health", "Thresholds", "guard"]

logger = logging.getLogger(__name__)


def guard(
    lm: "LM",
    edit: Edit,
    *,
    thresholds: Thresholds | None = None,
    strict: bool = False,
    held_out: Sequence[str] | None = None,
    cases: Sequence[Case] | None = None,
    seed: int = 0,
    progress: AnyProgress | None = None,
) -> Health:
    """Look at an edit as `check` does, and warn of all that is wrong. The model is the same afterwards.

    Args:
        lm: the model, without the edit.
        edit: the edit.
        thresholds: when to warn.
        strict: refuse an edit that is not ok instead of warning (in the log).
        held_out: texts that a healthy edit predicts as well as before. When not given: for `mini` passages about its
            world that mention no edited subject, for other models a page of plain English, and where a model cannot
            read that (perplexity above 1,000) text that it generates itself before the edit.
        cases: what to ask, one case per fact of the edit; see `check`.
        seed: for generated text.
        progress: told what is being done, how much is done, and of how much; the log when not given.

    Returns:
        The figures of fluency; the warnings are those of the whole verdict, so `ok` says what `check(...).ok` says.

    Raises:
        EditRefused: the edit is not ok and `strict` is set.
        EditMismatch: the edit was made for another model.
        SettingError: `held_out` has no text.
    """
    found = check(
        lm,
        edit,
        thresholds=thresholds,
        held_out=held_out,
        cases=cases,
        texts=False,
        seed=seed,
        progress=progress,
    )
    warnings = found.warnings
    if warnings and strict:
        raise EditRefused(f"The edit was refused; the model is as it was. {' '.join(warnings)}")
    for warning in warnings:
        logger.warning(warning)
    if found.health is None:
        raise AssertionError  # check measures it unless told otherwise
    return replace(found.health, warnings=warnings)
