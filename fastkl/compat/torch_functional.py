"""``torch.nn.functional.kl_div`` for tensors in this machine's memory, differentiable as it is.

Its terms are summed as they are computed, without a tensor of them; a gradient is one pass over the other argument.
Tensors that are not plain ones (of other devices, layouts and dtypes, of two dtypes at once, subclasses), and whatever
watches PyTorch's own operations (tracing, ``torch.compile``, ``torch.func``, forward-mode derivatives, autocast, modes),
get PyTorch's function.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as torch_functional
from torch.overrides import has_torch_function_variadic

from fastkl import _runtime
from fastkl._kernels import _batch, _elementwise
from fastkl._tensors import ROW_TYPES, as_array, is_watched

__all__ = ["kl_div"]

# A derivative that Python has a part in costs some tens of microseconds more than one of PyTorch's: so many terms must
# there be, of a target and of its logarithm. The latter is an exponential and a product to PyTorch, whose derivatives
# take it no longer than ours do; there the sum is what is gained.
_LEAST_WITH_GRADIENT, _LEAST_WITH_GRADIENT_LOG = 16_384, 131_072

_FLOAT32_MAX = torch.finfo(torch.float32).max

_NONE, _MEAN, _SUM = (_reduction.get_enum(name) for name in ("none", "mean", "sum"))


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Σ target·(log target − input): the KL divergence of ``target`` from a distribution given by its logarithms.

    The drop-in for :func:`torch.nn.functional.kl_div`.

    Parameters
    ----------
    input : Tensor
        Log-probabilities, of any shape.
    target : Tensor
        Probabilities, or their logarithms; it broadcasts with ``input``.
    size_average, reduce : bool, optional
        Deprecated: they stand for a ``reduction``, and override it.
    reduction : {"mean", "batchmean", "sum", "none"}
        What is returned: the sum of all terms over their number or over the length of ``input``'s first axis, the sum
        itself, or each term.
    log_target : bool
        Whether ``target`` holds logarithms.

    Returns
    -------
    Tensor
        In nats, of the dtype of the tensors. float32, float16 and bfloat16 are computed in double precision. As
        PyTorch defines it, a term is NaN where ``target`` is 0 (or its logarithm −inf) and ``input`` is −inf.

    Raises
    ------
    ValueError
        If ``reduction`` is none of the four.
    RuntimeError
        If the shapes don't broadcast, or a tensor is complex or of integers.

    Warns
    -----
    UserWarning
        For the reduction ``"mean"``, which is not the mean divergence, and for the deprecated parameters.

    Examples
    --------
    >>> import torch
    >>> from fastkl.compat.torch_functional import kl_div
    >>> target = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    >>> kl_div(target.flip(1).log(), target, reduction="batchmean")
    tensor(0.8789)
    """
    if torch.compiler.is_compiling() or has_torch_function_variadic(input, target):
        return torch_functional.kl_div(input, target, size_average, reduce, reduction, log_target)
    if size_average is not None or reduce is not None:
        code = _reduction.legacy_get_enum(size_average, reduce)
    else:
        if reduction == "mean":
            warnings.warn(
                "reduction: 'mean' divides the total loss by both the batch size and the support size."
                "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
                "'mean' will be changed to behave the same as 'batchmean' in the next major release.",
                stacklevel=2,
            )
        code = _SUM if reduction == "batchmean" else _reduction.get_enum(reduction)
    by_batch = reduction == "batchmean" and isinstance(input, Tensor) and input.dim() != 0
    # A reduction to "none" by one parameter and to "batchmean" by another is not worth a kernel.
    ours = type(log_target) is bool and not (by_batch and code == _NONE)
    shape = _common_shape(input, target) if ours else None
    with_gradient = shape is not None and torch.is_grad_enabled() and (input.requires_grad or target.requires_grad)
    if shape is None or (with_gradient and not _gains_with_gradient(math.prod(shape), code, log_target)):
        result = torch.kl_div(input, target, code, log_target=log_target)
        return result / input.size()[0] if by_batch else result
    divisor = (math.prod(shape) if code == _MEAN else 1) * (input.size()[0] if by_batch else 1)
    if with_gradient:
        value: Tensor = _KLDiv.apply(input, target, shape, code, divisor, log_target)  # type: ignore[no-untyped-call]
        return value
    return _value(input, target, shape, code, divisor, log_target)


def _common_shape(input: Any, target: Any) -> tuple[int, ...] | None:
    """The shape of the terms of what the kernels are for; None for what is PyTorch's."""
    if not (_is_plain(input) and _is_plain(target)) or input.dtype is not target.dtype or _is_watched():
        return None
    if input.shape == target.shape:
        return tuple(input.shape)
    try:
        return np.broadcast_shapes(input.shape, target.shape)
    except ValueError:
        return None


