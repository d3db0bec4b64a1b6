"""`CausalTrace`: what a trace found, as a value that can be saved, loaded and drawn."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engram.errors import DataError, SettingError, did_you_mean
from engram.locate.grid import Grid
from engram.locate.groups import token_groups
from engram.locate.tracing.noise import Noise, Swap, noise_from
from engram.locate.tracing.words import metric_name, site_name, trace_lines, trace_numbers, trace_rows
from engram.runs.store import write_atomically
from engram.showing import Shown, frame, html_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.console import RenderableType

FORMAT = 1


class Effect(Tensor):
    """An indirect effect [token layer]: a tensor that also carries its standard error over the noise samples.

    What is computed from it is a plain tensor.
    """

    standard_error: Float[Tensor, "token layer"]
    """Standard error of each number; NaN when there is only one sample."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return Tensor.__torch_function__(func, (), args, kwargs)

    @classmethod
    def of(cls, values: Float[Tensor, "token layer sample"]) -> "Effect":
        """Make an effect from one number per sample."""
        effect = values.mean(-1).as_subclass(cls)
        many = values.shape[-1]
        spread = values.std(-1) if many > 1 else torch.full(values.shape[:-1], float("nan"))
        effect.standard_error = spread / many**0.5
        return effect


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class CausalTrace(Shown):
    """The causal trace of one prompt (ROME paper, section 2).

    Args:
        prompt: the prompt.
        subject: its subject.
        subject_range: positions [begin, end) of the subject's tokens.
        tokens: all tokens of the prompt, as text.
        positions: the traced tokens; row i of every grid is token `positions[i]`.
        answer: the token whose metric was measured.
        answer_id: its id.
        predicted: the token that the model says.
        clean: metric of the clean prompt.
        samples: metric per restoration and noise sample, by site: [token layer sample].
        baseline: metric of the corrupted prompt per noise sample.
        noise: the corruption, with its amount as a number (or the subjects that were put in).
        settings: how the trace was made.
        model: name of the model.
    """

    prompt: str
    subject: str
    subject_range: tuple[int, int]
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    answer: str
    answer_id: int
    predicted: str
    clean: float
    samples: Mapping[str, Float[Tensor, "token layer sample"]]
    baseline: Float[Tensor, " sample"]
    noise: Noise | Swap
    settings: Mapping[str, Any]
    model: str = ""

    @property
    def corrupted(self) -> float:
        """Metric of the corrupted prompt, mean over the noise samples."""
        return float(self.baseline.double().mean())

    @property
    def total_effect(self) -> float:
        """What corrupting the subject took away: clean - corrupted."""
        return self.clean - self.corrupted

    @property
    def scores(self) -> dict[str, Float[Tensor, "token layer"]]:
        """Metric of each restoration, mean over the noise samples, by site."""
        return {site: values.mean(-1) for site, values in self.samples.items()}

    @property
    def state(self) -> Float[Tensor, "token layer"]:
        """Scores of restored hidden states."""
        return self._site("state").mean(-1)

    @property
    def mlp(self) -> Float[Tensor, "token layer"]:
        """Scores of restored windows of MLP outputs."""
        return self._site("mlp").mean(-1)

    @property
    def attn(self) -> Float[Tensor, "token layer"]:
        """Scores of restored windows of attention outputs."""
        return self._site("attn").mean(-1)

    def effect(self, site: str = "state") -> Effect:
        """Return the indirect effect [token layer] = scores - corrupted, with its `.standard_error` over the samples.

        Raises:
            SettingError: the site was not traced.
        """
        return Effect.of(self._site(site) - self.baseline)

    def _site(self, site: str) -> Tensor:
        if site not in self.samples:
            raise SettingError(f"The site {site!r} was not traced. {did_you_mean(site, self.samples)}")
        return self.samples[site]

    @property
    def labels(self) -> list[str]:
        """The traced tokens as text, one per row of the grids."""
        return [self.tokens[t].strip() or repr(self.tokens[t]) for t in self.positions]

    @property
    def subject_rows(self) -> list[int]:
        """The rows of the grids that are tokens of the subject."""
        return [row for row, t in enumerate(self.positions) if self.subject_range[0] <= t < self.subject_range[1]]

    @property
    def grid(self) -> Grid:
        """The same as a grid over site, token and layer: what `engram.locate(..., by="tracing")` returns."""
        window, severed = int(self.settings["window"]), self.settings["severed"]
        left_out = "" if severed is None else f", {'MLPs' if severed == 'mlp' else 'attention'} severed"
        row = {position: i for i, position in enumerate(self.positions)}
        groups = token_groups(self.subject_range, len(self.tokens))
        return Grid(
            values=torch.stack([self.samples[site] for site in self.samples]),
            baseline=self.baseline,
            axes=("site", "token", "layer"),
            labels=(
                tuple(self.samples),
                tuple(self.labels),
                tuple(map(str, range(next(iter(self.samples.values())).shape[1]))),
            ),
            settings=self.settings,
            text=self.prompt,
            model=self.model,
            quantity=metric_name(self),
            titles={site: f"restoring {site_name(site, window)}{left_out}" for site in self.samples},
            marked=tuple(self.subject_rows),
            groups={name: tuple(row[t] for t in tokens if t in row) for name, tokens in groups.items()},
            notes=(trace_numbers(self),),
        )

    # Pictures

    def plot(self, site: str | None = None, path: str | Path | None = None, *, dark: bool = False) -> "Figure":
        """Draw the heat map of one site, or of all traced sites side by side, and save it if a path is given.

        Args:
            site: `state`, `mlp` or `attn`; all that were traced when not given.
            path: a .png, .svg or .pdf file.
            dark: for a dark page.

        Raises:
            SettingError: the site was not traced.
        """
        if site is not None:
            self._site(site)
        return self.grid.plot(site, path, dark=dark)

    def __rich__(self) -> "RenderableType":
        from rich.text import Text

        from engram.plots import text_panel

        begin, end = self.subject_range
        text = Text()
        for i, token in enumerate(self.tokens):
            text.append(token, style="bold underline" if begin <= i < end else "")
        text.append(f" →{self.answer}", style="italic")
        text.append("\n" if self.answer == self.predicted else f" (but the model says{self.predicted})\n")
        text.append(f"{trace_numbers(self)}\n")
        for panel in self.grid.panels(compared=True):
            text.append("\n").append(text_panel(panel)).append("\n")
        return text

    def _lines(self) -> Iterable[str]:
        return trace_lines(self)

    def _inside(self) -> Iterable[str]:
        yield html_picture(self.plot, f"Heat map of {self.prompt}: token by layer, darker where the answer comes back")

    def dataframe(self) -> "DataFrame":
        """Return a table for pandas, one row per site, token and layer.

        Columns: site, token, position, subject (whether the token belongs to it), layer, score, effect (score -
        corrupted), and its 95 % interval over the noise samples, low and high (NaN for one sample).

        Raises:
            SettingError: pandas is not installed.
        """
        return frame(trace_rows(self))

    # Files

    def record(self) -> dict[str, Any]:
        """Return everything but the single samples as plain values, for JSON."""
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _PLAIN},
            "corrupted": self.corrupted,
            "noise": self.noise.record(),
            "scores": {site: scores.tolist() for site, scores in self.scores.items()},
        }

    def save(self, folder: str | Path) -> Path:
        """Write `trace.json` and `trace.safetensors` into a folder and return the folder."""
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        tensors = {f"samples.{site}": values.contiguous() for site, values in self.samples.items()}
        tensors["baseline"] = self.baseline
        save_file(tensors, where / "trace.safetensors.tmp")
        (where / "trace.safetensors.tmp").replace(where / "trace.safetensors")
        write_atomically(where / "trace.json", json.dumps(self.record(), ensure_ascii=False) + "\n")
        return where

    @classmethod
    def load(cls, folder: str | Path) -> "CausalTrace":
        """Read what `save` wrote.

        Raises:
            DataError: the folder holds no trace, or a broken one.
        """
        where = Path(folder)
        try:
            record = cast("dict[str, Any]", json.loads((where / "trace.json").read_text(encoding="utf-8")))
            with safe_open(where / "trace.safetensors", framework="pt") as file:
                baseline = file.get_tensor("baseline")
                samples = {site: file.get_tensor(f"samples.{site}") for site in record["scores"]}
            plain = {name: record[name] for name in _PLAIN}
            for name in ("subject_range", "tokens", "positions"):
                plain[name] = tuple(plain[name])
            return cls(**plain, baseline=baseline, samples=samples, noise=noise_from(record["noise"]))
        except FileNotFoundError as error:
            raise DataError(f"{where} holds no trace: {Path(error.filename or where).name} is not there.") from error
        except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise DataError(f"The trace in {where} is broken: {error}") from error


_PLAIN = (
    "prompt",
    "subject",
    "subject_range",
    "tokens",
    "positions",
    "answer",
    "answer_id",
    "predicted",
    "clean",
    "settings",
    "model",
)
