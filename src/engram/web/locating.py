"""The page's first step: where is it? A prompt, its subject, three heat maps to point at."""

from typing import Any

import gradio as gr

from engram.errors import EngramError
from engram.facts import Fact, occurrences
from engram.locate import usual_window
from engram.web import texts
from engram.web.answering import (
    FILES,
    QUICK,
    WITH_MODEL,
    Changes,
    guarded,
    handed_out,
    sent,
    steps,
    waits,
    whole,
)
from engram.web.examples import Example, examples
from engram.web.figures import SITES, as_csv, as_png, heat_map, in_words, number_tables, peaks
from engram.web.limits import bounded
from engram.web.subjects import Pick, Span, guessed, picked
from engram.web.suggestion import Suggestion
from engram.web.turns import Turns
from engram.web.workbench import Located, Workbench


class Locating:
    """The first step's components and what they do.

    Args:
        bench: the model.
        turns: who works with the model.
    """

    def __init__(self, bench: Workbench, turns: Turns) -> None:
        self.bench, self.turns = bench, turns
        self.examples = examples(bench.lm)
        gr.HTML(
            "<h2>1. Where is it?</h2><p class='engram-lead'>Noise makes the subject unreadable; then one clean piece "
            "of the network is put back. Where does the answer return?</p>"
        )
        self._ask(self.examples[0].prompt)
        self.message = gr.HTML(elem_id="engram-locate-message", elem_classes="engram-area")
        self._show()
        self.pick: Any = gr.State(None)
        self.located: Any = gr.State(None)

    def _ask(self, prompt: str) -> None:
        """Lay out what is asked for."""
        layers = self.bench.lm.n_layers
        self.prompt = gr.Textbox(
            prompt, label="Prompt", info="The beginning of a sentence that states a fact.", elem_id="engram-prompt"
        )
        self.offered = gr.HTML(
            texts.example_buttons([example.prompt for example in self.examples]),
            elem_id="engram-examples",
            js_on_load="engram.buttons(element, trigger)",
        )
        self.tokens = gr.HTML(
            self._tokens(prompt, self._span(prompt, "", None)),
            elem_id="engram-tokens",
            js_on_load="engram.buttons(element, trigger)",
        )
        with gr.Row():
            self.subject = gr.Textbox(
                label="Subject",
                info="Click its first and its last token above, or type it. Left empty, it is guessed.",
                placeholder=self._guess(prompt),
                elem_id="engram-subject",
            )
            self.window = gr.Slider(
                1,
                layers,
                value=usual_window(layers),
                step=1,
                label="Window",
                info="Layers of MLP or attention outputs put back at once.",
                elem_id="engram-window",
            )
        self.chat = gr.Checkbox(
            self.bench.chat,
            label="As a chat",
            info="Every prompt is asked as a message in the model's chat template; write questions.",
            visible=self.bench.chats,
            elem_id="engram-chat",
        )
        with gr.Row():
            self.button = gr.Button("Locate", variant="primary", elem_id="engram-locate", scale=4)
            self.stop = gr.Button("Stop", elem_id="engram-locate-stop", elem_classes="engram-stop", scale=1)

    def _show(self) -> None:
        """Lay out what is shown: nothing, until something was located."""
        with gr.Column(visible=False, elem_id="engram-found") as self.found:
            self.stale = gr.HTML(elem_id="engram-stale", elem_classes="engram-area")
            self.words = gr.HTML(elem_id="engram-words", elem_classes="engram-area")
            with gr.Row(elem_id="engram-map"):
                self.maps = {site: gr.Plot(label=name, show_label=False) for site, name in SITES.items()}
            with gr.Row(elem_classes="engram-small"):
                self.picture = gr.Button("Picture (PNG)", size="sm", elem_id="engram-get-png")
                self.numbers = gr.Button("Numbers (CSV)", size="sm", elem_id="engram-get-csv")
            with gr.Accordion("The same as tables", open=False, elem_id="engram-numbers"):
                self.table = gr.HTML(elem_id="engram-grid", js_on_load="engram.grid(element)")
            self.suggestion = gr.HTML(elem_id="engram-suggestion", elem_classes="engram-area")
        # Outside of the column: what is hidden in it would show together with it.
        self.file = gr.DownloadButton("Save the file", visible="hidden", elem_id="engram-trace-file")
        self.chosen = gr.HTML(
            elem_id="engram-chosen", elem_classes="engram-area", js_on_load="engram.cells(element, trigger)"
        )

    def wire(self, target: gr.Textbox, layer: gr.Dropdown, onwards: gr.Accordion) -> None:
        """Connect the components.

        Args:
            target: the next step's, which examples fill in.
            layer: the next step's, which a click on a cell sets.
            onwards: the next step, which opens once something was located.
        """
        fact = [self.prompt, self.subject, self.pick]
        asked = [*fact, self.window, self.chat, self.located]
        typed = [self.tokens, self.subject, self.stale, self.message]
        for event in (self.prompt.change, self.subject.change, self.window.change, self.chat.change):
            event(guarded(self.follow, self.message), asked, typed, **QUICK)
        self.offered.select(
            guarded(self.take_example(target), self.message),
            None,
            [self.prompt, self.subject, self.pick, target, self.message],
            **QUICK,
        )
        self.tokens.select(
            guarded(self.pick_token, self.message), [self.prompt, self.pick], [self.pick, *typed], **QUICK
        )
        shown = [self.message, self.words, *self.maps.values(), self.table, self.suggestion, self.chosen, self.located]
        events: list[Any] = [
            event(
                guarded(self.locate(onwards), self.message),
                [*fact, self.window, self.chat],
                [*shown, self.found, onwards],
                show_progress_on=self.message,
                **WITH_MODEL,
            )
            for event in (self.button.click, self.prompt.submit, self.subject.submit)
        ]
        for event in events:
            event.then(self.mark, asked, [self.stale], **QUICK)
        self.stop.click(self.end, None, None, **QUICK)
        self.chosen.select(guarded(self.choose_cell(layer), self.chosen), [self.located], [layer, self.chosen], **QUICK)
        for button, write, kind in ((self.picture, as_png, "png"), (self.numbers, as_csv, "csv")):
            button.click(
                guarded(self.hand_out(write, kind), self.message),
                [self.located],
                [self.file, self.message],
                show_progress_on=self.message,
                **FILES,
            ).success(None, [self.file], None, js="(file) => engram.download(file)")

    # What happens

    def follow(
        self,
        prompt: str | None,
        subject: str | None,
        pick: Pick | None,
        window: float | int,
        chat: bool,
        located: Located | None,
    ) -> Changes:
        """Show a prompt's tokens while it is typed, and what of the page is now about another one."""
        changes: Changes = {self.stale: self._stale(prompt, subject, pick, window, chat, located)}
        if pick is not None and pick.subject == subject and not occurrences(prompt or "", pick.subject):
            subject = changes[self.subject] = ""  # it was clicked in a prompt that is no longer there
        try:
            changes[self.tokens] = self._tokens(prompt, self._span(prompt, subject, pick))
        except EngramError as error:
            return {**changes, self.tokens: "", self.message: texts.refused(str(error))}
        if self.subject not in changes:
            changes[self.subject] = gr.Textbox(placeholder=self._guess(prompt))
        return changes

    def take_example(self, target: gr.Textbox) -> Any:
        """Return what a click on an example does."""

        def take(event: gr.EventData) -> Changes:
            at = sent(event, "example")
            if not 0 <= at < len(self.examples):
                raise EngramError(f"There is no example {at}.")
            chosen: Example = self.examples[at]
            return {self.prompt: chosen.prompt, self.subject: "", self.pick: None, target: chosen.target}

        return take

    def pick_token(self, prompt: str | None, pick: Pick | None, event: gr.EventData) -> Changes:
        """Make a clicked token's word the subject, or extend the subject to it."""
        tokens = self.bench.tokens(prompt)
        index = sent(event, "token")
        if not 0 <= index < len(tokens.spans) or tokens.spans[index][0] == tokens.spans[index][1]:
            raise EngramError("This token stands for no characters of the prompt. Click another one.")
        now = picked(tokens.prompt, tokens.spans[index], pick)
        return {
            self.pick: now,
            self.subject: now.subject,
            self.tokens: texts.token_buttons(tokens, now.span),
        }

    def locate(self, onwards: gr.Accordion) -> Any:
        """Return what the button does: it traces a fact and shows where it is."""

        def run(
            prompt: str | None,
            subject: str | None,
            pick: Pick | None,
            window: float | int,
            chat: bool,
            visitor: gr.Request,
            bar: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is asked for a progress bar
        ) -> Changes:
            fact = self.fact(prompt, subject, pick)
            with self.turns.taken(visitor, "locate", waits(bar)) as look:
                located = self.bench.locate(
                    fact, window=whole(window, "window"), chat=bool(chat), progress=steps(bar, "tracing", look)
                )
            return {**self._shown(located), onwards: gr.Accordion(open=True)}

        return run

    def end(self, visitor: gr.Request) -> None:
        """End what runs or waits for this visitor; its own answer says so."""
        self.turns.stop(visitor, "locate")

    def mark(
        self,
        prompt: str | None,
        subject: str | None,
        pick: Pick | None,
        window: float | int,
        chat: bool,
        located: Located | None,
    ) -> Changes:
        """Mark what is shown when it is about another prompt, subject or window than the fields."""
        return {self.stale: self._stale(prompt, subject, pick, window, chat, located)}

    def choose_cell(self, layer: gr.Dropdown) -> Any:
        """Return what a click on a cell does: it sets the layer of the next step."""

        def choose(located: Located | None, event: gr.EventData) -> Changes:
            if located is None:
                raise EngramError("There is no heat map yet. Locate a fact first.")
            trace = located.trace
            row, at = sent(event, "row"), sent(event, "layer")
            if not (0 <= row < len(trace.positions) and 0 <= at < self.bench.lm.n_layers):
                raise EngramError(f"There is no cell in row {row}, layer {at}.")
            token = texts.visible(trace.tokens[trace.positions[row]])
            return {
                layer: str(at),
                self.chosen: texts.said(f"Layer {at} is chosen for the edit (you pointed at {token!r})."),
            }

        return choose

    def hand_out(self, write: Any, kind: str) -> Any:
        """Return what a button does that makes a file of the maps."""

        def pack(located: Located | None) -> Changes:
            if located is None:
                raise EngramError("There is no heat map yet. Locate a fact first.")
            return {self.file: handed_out(self.file, write(located.trace), f"engram-trace.{kind}")}

        return pack

    def fact(self, prompt: str | None, subject: str | None, pick: Pick | None, target: str | None = None) -> Fact:
        """Make a fact from the first step's fields.

        Raises:
            EngramError: see `Workbench.fact`.
        """
        at = pick.occurrence if _holds(pick, prompt, subject) and pick is not None else None
        return self.bench.fact(prompt, subject, target=target, occurrence=at)

    # What is shown

    def _shown(self, located: Located) -> Changes:
        trace = located.trace
        return {
            self.found: gr.Column(visible=True),
            self.words: texts.said(in_words(trace, located.says), *(peaks(trace, site) for site in SITES)),
            **{plot: heat_map(trace, site) for site, plot in self.maps.items()},
            self.table: number_tables(trace),
            self.suggestion: _advice(located.suggestion, self.bench.lm.name),
            self.chosen: "",
            self.located: located,
        }

    def _stale(
        self,
        prompt: str | None,
        subject: str | None,
        pick: Pick | None,
        window: float | int,
        chat: bool,
        located: Located | None,
    ) -> str:
        if located is None:
            return ""
        old, settings = located.fact, located.trace.settings
        width, as_chat = int(settings["window"]), bool(settings.get("chat"))
        try:
            new = self.fact(prompt, subject, pick)
            same = (new.text, new.subject_chars, window, bool(chat)) == (old.text, old.subject_chars, width, as_chat)
        except EngramError:
            same = False
        way = ", as a chat" if as_chat else ""
        what = f"From the prompt before: {old.text!r}, subject {old.subject!r}, window {width}{way}"
        return "" if same else texts.stale(f"{what}. Press Locate to look at what stands above.")

    def _tokens(self, prompt: str | None, span: Span | None) -> str:
        return texts.token_buttons(self.bench.tokens(prompt), span) if prompt and prompt.strip() else ""

    def _guess(self, prompt: str | None) -> str:
        return guessed(bounded(prompt, "prompt", self.bench.limits.prompt_chars), self.bench.names)

    def _span(self, prompt: str | None, subject: str | None, pick: Pick | None) -> Span | None:
        """Return where the subject stands, as typed, picked or guessed; nothing where it does not."""
        text = bounded(prompt, "prompt", self.bench.limits.prompt_chars)
        if _holds(pick, text, subject) and pick is not None:
            return pick.span
        name = (subject or "").strip() or guessed(text, self.bench.names)
        starts = occurrences(text, name) if name else []
        return (starts[-1], starts[-1] + len(name)) if starts else None


def _holds(pick: Pick | None, prompt: str | None, subject: str | None) -> bool:
    """Say whether a pick still is what the fields say."""
    return pick is not None and pick.prompt == (prompt or "").strip() and pick.subject == (subject or "").strip()


def _advice(found: Suggestion, model: str) -> str:
    """Return what a trace says about an edit: where it would go, and what there is to know, or to doubt."""
    goes = f"ROME's own choice. {texts.without_path(found.why, model)}"
    if found.doubts:
        doubts = (texts.without_path(doubt, model) for doubt in found.doubts)
        return texts.warned("No layer is suggested by this trace.", *doubts) + texts.said(goes)
    return texts.said(goes, found.peak)
