"""The first table on real models: ROME, FT and FT+L on CounterFact records that nothing was tuned on.

    python benchmarks/results_real.py --model "Gemma 3 270M=FOLDER" --model "SmolLM2-135M-Instruct=FOLDER" \
        --data counterfact.json --corpus wikipedia.csv
    python benchmarks/results_real.py --quick        # to see that it works: `mini`, its own records and text

The first `--tuning` records are for tuning, the next `--cases` for the table, and texts (GE) are written for the first
`--texts` of these. An interrupted call goes on where it was. The page is written anew whenever a row is done, between
two marks, so that a text around the tables stays.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engram
from engram import datasets, evaluation
from engram.editing import FT, FTL, ROME, Tuned
from engram.editing.parts.published import lower_half, untuned
from engram.evaluation import Report, Run, Scoring
from engram.evaluation.figures import bars
from engram.stats import KeyStatistics

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
COLUMNS = ("S", "ES", "EM", "PS", "PM", "NS", "NM", "said", "unchanged", "GE")
PAIRED = ("ES", "PS", "NS", "said", "unchanged", "GE")
TRAINED_RATES = (5e-4, 2e-3, 5e-3)
"""For fine-tuning a third of `engram tune`'s grid, so that no method's search makes more edits than ROME's."""
ROWS = ("rome", "rome-tuned", "rome-code", "ft-tuned", "ft-l-tuned")
FAMILIES: dict[str, Any] = {"rome": ROME, "ft": FT, "ft-l": FTL}


