"""`edit`: facts and a method in, an Edit out; nothing about the model changes."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engram.editing.edit import Edit
from engram.editing.methods import Method, method_named, require_method
from engram.editing.parts.editor import Editor
from engram.editing.parts.targets import contradicted, mode_of, says
from engram.editing.records import FactRecord, Mode, Origin
from engram.editing.words import contradictions
from engram.errors import FactError, SettingError
from engram.facts import Fact
from engram.given import require, require_each, require_lm
from engram.progress import AnyProgress, Progress, progress_for

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)


def edit(
    lm: "LM",
    fact: Fact | Sequence[Fact],
    method: str | Method = "rome",
    *,
    onto: Edit | None = None,
    force: bool = False,
    verify: bool = True,
    progress: AnyProgress | None = None,
    **settings: Any,
) -> Edit:
    """Make an Edit that writes one fact or several. The model is unchanged.

    Where the edited model does not say a target, or the model never knew the `original` that a fact names, the Edit's
    notes and a warning say so. `engram.check` and `engram.guard` look further.

    Args:
        lm: the model.
        fact: what shall be true; several facts make one Edit.
        method: a name (`engram methods` lists them) or a method with its settings, such as `ROME(layer=17)`.
        onto: an Edit to go on from: the model is asked and edited as it is with it, and what is returned holds both. It
            stays as it was, and is the undo.
        force: also write facts that the model says already. Otherwise they are left out, and the Edit's notes say so.
        verify: ask the model whether it knows each original, and the edited one whether it says each target. Leave it
            out where every edit is scored anyway.
        progress: told what is being done, how much of it is done, and how much there is; the log when not given.
        **settings: the method's settings, when it is given by name.

    Raises:
        SettingError: unknown method or setting, settings beside a finished method, a layer out of range.
        FactError: no fact, no target, or a target without tokens.
        NumericalError: NaN or infinity appeared; the step is named.
    """
    require_lm(lm)
    require_method(method)
    facts = _facts(fact)
    if not facts:
        raise FactError("No fact was given. Give an engram.Fact, or a list of them.")
    if isinstance(method, str):
        made = method_named(method, **settings)
    elif settings:
        raise SettingError(f"Settings {sorted(settings)} go into the method itself: {type(method).__name__}(...).")
    else:
        made = method
    return _made(lm, facts, made, onto, force=force, verify=verify, progress=progress_for(progress))


def _made(
    lm: "LM", facts: Sequence[Fact], method: Method, onto: Edit | None, *, force: bool, verify: bool, progress: Progress
) -> Edit:
    how = method if isinstance(method, Editor) else Editor()
    modes: list[Mode] = [mode_of(fact, how.mode) for fact in facts]
    asked = [] if force else [i for i, mode in enumerate(modes) if mode != "erase"]
    with _under(lm, onto):
        said = says(lm, [facts[i] for i in asked], chat=how.chat)
        known = {i for i, there in zip(asked, said, strict=True) if there}
        wanted = [fact for i, fact in enumerate(facts) if i not in known]
        told = contradicted(lm, wanted, chat=how.chat) if verify else ()
    done = _gone_on(lm, wanted, method, onto, progress) if wanted else onto or Edit.of(lm, {}, ())
    if verify and wanted:
        written = [fact for fact in wanted if mode_of(fact, how.mode) != "erase"]
        done = _noted(done, (*told, *_missed(lm, done, written, how.chat)))
    left: list[tuple[Fact, Mode]] = [(facts[i], modes[i]) for i in sorted(known)]
    notes = tuple(f"The model says {f.target!r} after {f.text!r} already; nothing to change." for f, _ in left)
    new = done.origins[0 if onto is None else len(onto.origins) :]
    for note in (*notes, *contradictions(new)):
        logger.warning(note)
    if not known:
        return done
    records = tuple(FactRecord(fact=f, mode=mode, text=f.text, stopped="known already") for f, mode in left)
    return replace(done, origins=(*done.origins, Origin(method="none", settings={}, facts=records, notes=notes)))


def _under(lm: "LM", edit: Edit | None) -> AbstractContextManager[object]:
    return nullcontext() if edit is None else edit.applied(lm)


def _gone_on(lm: "LM", facts: Sequence[Fact], method: Method, onto: Edit | None, progress: Progress) -> Edit:
    """Let a method write facts, onto what an Edit does already if there is one."""
    if onto is None:
        return method(lm, facts, progress=progress)
    if isinstance(method, Editor):
        return method(lm, facts, onto=onto, progress=progress)
    with onto.applied(lm):
        done = method(lm, facts, progress=progress)
    return onto + done


def _facts(given: object) -> list[Fact]:
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        require(given, Fact, "fact")
    return [given] if isinstance(given, Fact) else require_each(given, Fact, "fact")


def _missed(lm: "LM", done: Edit, written: Sequence[Fact], chat: bool) -> tuple[str, ...]:
    """Return a sentence for every fact whose target the edited model does not say."""
    with done.applied(lm):
        there = says(lm, written, chat=chat)
    return tuple(
        f"The edited model does not say {fact.target!r} after {fact.text!r}: try another layer, or more steps."
        for fact, said in zip(written, there, strict=True)
        if not said
    )


def _noted(done: Edit, notes: tuple[str, ...]) -> Edit:
    """Add notes to the last run of a method, and warn of them."""
    for note in notes:
        logger.warning(note)
    if not notes or not done.origins:
        return done
    *before, last = done.origins
    return replace(done, origins=(*before, replace(last, notes=(*last.notes, *notes))))
