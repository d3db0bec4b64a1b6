"""What a trace is asked for, checked before anything runs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, get_args

from engram.errors import SettingError, did_you_mean
from engram.locate.tracing.metrics import MetricName
from engram.locate.tracing.noise import Draws, Noise, Swap, parse_noise
from engram.locate.tracing.windows import Restoration, TraceSite, WindowStyle, restoration_at, usual_window
from engram.settings import made

logger = logging.getLogger(__name__)

Tokens = Literal["all", "last", "subject", "subject_last"]
SITES: tuple[TraceSite, ...] = ("state", "mlp", "attn")


class TraceOptions(TypedDict, total=False):
    """The keyword options that `trace` and `trace_many` share; see `CausalTracing`."""

    sites: str | Sequence[str]
    window: int | None
    window_style: str
    noise: int | float | str | Noise | Swap
    samples: int
    seed: int
    draws: str
    tokens: str | int | Sequence[int]
    severed: str | None
    metric: str
    against: str | None
    chat: bool
    memory_budget: int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be asked of a trace, as one types it.

    Args:
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

    Raises:
        SettingError: a value that is not allowed; the message says what is.
    """

    sites: str | Sequence[str] = SITES
    window: int | None = None
    window_style: str = "code"
    noise: int | float | str | Noise | Swap = "3sigma"
    samples: int = 10
    seed: int = 0
    draws: str = "seeded"
    tokens: str | int | Sequence[int] = "all"
    severed: str | None = None
    metric: str = "probability"
    against: str | None = None
    chat: bool = False
    memory_budget: int | float | str | None = None

    def __post_init__(self) -> None:
        self.checked()

    def checked(self) -> "TraceSettings":
        """Return the same as checked settings."""
        for name, number in (("window", self.window), ("samples", self.samples)):
            if number is not None and number < 1:
                raise SettingError(f"{name}={number}; it must be 1 or more.")
        if self.against is not None and self.metric != "logit_difference":
            raise SettingError(
                f"against={self.against!r} is for metric='logit_difference'; the metric is {self.metric!r}."
            )
        return TraceSettings(
            sites=_sites(self.sites, self.severed),
            window=self.window,
            window_style=_one_of("window_style", self.window_style, get_args(WindowStyle)),
            noise=parse_noise(self.noise),
            samples=self.samples,
            seed=self.seed,
            draws=_one_of("draws", self.draws, get_args(Draws)),
            tokens=_tokens(self.tokens),
            severed=None if self.severed is None else _one_of("severed", self.severed, ("attn", "mlp")),
            metric=_one_of("metric", self.metric, get_args(MetricName)),
            against=self.against,
            chat=self.chat,
            memory_budget=self.memory_budget,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Checked options of a trace; see `Options` for their meaning."""

    sites: tuple[TraceSite, ...]
    window: int | None
    window_style: WindowStyle
    noise: Noise | Swap
    samples: int
    seed: int
    draws: Draws
    tokens: Tokens | tuple[int, ...]
    severed: Literal["attn", "mlp"] | None
    metric: MetricName
    against: str | None
    chat: bool
    memory_budget: int | float | str | None

    @classmethod
    def of(cls, **options: Unpack[TraceOptions]) -> "TraceSettings":
        """Check options.

        Raises:
            SettingError: an option that does not exist, or a value that is not allowed.
        """
        return made(Options, "tracing", **options).checked()

    def fitted(self, n_layers: int) -> "TraceSettings":
        """Return these settings for a model of so many layers: with the usual window where none was asked for."""
        return replace(self, window=usual_window(n_layers)) if self.window is None else self

    def check_window(self, n_layers: int) -> None:
        """Check the window against the model.

        A window of more than half of the layers tells little about layers, which is said; one that restores every layer
        wherever it stands tells nothing and is an error.

        Raises:
            SettingError: the window is more than twice as large as the model.
        """
        if self.window is None or self.window <= max(1, n_layers // 2) or not {"mlp", "attn"} & set(self.sites):
            return
        if self.window > 2 * n_layers:
            raise SettingError(
                f"window={self.window} on a model of {n_layers} layers restores every layer wherever it stands. "
                f"Choose 1 to {n_layers}."
            )
        logger.warning(
            "A window of %d layers is %s the model (%d layers); a smaller one, such as window=%d, shows more",
            self.window,
            "more than half of" if self.window <= n_layers else "larger than, and clipped to,",
            n_layers,
            usual_window(n_layers),
        )

    def positions(self, span: range, length: int, *, begin: int = 0) -> list[int]:
        """Return the positions to trace in a prompt, in ascending order.

        Args:
            span: the subject's tokens.
            length: number of tokens.
            begin: the first of "all" tokens: behind what a chat template puts in front.

        Raises:
            SettingError: a token number outside of the prompt.
        """
        match self.tokens:
            case "all":
                return list(range(begin, length))
            case "last":
                return [length - 1]
            case "subject":
                return list(span)
            case "subject_last":
                return [span[-1]]
            case _:
                outside = [t for t in self.tokens if not -length <= t < length]
                if outside:
                    raise SettingError(f"Token {outside[0]} is not in the prompt: it has tokens 0 to {length - 1}.")
                return sorted({t % length for t in self.tokens})

    def restoration(self, site: TraceSite, position: int, layer: int, n_layers: int) -> Restoration:
        """Return what one cell of a grid restores."""
        window = usual_window(n_layers) if self.window is None else self.window
        return restoration_at(site, position, layer, window=window, n_layers=n_layers, style=self.window_style)

    def record(self) -> dict[str, Any]:
        """Return what a file needs to say about these settings; nothing that does not change results."""
        return {
            "sites": list(self.sites),
            "window": self.window,
            "window_style": self.window_style,
            "noise": self.noise.record(),
            "samples": self.samples,
            "seed": self.seed,
            "draws": self.draws,
            "tokens": self.tokens if isinstance(self.tokens, str) else list(self.tokens),
            "severed": self.severed,
            "metric": self.metric,
            "against": self.against,
            **({"chat": True} if self.chat else {}),
        }


def _one_of(option: str, value: str, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise SettingError(f"{option}={value!r} is not known. {did_you_mean(str(value), allowed)}")
    return value


def _sites(sites: str | Sequence[str], severed: str | None) -> tuple[TraceSite, ...]:
    names = sites.replace(",", " ").split() if isinstance(sites, str) else list(sites)
    if not names:
        raise SettingError(f"No sites were given. Available: {', '.join(SITES)}.")
    for name in names:
        if name not in SITES:
            raise SettingError(f"There is no site {name!r} to trace. {did_you_mean(name, SITES)}")
    chosen: tuple[Any, ...] = tuple(site for site in SITES if site in names)
    if severed in chosen:
        if chosen != SITES:
            raise SettingError(
                f"{severed} outputs cannot be restored and severed at once; leave {severed!r} out of sites."
            )
        return tuple(site for site in chosen if site != severed)
    return chosen


def _tokens(tokens: Any) -> Any:
    if isinstance(tokens, str):
        return _one_of("tokens", tokens, get_args(Tokens))
    numbers = (tokens,) if isinstance(tokens, int) else tuple(tokens)
    if not numbers:
        raise SettingError(f"No tokens were given. Give positions, or one of {', '.join(get_args(Tokens))}.")
    return numbers
