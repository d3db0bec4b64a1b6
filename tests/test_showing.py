"""Whatever a user prints is a few lines, a notebook shows it whole, and pandas gets tidy rows."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from inspect import isabstract
from typing import Any

import pytest
import torch

import engram.cli  # every part of the library, and so every class that shows itself
from edits import golden_lm, random_edit
from engram.editing import FT, FTL, GRACE, MEMIT, ROME, Check, Edit, FactRecord
from engram.editing.answers import Answer
from engram.editing.changes import Codebook, LowRank, Preamble
from engram.editing.comparisons import Comparison, FactCheck, FreeText
from engram.editing.edited import Memory
from engram.editing.methods.rome import PRESETS
from engram.editing.parts.editor import Editor
from engram.editing.parts.value_editor import ValueEditor
from engram.editing.parts.values import Values
from engram.editing.tuned import Tried, Tuned
from engram.errors import SettingError
from engram.evaluation import Advice, Place, Report, Run, Sweep
from engram.evaluation.scores import CaseScores
from engram.facts import Case, Fact
from engram.locate import Noise, Swap, compare_severed, locate, trace, trace_many
from engram.models import Site, record
from engram.models.passes import Pass, Text
from engram.models.resume import prefill
from engram.models.runs import read
from engram.models.scoring import score_tokens
from engram.showing import Shown, columns_of, html_table, short
from engram.stats import KeyStatistics
from engram.stats.covariance import LayerMoment
from test_evaluation_report import FT as FT_RUN
from test_evaluation_report import ROME as ROME_RUN
from test_evaluation_report import record as scored
from test_evaluation_report import settings
from test_locate_averages import FACTS, OPTIONS

HOSTILE = "<script>alert(1)</script>\n" + "very long words " * 100
UNEDITED = {"ES": 20.0, "PS": 21.0, "NS": 77.0}
HOSTILE_FACT = Fact(HOSTILE, "{} is in", f"<b>{HOSTILE}", HOSTILE)


def hostile_edit() -> Edit:
    edit = random_edit(golden_lm())
    (origin,) = edit.origins
    records = (FactRecord(fact=HOSTILE_FACT, losses=(0.5,) * 90, tokens=("a",) * 300),) * 50
    return replace(edit, origins=(replace(origin, facts=records, contexts=(HOSTILE,) * 50, notes=(HOSTILE,) * 20),))


def many_runs() -> Report:
    keys = ("EM", "PM", "GE", "RS", "efficacy", "paraphrase", "specificity", "unchanged", "kept", "said", "perplexity")
    records = [scored(str(i), 1, 0.5, i / 9, **{key: i / 7 for key in keys}) for i in range(9)]
    return Report([Run(f"a-run-with-a-long-name-{i}", settings("rome"), records) for i in range(30)])


def tuned() -> Tuned:
    tried = Tried(settings={"layer": 1, "clamp": 0.5}, cases=9, score=90.0, half_width=2.0, columns=UNEDITED)
    names = {"method": "rome", "data": "d", "digest": "d", "model": HOSTILE[:60], "fingerprint": "f", "date": "today"}
    return Tuned(
        best=tried, usual=tried, tried=(tried,) * 40, unedited=UNEDITED, cases=("1",) * 99, version="1", **names
    )


def check() -> Check:
    said = Answer(says=HOSTILE, probability=0.5, target=0.1, continuation=HOSTILE)
    words = {"text": HOSTILE, "target": HOSTILE, "original": HOSTILE, "shown": HOSTILE, "subject": HOSTILE[:40]}
    asked = tuple(
        Comparison(kind=kind, before=said, after=said, ok=False, **words)
        for kind in ("prompt", "paraphrase", "context", "neighbor", "other fact", "unrelated fact")
        for _ in range(9)
    )
    texts = (FreeText(HOSTILE, HOSTILE, HOSTILE),) * 3
    return Check(model="m", facts=(FactCheck(fact=HOSTILE_FACT, mode="modify", answers=asked, texts=texts),) * 2)


def statistics() -> KeyStatistics:
    return KeyStatistics({layer: LayerMoment(torch.eye(640), 100, 0.01) for layer in range(48)}, "f" * 16, "a.csv")


def codebook() -> Codebook:
    """As many entries as a thousand edits make, with labels as users type them."""
    wide = torch.eye(999)
    return Codebook(module="m", keys=wide, values=wide, radii=torch.arange(999.0), labels=(HOSTILE,) * 999)


def values() -> Values:
    names = ("keys", "old", "bare_keys", "start", "wanted")
    return Values(**dict.fromkeys(names, torch.eye(99)), records=hostile_edit().records * 99)


def sweep() -> Sweep:
    places = [Place(method="rome", layer=layer, token="subject_last") for layer in range(48)]
    return Sweep("mini", 48, {place: ROME_RUN for place in places})


@cache
def examples() -> list[Any]:
    """At least one of every class that shows itself, as large and as hostile as it comes."""
    lm = golden_lm()
    ids = lm.encode(["Ann lives in Rome", "Ann"]).ids
    with record(lm, [Site(kind, layer) for kind in ("mlp", "attn") for layer in range(4)]) as seen:
        first = prefill(lm, ids)
    edit = random_edit(lm, bias=True)
    found = trace(lm, FACTS[0], **OPTIONS)
    return [
        *(found.grid, replace(locate(lm, FACTS[0], by="lens"), text=HOSTILE, notes=(HOSTILE,), model="<i>")),
        *(found, replace(found, prompt=HOSTILE, answer=HOSTILE, tokens=(HOSTILE,) * len(found.tokens), model="<i>")),
        *(trace_many(lm, FACTS[:2], **OPTIONS), compare_severed(lm, FACTS[:2], window=3, noise=0.25, samples=1)),
        *(Report([FT_RUN, ROME_RUN]), Report([]), many_runs(), ROME_RUN, sweep(), Sweep("mini", 4, {})),
        *(tuned(), check()),
        Advice(layer=3, score=91.0, reasons=("Because of a reason that is said in many words. " * 8,) * 9),
        *(statistics(), statistics()[1], ROME(covariance=statistics(), contexts=["x {}"] * 99)),
        *(ROME(covariance=torch.eye(9)), PRESETS["code"], FT(layer=2), FTL(), MEMIT(layers=(2, 3, 4)), GRACE()),
        *(
            edit,
            hostile_edit(),
            hostile_edit().origins[0],
            hostile_edit().records[0],
            *edit.updates.values(),
            Preamble(ids=torch.tensor([1, 2])),
            codebook(),
            values(),
            *passing(),
        ),
        Memory(model="m", fingerprint="f", edits=(edit,) * 9, originals={"w": torch.eye(99)}, hashes={"w": "a" * 64}),
        *(
            seen,
            first,
            first.prefix,
            read(lm, ids),
            lm.encode(HOSTILE[:80]),
            score_tokens(lm, ["Ann lives in"], [["Rome", "Oslo"]]),
        ),
        Case(id="1", fact=HOSTILE_FACT, paraphrases=(HOSTILE,) * 30, kept=(HOSTILE_FACT,) * 9),
        CaseScores(rewrite=torch.zeros(9, 2).numpy(), texts=[HOSTILE] * 30),
        *(engram.datasets.mini(limit=5), engram.datasets.mini(sample=3).selection),
        *(Noise(subjects=(HOSTILE,) * 200), Swap(subjects=("Ann",) * 200)),
    ]


def passing() -> tuple[object, ...]:
    text = Text()
    return text, Pass(text=text, real=torch.ones(1, 2, dtype=torch.bool), start=0, fresh=True, ends=None)


def classes(base: type = Shown) -> Iterator[type]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("engram."):
            yield from () if isabstract(kind) or kind in (Editor, ValueEditor) else (kind,)  # bases
            yield from classes(kind)


def test_every_result_prints_as_a_few_lines_and_never_as_numbers() -> None:
    for thing in examples():
        for text in (
            (repr(thing),) if isinstance(thing, Check) else (repr(thing), str(thing))
        ):  # a printed check is whole
            lines = text.splitlines()
            assert 1 <= len(lines) <= 12, text
            assert max(map(len, lines)) <= 120, text
            assert "tensor(" not in text and "array(" not in text, text
            assert " at 0x" not in text, text


def test_every_class_that_shows_itself_has_an_example() -> None:
    missing = {kind.__name__ for kind in classes()} - {type(thing).__name__ for thing in examples()}
    assert missing == set()


def test_html_shows_what_models_and_users_wrote_as_text() -> None:
    shown = [html for thing in examples() if (html := thing._repr_html_()) is not None]
    assert len(shown) > 8
    for html in shown:
        assert "<script" not in html and "<b>" not in html and "<i>" not in html
    assert any("&lt;script&gt;" in html for html in shown)


def test_notebooks_show_pictures_and_whole_tables() -> None:
    found = trace(golden_lm(), FACTS[0], **OPTIONS)
    html = found._repr_html_() or ""
    assert 'src="data:image/png;base64,iVBOR' in html and 'alt="Heat map of' in html
    report = many_runs()._repr_html_() or ""
    assert report.count("<tr>") == 31 and "Says it" in report and "zsRE: share of" in report and "±" in report
    assert '<th style="text-align:right">ES</th>' in report and '<td style="text-align:right">100.0' in report
    edit = random_edit(golden_lm())._repr_html_() or ""
    assert "<td" in edit and "Ann lives in" in edit and "Rome" in edit
    assert statistics()._repr_html_() is None  # nothing but text: the notebook shows that


def test_statistics_say_how_much_was_counted() -> None:
    counted = {2: LayerMoment(torch.eye(3), 7_680, 0.0123), 5: LayerMoment(torch.eye(3), 90, whole=True)}
    found = str(KeyStatistics(counted, "f" * 16, "wiki.csv"))
    assert "wiki.csv" in found and "f" * 16 in found
    assert "layer 2: 7,680 tokens, still changing by 1.2 %" in found
    assert "layer 5: 90 tokens, all there are" in found
    assert "layer 0: given" in str(KeyStatistics({0: LayerMoment(torch.eye(3))}, "f"))


def test_a_trace_says_where_its_effects_are_largest() -> None:
    found = trace(golden_lm(), FACTS[0], **OPTIONS)
    effect = found.effect("mlp")
    row, layer = divmod(int(effect.argmax()), effect.shape[1])
    (line,) = [line for line in repr(found).splitlines() if "MLP outputs (3 layers)" in line]
    assert f"{found.labels[row]}" in line and f"layer {layer}: {float(effect.max()):+.3g}" in line


def test_reports_fit_a_line_and_say_what_they_left_out() -> None:
    lines = repr(many_runs()).splitlines()
    assert lines[0].split()[:3] == ["n", "S", "ES"]
    assert lines[1].index("9") == lines[0].index("n")  # numbers under their headers
    assert "22 more runs: print(report.markdown())" in lines[-1] and "more columns" in lines[-1]
    assert "And" not in repr(Report([ROME_RUN]))


def test_traces_as_tables() -> None:
    pytest.importorskip("pandas", reason="the extra 'pandas' is not installed")
    found = trace(golden_lm(), FACTS[0], **OPTIONS)
    table = found.dataframe()
    assert list(table) == ["site", "token", "position", "subject", "layer", "score", "effect", "low", "high"]
    assert len(table) == sum(scores.numel() for scores in found.scores.values())
    mlp = table[table.site == "mlp"].pivot(index="position", columns="layer", values="effect").to_numpy()
    torch.testing.assert_close(torch.tensor(mlp), found.effect("mlp").as_subclass(torch.Tensor).double())
    middle = (table.low + table.high) / 2
    assert (middle - table.effect).abs().max() < 1e-6
    one = trace(golden_lm(), FACTS[0], window=3, noise=0.25, samples=1).dataframe()
    assert one.low.isna().all()

    average = trace_many(golden_lm(), FACTS[:2], **OPTIONS)
    table = average.dataframe()
    peak = average.peak("mlp")
    row = table[(table.site == "mlp") & (table.token == peak.group) & (table.layer == peak.layer)].iloc[0]
    assert (row.effect, row.high - row.effect) == pytest.approx((peak.effect, peak.half_width))
    severed = compare_severed(golden_lm(), FACTS[:1], window=3, noise=0.25, samples=1).dataframe()
    assert set(severed.severed) == {"", "mlp", "attn"}


def test_reports_runs_and_sweeps_as_tables() -> None:
    pytest.importorskip("pandas", reason="the extra 'pandas' is not installed")
    table = Report([FT_RUN, ROME_RUN]).dataframe()
    cell = ROME_RUN.cell("NS")
    assert cell is not None
    row = table[(table.run == "rome") & (table.column == "NS")].iloc[0]
    assert (row.value, row.high - row.value, row.n) == pytest.approx((cell.value, cell.half_width, cell.n))
    cases = FT_RUN.dataframe()
    assert list(cases.id) == ["2", "1"] and list(cases.NS) == [0.1, 0.2]  # the case that failed has no numbers
    table = sweep().dataframe()
    assert set(table.layer) == set(range(48)) and set(table.column) == {"S", "ES", "PS", "NS"}


def test_without_pandas_a_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingError, match=r"needs the extra 'pandas'.*pip install '\.\[pandas\]'"):
        Report([ROME_RUN]).dataframe()


def test_short_forms() -> None:
    assert short(torch.zeros(2, 3, dtype=torch.bfloat16)) == "bfloat16[2, 3]"
    assert short({"a": 1, "b": [1.0, None]}) == "{'a': 1, 'b': [1, None]}"
    assert short({i: i for i in range(9)}) == "{9 items}"
    assert len(short("a" * 1000)) <= 62
    assert repr(ROME(layer=3, seed=2)) == "ROME(seed=2, layer=3)"
    assert repr(LowRank(torch.zeros(4, 1), torch.zeros(5, 1))) == "LowRank(left=float32[4, 1], right=float32[5, 1])"


def test_tables_of_text_and_html_align_and_cut() -> None:
    assert columns_of([["", "n"], ["rome", "100"]]) == ["        n", "rome  100"]
    html = html_table(["a"], [[str(i)] for i in range(60)])
    assert "and 20 more rows" in html