def _gains_with_gradient(n: int, code: int, log_target: bool) -> bool:
    if log_target:
        return code != _NONE and n >= _LEAST_WITH_GRADIENT_LOG
    return n >= _LEAST_WITH_GRADIENT


def _is_plain(tensor: Any) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.dtype in ROW_TYPES
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )


def _is_watched() -> bool:
    """Is there something at work that must see PyTorch's own operations, or give them other types?"""
    return is_watched() or torch._C._is_any_autocast_enabled()


class _KLDiv(torch.autograd.Function):
    """The value with its derivatives. Those are PyTorch's own operations, and so have derivatives of their own."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, shape: tuple[int, ...], code: int, divisor: int, log_target: bool
    ) -> Tensor:
        ctx.save_for_backward(input, target)
        ctx.shape, ctx.divisor, ctx.log_target = shape, divisor, log_target
        return _value(input, target, shape, code, divisor, log_target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, target = ctx.saved_tensors
        by_input, by_target = ctx.needs_input_grad[:2]
        if ctx.divisor != 1:
            grad = grad / ctx.divisor
        # A result of our own may be overwritten where nobody differentiates it, and has the shape of what is made of it.
        watched = _is_watched() or torch._C._functorch.is_legacy_batchedtensor(grad)
        in_place = input.shape == target.shape and not (torch.is_grad_enabled() or watched)

        def onto(operation: Callable[..., Tensor], own: Tensor, other: Tensor | int) -> Tensor:
            return operation(own, other, out=own) if in_place else operation(own, other)

        grads: list[Tensor | None] = [None] * 6
        if ctx.log_target:
            weight = target.exp()
            if by_target:
                slope = onto(torch.add, target - input, 1)
                grads[1] = onto(torch.mul, onto(torch.mul, slope, weight), grad)
            if by_input:
                grads[0] = onto(torch.mul, weight, -grad)
        else:
            if by_target:  # t/t is NaN for t = 0, as PyTorch has it
                slope = onto(torch.sub, onto(torch.add, target.log(), target / target), input)
                grads[1] = onto(torch.mul, slope, grad)
            if by_input:
                grads[0] = target * -grad
        for k, tensor in enumerate((input, target)):
            gradient = grads[k]
            if gradient is not None:
                grads[k] = gradient.expand(ctx.shape).sum_to_size(tensor.shape)
        return tuple(grads)


def _value(input: Tensor, target: Tensor, shape: tuple[int, ...], code: int, divisor: int, log_target: bool) -> Tensor:
    row_type = ROW_TYPES[input.dtype]
    in_one_piece = input.shape == target.shape and input.is_contiguous() and target.is_contiguous()
    if code == _NONE:
        if in_one_piece:
            terms = torch.empty_like(input)
            at = input.data_ptr(), target.data_ptr(), terms.data_ptr()
            _elementwise.kl_terms_at(log_target, row_type, input.numel(), *at)
        else:
            terms = _empty_terms(input, target, log_target)
            term = _elementwise.kl_term_log if log_target else _elementwise.kl_term
            term(as_array(input), as_array(target), out=as_array(terms))
        return terms
    if in_one_piece:
        total = _elementwise.kl_sum_at(log_target, row_type, input.numel(), input.data_ptr(), target.data_ptr())
    else:
        total = _sum(as_array(input), as_array(target), row_type, shape, log_target)
    value = total / divisor if divisor else math.nan
    if abs(value) > _FLOAT32_MAX and input.dtype is torch.float32:  # which PyTorch takes no number beyond for
        value = math.copysign(math.inf, value)
    return torch.scalar_tensor(value, dtype=input.dtype)


def _empty_terms(input: Tensor, target: Tensor, log_target: bool) -> Tensor:
    """Memory for the terms, in the order in which PyTorch has them."""
    if input.stride() == target.stride() and input.shape == target.shape:
        return torch.empty_like(target)
    return torch.empty_like(
        torch.kl_div(input.to("meta"), target.to("meta"), _NONE, log_target=log_target), device="cpu"
    )


def _sum(x: NDArray[Any], t: NDArray[Any], row_type: int, shape: tuple[int, ...], log_target: bool) -> float:
    """The sum of all terms by rows, along the axis on which x has its least stride."""
    if 0 in shape:
        return 0.0
    if not shape:
        shape = (1,)
    x, t = np.broadcast_to(x, shape), np.broadcast_to(t, shape)
    order = np.argsort([-abs(stride) for stride in x.strides], kind="stable")
    x, t = x.transpose(order), t.transpose(order)
    sums = np.empty(x.shape[:-1])
    _batch.reduce(
        _batch.FAMILIES["terms"],
        (_batch.TERMS_OPS["kl_log" if log_target else "kl"],),
        (x, t),
        (row_type, row_type),
        row_type,
        -1,
        x.shape[-1],
        (sums,),
        _runtime.threads_for(None, x.size),
    )
    with np.errstate(all="ignore"):
        return float(sums.sum())
