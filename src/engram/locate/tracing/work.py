"""What a trace computes, divided so that it fits (ROME paper, section 2).

The corrupted baseline and every restored run use the same corruption. What cannot change is not computed: no clean row,
no tokens before the subject, no position before the restored one, no layer below it, and logits of the last position
only.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import FactError
from engram.facts import Fact
from engram.locate.tracing.budget import limits_of, parse_budget, rows_at_once, samples_at_once
from engram.locate.tracing.climb import Footing, climb_once
from engram.locate.tracing.corruption import Corruption, corrupt
from engram.locate.tracing.metrics import Metric
from engram.locate.tracing.noise import Noise
from engram.locate.tracing.passes import Clean, run_clean, run_corrupted, run_lone_outputs
from engram.locate.tracing.plain import restore_plainly
from engram.locate.tracing.result import CausalTrace
from engram.locate.tracing.settings import TraceSettings
from engram.locate.tracing.staircase import effective, plan_climbs
from engram.locate.tracing.windows import Restoration, TraceSite
from engram.models.chat import wrap_for
from engram.models.continuations import asked, continuation_ids
from engram.progress import Doing

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

Steps = Callable[[int, int], None]
"""Called with the number of finished and of all passes."""
TRACING = Doing("tracing", unit="passes")


@torch.no_grad()
def trace_with(
    lm: "LM", fact: Fact, settings: TraceSettings, *, plain: bool = False, progress: Steps | None = None
) -> CausalTrace:
    """Trace one fact with checked settings; `plain` takes the plain path even where the fast one would do."""
    settings = settings.fitted(lm.n_layers)
    wrap = wrap_for(lm, chat=settings.chat)
    fact = wrap.fact(fact)
    prompt = asked(lm, fact)
    span = prompt.subject
    begin = lm.encode(fact.text).beyond(0, len(wrap.before)).start if wrap else 0
    positions = settings.positions(span, prompt.ids.shape[1], begin=begin)
    clean = run_clean(lm, prompt.ids, settings.sites)
    metric, predicted = _metric(lm, fact, prompt.answer, clean, settings)
    corruption, noise = corrupt(
        lm, fact, prompt, settings.noise, samples=settings.samples, draws=settings.draws, seed=settings.seed
    )
    restoring = corruption
    if settings.severed is not None and settings.draws == "published" and isinstance(noise, Noise):
        restoring, _ = corrupt(
            lm, fact, prompt, noise, samples=settings.samples, draws="published", seed=settings.seed, second=True
        )
        plain = True  # rows differ from their own baseline at every layer: nothing can be shared
    work = _Work(lm, clean, corruption, restoring, metric, settings, positions)
    values, baseline = work.run(plain=plain or not lm.can_resume, progress=progress)
    return CausalTrace(
        prompt=fact.text,
        subject=fact.subject,
        subject_range=(span.start, span.stop),
        tokens=tuple(lm.tokens(prompt.ids[0])),
        positions=tuple(positions),
        answer=lm.tokens([metric.answer])[0],
        answer_id=metric.answer,
        predicted=predicted,
        clean=float(metric(clean.logits)[0]),
        samples=values,
        baseline=baseline,
        noise=noise,
        settings=settings.record(),
        model=lm.name,
    )


def _metric(lm: "LM", fact: Fact, expected: int | None, clean: Clean, settings: TraceSettings) -> tuple[Metric, str]:
    said = int(clean.logits.argmax())
    predicted = lm.tokens([said])[0]
    if expected is not None and expected != said:
        logger.warning(
            "%s does not answer %r to %r but %r; traced all the same, but this is no fact that the model knows",
            lm.name,
            fact.original,
            fact.text,
            predicted,
        )
    against = None
    if settings.metric == "logit_difference":
        other = settings.against or fact.target
        if other is None:
            raise FactError("The logit difference needs a second answer: give against=..., or a fact with a target.")
        against = continuation_ids(lm, fact.text, other)[0]
        if against == (said if expected is None else expected):
            raise FactError(f"The second answer {other!r} begins with the same token as the answer. Choose another.")
    return Metric(settings.metric, said if expected is None else expected, against), predicted


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything that a trace computes, divided so that it fits into the memory budget.

    `corruption` is the baseline's and that of held outputs; `restoring` that of restored runs, the same but for the
    published code's severed traces.
    """

    lm: "LM"
    clean: Clean
    corruption: Corruption
    restoring: Corruption
    metric: Metric
    settings: TraceSettings
    positions: list[int]

    @property
    def length(self) -> int:
        return self.clean.ids.shape[1]

    def run(self, *, plain: bool, progress: Steps | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the metric by site [token layer sample] and its baseline [sample]."""
        settings, total = self.settings, self.corruption.samples
        budget = parse_budget(settings.memory_budget, self.lm.device)
        kept = len(set(settings.sites) - {"state"}) + (settings.severed is not None)
        many = samples_at_once(self.lm, self.length, samples=total, kinds=kept, budget=budget)
        parts: list[dict[str, Tensor]] = []
        baselines: list[Tensor] = []
        for begin in range(0, total, many):
            part = self.corruption.part(begin, begin + many)
            report = _part_of(progress, begin // many, -(-total // many))
            if plain:
                values, baseline = self._plainly(part, self.restoring.part(begin, begin + many), budget, report)
            else:
                values, baseline = self._climbing(part, budget, kept, report)
            parts.append(values)
            baselines.append(baseline)
        joined = {site: torch.cat([part[site] for part in parts], dim=-1) for site in settings.sites}
        return joined, torch.cat(baselines)

    def _restorations(self) -> dict[tuple[TraceSite, int, int], Restoration]:
        """Return the restoration of every (site, token, layer) from the first corrupted token on."""
        layers = self.lm.n_layers
        begin = self.corruption.first_token if self.restoring is self.corruption else 0
        return {
            (site, position, layer): self.settings.restoration(site, position, layer, layers)
            for site in self.settings.sites
            for position in self.positions
            if position >= begin
            for layer in range(layers)
        }

    def _plainly(
        self, corruption: Corruption, restoring: Corruption, budget: int, report: Steps
    ) -> tuple[dict[str, Tensor], Tensor]:
        severed = self.settings.severed
        corrupted = run_corrupted(self.lm, corruption, [severed] if severed else [], for_resuming=False)
        restorations = self._restorations()
        distinct = sorted(set(restorations.values()))
        at_once = max(1, rows_at_once(self.lm, self.length, self.length, budget=budget) // corruption.samples)
        found: dict[Restoration, Tensor] = {}
        for begin in range(0, len(distinct), at_once):
            some = distinct[begin : begin + at_once]
            rows = restore_plainly(self.lm, self.clean, restoring, corrupted, self.metric, some, severed=severed)
            found |= dict(zip(some, rows, strict=True))
            report(begin + len(some), len(distinct))
        baseline = self.metric(corrupted.logits)
        return self._grids({key: found[each] for key, each in restorations.items()}, baseline), baseline

    def _climbing(
        self, corruption: Corruption, budget: int, kept: int, report: Steps
    ) -> tuple[dict[str, Tensor], Tensor]:
        lm, settings, last = self.lm, self.settings, self.length - 1
        severed = settings.severed
        corrupted = run_corrupted(lm, corruption, [severed] if severed else [], for_resuming=True)
        restorations = {
            key: effective(each, n_layers=lm.n_layers, last=last) for key, each in self._restorations().items()
        }
        distinct = {each for each in restorations.values() if each is not None}
        windowed: list[TraceSite] = [site for site in ("mlp", "attn") if any(c.site == site for c in distinct)]
        start = min((each.position for each in distinct), default=last)
        lone = run_lone_outputs(lm, self.clean, corrupted, windowed, start=start, severed=severed)
        footing = Footing(self.clean, corrupted, lone, start, severed)
        limits = limits_of(lm, self.length, samples=corruption.samples, kinds=kept, budget=budget)
        climbs = plan_climbs(distinct, n_layers=lm.n_layers, length=self.length, limits=limits)
        found: dict[Restoration, Tensor] = {}
        for index, climb in enumerate(climbs):
            rows = climb_once(lm, footing, climb, self.metric)
            found |= {group.restoration: row for group, row in zip(climb.groups, rows, strict=True)}
            report(index + 1, len(climbs))
        baseline = self.metric(corrupted.logits)
        reached = {key: found[restoration] for key, restoration in restorations.items() if restoration is not None}
        return self._grids(reached, baseline), baseline

    def _grids(
        self, found: dict[tuple[TraceSite, int, int], Tensor], baseline: Float[Tensor, " sample"]
    ) -> dict[str, Tensor]:
        """Lay results out as [token layer sample]; what was not computed equals the baseline."""
        row = {position: i for i, position in enumerate(self.positions)}
        shape = (len(row), self.lm.n_layers, len(baseline))
        grids: dict[str, Tensor] = {site: baseline.expand(shape).clone() for site in self.settings.sites}
        for (site, position, layer), values in found.items():
            grids[site][row[position], layer] = values
        return grids


def _part_of(progress: Steps | None, part: int, parts: int) -> Steps:
    """Report passes of one part of the samples as passes of the whole."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(part * total + done, parts * total)

    return report
