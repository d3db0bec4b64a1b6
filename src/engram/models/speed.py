"""The same numbers within rounding, sooner: how PyTorch is led to its fast ways during the model's own forward."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from engram.models.skipping import forward_as

_TANH_GELUS = ("FastGELUActivation", "NewGELUActivation")  # transformers' names of one function, written out in steps


@contextmanager
def contiguous_input(module: nn.Module | None) -> Generator[None]:
    """Let a linear module see contiguous inputs only.

    PyTorch multiplies a slice of positions by a weight that needs no gradient as one matrix per row, with a copy of the
    weight for each: for an unembedding that is 20 times slower than one product.
    """
    if module is None:
        yield
        return

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def fused_activations(model: nn.Module) -> Generator[None]:
    """Let GPT-2's tanh GELU run as one kernel, not as eight, during the `with` block; equal within rounding."""
    found = [module for module in model.modules() if type(module).__name__ in _TANH_GELUS]
    with ExitStack() as stack:
        for module in found:
            stack.enter_context(forward_as(module, lambda x: nn.functional.gelu(x, approximate="tanh")))
        yield
