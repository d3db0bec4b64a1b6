"""What all verbs share: options, consoles, loading a model quietly, signs of life, JSON output."""

import json
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from engram.cli.watching import busy, err, interruptible, note

if TYPE_CHECKING:
    from engram.datasets import Dataset
    from engram.models import LM

Model = Annotated[str, typer.Argument(help="'mini' (built in), a folder, a .gguf file, or a Hugging Face hub name.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Device = Annotated[str | None, typer.Option(help="Where to run, such as 'cpu' or 'cuda:0'.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")]
DeviceMap = Annotated[str | None, typer.Option(help="accelerate's placement, such as 'auto', instead of --device.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


def out() -> Console:
    """Return the console for results (standard output)."""
    return Console(highlight=False)


def say_error(message: str) -> None:
    """Print an error as a sentence."""
    err().print(f"[bold red]Error:[/bold red] {escape(message)}", soft_wrap=True)


def emit_json(result: Mapping[str, Any]) -> None:
    """Print a result for machines: one JSON object, nothing else on standard output."""
    json.dump(result, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def load_model(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "LM":
    """Load a model as `engram.load` does, without the libraries' own bars and remarks, and say that it is loading."""
    stopped = "Nothing was changed; start the same command again."
    doing = f"loading {name}{', which is dequantised' if name.lower().endswith('.gguf') else ''} ..."
    with interruptible(None, nothing=stopped), busy(doing):
        from transformers.utils import logging as transformers_logging

        from engram.models import load

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load(
                name,
                device=device,
                dtype=dtype,
                device_map=device_map,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )


def say_skipped(data: "Dataset", *, listed: int = 10) -> None:
    """Say which records the last reading of a data set left out, and why."""
    if data.skipped:
        note(f"{len(data.skipped)} record(s) left out:")
    for item in data.skipped[:listed]:
        note(f"  {item.where}: {item.reason}")
    if len(data.skipped) > listed:
        note(f"  and {len(data.skipped) - listed} more")
