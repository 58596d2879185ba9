"""PyTorch's tensors as the kernels see them, for the modules over PyTorch.

Where nothing is differentiated, traced or intercepted, a call can do without PyTorch's dispatcher: a tensor is memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from fastkl._kernels._batch import TYPES, pair_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastkl._validation import Array

#: The types that the kernels hold rows in (enum fkl_type).
ROW_TYPES = {getattr(torch, name): TYPES[name] for name in ("float64", "float32", "float16", "bfloat16")}


def is_watched() -> bool:
    """Is there something at work that must see PyTorch's own operations?

    Modes see every call, torch.func's wrappers pass for tensors, and the tangents of forward-mode derivatives are not to
    be lost.
    """
    return bool(
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or peek_interpreter_stack() is not None
        or _get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def as_array(tensor: Tensor) -> Array:
    """A tensor's memory; the bits of bfloat16, which NumPy doesn't know, as integers."""
    tensor = tensor.detach()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy(force=True)
    return array


def seen_by_numpy(operands: Iterable[Any]) -> tuple[list[Array], Literal["bfloat16"] | None] | None:
    """Tensors as NumPy sees them, and the ``dtype`` to say so; None if the call must go through PyTorch's dispatcher.

    That is where something watches or is to be differentiated, or an operand is not what it should be.
    """
    if is_watched():
        return None
    arrays: list[Array] = []
    halves = False
    try:
        for x in operands:
            if type(x) is not Tensor:
                return None
            if x.dtype is torch.bfloat16:
                if x.requires_grad:
                    return None
                halves = True
                arrays.append(x.view(torch.uint16).numpy())
            else:
                arrays.append(x.numpy())
    except (RuntimeError, TypeError):  # it requires a gradient, or has no memory that NumPy could read
        return None
    if halves:
        return None if any(x.dtype is torch.uint16 for x in operands) else (arrays, "bfloat16")
    return arrays, None


def one_pair(operation: int, p: Any, q: Any, normalize: bool, log_base: float, parameter: float) -> Tensor | None:
    """An operation of the discrete family on two tensors of one axis, without NumPy's view of them.

    None unless both are contiguous, of one length and of one of the types of rows, and nothing watches.
    """
    # Batches are to lose as little time here as may be.
    if type(p) is not Tensor or type(q) is not Tensor or p.dim() != 1 or is_watched():
        return None
    dtype = p.dtype
    if dtype is not q.dtype or dtype not in ROW_TYPES or p.requires_grad or q.requires_grad:
        return None
    if not (p.is_cpu and q.is_cpu) or p.is_neg() or q.is_neg():
        return None
    try:
        length = p.numel()
        if not (q.dim() == 1 and length == q.numel() and length and p.is_contiguous() and q.is_contiguous()):
            return None
        at = p.data_ptr(), q.data_ptr()
    except RuntimeError:  # no tensor with memory of its own
        return None
    if not all(at):  # zeros that are not written out
        return None
    return torch.from_numpy(pair_at(operation, ROW_TYPES[dtype], length, *at, normalize, log_base, parameter))