@dataclass(frozen=True)
class Task:
    """One model, and what is done with it."""

    title: str
    lm: Any
    data: Any
    statistics: KeyStatistics
    folder: Path
    options: argparse.Namespace

    @property
    def slug(self) -> str:
        """The model's name in file names."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def log(what: str) -> None:
    """Say what is going on, with the time."""
    print(time.strftime("%H:%M:%S"), what, flush=True)


class Every:
    """A progress function that prints a line now and then."""

    def __init__(self, what: str, seconds: float = 60.0) -> None:
        self.what, self.seconds, self.begun, self.said, self.first = what, seconds, time.monotonic(), 0.0, -1

    def __call__(self, *said: Any) -> None:
        """Take (done, total), or (what, done, total)."""
        *about, done, total = said
        self.first = done if self.first < 0 else self.first
        now = time.monotonic()
        if now - self.said < self.seconds:
            return
        self.said, new = now, done - self.first
        left = f", about {(now - self.begun) / new * (total - done) / 60:.0f} min left" if new > 0 else ""
        log(f"{self.what}: {' '.join(map(str, about))} {done} of {total}{left}")


def tuned(task: Task, method: str) -> Tuned:
    """Tune a method on the first records; kept in the run folder, not for the user's own edits."""
    options = task.options
    some: dict[str, Any] = {"layer": [0, 2], "lr": [5e-3], "bound": [1e-2]} if options.quick else {}
    if method != "rome" and not options.quick:
        half = lower_half(task.lm.n_layers)
        some = {"layer": [half[i * len(half) // 3] for i in range(3)], "lr": list(TRAINED_RATES)}
    some = {name: values for name, values in some.items() if name in untuned(task.lm, method)}
    if method == "rome":
        some["covariance"] = task.statistics
    return engram.tune(
        task.lm,
        task.data,
        method=method,
        records=options.tuning,
        out=task.folder / f"tuning-{method}",
        keep=False,
        progress=Every(f"{task.title}, tuning {method}"),
        **some,
    )


def rows(task: Task) -> Iterator[tuple[str, Any, Tuned | None]]:
    """Yield the wanted rows' names and methods, and what was tuned for them."""
    usual: dict[str, Any] = dict(untuned(task.lm, "rome"))
    wanted = task.options.rows
    if "rome" in wanted:
        yield "rome", ROME(covariance=task.statistics, **usual), None
    if "rome-tuned" in wanted:
        found = tuned(task, "rome")
        first = dict(found.tried[0].settings)
        name = "rome" if first == usual else "rome-first" if found.keeps_the_usual else "rome-tuned"
        yield name, ROME(covariance=task.statistics, **first), found  # of one name, nothing is edited twice
    if "rome-code" in wanted:
        yield "rome-code", ROME(covariance=task.statistics, preset="code", layer=usual["layer"]), None
    for name in ("ft", "ft-l"):
        if f"{name}-tuned" in wanted:
            found = tuned(task, name)
            # A baseline gets the first of its list, also where tuning would not use it.
            yield f"{name}-tuned", FAMILIES[name](**found.tried[0].settings), found


def evaluated(task: Task, name: str, method: Any) -> tuple[Run, Run]:
    """Return the unedited model's run and the method's, over the records with texts and those without."""
    options = task.options
    parts: list[Report] = []
    for part, skip, limit in (
        ("texts", options.tuning, options.texts),
        ("rest", options.tuning + options.texts, options.cases - options.texts),
    ):
        if limit > 0:
            report = evaluation.evaluate(
                task.lm,
                task.data.select(skip=skip, limit=limit),
                method=method,
                out=task.folder / part / name,
                scoring=Scoring(generate=part == "texts"),
                batch=options.batch,
                progress=Every(f"{task.title}, {name}, {part}"),
            )
            parts.append(report)
    return merged("unedited", [p.runs[0] for p in parts]), merged(name, [p.runs[-1] for p in parts])


def merged(name: str, runs: Sequence[Run]) -> Run:
    """Put the records of several runs of one method together."""
    return Run(name, runs[-1].settings, [record for run in runs for record in run.everything])


def counted(lm: Any, options: argparse.Namespace) -> KeyStatistics:
    """Count the key statistics of every layer that ROME may edit, in one pass; found in the cache the next time."""
    from engram.editing.parts.key_statistics import built_in_corpus

    corpus = built_in_corpus(lm) if options.corpus is None else options.corpus
    layers = sorted({*lower_half(lm.n_layers), int(untuned(lm, "rome")["layer"])})
    given = {} if options.tokens is None else {"tokens": options.tokens}
    return engram.statistics(lm, layers, corpus, progress=Every(f"{lm.name}, key statistics"), **given)


def section(task: Task, report: Report, tunings: dict[str, Tuned], options: argparse.Namespace) -> str:
    """Return one model's tables."""
    lm, where = task.lm, f"figures/results-{task.slug}.png"
    bars(report, options.out / where)
    first = report.runs[1].name
    pairs = [
        f"| {run.name} minus {other} | {' | '.join(str(cells.get(key, '')) for key in PAIRED)} |"
        for run in report.runs[1:]
        for other in ("unedited", first)
        if run.name != other
        for cells in [report.paired(other, run.name)]
    ]
    corpus, layer = Path(task.statistics.corpus.split(" (")[0]).name, min(task.statistics.layers)
    tokens = task.statistics[layer].tokens
    named = (replace(found, model=task.title) for found in tunings.values())
    tuning = "\n\n".join(f"```\n{found}\n```" for found in named)
    if tuning:
        tuning = f"Tuned on the first {options.tuning} records (S against the unedited model):\n\n{tuning}"
    if "rome" in tunings and "rome-tuned" not in (run.name for run in report.runs):
        tuning += "\n\nFor ROME tuning keeps the rule for untuned models: `rome` is the row of both. "
        tuning += "`rome-first` is the first of tuning's list."
    return f"""## {task.title}

{lm.n_layers} layers, d_model {lm.d_model}, {str(lm.dtype).removeprefix("torch.")}, fingerprint {lm.fingerprint}. Key
statistics: {tokens:,} tokens of {corpus}.

{report.markdown([key for key in COLUMNS if key in report.columns])}
![{task.title}]({where})

Differences over the same records:

| | {" | ".join(evaluation.COLUMNS[key].label for key in PAIRED)} |
|---{"|---" * len(PAIRED)}|
{chr(10).join(pairs)}

{tuning}
"""


def write_page(sections: Sequence[str], options: argparse.Namespace) -> None:
    """Put the tables between the marks of the page; a page that is not there is begun."""
    page = options.out / "results-real.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Results on real models\n\n{BEGIN}{END}"
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = f"Written by `python benchmarks/results_real.py`, version {engram.__version__}.\n\n" + "\n".join(sections)
    page.write_text(before + BEGIN + made + END + after, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="TITLE=FOLDER", help="may be given again")
    parser.add_argument("--data", default="mini")
    parser.add_argument("--corpus", default=None)
    parser.add_argument(
        "--tokens", type=int, default=None, help="of key statistics; the library's default if not given"
    )
    parser.add_argument("--tuning", type=int, default=24)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--texts", type=int, default=30, help="for so many of the cases texts are written")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, help="several calls may share the work")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results-real")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--quick", action="store_true", help="a few records of mini, and few candidates")
    options = parser.parse_args()
    if options.quick:
        options.tuning, options.cases, options.texts = 4, 3, 1
    options.model = options.model or ["mini=mini"]
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    return options


def main() -> None:
    """Run everything; write the page after every row."""
    options = arguments()
    done: list[str] = []
    for named in options.model:
        title, _, folder = named.partition("=")
        log(f"{title}: loading")
        lm = engram.load(folder or title)
        data = datasets.load(options.data)
        task = Task(title, lm, data, counted(lm, options), options.runs / lm.fingerprint, options)
        runs: list[Run] = []
        tunings: dict[str, Tuned] = {}
        for name, method, found in rows(task):
            if found is not None:
                tunings[found.method] = found
            plain, run = evaluated(task, name, method)
            runs = [*(runs or [plain]), *([] if name in (r.name for r in runs) else [run])]
            current = section(task, Report(runs), tunings, options)
            write_page([*done, current], options)
            log(f"{title}: {name}: {', '.join(f'{key} {run.cell(key)}' for key in ('S', 'ES', 'PS', 'NS'))}")
        done.append(current)


if __name__ == "__main__":
    main()
