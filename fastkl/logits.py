"""Measures of how far one softmax is from another, over millions of rows of logits.

A *row* is one distribution along the reduced axis, as networks put it out: p = softmax(p_logits/T), which is
exp(p_logits/T) divided by its sum. All other axes are the batch. The softmax is never formed in memory, nor is the
difference of two logarithms: results are right to their last bits however close the two rows are.

Options common to all functions
-------------------------------
p_logits, q_logits : array_like
    Numbers; -inf stands for a probability of 0. The reduced axis must be equally long in both; the other axes broadcast
    as in NumPy, without copies. Types and memory layouts are those of :mod:`fastkl.discrete`.
temperature : float
    The T above, a finite number > 0.
invalid : {"nan", "raise"}
    What to do about a row that holds NaN or +inf, or nothing but -inf: give NaN for it, with no warning and nothing
    else touched (the default), or raise ValueError that tells how many rows are bad, which is the first and what is
    wrong with it. ``out`` is filled either way.
base, axis, keepdims, out, n_threads, dtype
    As in :mod:`fastkl.discrete`, and so are the types of results.

Every function raises ValueError, with the shapes or the value in question, for operands that do not fit each other, for
empty rows, for an ``out`` of another shape or dtype or that is read-only, and for options with impossible values; and
TypeError, saying what to pass instead, for complex, object, string, longdouble, masked and sparse operands.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from fastkl._containers import in_containers
from fastkl._kernels._batch import FAMILIES, LOGITS_OPS, TYPES, reduce
from fastkl._runtime import threads_for
from fastkl._validation import (
    DISTILLED,
    LOGITS,
    LOGITS_METRICS,
    Contained,
    deliver,
    distillation_temperature,
    gradient_for,
    invalid_choice,
    js_weight,
    log_base,
    logits_fault,
    loss_reduction,
    metric_names,
    row_pairs,
    softmax_temperature,
    stretches,
    target_for,
    thread_bound,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import SupportsIndex

    from numpy.typing import ArrayLike

    from fastkl._validation import Array, Result, Rows

__all__ = [
    "cross_entropy_from_logits",
    "distillation_loss",
    "entropy_from_logits",
    "js_distance_from_logits",
    "js_divergence_from_logits",
    "kl_divergence_from_logits",
    "kl_divergence_from_logits_grad",
    "score_from_logits",
]


def kl_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Kullback-Leibler divergence D(p‖q) = Σ p log(p/q) of the softmax of each pair of rows.

    Parameters
    ----------
    p_logits, q_logits : array_like
        The logits of the distributions, of shape (..., K).
    temperature, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    A probability of 0 in p alone adds nothing; one in q alone makes the divergence infinite, however small p is there.
    The result is never negative, 0 for equal rows, and does not change when a constant is added to a row. With
    x = (p_logits − q_logits)/T less its mean over p, it is log(1 + Σ p (e⁻ˣ − 1 + x)), in which no term is negative.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22 (1951) 79-86.

    Examples
    --------
    >>> import numpy as np
    >>> import fastkl
    >>> fastkl.kl_divergence_from_logits([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [[1.0, 2.0, 2.5], [0.0, 0.0, -np.inf]])
    array([0.02914512,        inf])
    """
    a, b, unit = p_logits, q_logits, log_base(base)
    return _reduce("kl", a, b, temperature, axis, keepdims, out, n_threads, invalid, dtype, unit)


