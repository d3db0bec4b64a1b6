"""GGUF files (llama.cpp's): which file a name means, and reading it through transformers, dequantised."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engram.errors import EngramError, ModelError, ModelNotFound, UnsupportedModel, first_line

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"


def gguf_file(source: str) -> Path | None:
    """Return the GGUF file that a name means: the file itself, or the only one in a folder without a config.json.

    Raises:
        ModelNotFound: there is no such file, or the folder holds several.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "config.json").is_file():
            return None
        found = sorted(p for p in path.iterdir() if p.suffix.lower() == SUFFIX and p.is_file())
        if len(found) > 1:
            raise ModelNotFound(
                f"The folder {source!r} holds {len(found)} GGUF files: {', '.join(p.name for p in found)}. "
                f"Give one of them, such as {str(found[0])!r}."
            )
        return found[0] if found else None
    if path.suffix.lower() != SUFFIX:
        return None
    if not path.is_file():
        raise ModelNotFound(f"There is no file {source!r}. Give an existing GGUF file, a folder, or 'mini'.")
    return path


def read_gguf(file: Path, kind: Any, device_map: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the tokenizer and the model of a GGUF file, whose quantised weights become plain ones.

    Args:
        file: the file.
        kind: the dtype of the weights in memory; "auto" is float32.
        device_map: accelerate's placement, or None.
        options: further arguments for `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ModelError: the package gguf is missing; the file is damaged or of a kind that transformers does not read.
        UnsupportedModel: an encoder-decoder model.
    """
    if find_spec("gguf") is None:
        raise ModelError(
            f"Reading {str(file)!r} needs the package gguf: pip install gguf "
            f"(in a checkout of Engram: pip install -c constraints.txt -e '.[gguf]')."
        )
    try:
        tokenizer, model, missing = _read(file, kind, device_map, options)
    except EngramError:
        raise
    except Exception as error:  # a damaged file ends in any of a dozen errors
        raise ModelError(
            f"{str(file)!r} could not be read: it is damaged or cut short, or transformers does not read this kind of "
            f"model from GGUF ({first_line(error)})."
        ) from error
    if missing:
        raise ModelError(
            f"{str(file)!r} lacks weights: {', '.join(sorted(missing)[:3])}. Was it made from a whole model?"
        )
    kept = str(model.dtype).removeprefix("torch.")
    logger.warning("%s: weights that the file holds quantised were dequantised, to plain %s", file.name, kept)
    return tokenizer, model


def _read(file: Path, kind: Any, device_map: Any, options: dict[str, Any]) -> tuple[Any, Any, set[str]]:
    import transformers

    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ModelError(f"{str(file)!r} is no GGUF file: it does not begin with the letters GGUF.")
    where: dict[str, Any] = {"gguf_file": file.name}
    config = transformers.AutoConfig.from_pretrained(file.parent, **where)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{str(file)!r} is an encoder-decoder model; Engram reads decoder-only language models.")
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **where)
    if hasattr(transformers, "GgufConfig"):  # newer versions may keep weights packed otherwise
        where["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if device_map is not None:
        where["device_map"] = device_map
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, config=config, dtype=kind, output_loading_info=True, **where, **options
    )
    model, report = loaded
    return tokenizer, model, set(report["missing_keys"])
