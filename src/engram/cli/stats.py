"""`engram stats`: count the key statistics that ROME and its kin need, and keep them in the cache."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

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
from engram.cli.options import Cache, Corpus, Seed, Tokens, statistics_given
from engram.cli.watching import bars, interruptible, note
from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.models import LM
    from engram.stats import KeyStatistics


def stats(
    model: Model,
    *,
    layers: Annotated[str | None, typer.Option(help="Such as 2,3 or 0-5; ROME's layer when not given.")] = None,
    corpus: Corpus = None,
    count: Tokens = None,
    precision: Annotated[str, typer.Option(help="Of the products: float32 or float64.")] = "float32",
    folder: Annotated[Path | None, typer.Option("--out", help="Also keep them in a folder of their own.")] = None,
    cache: Cache = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Count key statistics over text, once; every later edit finds them. Stops by itself when there is enough.

    Example: engram stats mini --layers 2,3

    Example: engram stats ./my-model --corpus wikipedia.csv --out statistics/
    """
    from engram.editing.parts.published import rome_layer
    from engram.stats import statistics

    wanted = None if layers is None else parsed_layers(layers)
    if corpus is None and model != "mini":
        raise SettingError(f"Counting keys of {model} needs text: give --corpus FILE (.txt, .csv, .jsonl) or hf:NAME.")
    statistics_given(model, corpus=corpus, needed=False)
    lm = load_model(
        model, device=device, dtype=dtype, device_map=device_map, revision=revision, trust_remote_code=trust_remote_code
    )
    chosen = wanted or [rome_layer(lm, None)[0]]
    settings: dict[str, Any] = {"tokens": count, "precision": precision, "seed": seed}
    begun = time.monotonic()
    nothing = "Nothing had been counted yet; start the same command again."
    with interruptible(None, nothing=nothing), bars(quiet=as_json) as progress:
        found = statistics(lm, chosen, corpus, progress=progress, **settings)
    if folder is not None:
        found.save(folder)
    seconds = time.monotonic() - begun
    if as_json:
        where = None if folder is None else str(folder)
        emit_json({"model": model, "fingerprint": lm.fingerprint, "out": where, "seconds": seconds, **as_plain(found)})
        return
    show(found, model, seconds)
    note(finders(lm, found, corpus, cache, folder))


def as_plain(found: "KeyStatistics") -> dict[str, Any]:
    """Return what was counted, for `--json`."""
    rows = [
        {"layer": layer, "tokens": moment.tokens, "change": moment.change, "ridge": found.ridge(layer)}
        for layer, moment in found.layers.items()
    ]
    return {"corpus": found.corpus, "layers": rows}


def show(found: "KeyStatistics", model: str, seconds: float) -> None:
    """Show what was counted."""
    title = f"[bold]Key statistics of {escape(model)}[/bold] over {escape(found.corpus)}, in {seconds:.1f} s"
    out().print(title, soft_wrap=True)
    out().print(_table(as_plain(found)["layers"]))


def finders(lm: "LM", found: "KeyStatistics", corpus: str | None, cache: Path | None, folder: Path | None) -> str:
    """Say which commands find what was counted, and what to type so that they do."""
    from engram.stats.counting import Counting

    tokens = min(moment.tokens for moment in found.layers.values())
    enough = kept_enough(lm, found)
    options = [] if corpus is None else [f"--corpus {corpus}"]
    options += [] if enough else [f"--tokens {tokens}"]
    options += [] if cache is None else [f"--cache {cache}"]
    words = f" with {' '.join(options)}" if options else ""
    more = "" if enough else f" (as a rule they ask for {Counting().most(lm.d_mlp):,} tokens, and count again)"
    kept = f"Kept in the cache: engram edit, evaluate, sweep, tune and serve find them{words}{more}"
    kept += "." if corpus is None or not enough else "; without --corpus, too."
    return kept if folder is None else f"{kept} Also in {folder}: --statistics {folder}"


def kept_enough(lm: "LM", found: "KeyStatistics") -> bool:
    """Say whether edits that ask for no number of tokens take what was counted."""
    from engram.stats import kept_statistics

    return set(kept_statistics(lm, list(found.layers)).layers) == set(found.layers)


def parsed_layers(text: str) -> list[int]:
    """Return the layers of "2,3" or "0-5".

    Raises:
        SettingError: something else was typed.
    """
    found: list[int] = []
    for part in text.replace(" ", "").split(","):
        begin, dash, end = part.partition("-")
        if not begin.isdecimal() or (dash and not end.isdecimal()):
            raise SettingError(f"--layers {text!r} is not understood. Write 2,3 or 0-5.")
        found.extend(range(int(begin), int(end or begin) + 1))
    if not found:
        raise SettingError(f"--layers {text!r} names no layer. Write 2,3 or 0-5.")
    return sorted(set(found))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("layer", "tokens", "still changing", "ridge"):
        table.add_column(heading, justify="right")
    for row in rows:
        change = "not measured" if row["change"] is None else f"{100 * row['change']:.2g} %"
        table.add_row(str(row["layer"]), f"{row['tokens']:,}", change, f"{row['ridge']:g}" if row["ridge"] else "none")
    return table
