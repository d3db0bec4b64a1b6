"""The evidence on `mini`: methods by metrics, layers, retention; writes docs/results.md and its figures.

    python benchmarks/results.py                     # everything; an interrupted call goes on where it was
    python benchmarks/results.py --cases 24 --quick  # to see that it works

Fine-tuning's published step size is made for GPT-2 XL. To be fair to it, its layer and step size (and FT+L's bound) are
tuned (`engram.tune`) on the first `--tuning` records; the table is over the other records only. ROME is used as users
get it.
"""

import argparse
from pathlib import Path
from typing import Any

import engram
from engram import datasets, evaluation
from engram.editing import FT, FTL, ROME, Tuned
from engram.editing.parts.published import untuned
from engram.evaluation import Report, Scoring
from engram.evaluation.figures import bars, retention
from engram.evaluation.sweep import write_sweep
from engram.locate import trace_many

ROOT = Path(__file__).resolve().parents[1]
LIGHT = Scoring(generate=False, free=False)
WRITTEN = ("none", "rome", "ft", "ft-l")
"""Methods for which texts are written too (GE, RS)."""


def tuned(lm: Any, method: str, options: argparse.Namespace) -> Tuned:
    """Tune a method on the first records, for this page only."""
    quick: dict[str, Any] = {"layer": [0], "lr": [5e-3], **({"bound": [1e-2]} if method == "ft-l" else {})}
    return engram.tune(
        lm,
        datasets.mini(),
        method=method,
        records=options.tuning,
        out=options.runs / f"tuning-{method}",
        keep=False,
        **(quick if options.quick else {}),
    )


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="cases of the table, behind those for tuning")
    parser.add_argument("--tuning", type=int, default=24)
    parser.add_argument("--sequential", type=int, default=60)
    parser.add_argument("--traced", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--quick", action="store_true", help="one candidate each, two layers, no traces")
    options = parser.parse_args()

    lm = engram.load("mini")
    records = list(datasets.mini(limit=options.tuning + options.cases))
    tuning, cases = records[: options.tuning], records[options.tuning :]
    layers = range(2) if options.quick else range(max(2, lm.n_layers * 2 // 3))

    tokens = ("subject_last",) if options.quick else ("subject_first", "subject_middle", "subject_last", "last")
    swept = evaluation.sweep(lm, tuning, layers=list(layers), tokens=tokens, out=options.runs / "sweep", scoring=LIGHT)
    write_sweep(swept, options.runs / "sweep")
    swept.plot(options.out / "figures" / "sweep.png")
    known = datasets.mini(facts="knowns", limit=options.traced)
    traced = None if options.quick else trace_many(lm, known, out=options.runs / "traces")
    advice = evaluation.advise(swept, traced)

    found = {method: tuned(lm, method, options) for method in ("ft", "ft-l")}
    methods = {
        "none": "none",
        "rome": ROME(**untuned(lm, "rome")),  # whatever somebody tuned on this machine
        "rome-code": ROME(preset="code"),
        "ft": FT(**found["ft"].best.settings),
        "ft-l": FTL(**found["ft-l"].best.settings),
        "rome-paper": ROME(preset="paper"),
    }
    held_out = [text for case in tuning for text in case.references][:12]  # mini's own language, about other subjects
    folders: list[Path] = []
    for name, method in methods.items():
        folders.append(options.runs / "single" / name)
        scoring = Scoring(generate=name in WRITTEN, held_out=tuple(held_out))
        evaluation.evaluate(lm, cases, method=method, out=folders[-1], scoring=scoring, batch=8)
    report = Report.read(folders)
    bars(report, options.out / "figures" / "results.png")
    sequential = evaluation.evaluate(
        lm,
        cases[: options.sequential],
        method=methods["rome"],
        out=options.runs / "sequential" / "rome",
        protocol="sequential",
        checkpoints=(1, 10, 30, 100, 1000),
        scoring=LIGHT,
    ).runs[-1]
    retention(sequential, options.out / "figures" / "retention.png")
    page = written(lm, report, advice, sequential, found, len(tuning))
    (options.out / "results.md").write_text(page, encoding="utf-8")
    print(page)


def written(
    lm: Any,
    report: Report,
    advice: Any,
    sequential: Any,
    found: dict[str, Tuned],
    tuning: int,
) -> str:
    """Return the page."""
    core = report.markdown([key for key in ("S", "ES", "PS", "NS", "kept", "unchanged") if key in report.columns])
    pairs = "\n".join(
        f"| {label} | {key} | {cell} | {cell.n} |"
        for other, label in (("ft", "ROME minus FT"), ("ft-l", "ROME minus FT+L"))
        for key, cell in report.paired(other, "rome").items()
        if key in ("ES", "PS", "NS", "kept")
    )
    points = "\n".join(
        f"| {n} | {' | '.join(str(sequential.cell(key, records)) for key in ('S', 'ES', 'PS', 'NS'))} |"
        for n, records in sequential.retention().items()
    )
    return f"""# Results on `mini`

Written by `python benchmarks/results.py` from the runs of version {engram.__version__} on `{lm.name}`
({lm.n_layers} layers, d_model {lm.d_model}, fingerprint {lm.fingerprint}). Numbers are percentages ± half a 95 %
interval unless a column says otherwise. Settings of fine-tuning were chosen on the first {tuning} records; all tables
are over other records. ROME writes at the model's default layer and clamp, which were chosen on records behind those
of the tables.

## The main result

{core}
FT and FT+L are tuned for this model: {found["ft"].best.name}; {found["ft-l"].best.name}.

![Bars](figures/results.png)

Differences over the same cases:

| | metric | difference | n |
|---|---|---|---|
{pairs}

## Every column

{report.markdown()}

## Which layer, and which token

![Sweep](figures/sweep.png)

{chr(10).join(f"- {reason}" for reason in advice.reasons)}

## Edits on top of each other

Every case edited so far, scored again after so many edits by ROME:

| edits | S | ES | PS | NS |
|---|---|---|---|---|
{points}

![Retention](figures/retention.png)

## How fine-tuning was tuned

S against the unedited model, those that were tried on all {tuning} records:

{chr(10).join(f"```{chr(10)}{one}{chr(10)}```{chr(10)}" for one in found.values())}"""


if __name__ == "__main__":
    main()
