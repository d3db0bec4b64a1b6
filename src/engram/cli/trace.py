"""`engram trace`: where a fact is recalled, for one prompt or averaged over many facts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

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
from engram.cli.options import Chat, unlogged
from engram.cli.watching import interruptible, note, progress
from engram.errors import SettingError

if TYPE_CHECKING:
    from engram.facts import Case, Fact
    from engram.models import LM

_KNOWN = "known"

Prompt = Annotated[str | None, typer.Argument(help="The prompt, such as 'The Space Needle is in'.")]
Subject = Annotated[str | None, typer.Option(help="The words of the prompt that name its subject.")]
Occurrence = Annotated[int | None, typer.Option(help="Which one, from 1, where the subject occurs more than once.")]
AnswerOption = Annotated[str | None, typer.Option(help="The answer to trace; what the model says otherwise.")]
Facts = Annotated[str | None, typer.Option(help="Average over facts: a file, 'known' (mini's), or a data set's name.")]
Limit = Annotated[int | None, typer.Option(help="Only so many facts.")]
Folder = Annotated[Path | None, typer.Option("--out", help="Folder for results; an interrupted average goes on there.")]
Plot = Annotated[Path | None, typer.Option(help="Draw into a .png, .svg or .pdf file.")]
Sites = Annotated[str, typer.Option("--site", "--sites", help="state, mlp, attn, or several with commas.")]
Window = Annotated[
    int | None, typer.Option(help="Layers per MLP or attention window; not given: 10, or a quarter of under 24 layers.")
]
Style = Annotated[str, typer.Option(help="code or paper: where a window of even size lies.")]
NoiseOption = Annotated[
    str, typer.Option(help="3sigma, 0.1, uniform:0.25, covariance, replace:3sigma, swap, swap:Other Subject.")
]
SigmaFacts = Annotated[str | None, typer.Option(help="Facts on whose subjects σ is measured, as for --facts.")]
Samples = Annotated[int, typer.Option(help="Noise samples.")]
Seed = Annotated[int, typer.Option(help="For the noise.")]
DrawsOption = Annotated[str, typer.Option(help="seeded, or published for the published code's random numbers.")]
TokensOption = Annotated[str, typer.Option(help="all, subject, subject_last, last, or positions with commas.")]
Severed = Annotated[str | None, typer.Option(help="mlp or attn; 'compare' for bars of whole and severed traces.")]
MetricOption = Annotated[str, typer.Option(help="probability, log_probability or logit_difference.")]
Against = Annotated[str | None, typer.Option(help="Second answer of the logit difference.")]
Budget = Annotated[str | None, typer.Option(help="Memory beyond the model, such as 2GiB; results do not depend on it.")]
Explain = Annotated[bool, typer.Option("--explain", help="Show the tokens with the subject marked, and stop.")]


def trace(
    model: Model,
    prompt: Prompt = None,
    *,
    subject: Subject = None,
    occurrence: Occurrence = None,
    answer: AnswerOption = None,
    facts: Facts = None,
    limit: Limit = None,
    folder: Folder = None,
    plot: Plot = None,
    sites: Sites = "state,mlp,attn",
    window: Window = None,
    window_style: Style = "code",
    noise: NoiseOption = "3sigma",
    sigma_facts: SigmaFacts = None,
    samples: Samples = 10,
    seed: Seed = 0,
    draws: DrawsOption = "seeded",
    tokens: TokensOption = "all",
    severed: Severed = None,
    metric: MetricOption = "probability",
    against: Against = None,
    memory_budget: Budget = None,
    chat: Chat = False,
    explain: Explain = False,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Find where a fact is recalled: noise on the subject, one clean state put back at a time.

    Example: engram trace mini "The Space Needle is located in the city of" --subject "Space Needle" --plot trace.png

    Example: engram trace mini --facts known --limit 200 --out runs/trace --plot aie.png
    """
    options: dict[str, Any] = {"sites": sites, "window": window, "window_style": window_style, "samples": samples}
    options |= {"seed": seed, "draws": draws, "metric": metric, "against": against, "memory_budget": memory_budget}
    options |= {"noise": _noise(noise, sigma_facts), "tokens": _tokens(tokens), "severed": severed}
    options |= {"chat": chat}
    if facts is not None and prompt is not None:
        raise SettingError("Give a prompt or --facts, not both.")
    fact = None if facts is not None else fact_of("trace", prompt, subject, occurrence, answer)
    place: dict[str, str | None] = {"device": device, "dtype": dtype, "device_map": device_map, "revision": revision}
    lm = load_model(model, **place, trust_remote_code=trust_remote_code)
    if fact is None:
        _many(lm, cases_of(str(facts), limit), options, folder, plot, as_json)
    elif explain:
        _explain(lm, fact, chat, as_json)
    elif severed == "compare":
        _many(lm, [fact], options, folder, plot, as_json)
    else:
        _one(lm, fact, options, folder, plot, as_json)


