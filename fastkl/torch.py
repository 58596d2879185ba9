"""Divergences of PyTorch tensors: the functions of :mod:`fastkl`, differentiable, and whole in compiled graphs.

Each function has the name, the options and the results of the one for NumPy arrays, and takes tensors on the CPU, of
which it makes no copies. Each is an operator of PyTorch's (``torch.ops.fastkl.kl_divergence`` and so on) with what
autograd, ``torch.compile`` and ``torch.vmap`` need to know of it; where nothing is differentiated or traced, the
kernels are called at once, without the dispatcher. Differences from the functions for arrays:

* ``out`` and ``dtype`` are left out: results are new tensors, and a tensor of ``torch.bfloat16`` says what it is.
* A result without axes is a tensor without axes.
* Gradients have the dtype and the shape of the operand; second derivatives are not there and raise RuntimeError.
* NumPy arrays, and tensors on another device or of another layout, raise TypeError.

The gradients of discrete divergences treat a bin in which p is 0 as one whose term is the constant 0; those of an
invalid row are NaN. :mod:`fastkl.logits` and :mod:`fastkl.gaussian` say what those of the others are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.library import custom_op

from fastkl import discrete, gaussian, logits
from fastkl._gradients import discrete_gradients
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
    if _at_once(p, q):
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
    _refuse_others("kl_divergence", p=p, q=q)
    return _OPS.kl_divergence.default(p, q, bool(normalize), *_common(base, axis, keepdims, n_threads, invalid))


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
    if _at_once(p, q):
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
    _refuse_others("js_divergence", p=p, q=q)
    common = _common(base, axis, keepdims, n_threads, invalid)
    return _OPS.js_divergence.default(p, q, js_weight(weight), bool(normalize), *common)


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
    if _at_once(p_logits, q_logits):
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
    _refuse_others("kl_divergence_from_logits", p_logits=p_logits, q_logits=q_logits)
    common = _common(base, axis, keepdims, n_threads, invalid)
    return _OPS.kl_divergence_from_logits.default(p_logits, q_logits, softmax_temperature(temperature), *common)


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
    if _at_once(student_logits, teacher_logits):
        return _called(
            logits.distillation_loss,
            (student_logits, teacher_logits),
            temperature=temperature,
            reduction=reduction,
            axis=axis,
            n_threads=n_threads,
            invalid=invalid,
        )
    _refuse_others("distillation_loss", student_logits=student_logits, teacher_logits=teacher_logits)
    return _OPS.distillation_loss.default(
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
    operands = (mean_p, scale_p) if mean_q is None and scale_q is None else (mean_p, scale_p, mean_q, scale_q)
    if _at_once(*(x for x in operands if not _is_number(x))):
        return _called(
            gaussian.gaussian_kl,
            operands,
            scale=scale,
            axis=axis,
            keepdims=keepdims,
            n_threads=n_threads,
            invalid=invalid,
        )
    given, names = gaussian_operands(mean_p, scale_p, mean_q, scale_q)
    tensors = {name: x for name, x in zip(names, given, strict=True) if not _is_number(x)}
    _refuse_others("gaussian_kl", **tensors)
    dtype = _result_dtype(tensors.values())
    converted = [torch.tensor(x, dtype=dtype) if _is_number(x) else x for x in given]
    return _OPS.gaussian_kl.default(
        *(converted if len(converted) == 4 else (*converted, None, None)),
        gaussian_scale(scale),
        None if axis is None else axis_number(axis),
        bool(keepdims),
        thread_bound(n_threads),
        invalid_choice(invalid),
    )


def _at_once(*operands: object) -> bool:
    """Whether to call the kernels without PyTorch's dispatcher: these are plain, and nobody is to hear of the call."""
    if torch.compiler.is_compiling():
        return False
    # Modes see every call; torch.func wraps tensors in what looks like them; tangents are not to be lost.
    if (
        _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or peek_interpreter_stack() is not None
        or _get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    recording = torch.is_grad_enabled()
    for x in operands:
        if type(x) is not Tensor or not x.is_cpu or x.layout is not torch.strided or (recording and x.requires_grad):
            return False
    return True


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
        if x.layout is not torch.strided:
            raise TypeError(f"{name} has the layout {x.layout}; pass {name}.to_dense()")
        _type_name(name, x)


def _common(
    base: float | None, axis: SupportsIndex, keepdims: bool, n_threads: int | None, invalid: str
) -> tuple[float | None, int, bool, int | None, str]:
    """The last arguments of most operators, checked and of the very types that these take."""
    log_base(base)
    unit = None if base is None else float(base)
    return unit, axis_number(axis), bool(keepdims), thread_bound(n_threads), invalid_choice(invalid)


def _type_name(name: str, x: Tensor) -> str:
    try:
        return _TYPE_NAMES[x.dtype]
    except KeyError:
        raise TypeError(
            f"{name} has dtype {x.dtype}; pass float64, float32, float16, bfloat16, integers or bool, for instance "
            f"{name}.to(torch.float64)"
        ) from None


def _result_dtype(operands: Iterable[Tensor]) -> torch.dtype:
    names = tuple(_TYPE_NAMES[x.dtype] for x in operands)
    return torch.float32 if result_type(names) == np.float32 else torch.float64


def _is_number(x: object) -> bool:
    return type(x) is float or type(x) is int


def _arrays(operands: Sequence[Tensor | float]) -> tuple[list[Any], Literal["bfloat16"] | None]:
    """The operands as NumPy sees them, in the same memory, and the ``dtype`` to call its functions with."""
    halves = any(not _is_number(x) and x.dtype is torch.bfloat16 for x in operands)
    arrays: list[Any] = []
    for x in operands:
        if _is_number(x):
            arrays.append(x)
        elif x.dtype is torch.bfloat16:
            arrays.append(x.view(torch.uint16).numpy(force=True))
        elif halves and x.dtype is torch.uint16:  # numbers, and not another's bits
            arrays.append(x.to(torch.int32).numpy())
        else:
            arrays.append(x.numpy(force=True))  # a copy of no more than what is stored with the wrong sign
    return arrays, "bfloat16" if halves else None


def _called(function: Callable[..., Any], operands: Sequence[Tensor | float], **options: Any) -> Tensor:
    """What a function for arrays returns for tensors, as a tensor in the same memory."""
    arrays, dtype = _arrays(operands)
    return torch.from_numpy(function(*arrays, dtype=dtype, **options)[...])


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
    keepdims: bool,
) -> list[Tensor]:
    (p_array, q_array), dtype = _arrays((p, q))
    rows = row_pairs(p_array, q_array, axis, dtype)
    factor = upstream.squeeze(axis) if keepdims else upstream
    gradients = discrete_gradients(rows, factor.numpy(force=True), weight, normalize, log_base(base))
    return _fitted(gradients, (p, q), needed)


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
    # upstream has the reduced axis, of length 1
    arrays, dtype = _arrays((p_logits, q_logits))
    gradients = logits.kl_divergence_from_logits_grad(
        *arrays, temperature=temperature, base=base, axis=axis, n_threads=n_threads, dtype=dtype
    )
    return _fitted(gradients, (p_logits, q_logits), needed, upstream)


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
        _given(mean_p, scale_p, mean_q, scale_q),
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
    arrays, dtype = _arrays(operands)
    return _fitted(gaussian.gaussian_kl_grad(*arrays, scale=scale, dtype=dtype), operands, needed, upstream)


