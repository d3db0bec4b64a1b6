"""`engram stats`: count the key statistics that ROME and its kin need, and keep them in the cache."""

import time
from pathlib import Path
from typing import Annotated, Any

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
    note,
    out,
)
from engram.cli.options import Seed, bars
from engram.errors import SettingError


def stats(
    model: Model,
    *,
    layers: Annotated[str | None, typer.Option(help="Such as 2,3 or 0-5; ROME's layer when not given.")] = None,
    corpus: Annotated[
        str | None, typer.Option(help="A .txt, .csv or .jsonl file, or hf:NAME; mini has its own text.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Count exactly so many tokens instead of until converged.")] = None,
    precision: Annotated[str, typer.Option(help="Of the products: float32 or float64.")] = "float32",
    cache: Annotated[Path | None, typer.Option(help="Folder of the cache; the user's cache folder otherwise.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Count key statistics over text, once; every later edit finds them. Stops by itself when they have converged.

    Example: engram stats mini --layers 2,3
    """
    from engram.editing.layers import rome_layer
    from engram.editing.statistics import built_in_corpus
    from engram.stats import open_corpus, statistics

    wanted = None if layers is None else parsed_layers(layers)
    lm = load_model(
        model, device=device, dtype=dtype, device_map=device_map, revision=revision, trust_remote_code=trust_remote_code
    )
    source = built_in_corpus(lm) if corpus is None else open_corpus(corpus)
    chosen = wanted or [rome_layer(lm, None)[0]]
    settings: dict[str, Any] = {"tokens": tokens, "precision": precision, "seed": seed}
    begun = time.monotonic()
    with bars(quiet=as_json) as progress:
        found = statistics(lm, chosen, source, cache=cache, progress=progress, **settings)
    seconds = time.monotonic() - begun
    rows = [
        {"layer": layer, "tokens": found[layer].tokens, "change": found[layer].change, "ridge": found.ridge(layer)}
        for layer in chosen
    ]
    if as_json:
        emit_json(
            {"model": model, "fingerprint": lm.fingerprint, "corpus": found.corpus, "seconds": seconds, "layers": rows}
        )
        return
    out().print(
        f"[bold]Key statistics of {escape(model)}[/bold] over {escape(found.corpus)}, in {seconds:.1f} s",
        soft_wrap=True,
    )
    out().print(_table(rows))
    note("Kept in the cache; edits of these layers find them there.")


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
