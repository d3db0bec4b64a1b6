"""ROME: rank-one edits of an MLP's output projection (Meng et al. 2022, §3.1, Appendix E; PROTOCOL §3).

Ŵ = W + Λ (C⁻¹k*)ᵀ with Λ = (v* - W k*) / ((C⁻¹k*)ᵀ k*): the smallest change, measured on text, after which the key of
the subject's last token gives the value v*. Everything expensive is shared: one pass over all prompts gives keys, old
values and cached prefixes, and each step of the search for v* runs only what δ can change.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from engram.editing.applying import require_gradients
from engram.editing.changes import LowRank
from engram.editing.edit import Edit
from engram.editing.parts.contexts import sample_contexts
from engram.editing.parts.descent import Aim, Descent, Found, descend
from engram.editing.parts.key_statistics import Given, Text, statistics_for
from engram.editing.parts.passes import FirstPass, first_pass
from engram.editing.parts.prompts import TOKENS, Row, essence_row, padded, require_target, rows_for
from engram.editing.parts.published import Choice, chosen, published_clamp
from engram.editing.parts.targets import mode_of, without_subject
from engram.editing.records import FactRecord, Mode, Origin
from engram.errors import NumericalError, SettingError, did_you_mean
from engram.facts import Fact
from engram.models.chat import Wrap, wrap_for
from engram.progress import Progress
from engram.showing import Shown
from engram.stats import KeyStatistics

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Preset(Shown):
    """What the paper's text, its published code and its correction do differently.

    Args:
        descent: how v* is found.
        lengths: lengths of the context prefixes in tokens.
        bare: whether the bare prompt is one of the contexts.
        kl_at_subject: compare the essence prompt after the subject's last token (code) or at its end (paper).
        bare_key: whether the denominator's key is the bare prompt's (code: the cause of disabling edits).
    """

    descent: Descent
    lengths: tuple[int, ...]
    bare: bool
    kl_at_subject: bool
    bare_key: bool


_CODE = Preset(
    descent=Descent(steps=20, lr=0.5, stop=0.05, kl=0.0625, decay=0.5, decay_relative=True, clamp=4.0),
    lengths=(5,) * 10 + (10,) * 10,
    bare=True,
    kl_at_subject=True,
    bare_key=True,
)

PRESETS: Mapping[str, Preset] = {
    "code": _CODE,
    "paper": Preset(
        descent=Descent(steps=20, lr=0.5, stop=None, kl=100.0, decay=1.5e-3, decay_relative=False, clamp=4.0),
        lengths=tuple(2 + i % 9 for i in range(50)),
        bare=False,
        kl_at_subject=False,
        bare_key=False,
    ),
    "rrome": replace(_CODE, descent=replace(_CODE.descent, stop=0.02, stop_at_target=True), bare_key=False),
}


@dataclass(frozen=True, kw_only=True, repr=False)
class ROME(Shown):
    """Rank-one model editing; call it with a model and facts.

    Args:
        layer: the layer to edit; what was tuned for the model (`engram tune`), what was published for it, what its
            config names, or a rule, when not given.
        preset: `"rrome"` (the published code with the same key everywhere), `"code"` or `"paper"`.
        token: at which token to write; the subject's last one unless you want to compare (`engram sweep`).
        contexts: templates with one `{}` put in front of prompts; written by the model itself when not given.
        covariance: key statistics, the matrix E[k kᵀ] itself (or several by layer), or a folder that
            `KeyStatistics.save` or `engram stats --out` wrote; from the cache or counted when not given.
        corpus: text to count them on; see `engram.stats.open_corpus`.
        tokens: how many tokens of it to count; more from the cache serve as well. See
            `engram.stats.counting.Counting` when not given.
        mode: insert, modify or erase; by whether a fact names its original when not given.
        chat: wrap prompts with the tokenizer's chat template.
        seed: for contexts, statistics and erasing.
        steps: number of losses computed; the preset's when not given, as all that follow.
        lr: learning rate.
        stop: loss below which a fact is done.
        kl: weight of the essence term.
        decay: weight of the penalty on δ.
        clamp: bound of ‖δ‖ as a multiple of ‖v₀‖; found as the layer is when not given. The presets `code` and
            `paper` keep the published one.
        facts_per_batch: how many facts are optimised at once: bounds memory. More only helps on a GPU.
        plain: run the whole network at every step; for comparison.

    Raises:
        SettingError: an unknown preset or token, or a number that is not positive.
    """

    layer: int | None = None
    preset: Literal["code", "paper", "rrome"] | str = "rrome"
    token: Literal["subject_first", "subject_middle", "subject_last", "last"] | str = "subject_last"
    contexts: Sequence[str] | None = None
    covariance: Given | None = None
    corpus: Text | None = None
    tokens: int | None = None
    mode: Mode | None = None
    chat: bool = False
    seed: int = 0
    steps: int | None = None
    lr: float | None = None
    stop: float | None = None
    kl: float | None = None
    decay: float | None = None
    clamp: float | None = None
    facts_per_batch: int = 4
    plain: bool = False

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SettingError(f"There is no preset {self.preset!r}. {did_you_mean(self.preset, PRESETS)}")
        if self.token not in TOKENS:
            raise SettingError(f"There is no token {self.token!r}. {did_you_mean(self.token, TOKENS)}")
        for name in ("tokens", "steps", "lr", "clamp", "facts_per_batch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingError(f"{name}={value}; it must be positive.")
        if self.contexts is not None and not self.contexts:
            raise SettingError("contexts is empty; give at least the bare prompt, ['{}'].")

    def __call__(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> Edit:
        """Make one Edit of all facts; see `engram.edit` for the errors."""
        return self._solve(lm, facts, progress).edit(range(len(facts)))

    def each(self, lm: "LM", facts: Sequence[Fact], *, progress: Progress | None = None) -> list[Edit]:
        """Make one Edit per fact, as if each were alone; their values are looked for together, which is faster."""
        solution = self._solve(lm, facts, progress)
        return [solution.edit([i]) for i in range(len(facts))]

    def settled(self, lm: "LM") -> "tuple[ROME, tuple[str, ...]]":
        """Return the method with the layer and clamp that it uses on a model, and where they come from.

        Raises:
            SettingError: the layer is out of range.
        """
        choice = self._choice(lm)
        return replace(self, layer=choice.layer, clamp=choice.numbers["clamp"]), choice.notes

    def _choice(self, lm: "LM") -> Choice:
        clamp = self.clamp
        if clamp is None and self.preset != "rrome":  # the others stand for what was published
            clamp = published_clamp(lm) if self.preset == "code" else PRESETS[self.preset].descent.clamp
        return chosen(lm, "rome", layer=self.layer, clamp=clamp)

    def _solve(self, lm: "LM", facts: Sequence[Fact], progress: Progress | None) -> "_Solution":
        """Find the keys and values of all facts."""
        require_gradients(lm)
        modes: list[Mode] = [mode_of(fact, self) for fact in facts]
        choice = self._choice(lm)
        layer, notes, how = choice.layer, choice.notes, self._descent(choice)
        wrap = wrap_for(lm, chat=self.chat)
        rule = PRESETS[self.preset]
        # A bad fact or context is found before anything takes long.
        rows_by_fact = [
            rows_for(lm, i, f, ["{}"], wrap, target=_target(f, m))
            for i, (f, m) in enumerate(zip(facts, modes, strict=True))
        ]
        contexts = tuple(self.contexts or sample_contexts(lm, rule.lengths, seed=self.seed, bare=rule.bare))
        counted = statistics_for(
            lm, layer, self.covariance, self.corpus, tokens=self.tokens, seed=self.seed, progress=progress
        )
        if counted.remark:
            notes += (counted.remark,)
        if counted.ridge(layer):
            notes += (f"The key statistics are singular; a ridge of {counted.ridge(layer):g} was added.",)
        for note in notes:
            logger.info(note)
        order = sorted(range(len(facts)), key=lambda i: (len(rows_by_fact[i][0].targets), len(rows_by_fact[i][0].ids)))
        solved: dict[int, _Solved] = {}
        for begin in range(0, len(order), self.facts_per_batch):
            some = order[begin : begin + self.facts_per_batch]
            batch: list[tuple[Fact, Mode]] = [(facts[i], modes[i]) for i in some]
            solved.update(zip(some, self._values(lm, batch, layer, contexts, wrap, how, progress), strict=True))
        origin = Origin(
            method="rome", settings=self._settings(layer, how, counted), facts=(), contexts=contexts, notes=notes
        )
        return _Solution(lm, layer, [solved[i] for i in range(len(facts))], counted, rule.bare_key, origin)

    def _descent(self, choice: Choice) -> Descent:
        own = {name: getattr(self, name) for name in ("steps", "lr", "stop", "kl", "decay")}
        given = {name: value for name, value in own.items() if value is not None}
        return replace(PRESETS[self.preset].descent, clamp=choice.numbers["clamp"], **given)

    def _settings(self, layer: int, how: Descent, counted: KeyStatistics) -> dict[str, Any]:
        moment = counted[layer]
        return {
            "preset": self.preset,
            "layer": layer,
            "token": self.token,
            "chat": self.chat,
            "seed": self.seed,
            **{name: getattr(how, name) for name in ("steps", "lr", "stop", "kl", "decay", "clamp")},
            "statistics": {"corpus": counted.corpus, "tokens": moment.tokens, "change": moment.change},
        }

    def _values(
        self,
        lm: "LM",
        facts: Sequence[tuple[Fact, Mode]],
        layer: int,
        contexts: Sequence[str],
        wrap: Wrap,
        how: Descent,
        progress: Progress | None,
    ) -> "list[_Solved]":
        """Find keys and v* of some facts, all at once."""
        rule = PRESETS[self.preset]
        spoken: list[Row] = []
        essence: list[Row] = []
        soft: dict[int, Tensor] = {}
        for i, (fact, mode) in enumerate(facts):
            spoken += rows_for(lm, i, fact, contexts, wrap, target=_target(fact, mode), token=self.token)
            essence.append(essence_row(lm, i, fact, wrap, at_subject=rule.kl_at_subject, token=self.token))
            if mode == "erase":
                soft[i] = without_subject(lm, fact, wrap, seed=self.seed)
        keep = max(1, *(len(row.targets) for row in spoken))
        batch = padded(spoken + essence)
        first = first_pass(lm, batch, layer, keep=keep, plain=self.plain)
        before = {i: first.logits[len(spoken) + i, -1].log_softmax(-1) for i in range(len(facts))}
        per_fact = [torch.arange(i * len(contexts), (i + 1) * len(contexts)) for i in range(len(facts))]
        bare = contexts.index("{}") if "{}" in contexts else None
        start = torch.stack([_one(first.values, index, bare) for index in per_fact])
        found = descend(lm, first, start, Aim(soft, before), how, progress=progress)
        return [
            _solved(lm, fact, mode, layer, first, found, i, per_fact[i], bare, soft.get(i))
            for i, (fact, mode) in enumerate(facts)
        ]


@dataclass(frozen=True, slots=True)
class _Solution:
    """Keys and values of facts, from which edits of some or all of them are made.

    Args:
        lm: the model.
        layer: the layer to edit.
        solved: per fact its key and value.
        counted: key statistics.
        bare_key: whether the denominator's key is the bare prompt's.
        origin: where the edits come from, without facts.
    """

    lm: "LM"
    layer: int
    solved: Sequence["_Solved"]
    counted: KeyStatistics
    bare_key: bool
    origin: Origin

    def edit(self, chosen: Sequence[int]) -> Edit:
        """Make one Edit of some facts."""
        some = [self.solved[i] for i in chosen]
        update, numbers = _in_sequence(self.lm, self.layer, some, self.counted, bare_key=self.bare_key)
        records = tuple(
            replace(each.record, numbers={**each.record.numbers, **found})
            for each, found in zip(some, numbers, strict=True)
        )
        return Edit.of(self.lm, {self.lm.mlp_out_name(self.layer): update}, (replace(self.origin, facts=records),))


@dataclass(frozen=True, slots=True)
class _Solved:
    """One fact's key and value.

    Args:
        key: average key over contexts.
        bare_key: key of the bare prompt, where it is a context; else the average.
        old: value of `key` before the edit.
        bare_old: value of `bare_key` before the edit.
        value: v*.
        record: what was done.
    """

    key: Float[Tensor, " d_mlp"]
    bare_key: Float[Tensor, " d_mlp"]
    old: Float[Tensor, " d_model"]
    bare_old: Float[Tensor, " d_model"]
    value: Float[Tensor, " d_model"]
    record: FactRecord


def _target(fact: Fact, mode: Mode) -> str | None:
    return None if mode == "erase" else require_target(fact)


def _one(tensor: Tensor, index: Tensor, bare: int | None) -> Tensor:
    """Return the bare prompt's row, or the average where there is none."""
    index = index.to(tensor.device)
    return tensor[index].mean(0) if bare is None else tensor[index[bare]]


