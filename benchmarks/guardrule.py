"""From what checks saw to thresholds: what half of the edits choose, and what the other half says about it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from engram.editing import Thresholds

Row = dict[str, Any]
RECALL, ALARMS = 0.9, 0.1
"""What is asked for: so many of the bad edits are seen, so many of the good ones are suspected at most."""

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
SPILLS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


@dataclass(frozen=True, slots=True)
class Counts:
    """How a rule does on some edits: bad ones seen, bad ones, good ones suspected, good ones."""

    seen: int
    bad: int
    suspected: int
    good: int

    @property
    def recall(self) -> float:
        """The share of bad edits that are seen."""
        return self.seen / self.bad if self.bad else 1.0

    @property
    def alarms(self) -> float:
        """The share of good edits that are suspected."""
        return self.suspected / self.good if self.good else 0.0

    def cells(self) -> str:
        """Return the counts as cells of a table."""
        return f"{self.seen} of {self.bad} | {self.suspected} of {self.good}"


def share(row: Row, kind: str) -> float:
    """Return the share of a kind's prompts that are as wished; 1 where none was asked."""
    some = [a["ok"] for a in row["answers"] if a["kind"] == kind]
    return sum(some) / len(some) if some else 1.0


def gain(row: Row) -> float:
    """Return by how many nats the new answer gained on the old one after the neighbors' prompts, on average."""
    some = [a["gain"] for a in row["answers"] if a["kind"] == "neighbor" and a["gain"] is not None]
    return sum(some) / len(some) if some else 0.0


def parts(row: Row, limits: Thresholds) -> dict[str, bool]:
    """Say of every part of the verdict whether it is ok."""
    return {
        "prompt": share(row, "prompt") == 1,
        "paraphrase": share(row, "paraphrase") >= limits.paraphrase,
        "context": share(row, "context") >= limits.context,
        "neighbor": share(row, "neighbor") >= limits.neighbor and gain(row) <= limits.spill,
        "other fact": share(row, "other fact") >= limits.other_fact,
        "unrelated fact": share(row, "unrelated fact") >= limits.unrelated_fact,
        "fluency": row["fluency"] is None or row["fluency"]["ok"],
    }


def counts(rows: Iterable[Row], suspects: Callable[[Row], bool]) -> Counts:
    """Count what a rule sees."""
    every = list(rows)
    bad, good = ([row for row in every if row["bad"] is wanted] for wanted in (True, False))
    return Counts(sum(map(suspects, bad)), len(bad), sum(map(suspects, good)), len(good))


def suspected(limits: Thresholds, without: Sequence[str] = ()) -> Callable[[Row], bool]:
    """Return the rule: an edit is suspected where any part is not ok."""
    return lambda row: not all(ok for part, ok in parts(row, limits).items() if part not in without)


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Part the edits of every model and way as evenly as possible: one half chooses, the other one tells."""
    seen: dict[tuple[str, str], int] = {}
    both: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        key = row["model"], row["way"]
        seen[key] = seen.get(key, len(seen) % 2) + 1
        both[seen[key] % 2].append(row)
    return both


def chosen(rows: Sequence[Row]) -> Thresholds:
    """Return the thresholds that see most of the bad edits for the good ones that they suspect (Youden's index).

    Other facts are left out: CounterFact does not ask about them.
    """

    def worth(limits: Thresholds) -> float:
        found = counts(rows, suspected(limits, ("other fact",)))
        return found.recall - found.alarms

    start = Thresholds()
    options = (
        replace(start, context=c, paraphrase=p, neighbor=n, spill=s)
        for c, p, n, s in product(SHARES, SHARES[:2], SHARES, SPILLS)
    )
    return max(options, key=worth)


def report(rows: Sequence[Row]) -> str:
    """Return the tables: edits by way, each part alone, the whole rule on all edits and on both halves."""
    first, second = halves(rows)
    found, limits = chosen(first), Thresholds()
    lines = [f"{len(rows)} edits, {sum(row['bad'] for row in rows)} of them bad.", "", *_ways(rows), ""]
    lines += ["| part alone | bad ones seen | good ones suspected |", "|---|---|---|"]
    for part in parts(rows[0], limits):
        alone = counts(rows, lambda row, part=part: not parts(row, limits)[part])
        lines.append(f"| {part} | {alone.cells()} |")
    lines += [
        "",
        "| rule | edits | bad ones seen | good ones suspected | recall | false alarms |",
        "|---|---|---|---|---|---|",
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    groups = {"all": rows, "all whose target is said": [row for row in rows if parts(row, limits)["prompt"]]}
    groups |= {model: [row for row in rows if row["model"] == model] for model in models}
    rules = {"default": (limits, groups), "chosen on the first half": (found, {"the second half": second})}
    for without in (("other fact",), ()):
        for name, (rule, some) in rules.items():
            for group, edits in some.items():
                c = counts(edits, suspected(rule, without))
                text = f"{name}{'' if without else ' and other facts'}"
                lines.append(f"| {text} | {group} | {c.cells()} | {100 * c.recall:.0f} % | {100 * c.alarms:.0f} % |")
    lines += ["", f"Chosen on the first half: {found}", f"Goal: recall {RECALL:.0%}, false alarms {ALARMS:.0%}."]
    return "\n".join(lines)


def _ways(rows: Sequence[Row]) -> list[str]:
    lines = ["| model | edit | edits | bad | NS falls by | PS | context | neighbors | gain |", "|" + "---|" * 9]
    for model, way in dict.fromkeys((row["model"], row["way"]) for row in rows):
        some = [row for row in rows if (row["model"], row["way"]) == (model, way)]
        means = [
            sum(row["before"]["NS"] - row["after"]["NS"] for row in some) / len(some),
            sum(row["after"]["PS"] for row in some) / len(some),
            100 * sum(share(row, "context") for row in some) / len(some),
            100 * sum(share(row, "neighbor") for row in some) / len(some),
        ]
        cells = " | ".join(f"{value:.0f}" for value in means)
        bad = sum(row["bad"] for row in some)
        lines.append(f"| {model} | {way} | {len(some)} | {bad} | {cells} | {sum(map(gain, some)) / len(some):.1f} |")
    return lines
