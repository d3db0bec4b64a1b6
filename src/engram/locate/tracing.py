"""`trace`: where in the network a fact is recalled (ROME paper, section 2; PROTOCOL §2).

The corrupted baseline and every restored run use the same corruption. What cannot change is not computed: no clean row,
no tokens before the subject, no position before the restored one, no layer below it, and logits of the last position
only (DESIGN §4).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from engram.errors import FactError
from engram.facts import Fact
from engram.given import require, require_lm
from engram.locate.climb import Footing, climb_once
from engram.locate.corruption import Corruption, corrupt
from engram.locate.memory import limits_of, parse_budget, rows_at_once, samples_at_once
from engram.locate.metrics import Metric
from engram.locate.noise import Noise, Swap
from engram.locate.passes import Clean, run_clean, run_corrupted, run_first
from engram.locate.plain import restore_plainly
from engram.locate.result import CausalTrace
from engram.locate.settings import SITES, TraceOptions, TraceSettings
from engram.locate.staircase import effective, plan_climbs
from engram.locate.windows import Cell, TraceSite
from engram.models.chat import wrap_for
from engram.models.continuations import asked, continuation_ids
from engram.progress import AnyProgress, Doing, named, progress_for

if TYPE_CHECKING:
    from engram.models import LM

logger = logging.getLogger(__name__)

Steps = Callable[[int, int], None]
"""Called with the number of finished and of all passes."""
TRACING = Doing("tracing", unit="passes")


def trace(
    lm: "LM",
    fact: Fact,
    *,
    sites: str | Sequence[str] = SITES,
    window: int | None = None,
    window_style: str = "code",
    noise: int | float | str | Noise | Swap = "3sigma",
    samples: int = 10,
    seed: int = 0,
    draws: str = "seeded",
    tokens: str | int | Sequence[int] = "all",
    severed: str | None = None,
    metric: str = "probability",
    against: str | None = None,
    chat: bool = False,
    memory_budget: int | float | str | None = None,
    progress: AnyProgress | None = None,
) -> CausalTrace:
    """Trace one fact: which restored states bring the answer back when the subject is corrupted?

    The answer is `fact.original` (its first token) where the fact names one, else what the model says.

    Args:
        lm: the model.
        fact: the fact; its `target` plays no part (except as second answer of the logit difference).
        sites: `state` (one hidden state), `mlp` and `attn` (windows of outputs).
        window: number of layers of an MLP or attention window; `usual_window` of the model's depth when not given.
        window_style: `code` or `paper`, see `window_bounds`.
        noise: a number, `"3sigma"`, `"uniform:0.25"`, `"swap:Other Subject"` ... (`parse_noise`), a `Noise` or `Swap`.
        samples: number of noise samples.
        seed: for the noise.
        draws: `seeded`, or `published` for the published code's random numbers.
        tokens: which tokens to trace: `all`, `subject`, `subject_last`, `last`, or positions.
        severed: `mlp` or `attn`: these outputs at the restored token stay corrupted in all layers.
        metric: `probability`, `log_probability` (nats) or `logit_difference`.
        against: second answer of the logit difference; `fact.target` otherwise.
        chat: ask within the tokenizer's chat template; `all` tokens then begin with the user's words.
        memory_budget: bytes or `"2GiB"` beyond the model; 1 GiB on the CPU, half of what is free on a GPU.
        progress: a function of (what, done, total), or of (done, total) passes; the log when not given.

    Raises:
        SettingError: an option has a value that is not allowed.
        FactError: the prompt, its subject or a second answer cannot be used.
        TokenizerError: `chat` on a model without a chat template.
        NumericalError: NaN or infinity in the model's output; the message names the layer.
    """
    require_lm(lm)
    require(fact, Fact, "fact")
    options: TraceOptions = {"sites": sites, "window": window, "window_style": window_style, "tokens": tokens}
    options |= {"noise": noise, "samples": samples, "seed": seed, "draws": draws, "severed": severed}
    options |= {"metric": metric, "against": against, "chat": chat, "memory_budget": memory_budget}
    settings = TraceSettings.of(**options)
    settings.check_window(lm.n_layers)
    return trace_with(lm, fact, settings, progress=named(progress_for(progress, TRACING), TRACING))


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
        lm, fact, settings.noise, samples=settings.samples, draws=settings.draws, seed=settings.seed
    )
    restoring = corruption
    if settings.severed is not None and settings.draws == "published" and isinstance(noise, Noise):
        restoring, _ = corrupt(
            lm, fact, noise, samples=settings.samples, draws="published", seed=settings.seed, second=True
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

    def _cells(self) -> dict[tuple[TraceSite, int, int], Cell]:
        """Return the cell of every (site, token, layer) from the first corrupted token on."""
        layers = self.lm.n_layers
        first = self.corruption.first if self.restoring is self.corruption else 0
        return {
            (site, position, layer): self.settings.cell(site, position, layer, layers)
            for site in self.settings.sites
            for position in self.positions
            if position >= first
            for layer in range(layers)
        }

    def _plainly(
        self, corruption: Corruption, restoring: Corruption, budget: int, report: Steps
    ) -> tuple[dict[str, Tensor], Tensor]:
        severed = self.settings.severed
        corrupted = run_corrupted(self.lm, corruption, [severed] if severed else [], for_resuming=False)
        cells = self._cells()
        distinct = sorted(set(cells.values()))
        at_once = max(1, rows_at_once(self.lm, self.length, self.length, budget=budget) // corruption.samples)
        found: dict[Cell, Tensor] = {}
        for begin in range(0, len(distinct), at_once):
            some = distinct[begin : begin + at_once]
            rows = restore_plainly(self.lm, self.clean, restoring, corrupted, self.metric, some, severed=severed)
            found |= dict(zip(some, rows, strict=True))
            report(begin + len(some), len(distinct))
        baseline = self.metric(corrupted.logits)
        return self._grids({key: found[cell] for key, cell in cells.items()}, baseline), baseline

    def _climbing(
        self, corruption: Corruption, budget: int, kept: int, report: Steps
    ) -> tuple[dict[str, Tensor], Tensor]:
        lm, settings, last = self.lm, self.settings, self.length - 1
        severed = settings.severed
        corrupted = run_corrupted(lm, corruption, [severed] if severed else [], for_resuming=True)
        cells = {key: effective(cell, n_layers=lm.n_layers, last=last) for key, cell in self._cells().items()}
        distinct = {cell for cell in cells.values() if cell is not None}
        windowed: list[TraceSite] = [site for site in ("mlp", "attn") if any(c.site == site for c in distinct)]
        start = min((cell.position for cell in distinct), default=last)
        first = run_first(lm, self.clean, corrupted, windowed, start=start, severed=severed)
        footing = Footing(self.clean, corrupted, first, start, severed)
        limits = limits_of(lm, self.length, samples=corruption.samples, kinds=kept, budget=budget)
        climbs = plan_climbs(distinct, n_layers=lm.n_layers, length=self.length, limits=limits)
        found: dict[Cell, Tensor] = {}
        for index, climb in enumerate(climbs):
            rows = climb_once(lm, footing, climb, self.metric)
            found |= {group.cell: row for group, row in zip(climb.groups, rows, strict=True)}
            report(index + 1, len(climbs))
        baseline = self.metric(corrupted.logits)
        reached = {key: found[cell] for key, cell in cells.items() if cell is not None}
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
