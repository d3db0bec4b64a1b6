"""The page's third step: the edits of this visit. Switch them, combine them, compare them, take them home."""

from typing import Any

import gradio as gr

from engram.editing import Edit
from engram.errors import EditError
from engram.web import texts
from engram.web.answering import FILES, QUICK, WITH_MODEL, Changes, guarded, handed_out, waits
from engram.web.archives import packed, unpacked
from engram.web.ledger import Ledger
from engram.web.turns import Turns
from engram.web.workbench import Workbench

_UNEDITED, _ALL = "unedited", "all that are on"
_FILES = {"engram": "engram-edit.zip", "peft": "peft-adapter.zip"}


class Collecting:
    """The third step's components and what they do.

    Args:
        bench: the model.
        ledger: the state that keeps the visitor's edits.
        prompt: the prompt to begin with.
        turns: who works with the model.
    """

    def __init__(self, bench: Workbench, ledger: Any, prompt: str, turns: Turns) -> None:
        self.bench, self.turns = bench, turns
        self.ledger = ledger
        gr.HTML("<p class='engram-lead'>They last as long as this visit. Those that are on act together.</p>")
        self.table = gr.HTML(texts.ledger_table(()), elem_id="engram-ledger")
        self.remarks = gr.HTML(elem_id="engram-remarks", elem_classes="engram-area")
        self.switches = gr.CheckboxGroup([], label="Switched on", visible=False, elem_id="engram-switches")
        with gr.Row(elem_classes="engram-small"):
            self.combine = gr.Button("Combine those that are on", size="sm", elem_id="engram-combine")
            self.remove = gr.Button("Remove those that are off", size="sm", elem_id="engram-remove")
            self.folder = gr.Button("Download as Engram folder", size="sm", elem_id="engram-get-engram")
            self.adapter = gr.Button("Download as PEFT adapter", size="sm", elem_id="engram-get-peft")
            self.upload = gr.UploadButton(
                "Upload an Engram folder (zip)", file_types=[".zip"], type="binary", size="sm", elem_id="engram-upload"
            )
        self.file = gr.DownloadButton("Save the file", visible="hidden", elem_id="engram-file")
        self.message = gr.HTML(elem_id="engram-ledger-message", elem_classes="engram-area")
        with gr.Row():
            self.prompt = gr.Textbox(
                prompt,
                label="Try a prompt",
                scale=4,
                elem_id="engram-try",
            )
            self.compare = gr.Button("Compare", variant="primary", scale=1, elem_id="engram-compare")
        self.voices = gr.HTML(elem_id="engram-voices", elem_classes="engram-area")

    @property
    def listing(self) -> list[Any]:
        """The components that show the ledger."""
        return [self.table, self.remarks, self.switches]

    def listed(self, ledger: Ledger) -> Changes:
        """Return new values of `listing`."""
        return {
            **self._told(ledger),
            self.switches: gr.CheckboxGroup(
                [(entry.label, entry.number) for entry in ledger.entries],
                value=[entry.number for entry in ledger.active],
                visible=bool(ledger.entries),
            ),
        }

    def wire(self, chat: gr.Checkbox) -> None:
        """Connect the components; `chat` is the first step's."""
        kept = [*self.listing, self.ledger, self.message]
        self.switches.input(
            guarded(self.switch, self.message),
            [self.switches, self.ledger],
            [self.table, self.remarks, self.ledger, self.message],
            **QUICK,
        )
        at_work: dict[str, Any] = {**FILES, "show_progress_on": self.message}
        self.combine.click(guarded(self.sum_up, self.message), [self.ledger], kept, **at_work)
        self.remove.click(guarded(self.clear, self.message), [self.ledger], kept, **QUICK)
        self.upload.upload(guarded(self.take_in, self.message), [self.upload, self.ledger], kept, **at_work)
        for button, kind in ((self.folder, "engram"), (self.adapter, "peft")):
            button.click(
                guarded(self.hand_out(kind), self.message), [self.ledger], [self.file, self.message], **at_work
            ).success(None, [self.file], None, js="(file) => engram.download(file)")
        for event in (self.compare.click, self.prompt.submit):
            event(
                guarded(self.ask, self.message),
                [self.prompt, chat, self.ledger],
                [self.voices, self.message],
                show_progress_on=self.message,
                **WITH_MODEL,
            )

    # What happens

    def switch(self, on: list[int] | None, ledger: Ledger) -> Changes:
        """Switch edits on and off."""
        switched = ledger.switched(set(on or ()))
        return {**self._told(switched), self.ledger: switched}

    def sum_up(self, ledger: Ledger) -> Changes:
        """Combine the edits that are on into one."""
        return self._kept(ledger.combined(self.bench.limits), "Combined into a new edit; its parts are switched off.")

    def clear(self, ledger: Ledger) -> Changes:
        """Remove the edits that are off."""
        left = ledger.without_off()
        gone = len(ledger.entries) - len(left.entries)
        return self._kept(left, f"{gone} removed." if gone else "None is switched off, so none was removed.")

    def take_in(self, data: bytes | None, ledger: Ledger) -> Changes:
        """Put an uploaded edit into the ledger."""
        ledger.require_room(self.bench.limits)
        edit = unpacked(data or b"", self.bench.lm, self.bench.limits)
        grown = ledger.added(edit, source="uploaded", limits=self.bench.limits)
        return self._kept(grown, f"Uploaded; it is edit {grown.made}, switched on.")

    def hand_out(self, kind: str) -> Any:
        """Return what a download button does: it zips the sum of the edits that are on."""

        def pack(ledger: Ledger) -> Changes:
            total = ledger.total()
            if total is None:
                raise EditError("No edit is switched on, so there is nothing to download.")
            data = packed(total, kind, self.bench.lm)
            path = handed_out(self.file, data, _FILES[kind])
            return {self.file: path, self.message: texts.said(f"{_FILES[kind]}: {len(data) / 1024:.0f} KiB.")}

        return pack

    def ask(
        self,
        prompt: str | None,
        chat: bool,
        ledger: Ledger,
        visitor: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is asked for a progress bar
    ) -> Changes:
        """Ask the model without edits, with each that is on, and with all of them."""
        edits: dict[str, Edit | None] = {_UNEDITED: None}
        edits |= {entry.label: entry.edit for entry in ledger.active}
        if len(ledger.active) > 1:
            edits[_ALL] = ledger.total()
        with self.turns.taken(visitor, "compare", waits(bar)):
            spoken = self.bench.compare(prompt, edits, chat=bool(chat))
        only = "" if ledger.active else "No edit is switched on: this is the model as it is."
        return {self.voices: texts.voices((prompt or "").strip(), spoken), self.message: texts.said(only)}

    def _told(self, ledger: Ledger) -> Changes:
        remarks = ledger.contradictions()
        return {
            self.table: texts.ledger_table(ledger.entries),
            self.remarks: texts.warned("Look twice.", *remarks) if remarks else "",
        }

    def _kept(self, ledger: Ledger, message: str) -> Changes:
        return {**self.listed(ledger), self.ledger: ledger, self.message: texts.said(message)}