def js_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    weight: float = 0.5,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Jensen-Shannon divergence w D(p‖m) + (1 − w) D(q‖m), m = w p + (1 − w) q, of the softmax of pairs of rows.

    Parameters
    ----------
    p_logits, q_logits : array_like
        The logits of the distributions, of shape (..., K).
    weight : float
        The weight w of ``p`` in the mixture, between 0 and 1.
    temperature, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`.

    Returns
    -------
    ndarray or scalar
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for a ``weight`` outside [0, 1].

    Notes
    -----
    It is finite for all pairs: with w = 1/2 it lies between 0, for equal rows, and log 2, for disjoint ones. With a
    weight of 0 or 1 it is 0.

    References
    ----------
    J. Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory 37 (1991)
    145-151.

    Examples
    --------
    >>> import numpy as np
    >>> import fastkl
    >>> fastkl.js_divergence_from_logits([[1.0, 1.0], [0.0, -np.inf]], [[2.0, 2.0], [-np.inf, 0.0]], base=2)
    array([0., 1.])
    """
    a, b, unit, w = p_logits, q_logits, log_base(base), js_weight(weight)
    return _reduce("js", a, b, temperature, axis, keepdims, out, n_threads, invalid, dtype, unit, w)


def js_distance_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    weight: float = 0.5,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Jensen-Shannon distance of the softmax of each pair of rows: the root of :func:`js_divergence_from_logits`.

    Parameters
    ----------
    p_logits, q_logits : array_like
        The logits of the distributions, of shape (..., K).
    weight : float
        The weight w of ``p`` in the mixture, between 0 and 1.
    temperature, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`.

    Returns
    -------
    ndarray or scalar
        The distance of each pair of rows, the root of a number of nats or of units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for a ``weight`` outside [0, 1], or for a ``base`` below 1, in which
        the divergence is negative.

    Notes
    -----
    It is finite for all pairs, and with w = 1/2 a metric. The root is taken of the divergence in the given base, so it
    is 1 for disjoint rows and ``base=2``.

    References
    ----------
    D. M. Endres and J. E. Schindelin, "A New Metric for Probability Distributions", IEEE Transactions on Information
    Theory 49 (2003) 1858-1860.

    Examples
    --------
    >>> import numpy as np
    >>> import fastkl
    >>> fastkl.js_distance_from_logits([[1.0, 1.0], [0.0, -np.inf]], [[2.0, 2.0], [-np.inf, 0.0]], base=2)
    array([0., 1.])
    """
    a, b, unit, w = p_logits, q_logits, log_base(base, above=1.0), js_weight(weight)
    return _reduce("js_distance", a, b, temperature, axis, keepdims, out, n_threads, invalid, dtype, unit, w)


def cross_entropy_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The cross-entropy −Σ p log q of the softmax of each pair of rows.

    Parameters
    ----------
    p_logits, q_logits : array_like
        The logits of the distributions, of shape (..., K).
    temperature, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`.

    Returns
    -------
    ndarray or scalar
        The cross-entropy of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    It is H(p) + D(p‖q). A probability of 0 in p alone adds nothing; one in q alone makes it infinite.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal 27 (1948) 379-423; I. J.
    Good, "Some Terminology and Notation in Information Theory", Proceedings of the IEE C 103 (1956) 200-204.

    Examples
    --------
    >>> import numpy as np
    >>> import fastkl
    >>> fastkl.cross_entropy_from_logits([[0.0, 0.0], [0.0, 0.0]], [[1.0, 3.0], [0.0, -np.inf]])
    array([1.12692801,        inf])
    """
    a, b, unit = p_logits, q_logits, log_base(base)
    return _reduce("cross_entropy", a, b, temperature, axis, keepdims, out, n_threads, invalid, dtype, unit)


