"""What `model()` returns: made under a seed, and let through or refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hubbub.errors import CodeError
from hubbub.study import Code
from hubbub.study.code import call


def make_module(code: Code, seed: int) -> nn.Module:
    """A fresh module; torch's own generator is left as it was.

    Args:
        code: The study's functions.
        seed: Public seed of the initialisation.

    Raises:
        CodeError: `model()` fails, mixes examples (BatchNorm), trains nothing, or is not float32.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _accept(call(code.model or nn.Identity))


def trained_of(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters that training changes, by name; one that is shared, once."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    """Tensors as arrays in the same memory."""
    return {name: value.detach().numpy() for name, value in tensors.items()}


def _accept(module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise CodeError(
            f"model(), must return a torch.nn.Module, found {type(module).__name__}",
            hint="other frameworks define parameters(), train() and evaluate() instead",
        )
    for name, layer in module.named_modules():
        mixes = isinstance(layer, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        if mixes or getattr(layer, "track_running_stats", False):
            raise CodeError(
                f"model(): {name or 'the module'}, must not mix examples, found {type(layer).__name__}",
                hint="torch.nn.GroupNorm normalises each example by itself",
            )
    trained = [value for value in module.parameters() if value.requires_grad]
    if not trained or any(value.dtype != torch.float32 for value in trained):
        found = sorted({str(value.dtype).removeprefix("torch.") for value in trained}) or "none"
        raise CodeError(
            f"model(), must have trained parameters, all float32, found {found}", hint="return model.float()"
        )
    return module
