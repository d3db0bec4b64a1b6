"""`engram sweep`: where to edit, found by trying layers and tokens, with an adviser that says why."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from engram.cli.common import Device, Dtype, Json, Model, emit_json, load_model, out, say_skipped
from engram.cli.evaluate import Batch, Data, Limit, Sample, SkipUnknown, read_data
from engram.cli.options import (
    Cache,
    Chat,
    Corpus,
    Seed,
    Set,
    Statistics,
    Tokens,
    method_settings,
    needs_keys,
    statistics_given,
    unlogged,
)
from engram.cli.watching import bars, interruptible, note, progress
from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.datasets import Dataset
    from engram.evaluation import Advice, Sweep
    from engram.models import LM

_TRACED = 40


def sweep(
    model: Model,
    data: Data,
    *,
    methods: Annotated[str, typer.Option("--method", help="Methods, as in rome,ft.")] = "rome",
    layers: Annotated[str | None, typer.Option(help="Layers, as in 0-3,6; all when not given.")] = None,
    tokens: Annotated[str, typer.Option("--token", help="subject_first, subject_middle, subject_last, last.")] = (
        "subject_last"
    ),
    corpus: Corpus = None,
    count: Tokens = None,
    statistics: Statistics = None,
    cache: Cache = None,
    preset: Annotated[str | None, typer.Option(help="rome: rrome, code or paper.")] = None,
    typed: Set = None,
    folder: Annotated[Path | None, typer.Option("--out", help="A run folder for every place goes in here.")] = None,
    batch: Batch = 1,
    limit: Limit = None,
    sample: Sample = None,
    skip_unknown: SkipUnknown = False,
    chat: Chat = False,
    trace: Annotated[int, typer.Option(help="How many cases to trace for the adviser; 0 for none.")] = _TRACED,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Edit at every layer and token, and recommend a layer.

    Example: engram sweep mini mini --limit 40 --layers 0-5 --out runs/sweep
    """
    names, at = split(methods), layer_list(layers)
    settings = shared_settings(names, typed, preset=preset)
    keyed = [name for name in names if needs_keys(name, {})]
    needed = any(needs_keys(name, settings[name]) for name in keyed)
    counted = statistics_given(model, corpus=corpus, tokens=count, statistics=statistics, needed=needed)
    for name in keyed:
        settings[name] = {"seed": seed, **settings[name], **counted}
    options: dict[str, Any] = {
        **{"methods": names, "layers": at, "tokens": split(tokens), "settings": settings},
        **{"out": folder, "batch": batch, "seed": seed, "chat": chat},
    }
    lm = load_model(model, device=device, dtype=dtype)
    chosen: dict[str, Any] = {
        "limit": limit,
        "sample": sample,
        "seed": seed,
        "skip_unknown": skip_unknown,
        "chat": chat,
    }
    cases = read_data(lm, data, **chosen, snippets=None)
    run_sweep(lm, cases, options, traced=trace, as_json=as_json)


def shared_settings(names: list[str], typed: list[str] | None, **short: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of several methods: each takes those that it has.

    Raises:
        SettingError: an unknown method, a setting that none of them has, or a value of another type.
    """
    from engram.editing.methods import method_kind
    from engram.settings import settings as settings_of

    known = {name: settings_of(method_kind(name)) for name in names}
    for text in typed or ():
        key = text.partition("=")[0].strip()
        if not any(key in own for own in known.values()):
            method_settings(names[0], [text])  # refuses it
    return {
        name: method_settings(
            name,
            [text for text in typed or () if text.partition("=")[0].strip() in own],
            **{key: value for key, value in short.items() if key in own and name == "rome"},
        )
        for name, own in known.items()
    }


def split(text: str) -> list[str]:
    """Return what stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def run_sweep(lm: "LM", cases: "Dataset", options: dict[str, Any], *, traced: int, as_json: bool) -> None:
    """Try every place, trace some cases, and show what comes of it."""
    from engram import evaluation
    from engram.evaluation.sweep import write_sweep
    from engram.locate import trace_many, usual_window

    folder: Path | None = options["out"]
    trace = None
    with interruptible(folder, kept="places"):
        with unlogged(), bars(quiet=as_json) as report:
            swept = evaluation.sweep(lm, cases, progress=report, **options)
        say_skipped(cases)
        if traced > 0:
            with unlogged(), progress("traces", quiet=as_json) as update:
                some, window = list(islice(cases, traced)), usual_window(lm.n_layers)
                how: dict[str, Any] = {"sites": "mlp", "window": window, "tokens": "subject_last"}
                trace = trace_many(lm, some, progress=update, chat=options["chat"], **how)
    advice = evaluation.advise(swept, trace, method=options["methods"][0])
    if folder is not None:
        write_sweep(swept, folder)
    if as_json:
        emit_json({"places": swept.plain(), "layer": advice.layer, "score": advice.score, "reasons": advice.reasons})
        return
    show_sweep(swept, advice)
    for sentence in swept.notes:
        note(sentence)
    if folder is not None:
        note(f"Kept in {folder}, with sweep.png and sweep.json.")


def show_sweep(swept: "Sweep", advice: "Advice") -> None:
    """Draw the table, the recommendation and its reasons."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("place", "S", "ES", "PS", "NS"):
        table.add_column(column, justify="left" if column == "place" else "right")
    for place, run in swept.runs.items():
        table.add_row(place.name, *(str(run.cell(key) or "") for key in ("S", "ES", "PS", "NS")))
    out().print(table)
    out().print(f"\n[bold]Recommended: layer {advice.layer}[/bold]")
    for reason in advice.reasons:
        out().print(f"  {reason}", soft_wrap=True)


def layer_list(text: str | None) -> list[int] | None:
    """Return the layers that were typed, as in "0-3,6".

    Raises:
        SettingError: something else was typed.
    """
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        try:
            found.update(range(int(first), int(last or first) + 1))
        except ValueError as error:
            raise SettingError(f"{text!r} is no list of layers; write it as in 0-3,6.") from error
    return sorted(found)
