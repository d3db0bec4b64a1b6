"""The page itself: three steps below each other, each open once the one before is done, and how it is served.

Everything comes from this machine (fonts, plotly, scripts), nothing is reported anywhere, and a content security policy
forbids the browser to ask any other server.
"""

import errno
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from engram.errors import SettingError
from engram.web.collecting import Collecting
from engram.web.editing import Editing
from engram.web.examples import examples
from engram.web.ledger import Ledger
from engram.web.limits import Limits
from engram.web.locating import Locating
from engram.web.texts import safe
from engram.web.turns import Turns
from engram.web.workbench import Workbench

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' blob: data:; form-action 'self'; base-uri 'self'; "
    "frame-ancestors 'self'; object-src 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_PORT, _PORTS = 7860, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A page that is being served.

    Args:
        url: where.
        page: the Gradio page.
    """

    url: str
    page: gr.Blocks

    def stop(self) -> None:
        """Serve no longer."""
        self.page.close(verbose=False)


def build(bench: Workbench) -> gr.Blocks:
    """Build the page.

    Args:
        bench: the model that all visitors share.
    """
    limits, lm, turns = bench.limits, bench.lm, Turns()
    start = examples(lm)[0]
    with gr.Blocks(
        title="Engram", analytics_enabled=False, delete_cache=(600, limits.idle_seconds), fill_width=False
    ) as page:
        gr.HTML(
            f"<header class='engram-head'><h1>Engram</h1><p>Find where {safe(Path(lm.name).name)} stores a fact, and "
            f"change it. {lm.n_layers} layers, counted 0 to {lm.n_layers - 1}.</p></header>"
        )
        ledger: Any = gr.State(Ledger(), time_to_live=limits.idle_seconds)
        with gr.Column(elem_classes="engram-step"):
            first = Locating(bench, turns)
        with gr.Accordion("2. Make it say something else", open=False, elem_id="engram-step-2") as editing:
            second = Editing(bench, first, ledger, start.target, turns)
        with gr.Accordion("3. Your edits", open=False, elem_id="engram-step-3") as collecting:
            third = Collecting(bench, ledger, start.prompt, turns)
        first.wire(second.target, second.layer, editing)
        second.wire(third.listing, third.listed, collecting)
        third.wire(first.chat)
    page.queue(max_size=limits.waiting, api_open=False)
    return page


def serve(bench: Workbench, *, host: str = "127.0.0.1", port: int | None = None) -> Running:
    """Serve the page until `stop` is called.

    Args:
        bench: the model.
        host: address to listen on; only this machine by default.
        port: 7860 or the next free one when not given.

    Raises:
        SettingError: the address or the port cannot be had.
    """
    page = build(bench)
    for candidate in range(_PORT, _PORT + _PORTS) if port is None else (port,):
        try:
            return Running(url=_launched(page, bench.limits, host, candidate), page=page)
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, None)  # None: gradio's own word
            if port is not None or not taken:
                raise SettingError(f"The page cannot be served on {host}:{candidate}: {error}.") from error
    raise SettingError(f"The page cannot be served on {host}: ports {_PORT} to {_PORT + _PORTS - 1} are all taken.")


def _launched(page: gr.Blocks, limits: Limits, host: str, port: int) -> str:
    """Begin to serve a page and return its address; raises OSError when the port cannot be had."""
    _require_free(host, port)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=False,
        footer_links=[],
        max_file_size=limits.upload_bytes,
        state_session_capacity=limits.visitors,
        theme=_theme(),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        app_kwargs={"middleware": [Middleware(_Guard)], "docs_url": None},
    )
    return str(url)


def _theme() -> gr.themes.Base:
    """Fonts of the visitor's own system, and small print that can be read."""
    theme = gr.themes.Base(
        font=("ui-sans-serif", "system-ui", "sans-serif"), font_mono=("ui-monospace", "Consolas", "monospace")
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def _require_free(host: str, port: int) -> None:
    """Check that a port can be had; raises OSError when it cannot."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


class _Guard:
    """Says with every answer what the browser may load and tell."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
