"""`load`: a model by hub name, by folder, by GGUF file, or the built-in `mini`."""

import logging
from pathlib import Path
from typing import Any

import torch

from engram.errors import (
    ModelError,
    ModelNotFound,
    SettingError,
    TokenizerError,
    UnsupportedModel,
    did_you_mean,
    first_line,
)
from engram.given import require
from engram.models.gguf import gguf_file, read_gguf
from engram.models.lm import LM

logger = logging.getLogger(__name__)

MINI = Path(__file__).parents[1] / "mini" / "model"
"""Folder of the built-in model."""

DTYPES = {
    "auto": "auto",
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> LM:
    """Load a model and its tokenizer.

    Args:
        name: `"mini"` (built in, works offline), a folder, a GGUF file (or a folder with one), or a name on the Hugging
            Face hub such as `"gpt2-xl"`. Quantised weights of a GGUF file are dequantised; the file's stem is the name.
        device: where to put it; a CUDA device if there is one, else the CPU.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"` (as saved); float32 on CPU and `"auto"` elsewhere when
            not given.
        device_map: accelerate's placement over several devices and disk, instead of `device`.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that comes with the model. Off unless you ask for it.
        **options: further arguments for `AutoModelForCausalLM.from_pretrained`. Weights are read from safetensors files
            unless `use_safetensors=False` allows pickled ones.

    Raises:
        ModelNotFound: no such model here or on the hub, or no network; a folder with several GGUF files.
        ModelError: a damaged GGUF file, or the package that reads them is missing.
        UnsupportedModel: not a dense decoder.
        TokenizerError: no fast tokenizer.
        SettingError: an unknown dtype or device.
    """
    require(name, (str, Path), "name")
    source = str(MINI) if name == "mini" else str(name)
    file = gguf_file(source)
    place = None if device_map is not None else _device(device)
    kind = _dtype(dtype, place)
    if file is not None:
        tokenizer, model = read_gguf(file, kind, device_map, options)
    else:
        _require_model_folder(name, source)
        where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        tokenizer, model = _fetch(str(name), source, where, kind, device_map, options)
    if place is not None:
        model = model.to(place)
    logger.info("loaded %s", name)
    return LM(model, tokenizer, name=str(name) if file is None else file.stem)


def _fetch(
    name: str, source: str, where: dict[str, Any], kind: Any, device_map: Any, options: dict[str, Any]
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM  # slow import, only here

    try:
        config = AutoConfig.from_pretrained(source, **where)
    except (OSError, ValueError, KeyError) as error:
        raise _not_found(name, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name!r} is an encoder-decoder model; Engram reads decoder-only language models.")
    options = {"use_safetensors": True, **options}
    if device_map is not None:
        options["device_map"] = device_map
    tokenizer = _tokenizer(name, source, where)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=kind, **where, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _not_found(name, error) from error
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(f"{name!r} could not be loaded: {first_line(error)}") from error
    return tokenizer, model


def _tokenizer(name: str, source: str, where: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        if not (Path(source) / "tokenizer.json").is_file():
            raise TokenizerError(f"{name!r} has no tokenizer that could be loaded: {first_line(error)}") from error
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)  # its class has another name in this version
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):  # what transformers makes of missing files
        raise TokenizerError(
            f"{name!r} has no tokenizer: no tokenizer.json or vocabulary was found beside the weights."
        )
    return tokenizer


def _require_model_folder(name: str | Path, source: str) -> None:
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"The folder {source!r} holds no model: config.json or a .gguf file was looked for, and neither is there. "
            f"A model folder is what save_pretrained writes."
        )
    looks_like_path = isinstance(name, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_like_path and not folder.exists():
        raise ModelNotFound(f"There is no folder {source!r}. Give an existing folder, a hub name, or 'mini'.")


def _not_found(name: str, error: Exception) -> ModelNotFound:
    """One line that says what was looked for and where, from a library's page of text."""
    text = f"{error} {error.__cause__ or ''}"
    if "safetensors" in text:
        return ModelNotFound(
            f"{name!r} has no weights in safetensors files: {first_line(error)} If you trust its pickled weights, "
            f"engram.load({name!r}, use_safetensors=False) reads them."
        )
    offline = any(word in text for word in ("couldn't connect", "offline", "Connection", "resolve", "Max retries"))
    if offline:
        return ModelNotFound(
            f"{name!r} is neither a folder here nor in the local Hugging Face cache, and the hub cannot be reached. "
            f"Connect to the network, give a folder, or use the built-in 'mini'."
        )
    return ModelNotFound(
        f"{name!r} was looked for as a folder here and on the Hugging Face hub, and could not be loaded: "
        f"{first_line(error)} Try 'mini' (built in), a folder, or a name such as 'gpt2-xl'."
    )


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"The device {str(device)!r} cannot be used: {first_line(error)}") from error
    return place


def _dtype(dtype: str | torch.dtype | None, place: torch.device | None) -> Any:
    if dtype is None:
        return torch.float32 if place is None or place.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise SettingError(f"There is no dtype {dtype!r}. {did_you_mean(dtype, DTYPES)}")
    return DTYPES[dtype]
