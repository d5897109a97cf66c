"""`torch.func.vmap`, without what was seen to let one row reach another.

Code under vmap sees one record, or one participant, and that is what keeps these apart. But for a table that each row
has of its own, and for `index_fill`, vmap lays the rows end to end and adds a row's offset to its indices, unchecked:
an index past the end of one row's table is the next row's first entry, to read and to train. And an operation whose
author wrote its batching rule gets all rows in that rule.

Source:
    torch 2.13.0, aten/src/ATen/functorch: `embedding` and `index_fill` in the batching rules; "Extending torch.func
    with autograd.Function" in its manual.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]  # nothing public tells what vmap has batched
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import Function
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from hubbub.errors import CodeError


def each(function: Callable[..., Any], *, in_dims: Any = 0, randomness: str = "error") -> Callable[..., Any]:
    """As vmap, without the operations that were seen to let one row reach another.

    Raises:
        CodeError: From the result: the function uses one of them.
    """

    def guarded(*arguments: Any) -> Any:
        with _Guard():
            return function(*arguments)

    return vmap(guarded, in_dims=in_dims, randomness=randomness)


class _Guard(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        is_mixing = name.startswith("index_fill") or (
            name == "embedding" and any(_is_batched_table(value) for value in (*args, *kwargs.values()))
        )
        if is_mixing:
            raise _refusal(
                name, hint="index the tensor, tensor[indices], or use scatter(): both check what is in range"
            )
        if name == "custom_function_call" and args[0].vmap is not Function.vmap:
            raise _refusal(args[0].__name__, hint="generate_vmap_rule = True, in place of a vmap() of its own")
        if isinstance(func, OpOverload | OpOverloadPacket) and not str(func).startswith("aten."):
            raise _refusal(str(func), hint="write it as a function, of torch's own operations")
        return func(*args, **kwargs)


def _refusal(name: str, *, hint: str) -> CodeError:
    return CodeError(
        f"model() or loss(): {name}, must not look beyond one example, found that torch.func.vmap lets it", hint=hint
    )


def _is_batched_table(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    while _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False
