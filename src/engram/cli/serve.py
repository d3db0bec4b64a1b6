"""`engram serve`: the page, for a browser on this machine."""

import threading
from typing import Annotated

import typer

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
)
from engram.cli.options import Cache, Chat, Corpus, Statistics, Tokens, statistics_given
from engram.cli.watching import note
from engram.errors import needs_extra


def serve(
    model: Model = "mini",
    *,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="7860 or the next free one when not given.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")] = "127.0.0.1",
    corpus: Corpus = None,
    count: Tokens = None,
    statistics: Statistics = None,
    cache: Cache = None,
    chat: Chat = False,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Open a page on which facts are located and edited; Ctrl-C ends it.

    Example: engram serve mini --port 7860
    """
    try:
        from engram import web
    except ImportError as error:
        raise needs_extra("The page", "web") from error
    given = statistics_given(model, corpus=corpus, tokens=count, statistics=statistics, needed=False)
    lm = load_model(
        model,
        device=device,
        dtype=dtype,
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    running = web.serve(web.Workbench(lm, **given, chat=chat), host=host, port=port)
    if as_json:
        emit_json({"url": running.url, "model": lm.name})
    else:
        out().print(f"{lm.name} is at {running.url} (Ctrl-C ends it)", soft_wrap=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        note(f"Listening on {host}: others on your network can use this page. It has no password.")
    try:
        threading.Event().wait()
    finally:
        running.stop()