def _one(
    lm: "LM", fact: "Fact", options: dict[str, Any], folder: Path | None, plot: Path | None, as_json: bool
) -> None:
    from engram.locate import trace as run

    stopped = "One trace is kept when it is finished; start the same command again."
    with interruptible(None, nothing=stopped), progress("tracing", quiet=as_json) as update:
        found = run(lm, fact, **options, progress=update)
    if plot is not None:
        found.plot(path=plot)
    if folder is not None:
        found.save(folder)
    if as_json:
        emit_json(found.record())
        return
    out().print(found)
    say_where(plot, folder)


def _many(
    lm: "LM",
    facts: "list[Case] | list[Fact]",
    options: dict[str, Any],
    folder: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    from engram.locate import compare_severed, trace_many

    compare = options["severed"] == "compare"
    if compare:
        options = {name: value for name, value in options.items() if name not in ("sites", "tokens", "severed")}
    with interruptible(folder, kept="facts"), progress("tracing facts", quiet=as_json) as update:
        found = (compare_severed if compare else trace_many)(lm, facts, out=folder, progress=update, **options)
    if plot is not None:
        found.plot(plot)
    if as_json:
        emit_json(found.record())
        return
    out().print(found)
    say_where(plot, folder)


def say_where(plot: Path | None, folder: Path | None) -> None:
    """Say which files were written."""
    if plot is not None:
        note(f"picture: {plot}")
    if folder is not None:
        note(f"results: {folder}")


def fact_of(verb: str, prompt: str | None, subject: str | None, occurrence: int | None, answer: str | None) -> "Fact":
    """Make the fact that was typed behind a verb.

    Raises:
        SettingError: no prompt, or no subject.
    """
    from engram.facts import Fact, occurrences

    if prompt is None or subject is None:
        raise SettingError(
            f"Give a prompt and its --subject, such as: engram {verb} mini 'The Space Needle is in' "
            "--subject 'Space Needle'; or --facts with a file."
        )
    subject = subject.strip()
    fact = Fact.from_text(prompt, subject, original=answer, occurrence=occurrence)
    many = len(occurrences(prompt, subject))
    if many > 1 and occurrence is None:
        note(f"{subject!r} occurs {many} times; the last one is traced. Choose another with --occurrence.")
    return fact


def cases_of(name: str, limit: int | None) -> "list[Case]":
    """Read facts; what is broken is named with its line, and the others go on."""
    from engram.datasets import load

    dataset = load("mini-knowns" if name == _KNOWN else name, limit=limit)
    with unlogged():
        cases = list(dataset)
    say_skipped(dataset)
    return cases


def _noise(noise: str, sigma_facts: str | None) -> Any:
    from dataclasses import replace

    from engram.locate.tracing.noise import Noise, parse_noise

    amount = noise.strip()
    parsed = parse_noise(float(amount)) if amount.replace(".", "", 1).isdigit() else parse_noise(amount)
    if sigma_facts is None:
        return parsed
    if not isinstance(parsed, Noise) or parsed.unit != "sigma":
        raise SettingError(f"--sigma-facts is for noise in multiples of σ, such as 3sigma; the noise is {noise!r}.")
    return replace(parsed, subjects=tuple(dict.fromkeys(case.fact.subject for case in cases_of(sigma_facts, None))))


def _tokens(tokens: str) -> Any:
    parts = [part.strip() for part in tokens.split(",")]
    return [int(part) for part in parts] if all(p.lstrip("-").isdigit() for p in parts) else tokens


def _explain(lm: "LM", fact: "Fact", chat: bool, as_json: bool) -> None:
    from engram.models.chat import wrap_for
    from engram.models.continuations import asked

    prompt = asked(lm, wrap_for(lm, chat=chat).fact(fact))
    tokens, span = lm.tokens(prompt.ids[0]), prompt.subject
    if as_json:
        emit_json({"tokens": tokens, "subject": list(span), "last_subject_token": span[-1]})
        return
    text = Text()
    for position, token in enumerate(tokens):
        mark = " ← last subject token" if position == span[-1] else " subject" if position in span else ""
        text.append(f"{position:4} {token!r}{mark}\n", style="bold" if mark else "")
    out().print(text, end="")
