"""Values are found in one place: for any facts and any site, what must stand there so that the model says the targets.

    values = find_values(lm, facts, Site("state", 17), how, contexts=("{}", "It is so. {}"))
    values.keys, values.old, values.wanted, values.records

ROME looks for the MLP's output of the layer that it edits, MEMIT for the state behind the last one. Facts do not touch
each other, so some are optimised at once; those that were found before (`kept`) are read instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.applying import require_gradients
from engram.editing.parts.descent import Aim, Descent, Found, descend
from engram.editing.parts.keeping import Kept
from engram.editing.parts.passes import FirstPass, first_pass
from engram.editing.parts.prompts import Row, essence_row, padded, require_target, rows_for
from engram.editing.parts.targets import by_length, mode_of, without_subject
from engram.editing.records import FactRecord, Mode
from engram.facts import Fact
from engram.models.chat import Wrap, wrap_for
from engram.models.hooks import Site
from engram.progress import Progress
from engram.showing import Shown

if TYPE_CHECKING:
    from engram.models import LM


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Values(Shown):
    """Keys and values of facts, one row each, in fp32 on the CPU.

    Args:
        keys: key of the site's layer at the looked up token, averaged over contexts.
        old: what the site has there before the edit, averaged over contexts.
        bare_keys: the same key for the bare prompt, where it is a context; else the average.
        start: what the site has there, likewise; where the search begins.
        wanted: what must stand there: `start` + δ.
        records: what was done for each fact.
    """

    keys: Float[Tensor, "fact d_mlp"]
    old: Float[Tensor, "fact width"]
    bare_keys: Float[Tensor, "fact d_mlp"]
    start: Float[Tensor, "fact width"]
    wanted: Float[Tensor, "fact width"]
    records: tuple[FactRecord, ...]

    def of(self, chosen: Sequence[int]) -> "Values":
        """Return the values of some facts."""
        index, parts = torch.tensor(chosen, dtype=torch.long), self.tensors()
        return Values(
            **{name: rows[index.to(rows.device)] for name, rows in parts.items()},
            records=tuple(self.records[i] for i in chosen),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "records"}

    @classmethod
    def joined(cls, parts: Sequence["Values"]) -> "Values":
        """Return the facts of several as one."""
        arrays = [part.tensors() for part in parts]
        return cls(
            **{name: torch.cat([each[name] for each in arrays]) for name in arrays[0]},
            records=tuple(record for part in parts for record in part.records),
        )


@dataclass(frozen=True, slots=True)
class _Search:
    """What is the same for all facts."""

    lm: "LM"
    site: Site
    how: Descent
    contexts: Sequence[str]
    token: str
    wrap: Wrap
    kl_at_subject: bool
    seed: int
    plain: bool


def find_values(
    lm: "LM",
    facts: Sequence[Fact],
    site: Site,
    how: Descent,
    *,
    contexts: Sequence[str] = ("{}",),
    token: str = "subject_last",
    mode: Mode | None = None,
    chat: bool = False,
    kl_at_subject: bool = True,
    seed: int = 0,
    together: int = 4,
    plain: bool = False,
    kept: str | Path | None = None,
    progress: Progress | None = None,
) -> Values:
    """Find what must stand at a site, at one token of each fact's prompt, for the model to say the fact's target.

    Args:
        lm: the model, under an edit or not.
        facts: the facts.
        site: where the change δ is added; any that the model has.
        how: how δ is found.
        contexts: templates with one `{}` in which prompts are put; all of them must give the target.
        token: the token of the prompt: one of `engram.editing.parts.prompts.TOKENS`.
        mode: insert, modify or erase; by whether a fact names its original when not given.
        chat: wrap prompts with the tokenizer's chat template.
        kl_at_subject: compare the essence prompt after the subject's last token (as published code does) or at its end.
        seed: for erasing.
        together: how many facts are optimised at once: bounds memory.
        plain: run the whole network at every step; for comparison.
        kept: a folder in which what was found is kept, fact by fact, under all that it depends on; a search that was
            interrupted goes on there.
        progress: told about steps, over all facts.

    Raises:
        FactError: a fact lacks what its mode needs, or has a target without tokens.
        PromptTooLong: a context with prompt and target does not fit into the model's positions.
        SettingError: a context without exactly one `{}`.
        NumericalError: NaN or infinity appeared; fact and step are named.
        DataError: the folder cannot be written.
    """
    require_gradients(lm)
    wrap = wrap_for(lm, chat=chat)
    rows = bare_rows(lm, facts, mode=mode, wrap=wrap)
    search = _Search(lm, site, how, contexts, token, wrap, kl_at_subject, seed, plain)
    wanted: list[tuple[Fact, Mode]] = [(fact, mode_of(fact, mode)) for fact in facts]
    sizes = [(len(row.targets), len(row.ids)) for row in rows]
    return _all_found(search, wanted, sizes, together, Kept.of(kept, lm, search), progress)


def _all_found(
    search: _Search,
    wanted: Sequence[tuple[Fact, Mode]],
    sizes: Sequence[tuple[int, int]],
    together: int,
    store: Kept,
    progress: Progress | None,
) -> Values:
    """Read what was found before, and find the others, those of similar size together."""
    count = len(wanted)
    read = {i: Values(**known) for i in range(count) if (known := store.read(*wanted[i])) is not None}
    found = _still_right(search, read)
    order = sorted(set(range(count)) - set(found), key=lambda i: sizes[i])
    batches = [order[begin : begin + together] for begin in range(0, len(order), together)]
    for done, some in enumerate(batches):
        tell = None if progress is None else _over_all(progress, done, len(batches))
        new = _found(search, [wanted[i] for i in some], some, tell)
        for place, i in enumerate(some):
            found[i] = new.of([place])
            store.write(*wanted[i], found[i].tensors(), found[i].records[0])
    return Values.joined([found[i] for i in range(count)])


def bare_rows(lm: "LM", facts: Sequence[Fact], *, mode: Mode | None, wrap: Wrap) -> list[Row]:
    """Return each fact's own prompt with its target as tokens: bad facts are found before anything takes long.

    Raises:
        FactError: as `find_values`.
        PromptTooLong: the same.
    """
    return [
        rows_for(lm, i, fact, ["{}"], wrap, target=_target(fact, mode_of(fact, mode)))[0]
        for i, fact in enumerate(facts)
    ]


@torch.no_grad()
def _still_right(search: _Search, read: dict[int, Values]) -> dict[int, Values]:
    """Keep of what was read that to which the model answers as it did then: an edit beside it shows in nothing else."""
    right: dict[int, Values] = {}
    numbers, records = list(read), [values.records[0] for values in read.values()]
    rows = [_asked(search, i, record.fact, record.mode) for i, record in enumerate(records)]
    for some in by_length([row.ids for row in rows]):
        batch = padded([rows[i] for i in some])
        keep = max(1, *(len(row.targets) for row in batch.rows))
        logits = search.lm.forward(batch.ids, mask=batch.mask, keep=keep).float()
        for i, row, line in zip(some, batch.rows, logits, strict=True):
            rounding = 1e-3 if search.lm.dtype == torch.float32 else 0.1
            if abs(_loss(line, row) - records[i].numbers["target_loss_before"]) < rounding:
                right[numbers[i]] = read[numbers[i]]
    return right


def _asked(search: _Search, i: int, fact: Fact, mode: Mode) -> Row:
    """Return the row in which a fact is asked: the bare prompt, or the first context where that is none."""
    context = search.contexts[_place(search.contexts)]
    return rows_for(search.lm, i, fact, [context], search.wrap, target=_target(fact, mode), token=search.token)[0]


def _place(contexts: Sequence[str]) -> int:
    return contexts.index("{}") if "{}" in contexts else 0


def _loss(logits: Float[Tensor, "keep vocab"], row: Row) -> float:
    """Return the target's mean negative log-likelihood; without target that of the most probable next token."""
    normal, count = logits.log_softmax(-1), len(row.targets)
    if not count:
        return -float(normal[-1].max())
    return -float(normal[torch.arange(-count, 0), torch.tensor(row.targets)].mean())