def entropy_from_logits(
    p_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """The Shannon entropy −Σ p log p of the softmax of each row.

    Parameters
    ----------
    p_logits : array_like
        The logits of the distributions, of shape (..., K).
    temperature, base, axis, keepdims, out, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`.

    Returns
    -------
    ndarray or scalar
        The entropy of each row, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    A probability of 0 adds nothing. The entropy lies between 0, for a row with a single logit above -inf, and log K,
    for one of equal logits.

    References
    ----------
    C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal 27 (1948) 379-423.

    Examples
    --------
    >>> import numpy as np
    >>> import fastkl
    >>> fastkl.entropy_from_logits([[0.0, -np.inf, -np.inf, -np.inf], [5.0, 5.0, 5.0, 5.0]], base=2)
    array([0., 2.])
    """
    a, unit = p_logits, log_base(base)
    return _reduce("entropy", a, a, temperature, axis, keepdims, out, n_threads, invalid, dtype, unit)


def score_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    metrics: Iterable[str] = ("kl", "reverse_kl", "js"),
    *,
    temperature: float = 1.0,
    base: float | None = None,
    weight: float = 0.5,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> dict[str, Result]:
    """Several measures of the softmax of the same pairs of rows, in one pass over memory.

    Parameters
    ----------
    p_logits, q_logits : array_like
        The logits of the distributions, of shape (..., K).
    metrics : iterable of str
        What to compute: ``"kl"``, ``"reverse_kl"`` (D(q‖p)), ``"js"``, ``"js_distance"``, ``"cross_entropy"``,
        ``"entropy"`` (of p), ``"top1_agreement"`` (1 where the first of the largest logits is at the same place in both
        rows, else 0). A name given twice counts once.
    weight : float
        For ``"js"`` and ``"js_distance"``: as in :func:`js_divergence_from_logits`.
    temperature, base, axis, keepdims, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`. ``base`` leaves ``"top1_agreement"`` alone, which
        has no logarithm, and so does ``temperature``.

    Returns
    -------
    dict
        For each metric, in the order given, what the function of that name returns; shape (...).

    Raises
    ------
    ValueError, TypeError
        As the function of each metric does, and ValueError for an unknown metric, or none.

    Notes
    -----
    What -inf and NaN give is said with the function of each metric, and where its formula comes from.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.score_from_logits([[1.0, 3.0], [2.0, 0.0]], [[3.0, 1.0], [1.0, 0.0]], metrics=("kl", "top1_agreement"))
    {'kl': array([1.52318831, 0.06713075]), 'top1_agreement': array([0., 1.])}
    """
    names = metric_names(metrics, LOGITS_METRICS)
    try:
        rows = row_pairs(p_logits, q_logits, axis, dtype, LOGITS)
    except Contained as contained:
        call = partial(
            score_from_logits,
            metrics=names,
            temperature=temperature,
            base=base,
            weight=weight,
            axis=axis,
            keepdims=keepdims,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
        )
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    degree = softmax_temperature(temperature)
    unit = log_base(base, above=1.0 if "js_distance" in names else 0.0)
    mixture_weight = js_weight(weight)
    targets = {name: target_for(rows, keepdims, None)[0] for name in names}
    operations = tuple(LOGITS_OPS[name] for name in names)
    _fill(tuple(targets.values()), operations, rows, (), bound, degree, unit, mixture_weight)
    return {name: deliver(rows, x, None, logits_fault, keepdims, None, invalid) for name, x in targets.items()}


@overload
def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    reduction: Literal["batchmean", "sum", "none"] = "batchmean",
    return_grad: Literal[False] = False,
    axis: SupportsIndex = -1,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result: ...


@overload
def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    reduction: Literal["batchmean", "sum", "none"] = "batchmean",
    return_grad: Literal[True],
    axis: SupportsIndex = -1,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> tuple[Result, Array]: ...


def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    reduction: Literal["batchmean", "sum", "none"] = "batchmean",
    return_grad: bool = False,
    axis: SupportsIndex = -1,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result | tuple[Result, Array]:
    """The loss T² D(p‖q) of knowledge distillation, with p the softmax of the teacher's logits and q the student's.

    Parameters
    ----------
    student_logits, teacher_logits : array_like
        The logits, of shape (..., K).
    temperature : float
        The T of both softmaxes, between 1e-150 and 1e150.
    reduction : {"batchmean", "sum", "none"}
        What to return: the sum of the losses of all rows divided by the number of rows, those of all batch axes; their
        sum; or the loss of each row.
    return_grad : bool
        Return the gradient with respect to the student's logits too, computed in the same pass.
    axis, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`.

    Returns
    -------
    loss : scalar or ndarray
        The loss, in nats; of shape (...) with ``reduction="none"``.
    gradient : ndarray
        Only with ``return_grad=True``: T (q − p), for ``"batchmean"`` divided by the number of rows; for ``"none"``
        that of each row's own loss. It has the dtype of the loss, and the shape to which the operands broadcast: a
        student's row that stands against several of the teacher has a gradient for each, to be added up.

    Raises
    ------
    ValueError, TypeError
        As all functions here do, and ValueError for an unknown ``reduction``.

    Notes
    -----
    NaN for a row is NaN for its gradient, and for the sum and the mean. A probability of 0 in the student alone makes
    the loss infinite, and leaves the gradient finite. Without rows the sum is 0 and the mean NaN. Rows are added up in
    float64, in an order that depends on the shape of the batch alone.

    For operands of two axes it is what PyTorch users write as
    ``kl_div(log_softmax(student / T, -1), softmax(teacher / T, -1), reduction="batchmean") * T**2``; with more axes,
    PyTorch divides by the length of the first alone.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.

    Examples
    --------
    >>> import fastkl
    >>> student, teacher = [[1.0, 2.0], [0.0, 2.0]], [[2.0, 1.0], [0.0, 1.0]]
    >>> loss, gradient = fastkl.distillation_loss(student, teacher, temperature=2.0, return_grad=True)
    >>> loss.round(8)
    np.float64(0.30082874)
    >>> gradient
    array([[-0.24491866,  0.24491866],
           [-0.10859925,  0.10859925]])
    """
    try:
        rows = row_pairs(teacher_logits, student_logits, axis, dtype, DISTILLED)
    except Contained as contained:
        call = partial(
            _from_teacher,
            temperature=temperature,
            reduction=reduction,
            return_grad=return_grad,
            axis=axis,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
        )
        if loss_reduction(reduction) == "none" or not contained.is_lazy:
            return in_containers(contained, call)
        return _lazy_total(in_containers(contained, partial(call, reduction="none")), reduction == "batchmean")
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    degree = distillation_temperature(temperature)
    square = degree * degree
    n_rows = math.prod(rows.batch_shape)
    mean = loss_reduction(reduction) == "batchmean"
    gradients = (gradient_for(rows),) if return_grad else ()
    loss: Result
    if reduction == "none":
        target, _ = target_for(rows, False, None)
        _fill((target,), (_KL[len(gradients)],), rows, gradients, bound, degree, 1 / square, square)
        loss = deliver(rows, target, None, logits_fault, False, None, invalid)
    else:
        per_row = square / n_rows if mean and n_rows else square
        total = _total(rows, gradients, bound, degree, 1 / square, per_row, invalid)
        if mean:
            total = total / n_rows if n_rows else math.nan
        with np.errstate(over="ignore"):
            loss = rows.types.result.type(total)
    return (loss, *gradients) if return_grad else loss


def _from_teacher(teacher_logits: ArrayLike, student_logits: ArrayLike, **options: Any) -> Any:
    """The loss with its operands in the order in which the divergence takes them."""
    return distillation_loss(student_logits, teacher_logits, **options)


def _lazy_total(losses: Any, mean: bool) -> Any:
    """The sum or the mean of Dask's losses; if they come with a gradient, with that of the total."""
    if isinstance(losses, tuple):
        losses, gradient = losses
        n_rows = losses.size if mean else 1
        return _lazy_total(losses, mean), gradient if n_rows == 1 else gradient / max(n_rows, 1)
    if mean and math.isnan(losses.size):
        raise ValueError("the mean needs the number of rows: call compute_chunk_sizes() of the logits first")
    total = losses.sum(dtype=np.float64)
    return (total / (losses.size or math.nan) if mean else total).astype(losses.dtype)


def kl_divergence_from_logits_grad(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> tuple[Array, Array]:
    """The gradients of :func:`kl_divergence_from_logits` with respect to the logits of both rows.

    Parameters
    ----------
    p_logits, q_logits : array_like
        The logits of the distributions, of shape (..., K).
    temperature, base, axis, n_threads, invalid, dtype
        See `Options common to all functions` in :mod:`fastkl.logits`.

    Returns
    -------
    grad_p, grad_q : ndarray
        ∂D(p‖q)/∂p_logits = p (log(p/q) − D(p‖q))/T and ∂D(p‖q)/∂q_logits = (q − p)/T of each pair of rows, both divided
        by ``log(base)``. They have the dtype of the divergence and the shape to which the operands broadcast: a row
        that stands against several has a gradient for each, to be added up.

    Raises
    ------
    ValueError, TypeError
        As all functions here do.

    Notes
    -----
    Each gradient of a pair adds up to 0, and ``grad_p`` is 0 where p is. A pair in which a row is not valid has NaN in
    both. Where the divergence is infinite, ``grad_p`` is NaN for the whole row; ``grad_q`` is what the formula says.

    References
    ----------
    From ∂pᵢ/∂aⱼ = pᵢ (δᵢⱼ − pⱼ)/T of the softmax: J. S. Bridle, "Training Stochastic Model Recognition Algorithms as
    Networks can Lead to Maximum Mutual Information Estimation of Parameters", NIPS 2 (1989) 211-217.

    Examples
    --------
    >>> import fastkl
    >>> grad_p, grad_q = fastkl.kl_divergence_from_logits_grad([2.0, 1.0], [1.0, 2.0])
    >>> grad_p
    array([ 0.39322387, -0.39322387])
    >>> grad_q
    array([-0.46211716,  0.46211716])
    """
    try:
        rows = row_pairs(p_logits, q_logits, axis, dtype, LOGITS)
    except Contained as contained:
        call = partial(
            kl_divergence_from_logits_grad,
            temperature=temperature,
            base=base,
            axis=axis,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
        )
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    degree = softmax_temperature(temperature)
    unit = log_base(base)
    grad_p, grad_q = gradient_for(rows), gradient_for(rows)
    _total(rows, (grad_p, grad_q), bound, degree, unit, 1 / unit, invalid)
    return grad_p, grad_q


def _reduce(
    name: str,
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    temperature: float,
    axis: SupportsIndex,
    keepdims: bool,
    out: Array | None,
    n_threads: int | None,
    invalid: str,
    dtype: str | None,
    unit: float,
    parameter: float = 0.0,
) -> Result:
    """One measure of all pairs of rows, with the checks that all functions have in common."""
    try:
        rows = row_pairs(p_logits, q_logits, axis, dtype, LOGITS)
    except Contained as contained:
        call = partial(
            _reduce,
            name,
            temperature=temperature,
            axis=axis,
            keepdims=keepdims,
            out=out,
            n_threads=n_threads,
            invalid=invalid,
            dtype=dtype,
            unit=unit,
            parameter=parameter,
        )
        return in_containers(contained, call)
    bound = thread_bound(n_threads)
    invalid_choice(invalid)
    degree = softmax_temperature(temperature)
    target, copy_to = target_for(rows, keepdims, out)
    _fill((target,), (LOGITS_OPS[name],), rows, (), bound, degree, unit, parameter)
    return deliver(rows, target, copy_to, logits_fault, keepdims, out, invalid)


def _total(
    rows: Rows,
    gradients: tuple[Array, ...],
    n_threads: int | None,
    temperature: float,
    unit: float,
    factor: float,
    invalid: str,
) -> float:
    """The sum over all rows of D(p‖q) divided by ``unit``, and its gradients, times ``factor``: of q, or of p and q."""
    total = 0.0
    for part, slopes in stretches(rows, gradients, _ROWS_AT_ONCE):
        divergences = np.empty(part.batch_shape)
        _fill((divergences,), (_KL[len(slopes)],), part, slopes, n_threads, temperature, unit, factor)
        with np.errstate(over="ignore"):
            total += float(divergences.sum())
    if invalid == "raise" and math.isnan(total):
        target, _ = target_for(rows, False, None)
        _fill((target,), (LOGITS_OPS["kl"],), rows, (), n_threads, temperature, unit, 0.0)
        deliver(rows, target, None, logits_fault, False, None, invalid)  # it knows to tell which rows
    return total


def _fill(
    targets: tuple[Array, ...],
    operations: tuple[int, ...],
    rows: Rows,
    gradients: tuple[Array, ...],
    n_threads: int | None,
    temperature: float,
    unit: float,
    parameter: float,
) -> None:
    """Run the kernels over all pairs of rows, one operation for each target, in nats divided by ``unit``."""
    types = rows.types
    p_type, q_type = types.operands
    operands = rows.operands
    operand_types: tuple[int, ...] = TYPES[p_type], TYPES[q_type]
    if gradients:  # a dtype takes as long to tell its name as the rest of a small call
        operands += gradients
        operand_types += (TYPES[types.result.name],) * len(gradients)
    reduce(
        _LOGITS,
        operations,
        operands,
        operand_types,
        TYPES[types.row],
        rows.axis,
        rows.length,
        targets,
        threads_for(n_threads, targets[0].size * rows.length),
        log_base=unit,
        parameter=parameter,
        temperature=temperature,
    )


_LOGITS = FAMILIES["logits"]

# By the number of gradients to write.
_KL = tuple(LOGITS_OPS[name] for name in ("kl", "kl_grad_q", "kl_grad"))

# What is summed up is held for so many rows at a time: 8 MiB.
_ROWS_AT_ONCE = 1 << 20
