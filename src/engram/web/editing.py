"""The page's second step: make it say something else, and see what that did."""

from typing import Any

import gradio as gr

from engram.editing import METHODS
from engram.errors import EngramError, SettingError, did_you_mean
from engram.facts import Fact
from engram.web import texts
from engram.web.answering import QUICK, WITH_MODEL, Changes, guarded, told, waits
from engram.web.ledger import Ledger
from engram.web.limits import bounded_lines
from engram.web.locating import Locating
from engram.web.subjects import Pick
from engram.web.turns import Turns
from engram.web.workbench import Wish, Workbench

OWN = "own"
"""The method chooses the layer."""


class Editing:
    """The second step's components and what they do.

    Args:
        bench: the model.
        locating: the first step, whose prompt and subject are edited.
        ledger: the state that keeps the visitor's edits.
        target: the target to begin with.
        turns: who works with the model.
    """

    def __init__(self, bench: Workbench, locating: Locating, ledger: Any, target: str, turns: Turns) -> None:
        self.bench, self.turns = bench, turns
        self.ledger = ledger
        self.locating = locating
        gr.HTML(
            "<p class='engram-lead'>The edit acts beside the weights, for you alone; the model in memory stays as it "
            "is.</p>"
        )
        self.target = gr.Textbox(
            target,
            label="Target",
            info="What the model shall say after the prompt above.",
            elem_id="engram-target",
        )
        with gr.Row():
            self.method = gr.Dropdown(sorted(METHODS), value="rome", label="Method", elem_id="engram-method")
            presets = bench.presets("rome")
            self.preset = gr.Dropdown(list(presets), value=presets[0], label="Preset", elem_id="engram-preset")
            self.layer = gr.Dropdown(
                [("the method's own choice", OWN), *((f"layer {i}", str(i)) for i in range(bench.lm.n_layers))],
                value=OWN,
                label="Layer",
                elem_id="engram-layer",
            )
        with gr.Accordion("Your own test prompts", open=False):
            self.paraphrases = gr.Textbox(
                label="Paraphrases, one per line",
                info="Other ways to ask for the same fact; their answer shall change too.",
                lines=2,
            )
            self.neighborhood = gr.Textbox(
                label="Neighbors, one per line",
                info="Prompts about other subjects; their answers shall stay.",
                lines=2,
            )
        with gr.Row():
            self.button = gr.Button("Edit", variant="primary", elem_id="engram-edit", scale=4)
            self.stop = gr.Button("Stop", elem_id="engram-edit-stop", elem_classes="engram-stop", scale=1)
        self.message = gr.HTML(elem_id="engram-edit-message", elem_classes="engram-area")
        with gr.Column(elem_id="engram-edited"):
            self.stale = gr.HTML(elem_id="engram-edit-stale", elem_classes="engram-area")
            self.result = gr.HTML(elem_id="engram-result", elem_classes="engram-area")
        self.shown: Any = gr.State(None)

    def wire(self, listing: list[Any], listed: Any, onwards: gr.Accordion) -> None:
        """Connect the components.

        Args:
            listing: the third step's components that show the ledger.
            listed: gives their new values.
            onwards: the third step, which opens once there is an edit.
        """
        self.method.change(
            guarded(self.offer_presets, self.message), [self.method], [self.preset, self.message], **QUICK
        )
        first = self.locating
        fact = [first.prompt, first.subject, first.pick, self.target]
        settings = [self.method, self.preset, self.layer, self.paraphrases, self.neighborhood]
        asked = [*fact, self.shown]
        events: list[Any] = [
            event(
                guarded(self.make(onwards), self.message),
                [*fact, first.chat, *settings, self.ledger],
                [self.message, self.result, self.shown, self.ledger, onwards],
                show_progress_on=self.message,
                **WITH_MODEL,
            )
            for event in (self.button.click, self.target.submit)
        ]
        for event in events:
            event.then(listed, [self.ledger], listing, **QUICK)
            event.then(self.mark, asked, [self.stale], js="(...given) => engram.reveal(given)", **QUICK)
        for event in (first.prompt.change, first.subject.change, self.target.change):
            event(self.mark, asked, [self.stale], **QUICK)
        self.stop.click(self.end, None, None, **QUICK)

    def offer_presets(self, method: str | None) -> Changes:
        """Offer a method's presets."""
        names = self.bench.presets(_known(method))
        return {self.preset: gr.Dropdown(list(names), value=names[0] if names else None, visible=bool(names))}

    def make(self, onwards: gr.Accordion) -> Any:
        """Return what the button does: it makes an edit, shows what it does, and puts it into the ledger."""

        def run(
            prompt: str | None,
            subject: str | None,
            pick: Pick | None,
            target: str | None,
            chat: bool,
            method: str | None,
            preset: str | None,
            layer: str | None,
            paraphrases: str | None,
            neighborhood: str | None,
            ledger: Ledger,
            visitor: gr.Request,
            bar: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is asked for a progress bar
        ) -> Changes:
            limits = self.bench.limits
            wish = Wish(
                fact=self.locating.fact(prompt, subject, pick, target or ""),
                method=_known(method),
                preset=preset or "",
                layer=None if layer in (OWN, None) else _layer(layer),
                paraphrases=bounded_lines(paraphrases, "paraphrases", limits),
                neighborhood=bounded_lines(neighborhood, "neighbors", limits),
                chat=bool(chat),
            )
            ledger.require_room(limits)
            with self.turns.taken(visitor, "edit", waits(bar)) as look:
                made = self.bench.make(wish, progress=told(bar, look))
            if not made.edit:
                return {self.result: "", self.shown: None, self.message: texts.said(" ".join(made.edit.notes))}
            grown = ledger.added(made.edit, source="made here", limits=limits, verdict=made.check.verdict)
            return {
                self.result: texts.before_and_after(made),
                self.shown: wish.fact,
                self.message: texts.said(f"Done. It is edit {grown.made} below, switched on."),
                self.ledger: grown,
                onwards: gr.Accordion(open=True),
            }

        return run

    def end(self, visitor: gr.Request) -> None:
        """End what runs or waits for this visitor; its own answer says so."""
        self.turns.stop(visitor, "edit")

    def mark(
        self, prompt: str | None, subject: str | None, pick: Pick | None, target: str | None, shown: Fact | None
    ) -> Changes:
        """Mark the result when it is about another fact than the fields."""
        if shown is None:
            return {self.stale: ""}
        try:
            new = self.locating.fact(prompt, subject, pick, target or "")
            same = (new.text, new.subject_chars, new.target) == (shown.text, shown.subject_chars, shown.target)
        except EngramError:
            same = False
        what = f"From the edit before: {shown.text!r} → {shown.target!r}, subject {shown.subject!r}"
        return {self.stale: "" if same else texts.stale(f"{what}. Press Edit to make the one that stands above.")}


def _known(method: str | None) -> str:
    if method is None or method not in METHODS:
        raise SettingError(f"There is no method {method!r}. {did_you_mean(str(method), METHODS)}")
    return method


def _layer(text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError as error:
        raise EngramError(f"The layer is {text!r}, which is no number.") from error