def _over_all(progress: Progress, batch: int, batches: int) -> Progress:
    """Tell about the steps of one batch as part of those of all."""

    def tell(what: str, done: int, total: int) -> None:
        progress(what, batch * total + done, batches * total)

    return tell


def _found(
    search: _Search, facts: Sequence[tuple[Fact, Mode]], numbers: Sequence[int], progress: Progress | None
) -> Values:
    """Find the values of some facts, all at once."""
    lm, wrap = search.lm, search.wrap
    spoken: list[Row] = []
    essence: list[Row] = []
    soft: dict[int, Tensor] = {}
    for i, (fact, mode) in enumerate(facts):
        spoken += rows_for(lm, i, fact, search.contexts, wrap, target=_target(fact, mode), token=search.token)
        essence.append(essence_row(lm, i, fact, wrap, at_subject=search.kl_at_subject, token=search.token))
        if mode == "erase":
            soft[i] = without_subject(lm, fact, wrap, seed=search.seed)
    keep = max(1, *(len(row.targets) for row in spoken))
    first = first_pass(lm, padded(spoken + essence), search.site, keep=keep, plain=search.plain)
    before = {i: first.logits[len(spoken) + i, -1].log_softmax(-1) for i in range(len(facts))}
    shape = len(facts), len(search.contexts)
    keys, old = (part[: len(spoken)].unflatten(0, shape) for part in (first.keys, first.values))
    bare = search.contexts.index("{}") if "{}" in search.contexts else None
    start = old.mean(1) if bare is None else old[:, bare]
    found = descend(lm, first, start, Aim(soft, before), search.how, numbers=numbers, progress=progress)
    return Values(
        keys=keys.mean(1).cpu(),
        old=old.mean(1).cpu(),
        bare_keys=(keys.mean(1) if bare is None else keys[:, bare]).cpu(),
        start=start.cpu(),
        wanted=(start + found.delta).cpu(),
        records=tuple(
            _record(search, fact, mode, first, found, i, start[i], soft.get(i)) for i, (fact, mode) in enumerate(facts)
        ),
    )


def _record(
    search: _Search,
    fact: Fact,
    mode: Mode,
    first: FirstPass,
    found: Found,
    i: int,
    start: Tensor,
    soft: Tensor | None,
) -> FactRecord:
    """Return what was done for one fact."""
    at = i * len(search.contexts) + _place(search.contexts)
    row = first.tail.batch.rows[at]
    before = _loss(first.logits[at], row)
    if soft is not None:
        fact = fact.with_target(search.lm.tokenizer.decode([int(soft.argmax())]).strip())
    return row.record(
        search.lm,
        fact,
        mode,
        search.site.layer,
        losses=found.losses[i],
        stopped=found.stopped[i],
        numbers={
            "value_norm": float(start.norm()),
            "change_norm": float(found.delta[i].norm()),
            "target_loss_before": before,
            "target_loss": found.likelihood[i],
        },
    )


def _target(fact: Fact, mode: Mode) -> str | None:
    return None if mode == "erase" else require_target(fact)
