"""The page's words as HTML. Everything that came from a visitor, a model or a file goes through `safe`."""

import difflib
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from engram.editing.answers import percent
from engram.editing.comparisons import FactCheck
from engram.editing.drawing import NAMES, chosen
from engram.editing.verdict import Verdict
from engram.web.ledger import Entry
from engram.web.nextwords import NextWords
from engram.web.subjects import Span
from engram.web.workbench import Made, Tokens, Voice

_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})
_WORDS = re.compile(r"\s+|\S+")
_CHANGES = ("prompt", "paraphrase", "context")
"""Kinds of prompts whose answers shall change; the others' shall stay."""


def safe(text: str) -> str:
    """Return a text that HTML and Gradio's templates show as it is."""
    return html.escape(text).translate(_TEMPLATE)


def visible(token: str) -> str:
    """Return a token in which white space can be seen."""
    return token.replace("\n", "⏎").strip(" ") or "␣"


def without_path(text: str, name: str) -> str:
    """Return a text in which a model that is a folder goes by the folder's own name: paths are nobody's business."""
    return text.replace(name, Path(name).name)


# Messages


def said(*messages: str) -> str:
    """Return a message that all went well, a paragraph for each that is not empty."""
    parts = "<br>".join(safe(message) for message in messages if message)
    return f'<p class="engram-note" role="status">{parts}</p>' if parts else ""


def warned(*messages: str) -> str:
    """Return a message about something that deserves a second look; the first sentence stands out."""
    first, *more = (safe(message) for message in messages)
    return f'<p class="engram-note engram-warning" role="status"><strong>⚠ {first}</strong> {"<br>".join(more)}</p>'


def stale(message: str) -> str:
    """Return the mark of results that are about something else than what the fields say now."""
    return f'<p class="engram-note engram-stale" role="status">{safe(message)}</p>'


def refused(message: str) -> str:
    """Return a message that something was refused, announced by screen readers."""
    return f'<p class="engram-error" role="alert"><strong>That did not work.</strong> {safe(message)}</p>'


# Tokens


def token_buttons(tokens: Tokens, subject: Span | None) -> str:
    """Return a prompt's tokens as buttons; those of the subject are pressed."""
    buttons: list[str] = []
    for index, (text, (begin, end)) in enumerate(zip(tokens.texts, tokens.spans, strict=True)):
        inside = subject is not None and begin < subject[1] and end > subject[0]
        joined = " engram-joined" if begin and not tokens.prompt[begin - 1].isspace() else ""
        buttons.append(
            f'<button type="button" class="engram-token{joined}" data-token="{index}" '
            f'aria-pressed="{"true" if inside else "false"}">{safe(visible(text))}</button>'
        )
    return f'<div class="engram-tokens" role="group" aria-label="Tokens; click the subject">{"".join(buttons)}</div>'


def example_buttons(prompts: Sequence[str]) -> str:
    """Return prompts to click."""
    buttons = "".join(
        f'<button type="button" class="engram-example" data-example="{index}">{safe(prompt)} …</button>'
        for index, prompt in enumerate(prompts)
    )
    return f'<div class="engram-examples" role="group" aria-label="Examples"><span>For example:</span> {buttons}</div>'


# Before and after


def likely(columns: Sequence[tuple[str, NextWords]]) -> str:
    """Return the most probable next words side by side, with bars; the rest of a word stands paler than its token."""
    parts: list[str] = []
    for title, words in columns:
        rows = "".join(
            f'<tr><th scope="row">{safe(visible(word.token))}<span class="engram-rest">{safe(word.rest)}</span></th>'
            f'<td class="engram-bar" style="--share:{word.probability:.4f}">{_share(word.probability)}</td></tr>'
            for word in words
        )
        parts.append(f'<table class="engram-next"><caption>{safe(title)}</caption><tbody>{rows}</tbody></table>')
    return f'<div class="engram-side">{"".join(parts)}</div>'


