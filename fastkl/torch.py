"""Divergences of PyTorch tensors: the functions of :mod:`fastkl`, differentiable, and whole in compiled graphs.

Each function has the name, the options and the results of the one for NumPy arrays, and takes tensors on the CPU, of
which it makes no copies. Each is an operator of PyTorch's (``torch.ops.fastkl.kl_divergence`` and so on) with what
autograd, ``torch.compile`` and ``torch.vmap`` need to know of it; where nothing is differentiated or traced, the
kernels are called at once, without the dispatcher. Differences from the functions for arrays:

* ``out`` and ``dtype`` are left out: results are new tensors, and a tensor of ``torch.bfloat16`` says what it is.
* A result without axes is a tensor without axes.
* Gradients have the dtype and the shape of the operand. Those that are to be differentiated in turn (second derivatives,
  and all that ``torch.func`` does) are computed by PyTorch's own operations, with their speed and their errors.
  Forward-mode derivatives raise NotImplementedError.
* NumPy arrays, and tensors on another device or of another layout, raise TypeError.

The gradients of discrete divergences treat a bin in which p is 0 as one whose term is the constant 0; those of an
invalid row are NaN. :mod:`fastkl.logits` and :mod:`fastkl.gaussian` say what those of the others are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.library import custom_op

from fastkl import _torch_gradients, discrete, gaussian, logits
from fastkl._gradients import discrete_gradients
from fastkl._kernels._batch import OPS
from fastkl._tensors import as_array, one_pair, seen_by_numpy
from fastkl._validation import (
    axis_number,
    distillation_temperature,
    gaussian_operands,
    gaussian_scale,
    invalid_choice,
    js_weight,
    log_base,
    loss_reduction,
    result_type,
    row_pairs,
    softmax_temperature,
    thread_bound,
)

if TYPE_CHECKING:
    from typing import SupportsIndex

    from fastkl._validation import Array

_OPS = torch.ops.fastkl

__all__ = ["distillation_loss", "gaussian_kl", "js_divergence", "kl_divergence", "kl_divergence_from_logits"]


def kl_divergence(
    p: Tensor,
    q: Tensor,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
) -> Tensor:
    """The Kullback-Leibler divergence D(p‖q) = Σ p log(p/q) of each pair of rows: :func:`fastkl.kl_divergence`.

    Parameters
    ----------
    p, q : Tensor
        The distributions, of shape (..., K).
    normalize, base, axis, keepdims, n_threads, invalid
        As for :func:`fastkl.kl_divergence`.

    Returns
    -------
    Tensor
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...); float64 or, for
        operands of float32, float16 and bfloat16, float32.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.kl_divergence` does, and TypeError for what is not a dense tensor on the CPU.

    Notes
    -----
    The gradients are (log(p̂/q̂) − D)/Σp and (1 − p̂/q̂)/Σq with the normalised rows p̂ and q̂, and without normalising
    log(p/q) + 1 and −p/q, all divided by ``log(base)``. A bin with p = 0 has the slopes (−1 − D)/Σp and 1/Σq, and
    without normalising 0, as its term counts as the constant 0. Where the normalised divergence is infinite, the
    gradient with respect to p is NaN.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22 (1951) 79-86.

    Examples
    --------
    >>> import torch, fastkl.torch
    >>> p = torch.tensor([[0.5, 0.5], [1.0, 3.0]], requires_grad=True)
    >>> divergence = fastkl.torch.kl_divergence(p, torch.tensor([[0.5, 0.5], [3.0, 1.0]]))
    >>> divergence.detach()
    tensor([0.0000, 0.5493])
    >>> divergence.sum().backward()
    >>> p.grad
    tensor([[ 0.0000,  0.0000],
            [-0.4120,  0.1373]])
    """
    result = _one_pair("kl", p, q, normalize, base, 0.0, axis, keepdims, n_threads, invalid)
    if result is not None:
        return result
    seen = seen_by_numpy((p, q))
    if seen is not None:
        arrays, dtype = seen
        return _tensor(
            discrete.kl_divergence(
                *arrays,
                normalize=normalize,
                base=base,
                axis=axis,
                keepdims=keepdims,
                n_threads=n_threads,
                invalid=invalid,
                dtype=dtype,
            )
        )
    _refuse_others("kl_divergence", p=p, q=q)
    return _dispatched("kl_divergence", p, q, bool(normalize), *_common(base, axis, keepdims, n_threads, invalid))


def js_divergence(
    p: Tensor,
    q: Tensor,
    *,
    weight: float = 0.5,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
) -> Tensor:
    """The Jensen-Shannon divergence of each pair of rows: :func:`fastkl.js_divergence`.

    Parameters
    ----------
    p, q : Tensor
        The distributions, of shape (..., K).
    weight, normalize, base, axis, keepdims, n_threads, invalid
        As for :func:`fastkl.js_divergence`.

    Returns
    -------
    Tensor
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...); float64 or, for
        operands of float32, float16 and bfloat16, float32.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.js_divergence` does, and TypeError for what is not a dense tensor on the CPU.

    Notes
    -----
    With m = w p̂ + (1 − w) q̂ of the normalised rows, the gradients are w (log(p̂/m) − D(p̂‖m))/Σp and
    (1 − w) (log(q̂/m) − D(q̂‖m))/Σq, and without normalising w log(p/m) and (1 − w) log(q/m), all divided by
    ``log(base)``. In a bin with p = 0, −1 stands for the logarithm, or 0 if q is 0 too: the term of p counts as the
    constant 0. Likewise for q.

    References
    ----------
    J. Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory 37 (1991)
    145-151.

    Examples
    --------
    >>> import torch, fastkl.torch
    >>> fastkl.torch.js_divergence(torch.tensor([[1, 1], [1, 0]]), torch.tensor([[1, 1], [0, 1]]), base=2)
    tensor([0., 1.], dtype=torch.float64)
    """
    result = _one_pair("js", p, q, normalize, base, js_weight(weight), axis, keepdims, n_threads, invalid)
    if result is not None:
        return result
    seen = seen_by_numpy((p, q))
    if seen is not None:
        arrays, dtype = seen
        return _tensor(
            discrete.js_divergence(
                *arrays,
                weight=weight,
                normalize=normalize,
                base=base,
                axis=axis,
                keepdims=keepdims,
                n_threads=n_threads,
                invalid=invalid,
                dtype=dtype,
            )
        )
    _refuse_others("js_divergence", p=p, q=q)
    common = _common(base, axis, keepdims, n_threads, invalid)
    return _dispatched("js_divergence", p, q, js_weight(weight), bool(normalize), *common)


def kl_divergence_from_logits(
    p_logits: Tensor,
    q_logits: Tensor,
    *,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
) -> Tensor:
    """D(p‖q) of the softmax of each pair of rows: :func:`fastkl.kl_divergence_from_logits`.

    Parameters
    ----------
    p_logits, q_logits : Tensor
        The logits of the distributions, of shape (..., K).
    temperature, base, axis, keepdims, n_threads, invalid
        As for :func:`fastkl.kl_divergence_from_logits`.

    Returns
    -------
    Tensor
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...); float64 or, for
        operands of float32, float16 and bfloat16, float32.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.kl_divergence_from_logits` does, and TypeError for what is not a dense tensor on the CPU.

    Notes
    -----
    The gradients, and what they are for probabilities of 0, are those of :func:`fastkl.kl_divergence_from_logits_grad`.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22 (1951) 79-86.

    Examples
    --------
    >>> import torch, fastkl.torch
    >>> q = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> fastkl.torch.kl_divergence_from_logits(torch.tensor([2.0, 1.0]), q).backward()
    >>> q.grad
    tensor([-0.4621,  0.4621])
    """
    seen = seen_by_numpy((p_logits, q_logits))
    if seen is not None:
        arrays, dtype = seen
        return _tensor(
            logits.kl_divergence_from_logits(
                *arrays,
                temperature=temperature,
                base=base,
                axis=axis,
                keepdims=keepdims,
                n_threads=n_threads,
                invalid=invalid,
                dtype=dtype,
            )
        )
    _refuse_others("kl_divergence_from_logits", p_logits=p_logits, q_logits=q_logits)
    common = _common(base, axis, keepdims, n_threads, invalid)
    return _dispatched("kl_divergence_from_logits", p_logits, q_logits, softmax_temperature(temperature), *common)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Literal["batchmean", "sum", "none"] = "batchmean",
    axis: SupportsIndex = -1,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
) -> Tensor:
    """The loss T² D(teacher‖student) of knowledge distillation: :func:`fastkl.distillation_loss`.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor
        The logits, of shape (..., K).
    temperature, reduction, axis, n_threads, invalid
        As for :func:`fastkl.distillation_loss`. Its ``return_grad`` is autograd's task here.

    Returns
    -------
    Tensor
        The loss, in nats; of shape (...) with ``reduction="none"``, otherwise without axes; float64 or, for operands of
        float32, float16 and bfloat16, float32.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.distillation_loss` does, and TypeError for what is not a dense tensor on the CPU.

    Notes
    -----
    The gradient with respect to the student is T (q − p), for ``"batchmean"`` divided by the number of rows; that with
    respect to the teacher is T² times the one of :func:`fastkl.kl_divergence_from_logits_grad`. -inf and NaN give what
    is said there.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.

    Examples
    --------
    >>> import torch, fastkl.torch
    >>> student = torch.tensor([[1.0, 2.0], [0.0, 2.0]], requires_grad=True)
    >>> teacher = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> fastkl.torch.distillation_loss(student, teacher, temperature=2.0).backward()
    >>> student.grad
    tensor([[-0.2449,  0.2449],
            [-0.1086,  0.1086]])
    """
    seen = seen_by_numpy((student_logits, teacher_logits))
    if seen is not None:
        arrays, dtype = seen
        return _tensor(
            logits.distillation_loss(
                *arrays,
                temperature=temperature,
                reduction=reduction,
                axis=axis,
                n_threads=n_threads,
                invalid=invalid,
                dtype=dtype,
            )
        )
    _refuse_others("distillation_loss", student_logits=student_logits, teacher_logits=teacher_logits)
    return _dispatched(
        "distillation_loss",
        student_logits,
        teacher_logits,
        distillation_temperature(temperature),
        loss_reduction(reduction),
        axis_number(axis),
        thread_bound(n_threads),
        invalid_choice(invalid),
    )


def gaussian_kl(
    mean_p: Tensor | float,
    scale_p: Tensor | float,
    mean_q: Tensor | float | None = None,
    scale_q: Tensor | float | None = None,
    *,
    scale: Literal["var", "std", "logvar"] = "var",
    axis: SupportsIndex | None = -1,
    keepdims: bool = False,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
) -> Tensor:
    """The Kullback-Leibler divergence of diagonal Gaussians: :func:`fastkl.gaussian_kl`.

    Parameters
    ----------
    mean_p, scale_p : Tensor or float
        The means and the scales of p, of shape (..., K).
    mean_q, scale_q : Tensor or float, optional
        Those of q; N(0, I) if both are left out.
    scale, axis, keepdims, n_threads, invalid
        As for :func:`fastkl.gaussian_kl`.

    Returns
    -------
    Tensor
        The divergence of each pair of rows, in nats; shape (...), or with ``axis=None`` that of the operands; float64
        or, for operands of float32, float16 and bfloat16, float32.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.gaussian_kl` does, and TypeError for what is neither a dense tensor on the CPU nor a Python
        number, and where there is no tensor at all.

    Notes
    -----
    The gradients, and what they are for variances of 0, are those of :func:`fastkl.gaussian_kl_grad`.

    References
    ----------
    J. Duchi, "Derivations for Linear Algebra and Optimization", section 9; D. P. Kingma and M. Welling, "Auto-Encoding
    Variational Bayes" (2014), appendix B.

    Examples
    --------
    >>> import torch, fastkl.torch
    >>> mean = torch.tensor([0.5, -1.0], requires_grad=True)
    >>> fastkl.torch.gaussian_kl(mean, torch.zeros(2), scale="logvar").backward()
    >>> mean.grad
    tensor([ 0.5000, -1.0000])
    """
    given, names = gaussian_operands(mean_p, scale_p, mean_q, scale_q)
    operands = [x if isinstance(x, Tensor) else _from_number(x, given) for x in given]
    seen = seen_by_numpy(operands)
    if seen is not None:
        arrays, dtype = seen
        return _tensor(
            gaussian.gaussian_kl(
                *arrays,
                scale=scale,
                axis=axis,
                keepdims=keepdims,
                n_threads=n_threads,
                invalid=invalid,
                dtype=dtype,
            )
        )
    _refuse_others("gaussian_kl", **dict(zip(names, operands, strict=True)))
    return _dispatched(
        "gaussian_kl",
        *(operands if len(operands) == 4 else (*operands, None, None)),
        gaussian_scale(scale),
        None if axis is None else axis_number(axis),
        bool(keepdims),
        thread_bound(n_threads),
        invalid_choice(invalid),
    )


def _one_pair(
    name: str,
    p: Any,
    q: Any,
    normalize: bool,
    base: float | None,
    parameter: float,
    axis: SupportsIndex,
    keepdims: bool,
    n_threads: int | None,
    invalid: str,
) -> Tensor | None:
    """A discrete measure of two tensors of one axis, called with the usual options; None for all others."""
    usual = type(axis) is int and axis == -1 and keepdims is False and n_threads is None
    if not (usual and type(invalid) is str and invalid == "nan"):
        return None
    return one_pair(OPS[name], p, q, normalize, log_base(base), parameter)


def _dispatched(operator: str, *arguments: Any) -> Tensor:
    """The result of an operator."""
    result: Tensor
    transforms = None if torch.compiler.is_compiling() else get_interpreter_stack()
    if transforms and any(x.key() == TransformType.Grad for x in transforms):
        result = _FUNCTIONS[operator].apply(*arguments)  # torch.func takes no operators with a formula of their own
    else:
        result = getattr(_OPS, operator).default(*arguments)
    return result


def _refuse_others(function: str, **operands: object) -> None:
    """Raise TypeError for an operand that is not a dense tensor on the CPU."""
    for name, x in operands.items():
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor, got {type(x).__name__}; pass torch.as_tensor({name}), or call "
                f"fastkl.{function} for NumPy arrays"
            )
        if x.device.type != "cpu":
            raise TypeError(f"{name} is on the device {x.device}; pass {name}.cpu()")
        if x.is_nested:
            raise TypeError(f"{name} is a nested tensor; pass torch.nested.to_padded_tensor({name}, 0.0)")
        if x.layout is not torch.strided:
            raise TypeError(f"{name} has the layout {x.layout}; pass {name}.to_dense()")
        if x.dtype not in _TYPE_NAMES:
            raise TypeError(
                f"{name} has dtype {x.dtype}; pass float64, float32, float16, bfloat16, integers or bool, for instance "
                f"{name}.to(torch.float64)"
            )
        # An operator has no rule for tangents, and PyTorch would take that for a derivative of 0.
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(f"{name} has a tangent, and derivatives are found backwards alone")


def _common(
    base: float | None, axis: SupportsIndex, keepdims: bool, n_threads: int | None, invalid: str
) -> tuple[float | None, int, bool, int | None, str]:
    """The last arguments of most operators, checked and of the very types that these take."""
    log_base(base)
    unit = None if base is None else float(base)
    return unit, axis_number(axis), bool(keepdims), thread_bound(n_threads), invalid_choice(invalid)


def _result_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    names = tuple(_TYPE_NAMES[dtype] for dtype in dtypes)
    return torch.float32 if result_type(names) == np.float32 else torch.float64


def _from_number(x: Any, operands: Sequence[Any]) -> Any:
    """A Python number as a tensor of the type that it has beside tensors; what is neither as it is."""
    if type(x) is not float and type(x) is not int:
        return x
    dtypes = {other.dtype for other in operands if isinstance(other, Tensor)}
    known = dtypes and dtypes.issubset(_TYPE_NAMES)
    return torch.tensor(x, dtype=_result_dtype(dtypes) if known else torch.float64, device="cpu")


def _arrays(*operands: Tensor | None) -> tuple[list[Array], Literal["bfloat16"] | None]:
    """An operator's operands that were given as NumPy sees them, in the same memory, and the ``dtype`` to say so."""
    given = _given(*operands)
    dtypes = {x.dtype for x in given}
    halves = torch.bfloat16 in dtypes
    if halves and torch.uint16 in dtypes:  # which holds numbers here, not another type's bits
        given = [x.to(torch.int32) if x.dtype is torch.uint16 else x for x in given]
    return [as_array(x) for x in given], "bfloat16" if halves else None


def _called(function: Callable[..., Any], operands: Sequence[Tensor | None], **options: Any) -> Tensor:
    """What a function for arrays gives for tensors."""
    arrays, dtype = _arrays(*operands)
    return _tensor(function(*arrays, dtype=dtype, **options))


def _tensor(result: Any) -> Tensor:
    """An array, or a scalar of NumPy's, as a tensor in the same memory."""
    return torch.from_numpy(result[...])


_TYPE_NAMES = {
    getattr(torch, name): name
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


# The operators. Each has an implementation for the CPU, one that tells the shape and the dtype of its result, and an
# autograd formula, which calls an operator of its own so that it is as opaque to a compiler as the first.


@custom_op("fastkl::kl_divergence", mutates_args=(), device_types="cpu")
def _kl_divergence(
    p: Tensor,
    q: Tensor,
    normalize: bool,
    base: float | None,
    axis: int,
    keepdims: bool,
    n_threads: int | None,
    invalid: str,
) -> Tensor:
    return _called(
        discrete.kl_divergence,
        (p, q),
        normalize=normalize,
        base=base,
        axis=axis,
        keepdims=keepdims,
        n_threads=n_threads,
        invalid=invalid,
    )


@custom_op("fastkl::js_divergence", mutates_args=(), device_types="cpu")
def _js_divergence(
    p: Tensor,
    q: Tensor,
    weight: float,
    normalize: bool,
    base: float | None,
    axis: int,
    keepdims: bool,
    n_threads: int | None,
    invalid: str,
) -> Tensor:
    return _called(
        discrete.js_divergence,
        (p, q),
        weight=weight,
        normalize=normalize,
        base=base,
        axis=axis,
        keepdims=keepdims,
        n_threads=n_threads,
        invalid=invalid,
    )


@custom_op("fastkl::discrete_backward", mutates_args=(), device_types="cpu")
def _discrete_backward(
    upstream: Tensor,
    p: Tensor,
    q: Tensor,
    needed: list[bool],
    weight: float | None,
    normalize: bool,
    base: float | None,
    axis: int,
) -> list[Tensor]:
    # Of the operators for gradients, upstream has all axes: the reduced one has length 1.
    (p_array, q_array), dtype = _arrays(p, q)
    rows = row_pairs(p_array, q_array, axis, dtype)
    factor = upstream.squeeze(axis).numpy(force=True)
    gradients = discrete_gradients(rows, factor, needed, weight, normalize, log_base(base))
    operands = [x for x, wanted in zip((p, q), needed, strict=True) if wanted]
    return _written(gradients, operands, [True] * len(operands))


@custom_op("fastkl::kl_divergence_from_logits", mutates_args=(), device_types="cpu")
def _kl_divergence_from_logits(
    p_logits: Tensor,
    q_logits: Tensor,
    temperature: float,
    base: float | None,
    axis: int,
    keepdims: bool,
    n_threads: int | None,
    invalid: str,
) -> Tensor:
    return _called(
        logits.kl_divergence_from_logits,
        (p_logits, q_logits),
        temperature=temperature,
        base=base,
        axis=axis,
        keepdims=keepdims,
        n_threads=n_threads,
        invalid=invalid,
    )


@custom_op("fastkl::distillation_loss", mutates_args=(), device_types="cpu")
def _distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    reduction: str,
    axis: int,
    n_threads: int | None,
    invalid: str,
) -> Tensor:
    return _called(
        logits.distillation_loss,
        (student_logits, teacher_logits),
        temperature=temperature,
        reduction=reduction,
        axis=axis,
        n_threads=n_threads,
        invalid=invalid,
    )


@custom_op("fastkl::logits_backward", mutates_args=(), device_types="cpu")
def _logits_backward(
    upstream: Tensor,
    p_logits: Tensor,
    q_logits: Tensor,
    needed: list[bool],
    temperature: float,
    base: float | None,
    axis: int,
    n_threads: int | None,
) -> list[Tensor]:
    arrays, dtype = _arrays(p_logits, q_logits)
    options: dict[str, Any] = {"temperature": temperature, "axis": axis, "n_threads": n_threads, "dtype": dtype}
    if needed[0] or not 1e-150 <= temperature <= 1e150:
        gradients = logits.kl_divergence_from_logits_grad(*arrays, base=base, **options)
        return _written(gradients, (p_logits, q_logits), needed, upstream)
    # With a p that stays as it is, there is no need to have its gradient in memory: T (q - p) is that of T² D.
    _, slopes = logits.distillation_loss(*arrays[::-1], reduction="none", return_grad=True, **options)
    return _written([slopes], [q_logits], [True], upstream / (temperature**2 * log_base(base)))


@custom_op("fastkl::gaussian_kl", mutates_args=(), device_types="cpu")
def _gaussian_kl(
    mean_p: Tensor,
    scale_p: Tensor,
    mean_q: Tensor | None,
    scale_q: Tensor | None,
    scale: str,
    axis: int | None,
    keepdims: bool,
    n_threads: int | None,
    invalid: str,
) -> Tensor:
    return _called(
        gaussian.gaussian_kl,
        (mean_p, scale_p, mean_q, scale_q),
        scale=scale,
        axis=axis,
        keepdims=keepdims,
        n_threads=n_threads,
        invalid=invalid,
    )


@custom_op("fastkl::gaussian_backward", mutates_args=(), device_types="cpu")
def _gaussian_backward(
    upstream: Tensor,
    mean_p: Tensor,
    scale_p: Tensor,
    mean_q: Tensor | None,
    scale_q: Tensor | None,
    needed: list[bool],
    scale: str,
) -> list[Tensor]:
    operands = _given(mean_p, scale_p, mean_q, scale_q)
    arrays, dtype = _arrays(*operands)
    options: dict[str, Any] = {"scale": scale, "dtype": dtype}
    return _written(gaussian.gaussian_kl_grad(*arrays, **options), operands, needed, upstream)


def _given(*operands: Tensor | None) -> list[Tensor]:
    return [x for x in operands if x is not None]


def _written(
    gradients: Sequence[Array], operands: Sequence[Tensor], needed: Sequence[bool], upstream: Tensor | None = None
) -> list[Tensor]:
    """Those of the gradients that are needed, as :func:`_fitted` has them, in memory that is nobody else's."""
    slopes = [torch.from_numpy(x) for x in gradients]
    for x, wanted in zip(slopes, needed, strict=False):
        if wanted and upstream is not None:
            x *= upstream
    return _fitted(slopes, operands, needed)


def _fitted(
    slopes: Sequence[Tensor], operands: Sequence[Tensor], needed: Sequence[bool], upstream: Tensor | None = None
) -> list[Tensor]:
    """Those of the gradients that are needed, in the shapes and dtypes of the operands, and times ``upstream``."""
    chosen = [(slope, x) for slope, x, wanted in zip(slopes, operands, needed, strict=False) if wanted]
    return [(slope if upstream is None else slope * upstream).sum_to_size(x.shape).to(x.dtype) for slope, x in chosen]


# What the results look like.


@_kl_divergence.register_fake
def _(p: Tensor, q: Tensor, normalize: bool, base: float | None, axis: int, keepdims: bool, *_: object) -> Tensor:
    return _reduced((p, q), axis, keepdims)


@_js_divergence.register_fake
def _(
    p: Tensor, q: Tensor, weight: float, normalize: bool, base: float | None, axis: int, keepdims: bool, *_: object
) -> Tensor:
    return _reduced((p, q), axis, keepdims)


@_kl_divergence_from_logits.register_fake
def _(p: Tensor, q: Tensor, temperature: float, base: float | None, axis: int, keepdims: bool, *_: object) -> Tensor:
    return _reduced((p, q), axis, keepdims)


@_distillation_loss.register_fake
def _(student: Tensor, teacher: Tensor, temperature: float, reduction: str, axis: int, *_: object) -> Tensor:
    losses = _reduced((student, teacher), axis, keepdims=False)
    return losses if reduction == "none" else losses.new_empty(())


@_gaussian_kl.register_fake
def _(
    mean_p: Tensor,
    scale_p: Tensor,
    mean_q: Tensor | None,
    scale_q: Tensor | None,
    scale: str,
    axis: int | None,
    keepdims: bool,
    *_: object,
) -> Tensor:
    return _reduced(_given(mean_p, scale_p, mean_q, scale_q), axis, keepdims)


@_discrete_backward.register_fake
@_logits_backward.register_fake
def _(upstream: Tensor, p: Tensor, q: Tensor, needed: list[bool], *_: object) -> list[Tensor]:
    return _alike((p, q), needed)


@_gaussian_backward.register_fake
def _(
    upstream: Tensor,
    mean_p: Tensor,
    scale_p: Tensor,
    mean_q: Tensor | None,
    scale_q: Tensor | None,
    needed: list[bool],
    scale: str,
) -> list[Tensor]:
    return _alike(_given(mean_p, scale_p, mean_q, scale_q), needed)


def _reduced(operands: Sequence[Tensor], axis: int | None, keepdims: bool) -> Tensor:
    """An empty result of a reduction, None for an ``axis`` that is not reduced."""
    shapes = [tuple(x.shape) for x in operands]
    if axis is None:
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    else:
        ndim = max(len(shape) for shape in shapes)
        at = axis % ndim
        padded = [(*(1,) * (ndim - len(shape)), *shape) for shape in shapes]
        kept = (1,) if keepdims else ()
        shape = torch.broadcast_shapes(*((*shape[:at], *kept, *shape[at + 1 :]) for shape in padded))  # type: ignore[no-untyped-call]
    return operands[0].new_empty(shape, dtype=_result_dtype({x.dtype for x in operands}))


def _alike(operands: Sequence[Tensor], needed: list[bool]) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, wanted in zip(operands, needed, strict=False) if wanted]


# What autograd needs to know. ``needed`` tells of which operands; None stands for the gradients of all other arguments.


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _save_four(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _placed(gradients: Sequence[Tensor], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument of an operator, those that are needed in their places."""
    remaining = iter(gradients)
    return tuple(next(remaining) if wanted else None for wanted in needed)


def _kl_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    normalize, base, axis, keepdims, *_ = ctx.options
    return _discrete_formula(ctx, upstream, None, normalize, base, axis, keepdims)


def _js_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    weight, normalize, base, axis, keepdims, *_ = ctx.options
    return _discrete_formula(ctx, upstream, weight, normalize, base, axis, keepdims)


def _discrete_formula(
    ctx: Any,
    upstream: Tensor,
    weight: float | None,
    normalize: bool,
    base: float | None,
    axis: int,
    keepdims: bool,
) -> tuple[Tensor | None, ...]:
    p, q = ctx.saved_tensors
    needed = ctx.needs_input_grad
    rows = upstream if keepdims else upstream.unsqueeze(axis)
    if torch.is_grad_enabled():
        slopes = _torch_gradients.discrete_gradients(p, q, weight, normalize, log_base(base), axis)
        return _placed(_fitted(slopes, (p, q), needed, rows), needed)
    options = list(needed[:2]), weight, normalize, base, axis
    return _placed(_OPS.discrete_backward.default(rows, p, q, *options), needed)


def _kl_from_logits_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    temperature, base, axis, keepdims, n_threads, _ = ctx.options
    p_logits, q_logits = ctx.saved_tensors
    rows = upstream if keepdims else upstream.unsqueeze(axis)
    needed = ctx.needs_input_grad
    gradients = _logits_formula(rows, p_logits, q_logits, needed[:2], temperature, base, axis, n_threads)
    return _placed(gradients, needed)


def _distillation_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    student, teacher = ctx.saved_tensors
    temperature, reduction, axis, n_threads, _ = ctx.options
    to_student, to_teacher, *_ = needed = ctx.needs_input_grad
    rows = upstream * temperature**2
    if reduction == "none":
        rows = rows.unsqueeze(axis)
    elif reduction == "batchmean":
        rows = rows / _reduced((student, teacher), axis, keepdims=False).numel()
    gradients = _logits_formula(rows, teacher, student, (to_teacher, to_student), temperature, None, axis, n_threads)
    return _placed(gradients[::-1], needed)


def _logits_formula(
    rows: Tensor,
    p_logits: Tensor,
    q_logits: Tensor,
    needed: Sequence[bool],
    temperature: float,
    base: float | None,
    axis: int,
    n_threads: int | None,
) -> list[Tensor]:
    gradients: list[Tensor]
    if torch.is_grad_enabled():
        slopes = _torch_gradients.logits_gradients(p_logits, q_logits, temperature, log_base(base), axis)
        gradients = _fitted(slopes, (p_logits, q_logits), needed, rows)
    else:
        options = list(needed), temperature, base, axis, n_threads
        gradients = _OPS.logits_backward.default(rows, p_logits, q_logits, *options)
    return gradients


def _gaussian_kl_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    scale, axis, keepdims, *_ = ctx.options
    needed = ctx.needs_input_grad
    rows = upstream if keepdims or axis is None else upstream.unsqueeze(axis)
    if torch.is_grad_enabled():
        operands = _given(*ctx.saved_tensors)
        slopes = _torch_gradients.gaussian_gradients(operands, scale)
        return _placed(_fitted(slopes, operands, needed, rows), needed)
    return _placed(_OPS.gaussian_backward.default(rows, *ctx.saved_tensors, list(needed[:4]), scale), needed)


_FUNCTIONS: dict[str, Any] = {}

for _operator, _backward, _setup in (
    (_kl_divergence, _kl_backward, _save_pair),
    (_js_divergence, _js_backward, _save_pair),
    (_kl_divergence_from_logits, _kl_from_logits_backward, _save_pair),
    (_distillation_loss, _distillation_backward, _save_pair),
    (_gaussian_kl, _gaussian_kl_backward, _save_four),
):
    _operator.register_autograd(_backward, setup_context=_setup)
    _FUNCTIONS[_operator._name] = type(
        _operator._name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(partial(_dispatched, _operator._name)),
            "setup_context": staticmethod(_setup),
            "backward": staticmethod(_backward),
            "generate_vmap_rule": True,
        },
    )


# What torch.vmap needs to know: the mapped axis is put before those of the batch.


def _aligned(info: Any, tensors: Sequence[Tensor | None], dims: Sequence[int | None]) -> list[Tensor | None]:
    """Operands with the mapped axis first, and axes of length 1 behind it where they have fewer than others."""
    mapped = [
        None if x is None else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=True)
    ]
    ndim = max(x.dim() for x in mapped if x is not None)
    return [None if x is None else x.reshape(len(x), *(1,) * (ndim - x.dim()), *x.shape[1:]) for x in mapped]


def _from_end(axis: int, operands: Sequence[Tensor | None]) -> int:
    """The axis of such operands without their first one, counted from the end."""
    ndim = next(x.dim() for x in operands if x is not None) - 1
    return axis if axis < 0 else axis - ndim


def _reduction_vmap(operator: str, axis_at: int) -> Callable[..., tuple[Tensor, int]]:
    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Tensor, int]:
        operands = _aligned(info, arguments[:2], in_dims[:2])
        options = list(arguments[2:])
        options[axis_at] = _from_end(options[axis_at], operands)
        return _dispatched(operator, *operands, *options), 0

    return rule


def _distillation_vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Tensor, int]:
    temperature, reduction, axis, *options = arguments[2:]
    operands = _aligned(info, arguments[:2], in_dims[:2])
    losses = _dispatched("distillation_loss", *operands, temperature, "none", _from_end(axis, operands), *options)
    if reduction == "none":
        return losses, 0
    losses_of_each = losses.flatten(1).to(torch.float64) if losses.dim() > 1 else losses.unsqueeze(1).to(torch.float64)
    total = losses_of_each.mean(1) if reduction == "batchmean" else losses_of_each.sum(1)
    return total.to(losses.dtype), 0


def _gaussian_vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Tensor, int]:
    scale, axis, *options = arguments[4:]
    operands = _aligned(info, arguments[:4], in_dims[:4])
    if axis is not None:
        axis = _from_end(axis, operands)
        length = max(x.shape[axis] for x in operands if x is not None)
        for i, (x, given, dim) in enumerate(zip(operands, arguments[:4], in_dims[:4], strict=True)):
            if x is not None and given.dim() == (dim is not None):  # scalars alone are stretched along the axis
                operands[i] = x.expand(*x.shape[:axis], length, *x.shape[x.dim() + axis + 1 :])
    return _dispatched("gaussian_kl", *operands, scale, axis, *options), 0


_kl_divergence.register_vmap(_reduction_vmap("kl_divergence", 2))
_js_divergence.register_vmap(_reduction_vmap("js_divergence", 3))
_kl_divergence_from_logits.register_vmap(_reduction_vmap("kl_divergence_from_logits", 2))
_distillation_loss.register_vmap(_distillation_vmap)
_gaussian_kl.register_vmap(_gaussian_vmap)
