"""The page's first step: where is it? A prompt, its subject, a heat map to point at."""

from typing import Any

import gradio as gr

from engram.errors import EngramError
from engram.facts import Fact, occurrences
from engram.locate import usual_window
from engram.web import texts
from engram.web.answering import QUICK, WITH_MODEL, Changes, guarded, sent, steps, whole
from engram.web.figures import SITES, heat_map, in_words, number_table, require_site
from engram.web.limits import bounded
from engram.web.subjects import Pick, Span, guessed, picked
from engram.web.workbench import Located, Workbench


class Locating:
    """The first step's components and what they do.

    Args:
        bench: the model.
        prompt: the prompt to begin with.
    """

    def __init__(self, bench: Workbench, prompt: str) -> None:
        self.bench = bench
        layers, limits = bench.lm.n_layers, bench.limits
        gr.HTML(
            "<h2>1. Where is it?</h2><p class='engram-lead'>Noise makes the subject unreadable; then one clean piece "
            "of the network is put back. Where does the answer return?</p>"
        )
        self.prompt = gr.Textbox(
            prompt,
            label="Prompt",
            info="The beginning of a sentence that states a fact.",
            max_length=limits.prompt_chars,
            elem_id="engram-prompt",
        )
        self.tokens = gr.HTML(
            self._tokens(prompt, self._span(prompt, "", None)),
            elem_id="engram-tokens",
            js_on_load="engram.tokens(element, trigger)",
        )
        self.subject = gr.Textbox(
            label="Subject",
            info="Click its first and its last token above, or type it. Left empty, it is guessed.",
            max_length=limits.phrase_chars,
            elem_id="engram-subject",
        )
        with gr.Row():
            self.site = gr.Radio(
                [(name, site) for site, name in SITES.items()],
                value="state",
                label="What is put back",
                elem_id="engram-site",
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
        self.button = gr.Button("Locate", variant="primary", elem_id="engram-locate")
        self.message = gr.HTML(elem_id="engram-locate-message", elem_classes="engram-area")
        self.words = gr.HTML(elem_id="engram-words", elem_classes="engram-area")
        self.plot = gr.Plot(label="Heat map", show_label=False, visible=False, elem_id="engram-map")
        with gr.Accordion("The same as a table", open=False, visible=False, elem_id="engram-numbers") as self.numbers:
            self.table = gr.HTML(elem_id="engram-grid", js_on_load="engram.grid(element)")
        self.suggestion = gr.HTML(elem_id="engram-suggestion", elem_classes="engram-area")
        self.take = gr.Button("Use this layer", visible=False, size="sm", elem_id="engram-take")
        self.chosen = gr.HTML(
            elem_id="engram-chosen", elem_classes="engram-area", js_on_load="engram.cells(element, trigger)"
        )
        self.pick: Any = gr.State(None)
        self.located: Any = gr.State(None)

    def wire(self, layer: gr.Dropdown) -> None:
        """Connect the components; `layer` is the next step's."""
        fact = [self.prompt, self.subject, self.pick]
        marks = [self.tokens, self.subject, self.pick, self.message]
        shown = [self.message, self.words, self.plot, self.numbers, self.table]
        found = [*shown, self.tokens, self.subject, self.suggestion, self.take, self.chosen, self.located]
        self.prompt.change(guarded(self.show_tokens, self.message), fact, [self.tokens, self.message], **QUICK)
        self.subject.change(guarded(self.show_tokens, self.message), fact, [self.tokens, self.message], **QUICK)
        self.tokens.select(guarded(self.pick_token, self.message), [self.prompt, self.pick], marks, **QUICK)
        for event in (self.button.click, self.prompt.submit, self.subject.submit):
            event(
                guarded(self.locate, self.message),
                [*fact, self.site, self.window],
                found,
                show_progress_on=self.message,
                **WITH_MODEL,
            )
        self.site.change(guarded(self.show_site, self.message), [self.site, self.located], shown, **QUICK)
        chosen = [layer, self.chosen]
        self.chosen.select(guarded(self.choose_cell(layer), self.chosen), [self.located], chosen, **QUICK)
        self.take.click(guarded(self.take_layer(layer), self.chosen), [self.located], chosen, **QUICK)

    # What happens

    def show_tokens(self, prompt: str | None, subject: str | None, pick: Pick | None) -> Changes:
        """Show a prompt's tokens while it is typed."""
        return {self.tokens: self._tokens(prompt, self._span(prompt, subject, pick))}

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

    def locate(
        self,
        prompt: str | None,
        subject: str | None,
        pick: Pick | None,
        site: str | None,
        window: float | int,
        bar: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is asked for a progress bar
    ) -> Changes:
        """Trace a fact and show where it is."""
        fact = self.fact(prompt, subject, pick)
        located = self.bench.locate(fact, window=whole(window, "window"), progress=steps(bar, "tracing"))
        advice = located.suggestion
        head = f"Suggested layer: {advice.layer}."
        return {
            **self._shown(located, site),
            self.tokens: self._tokens(fact.text, fact.subject_chars),
            self.subject: fact.subject,
            self.suggestion: texts.said(f"{head} {advice.why}"),
            self.take: gr.Button(f"Use layer {advice.layer}", visible=True),
            self.chosen: "",
            self.located: located,
        }

    def show_site(self, site: str | None, located: Located | None) -> Changes:
        """Show another site of the same trace."""
        return {} if located is None else self._shown(located, site)

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

    def take_layer(self, layer: gr.Dropdown) -> Any:
        """Return what the button below the suggestion does."""

        def take(located: Located | None) -> Changes:
            if located is None:
                raise EngramError("There is no suggestion yet. Locate a fact first.")
            at = located.suggestion.layer
            return {layer: str(at), self.chosen: texts.said(f"Layer {at} is chosen for the edit.")}

        return take

    def fact(self, prompt: str | None, subject: str | None, pick: Pick | None, target: str | None = None) -> Fact:
        """Make a fact from the first step's fields.

        Raises:
            EngramError: see `Workbench.fact`.
        """
        at = pick.occurrence if _holds(pick, prompt, subject) and pick is not None else None
        return self.bench.fact(prompt, subject, target=target, occurrence=at)

    # What is shown

    def _shown(self, located: Located, site: str | None) -> Changes:
        trace, site = located.trace, require_site(site or "state")
        return {
            self.message: "",
            self.words: texts.said(f"The model goes on: {located.says!r}. {in_words(trace, site)}"),
            self.plot: gr.Plot(heat_map(trace, site), visible=True),
            self.numbers: gr.Accordion(visible=True),
            self.table: number_table(trace, site),
        }

    def _tokens(self, prompt: str | None, span: Span | None) -> str:
        return texts.token_buttons(self.bench.tokens(prompt), span) if prompt and prompt.strip() else ""

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
