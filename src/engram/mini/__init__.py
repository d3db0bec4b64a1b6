"""The built-in model: a small GPT-2 that knows a few thousand true facts, with all that it is made from."""

from pathlib import Path


def weights_folder() -> Path:
    """The packaged model's folder, for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
    return Path(__file__).parent / "model"
