"""Edits for other libraries: a LoRA adapter that plain `peft` loads, or a whole model in transformers' own form."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engram.editing.applying import Overwritten, parameter
from engram.editing.changes import LowRank, WeightChange
from engram.errors import EditError, SettingError, did_you_mean, first_line
from engram.models.loading import MINI

if TYPE_CHECKING:
    from engram.editing.edit import Edit
    from engram.models import LM

NEGLIGIBLE = 1e-7
"""Singular values below this share of the largest are left out when a dense change becomes an adapter."""


def export(edit: "Edit", kind: str, folder: Path, lm: "LM | None") -> Path:
    """See `Edit.export`."""
    if kind not in EXPORTS:
        raise SettingError(f"There is no export {kind!r}. {did_you_mean(kind, EXPORTS)}")
    if not edit:
        raise EditError("This edit changes nothing, so there is nothing to export.")
    if lm is not None:
        edit.require_fit(lm)
    for change in edit.changes:
        change.refuse_weights(f"exporting {kind!r}")
    return EXPORTS[kind](edit, folder, lm)


def _new_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write beside the destination and move there when complete."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EditError(f"{str(folder)!r} exists and is not empty. Give a new folder.")
    staged: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        write(staged)
        staged.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)
    except OSError as error:
        raise EditError(f"The export to {str(folder)!r} failed: {error}. Nothing was left there.") from error
    finally:
        if staged is not None and staged.exists():
            shutil.rmtree(staged, ignore_errors=True)
    return folder


def _to_peft(edit: "Edit", folder: Path, _: "LM | None") -> Path:
    return _new_folder(folder, lambda where: _peft(edit, where))


def _to_hf(edit: "Edit", folder: Path, lm: "LM | None") -> Path:
    if lm is None:
        raise EditError("Exporting a whole model needs the model: edit.export('hf', folder, lm).")
    return _new_folder(folder, lambda where: _hf(edit, where, lm))


def _peft(edit: "Edit", folder: Path) -> None:
    """Write a LoRA adapter whose scaling is 1: lora_B @ lora_A is the change."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in edit.updates)
    biases = any(name.endswith(".bias") for name in edit.updates)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module in modules:
        down, up = _factors(edit, module)
        ranks[module] = down.shape[0]
        head = f"base_model.model.{module}"
        tensors[f"{head}.lora_A.weight"] = down.contiguous()
        tensors[f"{head}.lora_B.weight"] = up.contiguous()
        if biases:
            bias = edit.updates.get(f"{module}.bias")
            tensors[f"{head}.lora_B.bias"] = torch.zeros(up.shape[0]) if bias is None else bias.dense().float()
    rank = max(ranks.values())
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _base(edit.model),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": list(modules),
        "fan_in_fan_out": any(change.transposed for change in edit.updates.values()),  # peft looks at each module
        "lora_bias": biases,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _base(name: str) -> str:
    """Return what plain transformers loads: a folder's own path, also for the built-in model, else the name."""
    folder = MINI if name == "mini" else Path(name)
    return str(folder.resolve()) if (folder / "config.json").is_file() else name


def _factors(edit: "Edit", module: str) -> tuple[Tensor, Tensor]:
    """Return what a LoRA calls A [rank in] and B [out rank]."""
    update = edit.updates.get(f"{module}.weight")
    if update is None:
        raise EditError(f"A LoRA cannot change the bias of {module!r} without its weight; export 'hf' instead.")
    low = update if isinstance(update, LowRank) else _low_rank(update)
    enter, leave = low.factors
    return enter.T.float(), leave.float()


def _low_rank(update: WeightChange) -> LowRank:
    """Factorise a dense change exactly, up to rounding."""
    left, sizes, right = torch.linalg.svd(update.dense().double(), full_matrices=False)
    rank = max(1, int((sizes > NEGLIGIBLE * sizes[0]).sum()))
    root = sizes[:rank].sqrt()
    return LowRank(
        (left[:, :rank] * root).float(),
        (right[:rank].T * root).float(),
        parameter=update.parameter,
        transposed=update.transposed,
    )


def _hf(edit: "Edit", folder: Path, lm: "LM") -> None:
    """Write the edited model; the one in memory is not touched."""
    state: dict[str, Tensor] = dict(lm.model.state_dict())
    for name, update in edit.updates.items():
        weight = parameter(lm, name, "exporting the model")
        changed = Overwritten(weight).value({edit.digest: update})
        for alias, tensor in state.items():  # tied weights stay tied
            if tensor.data_ptr() == weight.data_ptr() and tensor.shape == weight.shape:
                state[alias] = changed
    write_model(lm, folder, state)


def write_model(lm: "LM", folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write what plain transformers loads: the model, with other weights where `state` gives them, and the tokenizer.

    Raises:
        EditError: the model is of a kind that cannot be written.
    """
    try:
        lm.model.save_pretrained(folder, state_dict=state)
        lm.tokenizer.save_pretrained(folder)
    except (ValueError, NotImplementedError) as error:  # a quantised model that transformers does not write
        raise EditError(f"{lm.name} cannot be written as a model folder: {first_line(error)}") from error


EXPORTS: Mapping[str, Callable[["Edit", Path, "LM | None"], Path]] = {"hf": _to_hf, "peft": _to_peft}
"""What an edit of weights can be written as for other libraries."""