def _given(*operands: Tensor | None) -> list[Tensor]:
    return [x for x in operands if x is not None]


def _fitted(
    gradients: Sequence[Array], operands: Sequence[Tensor], needed: list[bool], upstream: Tensor | None = None
) -> list[Tensor]:
    """The gradients that are needed, in the shapes and dtypes of the operands, and times ``upstream``."""
    fitted = []
    for gradient, x, wanted in zip(gradients, operands, needed, strict=False):
        if wanted:
            slopes = torch.from_numpy(gradient)
            if upstream is not None:
                slopes *= upstream
            fitted.append(slopes.sum_to_size(x.shape).to(x.dtype))
    return fitted


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
        shape = torch.broadcast_shapes(*shapes)
    else:
        ndim = max(len(shape) for shape in shapes)
        at = axis % ndim
        padded = [(*(1,) * (ndim - len(shape)), *shape) for shape in shapes]
        kept = (1,) if keepdims else ()
        shape = torch.broadcast_shapes(*((*shape[:at], *kept, *shape[at + 1 :]) for shape in padded))
    return operands[0].new_empty(shape, dtype=_result_dtype(operands))


def _alike(operands: Sequence[Tensor], needed: list[bool]) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, wanted in zip(operands, needed, strict=False) if wanted]


# What autograd needs to know. ``needed`` tells of which operands; None stands for the gradients of all other arguments.


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _save_four(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _placed(gradients: list[Tensor], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument of an operator, those that are needed in their places."""
    remaining = iter(gradients)
    return tuple(next(remaining) if wanted else None for wanted in needed)


def _kl_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    normalize, base, axis, keepdims, *_ = ctx.options
    needed = list(ctx.needs_input_grad[:2])
    options = None, normalize, base, axis, keepdims
    return _placed(_OPS.discrete_backward.default(upstream, *ctx.saved_tensors, needed, *options), ctx.needs_input_grad)


def _js_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    options = ctx.options[:5]
    needed = list(ctx.needs_input_grad[:2])
    return _placed(_OPS.discrete_backward.default(upstream, *ctx.saved_tensors, needed, *options), ctx.needs_input_grad)


def _kl_from_logits_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    temperature, base, axis, keepdims, n_threads, _ = ctx.options
    needed = list(ctx.needs_input_grad[:2])
    rows = upstream if keepdims else upstream.unsqueeze(axis)
    options = temperature, base, axis, n_threads
    return _placed(_OPS.logits_backward.default(rows, *ctx.saved_tensors, needed, *options), ctx.needs_input_grad)


def _distillation_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    student, teacher = ctx.saved_tensors
    temperature, reduction, axis, n_threads, _ = ctx.options
    to_student, to_teacher = ctx.needs_input_grad[:2]
    rows = upstream * temperature**2
    if reduction == "none":
        rows = rows.unsqueeze(axis)
    elif reduction == "batchmean":
        rows = rows / _reduced((student, teacher), axis, keepdims=False).numel()
    options = temperature, None, axis, n_threads
    gradients = _OPS.logits_backward.default(rows, teacher, student, [to_teacher, to_student], *options)
    return _placed(gradients[::-1], ctx.needs_input_grad)


def _gaussian_backward_(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    scale, axis, keepdims, *_ = ctx.options
    needed = list(ctx.needs_input_grad[:4])
    rows = upstream if keepdims or axis is None else upstream.unsqueeze(axis)
    return _placed(_OPS.gaussian_backward.default(rows, *ctx.saved_tensors, needed, scale), ctx.needs_input_grad)


_kl_divergence.register_autograd(_kl_backward, setup_context=_save_pair)
_js_divergence.register_autograd(_js_backward, setup_context=_save_pair)
_kl_divergence_from_logits.register_autograd(_kl_from_logits_backward, setup_context=_save_pair)
_distillation_loss.register_autograd(_distillation_backward, setup_context=_save_pair)
_gaussian_kl.register_autograd(_gaussian_backward_, setup_context=_save_four)