def _solved(
    lm: "LM",
    fact: Fact,
    mode: Mode,
    layer: int,
    first: FirstPass,
    found: Found,
    i: int,
    index: Tensor,
    bare: int | None,
    soft: Tensor | None,
) -> _Solved:
    row = first.tail.batch.rows[int(index[0 if bare is None else bare])]
    old = _one(first.values, index, bare)
    if soft is not None:
        fact = fact.with_target(lm.tokenizer.decode([int(soft.argmax())]).strip())
    numbers = {
        "value_norm": float(old.norm()),
        "change_norm": float(found.delta[i].norm()),
        "target_loss": found.likelihood[i],
    }
    prompt_ids = row.ids[: len(row.ids) - max(0, len(row.targets) - 1)]
    record = FactRecord(
        fact=fact,
        mode=mode,
        layers=(layer,),
        text=row.text,
        tokens=tuple(lm.tokens(prompt_ids)),
        position=row.lookup,
        losses=found.losses[i],
        stopped=found.stopped[i],
        numbers=numbers,
    )
    return _Solved(
        _one(first.keys, index, None),
        _one(first.keys, index, bare),
        _one(first.values, index, None),
        old,
        old + found.delta[i],
        record,
    )


def _in_sequence(
    lm: "LM", layer: int, solved: Sequence[_Solved], counted: KeyStatistics, *, bare_key: bool
) -> tuple[LowRank, list[dict[str, float]]]:
    """Write the facts one after the other: each update sees the weight that the earlier ones left."""
    keys = torch.stack([each.key for each in solved])
    directions = counted.solve(layer, keys)
    directions = directions / directions.norm(dim=1, keepdim=True)
    columns: list[Tensor] = []
    numbers: list[dict[str, float]] = []
    for i, each in enumerate(solved):
        key = (each.bare_key if bare_key else each.key).to(directions)
        now = (each.bare_old if bare_key else each.old).to(directions)
        for direction, column in zip(directions[:i], columns, strict=True):
            now = now + (direction @ key) * column
        along = directions[i] @ key
        columns.append((each.value.to(directions) - now) / along)
        numbers.append({"key_along_direction": float(along), "update_norm": float(columns[-1].norm())})
    enter, leave = directions.T.float().cpu(), torch.stack(columns, dim=1).float().cpu()
    if not (torch.isfinite(enter).all() and torch.isfinite(leave).all()):
        raise NumericalError(f"The update of layer {layer} contains NaN or infinity: a key has no part along C⁻¹k.")
    return LowRank(enter, leave) if lm.weight_is_transposed else LowRank(leave, enter), numbers
