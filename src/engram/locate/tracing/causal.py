"""`trace`: where in the network a fact is recalled (ROME paper, section 2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Unpack

from engram.facts import Fact
from engram.given import require, require_lm
from engram.locate.grid import Grid
from engram.locate.tracing.result import CausalTrace
from engram.locate.tracing.settings import Options, TraceOptions, TraceSettings
from engram.locate.tracing.work import TRACING, trace_with
from engram.progress import AnyProgress, Progress, named, progress_for

if TYPE_CHECKING:
    from engram.models import LM


def trace(lm: "LM", fact: Fact, *, progress: AnyProgress | None = None, **options: Unpack[TraceOptions]) -> CausalTrace:
    """Trace one fact: which restored states bring the answer back when the subject is corrupted?

    The answer is `fact.original` (its first token) where the fact names one, else what the model says.

    Args:
        lm: the model.
        fact: the fact; its `target` plays no part (except as second answer of the logit difference).
        progress: a function of (what, done, total), or of (done, total) passes; the log when not given.
        **options: what to trace, and how; the settings of `CausalTracing`.

    Raises:
        SettingError: an option does not exist, or has a value that is not allowed.
        FactError: the prompt, its subject or a second answer cannot be used.
        TokenizerError: `chat` on a model without a chat template.
        NumericalError: NaN or infinity in the model's output; the message names the layer.
    """
    require_lm(lm)
    require(fact, Fact, "fact")
    settings = TraceSettings.of(**options)
    settings.check_window(lm.n_layers)
    return trace_with(lm, fact, settings, progress=named(progress_for(progress, TRACING), TRACING))


@dataclass(frozen=True, kw_only=True)
class CausalTracing(Options):
    """Causal tracing as a locator: `engram.trace` with a grid over site, token and layer as its result."""

    name: ClassVar[str] = "tracing"

    def __call__(self, lm: "LM", fact: Fact, *, progress: Progress | None = None) -> Grid:
        """Trace one fact; arguments as for a `Locator`, errors as of `trace`."""
        settings = self.checked()
        settings.check_window(lm.n_layers)
        return trace_with(lm, fact, settings, progress=None if progress is None else named(progress, TRACING)).grid
