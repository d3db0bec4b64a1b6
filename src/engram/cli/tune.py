"""`engram tune`: the numbers that suit a method to a model, found once and used from then on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from engram.cli.common import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    emit_json,
    load_model,
    out,
)
from engram.cli.options import (
    Cache,
    Chat,
    Corpus,
    Method,
    Seed,
    Set,
    Statistics,
    Tokens,
    method_settings,
    needs_keys,
    statistics_given,
    unlogged,
)
from engram.cli.sweep import layer_list
from engram.cli.watching import bars, interruptible, note
from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.editing.tuned import Tuned
    from engram.models import LM


def tune(
    model: Model,
    *,
    data: Annotated[
        str | None, typer.Option(help="Records to tune on, as for evaluate; what the model knows when not given.")
    ] = None,
    method: Method = "rome",
    records: Annotated[int, typer.Option(help="How many records; leave them out of tables (--skip).")] = 24,
    layers: Annotated[
        str | None, typer.Option(help="Layers to try, as in 0-3,6; up to the middle if not given.")
    ] = None,
    clamps: Annotated[str | None, typer.Option(help="rome: clamps to try, as in 0.5,1,2.")] = None,
    rates: Annotated[str | None, typer.Option(help="ft, ft-l: learning rates to try.")] = None,
    bounds: Annotated[str | None, typer.Option(help="ft-l: bounds to try.")] = None,
    typed: Set = None,
    corpus: Corpus = None,
    count: Tokens = None,
    statistics: Statistics = None,
    cache: Cache = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Keep every edit's result here, not in the cache.")
    ] = None,
    chat: Chat = False,
    show: Annotated[bool, typer.Option("--show", help="Only show what was tuned for this model.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Forget it: edits use the untuned rule again.")] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Find the layer and the other numbers that suit a method to a model; later edits of this model use them.

    Start the same command again to continue an interrupted one.

    Example: engram tune mini
    """
    where = {"device": device, "dtype": dtype, "device_map": device_map, "revision": revision}
    tried = {"layer": layer_list(layers), "clamp": numbers(clamps), "lr": numbers(rates), "bound": numbers(bounds)}
    settings = method_settings(method, typed, **tried, chat=chat)
    needed = needs_keys(method, settings) and not (forget or show)
    settings |= statistics_given(model, corpus=corpus, tokens=count, statistics=statistics, needed=needed)
    lm = load_model(model, **where, trust_remote_code=trust_remote_code)
    if forget:
        say_forgotten(lm, method, as_json=as_json)
    elif show:
        show_tuned(lm, method, as_json=as_json)
    else:
        options = {"method": method, "records": records, "out": folder, "seed": seed, **settings}
        run_tuning(lm, data, options, as_json=as_json)


def run_tuning(lm: "LM", data: str | None, options: dict[str, Any], *, as_json: bool) -> None:
    """Tune under a progress bar, and say what came of it."""
    from engram import evaluation
    from engram.editing.tuned import tuned_file

    folder = options["out"] or tuned_file(lm, options["method"]).parent
    with interruptible(folder, kept="edits"), unlogged(), bars(quiet=as_json) as report:
        found = evaluation.tune(lm, data, progress=report, **options)
    if as_json:
        emit_json(found.plain())
        return
    say_found(found)
    if found.best.score > 0:
        note(f"Kept for {lm.name}: edits use it from now on. engram tune {lm.name} --forget takes it back.")
        note(f"In a table leave these records out: engram evaluate {lm.name} DATA --skip {len(found.cases)}")
    else:
        note("Nothing that was tried works on this model, so nothing was kept.")


def say_found(found: "Tuned") -> None:
    """Draw what was found, with those that were tried on all records."""
    out().print(escape(repr(found)), soft_wrap=True)
    note("S against the unedited model: harmonic mean of ES, PS and NS / NS unedited. ± is half a 95 % interval.")


def show_tuned(lm: "LM", method: str, *, as_json: bool) -> None:
    """Show what is kept for a model."""
    from engram.editing.parts.published import tune_command
    from engram.editing.tuned import tuned

    found = tuned(lm, method)
    if as_json:
        emit_json({"tuned": None if found is None else found.plain()})
    elif found is None:
        todo = escape(tune_command(lm, method))
        out().print(f"Nobody has tuned {method} for {escape(lm.name)} here. Do it: {todo}", soft_wrap=True)
    else:
        say_found(found)


def say_forgotten(lm: "LM", method: str, *, as_json: bool) -> None:
    """Forget what is kept for a model, and say so."""
    from engram.editing.tuned import forget_tuned

    gone = forget_tuned(lm, method)
    if as_json:
        emit_json({"forgotten": gone})
        return
    out().print(
        f"Forgotten: edits of {escape(lm.name)} use the untuned rule." if gone else "There was nothing to forget."
    )


def numbers(text: str | None) -> list[float] | None:
    """Return the numbers that were typed, as in "0.5,1".

    Raises:
        SettingError: something else was typed.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingError(f"{text!r} is no list of numbers; write it as in 0.5,1,2.") from error