def differences(before: str, after: str) -> tuple[str, str]:
    """Return two texts with their differing words marked: struck out and underlined, not by colour alone."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    left: list[str] = []
    right: list[str] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        gone, come = safe("".join(old[a:b])), safe("".join(new[c:d]))
        left.append(gone if tag == "equal" or not gone else f"<del>{gone}</del>")
        right.append(come if tag == "equal" or not come else f"<ins>{come}</ins>")
    return "".join(left), "".join(right)


def verdict(made: Made) -> str:
    """Return the verdict on an edit with the reasons against it, and how fluent the model still is."""
    found, fluency = made.check.verdict, made.check.health
    kind, word = ("good", "✓ As wished.") if found.ok else ("bad", "⚠ Look twice.")
    reasons = "".join(f"<li>{safe(reason)}.</li>" for reason in found.reasons)
    figures = (
        ""
        if fluency is None
        else f"<p>Fluency: perplexity of held-out text {fluency.perplexity[0]:.3g} before, {fluency.perplexity[1]:.3g} "
        f"after; repeated text {_share(fluency.repetition[0])} before, {_share(fluency.repetition[1])} after. The "
        f"change has {_share(fluency.largest_norm)} of the weight's norm.</p>"
    )
    return (
        f'<section class="engram-verdict engram-{kind}" aria-label="Verdict"><strong>{word}</strong>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}{figures}</section>"
    )


def before_and_after(made: Made) -> str:
    """Return everything that the check saw, before beside after."""
    parts = [verdict(made)]
    for fact in made.check.facts:
        parts.append("<h4>The next word</h4>")
        parts.append(likely([("before", made.before), ("after", made.after)]))
        good = sum(answer.ok for answer in fact.answers)
        parts.append(_fold(f"What it answers: {good} of {len(fact.answers)} as wished", _answers(fact)))
        written = "".join(_free_text(text.prompt, text.before, text.after) for text in fact.texts)
        parts.append(_fold("What it writes", written))
    notes = "".join(f"<li>{safe(without_path(note, made.check.model))}</li>" for note in made.edit.notes)
    parts.append(_fold("Notes", f"<ul>{notes}</ul>") if notes else "")
    return f'<div class="engram-result">{"".join(parts)}</div>'


def _fold(heading: str, inside: str) -> str:
    return f"<details open><summary>{safe(heading)}</summary>{inside}</details>"


def _answers(fact: FactCheck) -> str:
    rows: list[str] = []
    for kind, (heading, _) in NAMES.items():
        group = [answer for answer in fact.answers if answer.kind == kind]
        if not group:
            continue
        wish = "shall change" if kind in _CHANGES else "shall stay"
        good = sum(answer.ok for answer in group)
        rows.append(
            f'<tr class="engram-kind"><th colspan="3" scope="colgroup">{heading}: {good} of {len(group)} as wished '
            f"({wish})</th></tr>"
        )
        for answer in chosen(group):
            mark = '<span title="as wished">✓</span>' if answer.ok else '<span title="not as wished">✗</span>'
            rows.append(
                f'<tr><th scope="row">{mark} {safe(answer.shown or answer.text)}</th>'
                f"<td>{_said(answer.before.says, answer.before.probability)}</td>"
                f"<td>{_said(answer.after.says, answer.after.probability)}</td></tr>"
            )
    head = '<thead><tr><th scope="col">prompt</th><th scope="col">before</th><th scope="col">after</th></tr></thead>'
    return f'<table class="engram-answers">{head}<tbody>{"".join(rows)}</tbody></table>'


def _share(share: float) -> str:
    """Return a probability that stays on one line."""
    return percent(share).replace(" ", "&nbsp;")


def _said(says: str, probability: float) -> str:
    return f"<strong>{safe(says)}</strong> {_share(probability)}" if says else "(end of text)"


def _free_text(prompt: str, before: str, after: str) -> str:
    old, new = differences(before[len(prompt) :], after[len(prompt) :])
    opening = safe(prompt)
    return (
        f'<div class="engram-side"><p><span class="engram-label">before</span> <em>{opening}</em>{old}</p>'
        f'<p><span class="engram-label">after</span> <em>{opening}</em>{new}</p></div>'
    )


# The ledger


def ledger_table(entries: Iterable[Entry]) -> str:
    """Return the edits of a visit as a table."""
    heads = ("edit", "now", "how", "norm", "verdict", "from")
    rows: list[str] = []
    for entry in entries:
        cells = (
            "on" if entry.on else "off",
            entry.how,
            f"{entry.edit.norm():.3g}",
            _verdict(entry.verdict),
            entry.source,
        )
        told = "".join(f'<td data-label="{n}">{safe(c)}</td>' for n, c in zip(heads[1:], cells, strict=True))
        rows.append(f'<tr><th scope="row">{safe(entry.label)}</th>{told}</tr>')
    if not rows:
        return '<p class="engram-note">No edits yet. Make one above, or upload one.</p>'
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    table = f'<table class="engram-ledger"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="engram-scroll">{table}</div>'


def _verdict(found: Verdict | None) -> str:
    if found is None:
        return "not asked"
    return "✓ as wished" if found.ok else f"⚠ {found.reasons[0]}{_more(len(found.reasons) - 1)}"


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def voices(prompt: str, spoken: Sequence[Voice]) -> str:
    """Return what the model says under several edits, side by side; differences are marked against the first voice."""
    parts: list[str] = []
    for voice in spoken:
        _, text = differences(spoken[0].text, voice.text)
        parts.append(
            f'<section class="engram-voice"><h4>{safe(voice.name)}</h4>{likely([("next word", voice.words)])}'
            f"<p><em>{safe(prompt)}</em>{text}</p></section>"
        )
    return f'<div class="engram-voices">{"".join(parts)}</div>'
