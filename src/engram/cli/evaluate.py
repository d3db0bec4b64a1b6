"""`engram evaluate`: edit every case of a data set, score it, undo it, and keep the results in a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    say_skipped,
)
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
from engram.cli.watching import bars, interruptible, note

if TYPE_CHECKING:
    from engram.datasets import Dataset
    from engram.evaluation import Report
    from engram.models import LM

Data = Annotated[str, typer.Argument(help="A data file (.json, .jsonl, .csv), or a name such as 'mini'.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many cases.")]
Sample = Annotated[int | None, typer.Option(help="Only so many cases, drawn at random.")]
Batch = Annotated[int, typer.Option(help="Cases done together: faster on a GPU; results do not depend on it.")]
Skip = Annotated[int, typer.Option(help="Leave out the first so many cases, such as those that were tuned on.")]
SkipUnknown = Annotated[bool, typer.Option("--skip-unknown", help="Leave out facts that the model does not know.")]
_LISTED = 5


def evaluate(
    model: Model,
    data: Data,
    *,
    method: Annotated[
        str, typer.Option(help="How, or none for the unedited model; engram methods lists them.")
    ] = "rome",
    typed: Set = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Run folder; an interrupted run is continued.")] = None,
    preset: Annotated[str | None, typer.Option(help="rome: rrome, code or paper; ft: teacher or published.")] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer to change, from 0.")] = None,
    token: Annotated[str | None, typer.Option(help="rome: subject_first, _middle, _last, or last.")] = None,
    corpus: Corpus = None,
    count: Tokens = None,
    statistics: Statistics = None,
    cache: Cache = None,
    at_once: Annotated[int, typer.Option(help="Cases in one edit, all of them scored under it.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Go on from each edit instead of undoing it.")] = False,
    protocol: Annotated[str | None, typer.Option(help="single, or sequential: the same as --keep.")] = None,
    batch: Batch = 1,
    limit: Limit = None,
    sample: Sample = None,
    skip: Skip = 0,
    skip_unknown: SkipUnknown = False,
    chat: Chat = False,
    generate: Annotated[bool, typer.Option(help="Write texts for GE and RS: most of the time.")] = True,
    held_out: Annotated[Path | None, typer.Option(help="Text file, one text a line, for perplexity.")] = None,
    snippets: Annotated[Path | None, typer.Option(help="CounterFact's attribute_snippets.json, for RS.")] = None,
    tfidf: Annotated[Path | None, typer.Option(help="Folder of idf.npy and tfidf_vocab.json, for RS.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray (a cluster).")] = "local",
    address: Annotated[str, typer.Option(help="ray: 'auto', 'local' or ray://host:port.")] = "auto",
    workers: Annotated[int, typer.Option(help="ray: how many processes, each with the model.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="ray: GPUs for each of them.")] = 0,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Edit cases, score them before and after, undo the edit or keep it; start the same command again to continue.

    Example: engram evaluate mini mini --method rome --out runs/rome
    """
    place = chosen_engine(engine, address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    settings = method_settings(method, typed, preset=preset, layer=layer, token=token)
    needed = needs_keys(method, settings)
    options = {
        **statistics_given(model, corpus=corpus, tokens=count, statistics=statistics, needed=needed),
        **{"method": method, "out": folder, "protocol": protocol, "batch": batch, "generate": generate},
        **{"held_out": read_texts(held_out), "tfidf": tfidf, "seed": seed, "chat": chat, "engine": place},
        **{"at_once": at_once, "keep": keep},
        **settings,
    }
    where = {"device": device, "dtype": dtype, "device_map": device_map, "revision": revision}
    lm = load_model(model, **where, trust_remote_code=trust_remote_code)
    chosen: dict[str, Any] = {"limit": limit, "sample": sample, "skip": skip, "skip_unknown": skip_unknown}
    cases = read_data(lm, data, **chosen, seed=seed, chat=chat, snippets=snippets)
    run_evaluation(lm, cases, options, as_json=as_json)


def run_evaluation(lm: "LM", cases: "Dataset", options: dict[str, Any], *, as_json: bool) -> None:
    """Do it under a progress bar, and show the table."""
    from engram import evaluation

    folder: Path | None = options["out"]
    with interruptible(folder, kept="cases"), unlogged(), bars(quiet=as_json) as update:
        report = evaluation.evaluate(lm, cases, progress=update, **options)
    if as_json:
        emit_json({**report.plain(), "out": None if folder is None else str(folder)})
        return
    show(report)
    for sentence in report.notes:
        note(sentence)
    say_left_out(cases, report)
    if folder is not None:
        note(f"Kept in {folder}. Next: engram report {folder.parent}/*")


def chosen_engine(name: str, **options: Any) -> Any:
    """Return the engine; its options belong to Ray only."""
    from engram.runs import engine_named

    return engine_named(name, **(options if name == "ray" else {}))


def read_data(
    lm: "LM",
    data: str,
    *,
    limit: int | None,
    sample: int | None,
    seed: int,
    skip_unknown: bool,
    chat: bool,
    snippets: Path | None,
    skip: int = 0,
) -> "Dataset":
    """Read the data set, with what the options say about it."""
    from engram import datasets

    options: dict[str, Any] = {"limit": limit, "sample": sample, "skip": skip}
    options["seed"] = seed if sample is not None else 0
    if skip_unknown:
        options |= {"skip_unknown": lm, "chat": chat}
    if snippets is not None:
        return datasets.counterfact(data, snippets=snippets, **options)
    return datasets.load(data, **options)


def read_texts(path: Path | None) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty.

    Raises:
        DataError: it cannot be read or is empty.
    """
    from engram.errors import DataError

    if path is None:
        return ()
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The text file {path} cannot be read: {error}.") from error
    if not lines:
        raise DataError(f"The text file {path} is empty; it needs one text per line.")
    return lines


def show(report: "Report", columns: list[str] | None = None) -> None:
    """Draw the table, each column's protocol below it."""
    from rich.table import Table

    from engram.evaluation import COLUMNS
    from engram.evaluation.tables import protocols

    keys = report.keys(columns)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("n", justify="right")
    for run in report.runs:
        table.add_column(run.name, justify="right")
    for key in keys:
        cells = [run.cell(key) for run in report.runs]
        sizes = {cell.n for cell in cells if cell is not None}
        shown = "/".join(map(str, sorted(sizes)))
        table.add_row(COLUMNS[key].label, shown, *("" if cell is None else str(cell) for cell in cells))
    out().print(table)
    note("± is half a 95 % interval. Protocols:")
    for labels, protocol in protocols(keys):
        note(f"  {labels}: {protocol}")


def say_left_out(cases: "Dataset", report: "Report") -> None:
    """List records that gave no case, and cases that failed."""
    say_skipped(cases, listed=_LISTED)
    for run in report.runs:
        if run.failed:
            note(f"{len(run.failed)} case(s) of {run.name} failed:")
            for record in run.failed[:_LISTED]:
                note(f"  {record['id']}: {record['error']}")
