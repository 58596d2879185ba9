"""Divergences of JAX's arrays on the CPU: under ``jit``, ``vmap`` and ``grad``, to any order.

Each function has the name, the options, the results and the errors of the one for NumPy arrays, as far as they are here
(``out``, ``n_threads``, ``invalid`` and ``dtype`` are not). Options are static: Python values, no traced ones. What
JAX has no float64 for (``jax_enable_x64`` is off) is returned as float32. Numbers of Python's take the type of the
other operands, as do JAX's weakly typed ones.

A compiled program calls back for the divergences themselves, for the gradients from logits and for those of Gaussians:
once for a whole batch, whatever ``vmap`` has made of it, with the arrays where they lie. This is
``jax.experimental.buffer_callback``; ``jax.pure_callback`` makes copies first, and waits for ever for those of large
arrays on a machine of one CPU (https://github.com/jax-ml/jax/issues/24255). The other gradients, and what is derived
from gradients, are ``jax.numpy``'s, so that all transformations apply to them again.

In the gradients, a bin in which p is 0 is one whose term is the constant 0, as automatic differentiation has it
elsewhere: its own slope would be −inf, and NaN in everything behind a softmax that has come down to 0. Where a row is
not valid, or its divergence with respect to p infinite, they are NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental.buffer_callback import buffer_callback

from fastkl import discrete, gaussian, logits
from fastkl._validation import (
    DISTILLED,
    LOGITS,
    PAIR,
    distillation_temperature,
    gaussian_operands,
    gaussian_rows,
    js_weight,
    log_base,
    loss_reduction,
    row_pairs,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import SupportsIndex

    from fastkl._validation import Rows

    Arrays: TypeAlias = tuple[jax.Array, ...]
    #: Of each operand: an array, or a SymbolicZero.
    Tangents: TypeAlias = tuple[Any, ...]

__all__ = ["distillation_loss", "gaussian_kl", "js_divergence", "kl_divergence", "kl_divergence_from_logits"]


@dataclass(frozen=True)
class _Kernel:
    """A function of NumPy arrays with its options: called back with buffers, and equal to another of the same."""

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, context: object, out: list[Any], *operands: Any) -> None:
        results = self.on_arrays([np.asarray(x) for x in operands])
        with np.errstate(all="ignore"):  # float64 may be float32 to JAX
            for to, result in zip(out, results, strict=True):
                np.asarray(to)[...] = result

    def on_arrays(self, operands: list[Any]) -> tuple[Any, ...]:
        results = self.function(*operands, **dict(self.options))
        return results if isinstance(results, tuple) else (results,)


def _called(function: Callable[..., Any], operands: Arrays, **options: Any) -> Arrays:
    """What a function of NumPy arrays gives, in the compiled program; the operands have the same number of axes."""
    kernel = _Kernel(function, tuple(options.items()))
    # In front of the batch, an axis without any length: this computes nothing, and tells shapes and dtypes.
    samples = kernel.on_arrays([np.broadcast_to(np.zeros((), x.dtype), (0, *x.shape)) for x in operands])
    described: Any = jax.ShapeDtypeStruct
    results = [described(x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype)) for x in samples]
    # Axes of length 1 before the others are what NumPy's broadcasting asks for, and no copies.
    return tuple(buffer_callback(kernel, results, vmap_method="expand_dims")(*operands))


# ---------------------------------------------------------------------------------------------------------------------
# The public functions


@partial(jax.jit, static_argnames=("normalize", "base", "axis", "keepdims"))
def kl_divergence(
    p: jax.typing.ArrayLike,
    q: jax.typing.ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
) -> jax.Array:
    """The Kullback-Leibler divergence D(p‖q) = Σ p log(p/q) of each pair of rows: :func:`fastkl.kl_divergence`.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    normalize, base, axis, keepdims
        As for :func:`fastkl.kl_divergence`.

    Returns
    -------
    jax.Array
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.kl_divergence` does.

    Notes
    -----
    The gradients are (log(p̂/q̂) − D)/Σp and (1 − p̂/q̂)/Σq with the normalised rows p̂ and q̂, and without normalising
    log(p/q) + 1 and −p/q, all divided by ``log(base)``. A bin with p = 0 has the slopes (−1 − D)/Σp and 1/Σq, and
    without normalising 0.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22 (1951) 79-86.

    Examples
    --------
    >>> import jax, fastkl.jax, numpy as np
    >>> p, q = jax.numpy.array([[0.5, 0.5], [1.0, 3.0]]), jax.numpy.array([[0.5, 0.5], [3.0, 1.0]])
    >>> np.asarray(fastkl.jax.kl_divergence(p, q)).round(4)
    array([0.    , 0.5493], dtype=float32)
    >>> np.asarray(jax.vmap(jax.grad(fastkl.jax.kl_divergence))(p, q)).round(4)
    array([[ 0.    ,  0.    ],
           [-0.412 ,  0.1373]], dtype=float32)
    """
    rows, operands = _checked(lambda p, q: row_pairs(p, q, axis, None, PAIR), (p, q))
    result = _kl((normalize, base, rows.axis), *operands)
    return result if keepdims else result.squeeze(rows.axis)


@partial(jax.jit, static_argnames=("weight", "normalize", "base", "axis", "keepdims"))
def js_divergence(
    p: jax.typing.ArrayLike,
    q: jax.typing.ArrayLike,
    *,
    weight: float = 0.5,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
) -> jax.Array:
    """The Jensen-Shannon divergence of each pair of rows: :func:`fastkl.js_divergence`.

    Parameters
    ----------
    p, q : array_like
        The distributions, of shape (..., K).
    weight, normalize, base, axis, keepdims
        As for :func:`fastkl.js_divergence`.

    Returns
    -------
    jax.Array
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.js_divergence` does.

    Notes
    -----
    With m = w p̂ + (1 − w) q̂ of the normalised rows, the gradients are w (log(p̂/m) − D(p̂‖m))/Σp and
    (1 − w) (log(q̂/m) − D(q̂‖m))/Σq, and without normalising w log(p/m) and (1 − w) log(q/m), all divided by
    ``log(base)``. In a bin with p = 0, −1 stands for the logarithm, or 0 if q is 0 too; likewise for q.

    References
    ----------
    J. Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory 37 (1991)
    145-151.

    Examples
    --------
    >>> import jax, fastkl.jax
    >>> fastkl.jax.js_divergence(jax.numpy.array([[1, 1], [1, 0]]), jax.numpy.array([[1, 1], [0, 1]]), base=2)
    Array([0., 1.], dtype=float32)
    """
    rows, operands = _checked(lambda p, q: row_pairs(p, q, axis, None, PAIR), (p, q))
    result = _js((js_weight(weight), normalize, base, rows.axis), *operands)
    return result if keepdims else result.squeeze(rows.axis)


@partial(jax.jit, static_argnames=("temperature", "base", "axis", "keepdims"))
def kl_divergence_from_logits(
    p_logits: jax.typing.ArrayLike,
    q_logits: jax.typing.ArrayLike,
    *,
    temperature: float = 1.0,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
) -> jax.Array:
    """D(p‖q) of the softmax of each pair of rows: :func:`fastkl.kl_divergence_from_logits`.

    Parameters
    ----------
    p_logits, q_logits : array_like
        The logits of the distributions, of shape (..., K).
    temperature, base, axis, keepdims
        As for :func:`fastkl.kl_divergence_from_logits`.

    Returns
    -------
    jax.Array
        The divergence of each pair of rows, in nats, or in units of ``log(base)``; shape (...).

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.kl_divergence_from_logits` does.

    Notes
    -----
    The gradients are those of :func:`fastkl.kl_divergence_from_logits_grad`.

    References
    ----------
    S. Kullback and R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22 (1951) 79-86.

    Examples
    --------
    >>> import jax, fastkl.jax, numpy as np
    >>> p_logits, q_logits = jax.numpy.array([2.0, 1.0]), jax.numpy.array([1.0, 2.0])
    >>> np.asarray(jax.grad(fastkl.jax.kl_divergence_from_logits, argnums=1)(p_logits, q_logits)).round(4)
    array([-0.4621,  0.4621], dtype=float32)
    """
    rows, operands = _checked(lambda p, q: row_pairs(p, q, axis, None, LOGITS), (p_logits, q_logits))
    result = _from_logits((temperature, base, rows.axis), *operands)
    return result if keepdims else result.squeeze(rows.axis)


@partial(jax.jit, static_argnames=("temperature", "reduction", "axis"))
def distillation_loss(
    student_logits: jax.typing.ArrayLike,
    teacher_logits: jax.typing.ArrayLike,
    *,
    temperature: float = 1.0,
    reduction: Literal["batchmean", "sum", "none"] = "batchmean",
    axis: SupportsIndex = -1,
) -> jax.Array:
    """The loss T² D(teacher‖student) of knowledge distillation: :func:`fastkl.distillation_loss`.

    Parameters
    ----------
    student_logits, teacher_logits : array_like
        The logits, of shape (..., K).
    temperature, reduction, axis
        As for :func:`fastkl.distillation_loss`, whose ``return_grad`` is the task of ``jax.value_and_grad`` here.

    Returns
    -------
    jax.Array
        The loss, in nats: a scalar, or with ``reduction="none"`` of shape (...).

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.distillation_loss` does.

    Notes
    -----
    The gradient with respect to the student, T (q − p), comes from the same pass over the logits as the loss, where
    nobody asks for the one with respect to the teacher. Rows are added up in float64.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.

    Examples
    --------
    >>> import jax, fastkl.jax, numpy as np
    >>> student, teacher = jax.numpy.array([[1.0, 2.0], [0.0, 2.0]]), jax.numpy.array([[2.0, 1.0], [0.0, 1.0]])
    >>> loss, slope = jax.value_and_grad(fastkl.jax.distillation_loss)(student, teacher, temperature=2.0)
    >>> np.asarray(slope).round(4)
    array([[-0.2449,  0.2449],
           [-0.1086,  0.1086]], dtype=float32)
    """
    rows, (teacher, student) = _checked(
        lambda p, q: row_pairs(p, q, axis, None, DISTILLED), (teacher_logits, student_logits)
    )
    options = distillation_temperature(temperature), loss_reduction(reduction), rows.axis
    return _distilled(options, student, teacher)


@partial(jax.jit, static_argnames=("scale", "axis", "keepdims"))
def gaussian_kl(
    mean_p: jax.typing.ArrayLike,
    scale_p: jax.typing.ArrayLike,
    mean_q: jax.typing.ArrayLike | None = None,
    scale_q: jax.typing.ArrayLike | None = None,
    *,
    scale: Literal["var", "std", "logvar"] = "var",
    axis: SupportsIndex | None = -1,
    keepdims: bool = False,
) -> jax.Array:
    """The Kullback-Leibler divergence of diagonal Gaussians: :func:`fastkl.gaussian_kl`.

    Parameters
    ----------
    mean_p, scale_p : array_like
        The means and the scales of p, of shape (..., K).
    mean_q, scale_q : array_like, optional
        Those of q; N(0, I) if both are left out.
    scale, axis, keepdims
        As for :func:`fastkl.gaussian_kl`.

    Returns
    -------
    jax.Array
        The divergence of each pair of rows, in nats; shape (...), or with ``axis=None`` that of the operands.

    Raises
    ------
    ValueError, TypeError
        As :func:`fastkl.gaussian_kl` does.

    Notes
    -----
    The gradients are those of :func:`fastkl.gaussian_kl_grad`.

    References
    ----------
    J. Duchi, "Derivations for Linear Algebra and Optimization", section 9; D. P. Kingma and M. Welling, "Auto-Encoding
    Variational Bayes" (2014), appendix B.

    Examples
    --------
    >>> import jax, fastkl.jax
    >>> mean = jax.numpy.array([0.5, -1.0])
    >>> jax.grad(fastkl.jax.gaussian_kl)(mean, jax.numpy.zeros(2), scale="logvar")
    Array([ 0.5, -1. ], dtype=float32)
    """
    given, names = gaussian_operands(mean_p, scale_p, mean_q, scale_q)
    rows, operands = _checked(lambda *x: gaussian_rows(x, names, axis, None), given)
    result = _gaussian((scale, rows.axis), *operands)
    return result if keepdims or rows.axis is None else result.squeeze(rows.axis)


def _checked(check: Callable[..., Rows], given: tuple[Any, ...]) -> tuple[Rows, Arrays]:
    """What a check says of operands, and these with the same number of axes."""
    arrays = [jnp.asarray(x) for x in given]
    # Numbers of Python's, by the time that they get here.
    weak = [x.ndim == 0 and x.weak_type for x in arrays]
    rows = check(
        *(0.0 if w else np.broadcast_to(np.zeros((), x.dtype), x.shape) for x, w in zip(arrays, weak, strict=True))
    )
    n_axes = len(rows.batch_shape) + (rows.axis is not None)
    stretched = [1] * n_axes
    if rows.axis is not None:
        stretched[rows.axis] = rows.length
    operands = []
    for x, is_weak, type_name in zip(arrays, weak, rows.types.operands, strict=True):
        if is_weak:
            x = x.astype(jax.dtypes.canonicalize_dtype(type_name))
        if x.ndim == 0:
            operands.append(jnp.broadcast_to(x, stretched))
        else:
            operands.append(x.reshape((1,) * (n_axes - x.ndim) + x.shape))
    return rows, tuple(operands)


# ---------------------------------------------------------------------------------------------------------------------
# Discrete distributions. Results keep the reduced axis, and options come first, in a tuple


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kl(options: tuple[Any, ...], p: jax.Array, q: jax.Array) -> jax.Array:
    normalize, base, axis = options
    return _called(discrete.kl_divergence, (p, q), normalize=normalize, base=base, axis=axis, keepdims=True)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _js(options: tuple[Any, ...], p: jax.Array, q: jax.Array) -> jax.Array:
    weight, normalize, base, axis = options
    common = {"normalize": normalize, "base": base, "axis": axis, "keepdims": True}
    return _called(discrete.js_divergence, (p, q), weight=weight, **common)[0]


@partial(_kl.defjvp, symbolic_zeros=True)
def _kl_rule(options: tuple[Any, ...], primals: Arrays, tangents: Tangents) -> tuple[jax.Array, jax.Array]:
    normalize, base, axis = options
    value = _kl(options, *primals)
    return value, _discrete_tangent(_kl_slopes, value, primals, tangents, normalize, base, axis)


@partial(_js.defjvp, symbolic_zeros=True)
def _js_rule(options: tuple[Any, ...], primals: Arrays, tangents: Tangents) -> tuple[jax.Array, jax.Array]:
    weight, normalize, base, axis = options
    value = _js(options, *primals)
    slopes = partial(_js_slopes, weight)
    return value, _discrete_tangent(slopes, value, primals, tangents, normalize, base, axis)


def _discrete_tangent(
    slopes_of: Callable[..., Arrays],
    value: jax.Array,
    primals: Arrays,
    tangents: Tangents,
    normalize: bool,
    base: float | None,
    axis: int,
) -> jax.Array:
    """The tangent of a divergence, from its slopes with respect to the normalised rows."""
    p, q = (x.astype(value.dtype) for x in primals)
    apart = p - q
    if normalize:
        # From the differences of the numbers, which are exact where these are close.
        sum_p, sum_q = p.sum(axis, keepdims=True), q.sum(axis, keepdims=True)
        p, q = p / sum_p, q / sum_q
        apart = (apart - q * apart.sum(axis, keepdims=True)) / sum_p
        to_p, to_q = slopes_of(p, q, apart, axis)
        slopes: Arrays = (to_p / sum_p, to_q / sum_q)
    else:
        slopes = slopes_of(p, q, apart, None)
    unit = log_base(base)
    return _along(axis, [jnp.where(jnp.isnan(value), jnp.nan, x) / unit for x in slopes], tangents)


def _kl_slopes(p: jax.Array, q: jax.Array, apart: jax.Array, axis: int | None) -> Arrays:
    """log(p/q) + 1 and −p/q; along the axis of normalised rows log(p/q) − D and 1 − p/q."""
    logs, has_q = _log_ratio(p, q, apart), q > 0
    if axis is None:
        return jnp.where(p > 0, logs + 1, 0), jnp.where(
            p > 0, jnp.where(has_q, -p / jnp.where(has_q, q, 1), -jnp.inf), 0
        )
    logs = jnp.where(p > 0, logs, -1)
    divergence = (p * logs).sum(axis, keepdims=True)
    relative = jnp.where(has_q, apart / jnp.where(has_q, q, 1), jnp.inf)
    return logs - jnp.where(divergence == jnp.inf, jnp.nan, divergence), -jnp.where(p > 0, relative, -1)


def _js_slopes(weight: float, p: jax.Array, q: jax.Array, apart: jax.Array, axis: int | None) -> Arrays:
    """w log(p/m) and (1 − w) log(q/m), with m = w p + (1 − w) q; along the axis of normalised rows, less their mean."""
    rest = 1 - weight
    if weight in (0, 1):  # the mixture is one of the two, and the other does not count
        return jnp.zeros_like(apart), jnp.zeros_like(apart)
    mixture = weight * p + rest * q
    to_p, to_q = _log_ratio(p, mixture, rest * apart), _log_ratio(q, mixture, -weight * apart)
    # Where one is 0, what is left is the slope of the other's term.
    to_p = jnp.where(p > 0, to_p, jnp.where(q > 0, -1, 0))
    to_q = jnp.where(q > 0, to_q, jnp.where(p > 0, -1, 0))
    if axis is not None:
        to_p -= (p * to_p).sum(axis, keepdims=True)
        to_q -= (q * to_q).sum(axis, keepdims=True)
    return weight * to_p, rest * to_q


def _log_ratio(a: jax.Array, b: jax.Array, apart: jax.Array) -> jax.Array:
    """log(a/b), for a > 0 and given a − b: log1p of what a has more, unless that is near −1 or too large.

    What a `where` does not choose is replaced before it is computed, lest it be NaN in derivatives.
    """
    has_both = (a > 0) & (b > 0)
    relative = apart / jnp.where(has_both, b, 1)
    near = has_both & (relative > -0.5) & (relative < 1e30)
    logs = jnp.log(jnp.where(has_both, a, 1)) - jnp.log(jnp.where(has_both, b, 1))
    return jnp.where(near, jnp.log1p(jnp.where(near, relative, 0)), jnp.where(has_both, logs, jnp.inf))


# ---------------------------------------------------------------------------------------------------------------------
# Logits


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _from_logits(options: tuple[Any, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    temperature, base, axis = options
    common = {"temperature": temperature, "base": base, "axis": axis}
    return _called(logits.kl_divergence_from_logits, (a, b), **common, keepdims=True)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _logits_slopes(options: tuple[Any, ...], a: jax.Array, b: jax.Array) -> Arrays:
    temperature, base, axis = options
    return _called(logits.kl_divergence_from_logits_grad, (a, b), temperature=temperature, base=base, axis=axis)


@partial(_from_logits.defjvp, symbolic_zeros=True)
def _from_logits_rule(options: tuple[Any, ...], primals: Arrays, tangents: Tangents) -> tuple[jax.Array, jax.Array]:
    return _from_logits(options, *primals), _along(options[-1], _logits_slopes(options, *primals), tangents)


@partial(_logits_slopes.defjvp, symbolic_zeros=True)
def _logits_slopes_rule(options: tuple[Any, ...], primals: Arrays, tangents: Tangents) -> tuple[Arrays, Arrays]:
    """With slopes p (log(p/q) − D)/T and (q − p)/T: of p log(p/q) − p D, and of q − p."""
    temperature, base, axis = options
    slopes = _logits_slopes(options, *primals)
    to_p = slopes[0]
    (p, d_log_p), (q, d_log_q) = (
        _softmax(x, t, temperature, axis, to_p.dtype) for x, t in zip(primals, tangents, strict=True)
    )
    unit = log_base(base)
    d_divergence = unit * _along(axis, slopes, tangents)
    changes = (
        to_p * d_log_p + p * (d_log_p - d_log_q - d_divergence) / (temperature * unit),
        (q * d_log_q - p * d_log_p) / (temperature * unit),
    )
    return slopes, changes


def _softmax(x: jax.Array, tangent: Any, temperature: float, axis: int, dtype: Any) -> Arrays:
    """The softmax of logits, and the tangent of its logarithm."""
    p = jax.nn.softmax(x.astype(dtype) / temperature, axis)
    change = _dense(tangent, p) / temperature
    return p, change - (p * change).sum(axis, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# Distillation. Results are reduced, over the batch axes that the operands had before vmap


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _distilled(options: tuple[Any, ...], student: jax.Array, teacher: jax.Array) -> jax.Array:
    return _called(_losses, (student, teacher), options=options, batch_axes=student.ndim - 1, with_slope=False)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _distilled_with_slope(options: tuple[Any, ...], student: jax.Array, teacher: jax.Array) -> Arrays:
    return _called(_losses, (student, teacher), options=options, batch_axes=student.ndim - 1, with_slope=True)


def _losses(
    student: Any, teacher: Any, *, options: tuple[Any, ...], batch_axes: int, with_slope: bool
) -> tuple[Any, ...]:
    """The loss of NumPy arrays, reduced over so many of the last batch axes, and the slope of each row's own loss."""
    temperature, reduction, axis = options
    loss: Callable[..., Any] = logits.distillation_loss
    result = loss(student, teacher, temperature=temperature, reduction="none", return_grad=with_slope, axis=axis)
    losses, *slope = result if with_slope else (result,)
    if reduction == "none":
        return losses, *slope
    losses = np.asarray(losses)
    total = losses.sum(axis=tuple(range(-batch_axes, 0)), dtype=np.float64)
    if reduction == "batchmean":
        total = total / (math.prod(losses.shape[losses.ndim - batch_axes :]) or math.nan)
    with np.errstate(over="ignore"):
        return total.astype(losses.dtype), *slope


@partial(_distilled.defjvp, symbolic_zeros=True)
def _distilled_rule(options: tuple[Any, ...], primals: Arrays, tangents: Tangents) -> tuple[jax.Array, jax.Array]:
    temperature, reduction, axis = options
    student, teacher = primals
    if type(tangents[1]) is SymbolicZero:
        value, slope = _distilled_with_slope(options, student, teacher)
        change = _along(axis, [slope], tangents[:1])
    else:
        value = _distilled(options, student, teacher)
        slopes = _logits_slopes((temperature, None, axis), teacher, student)
        change = temperature**2 * _along(axis, slopes, tangents[::-1])
    if reduction == "none":
        return value, change.squeeze(axis)
    total = change.sum()
    return value, total / (change.size or math.nan) if reduction == "batchmean" else total


@partial(_distilled_with_slope.defjvp, symbolic_zeros=True)
def _distilled_with_slope_rule(
    options: tuple[Any, ...], primals: Arrays, tangents: Tangents
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """With the slope T (q − p)."""
    temperature, _, axis = options
    value, slope = _distilled_with_slope(options, *primals)
    (q, d_log_q), (p, d_log_p) = (
        _softmax(x, t, temperature, axis, slope.dtype) for x, t in zip(primals, tangents, strict=True)
    )
    _, change = _distilled_rule(options, primals, tangents)
    return (value, slope), (change, temperature * (q * d_log_q - p * d_log_p))


# ---------------------------------------------------------------------------------------------------------------------
# Gaussians


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gaussian(options: tuple[Any, ...], *operands: jax.Array) -> jax.Array:
    scale, axis = options
    return _called(gaussian.gaussian_kl, operands, scale=scale, axis=axis, keepdims=True)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gaussian_slopes(scale: str, *operands: jax.Array) -> Arrays:
    return _called(gaussian.gaussian_kl_grad, operands, scale=scale)


@partial(_gaussian.defjvp, symbolic_zeros=True)
def _gaussian_rule(options: tuple[Any, ...], primals: Arrays, tangents: Tangents) -> tuple[jax.Array, jax.Array]:
    scale, axis = options
    return _gaussian(options, *primals), _along(axis, _gaussian_slopes(scale, *primals), tangents)


@partial(_gaussian_slopes.defjvp, symbolic_zeros=True)
def _gaussian_slopes_rule(scale: str, primals: Arrays, tangents: Tangents) -> tuple[Arrays, Arrays]:
    slopes = _gaussian_slopes(scale, *primals)
    numbers = tuple(x.astype(slopes[0].dtype) for x in primals)
    changes = tuple(_dense(t, x) for t, x in zip(tangents, numbers, strict=True))
    _, derived = jax.jvp(partial(_slope_formulas, scale), numbers, changes)
    return slopes, derived


def _slope_formulas(scale: str, *operands: jax.Array) -> Arrays:
    """The slopes of ½ [(μp − μq)²/vq + vp/vq − 1 − log(vp/vq)] with respect to the operands, in the broadcast shape."""
    numbers: tuple[Any, ...] = operands if len(operands) == 4 else (*operands, 0.0, 0.0 if scale == "logvar" else 1.0)
    m, s, mq, sq = numbers
    apart = m - mq
    if scale == "logvar":
        to_mean = apart * jnp.exp(-sq)
        to_p = 0.5 * jnp.expm1(s - sq)
        to_q = -0.5 * apart * to_mean - to_p
    elif scale == "var":
        to_mean = apart / sq
        to_p = 0.5 / sq - 0.5 / s
        to_q = -0.5 * to_mean**2 - 0.5 * (s - sq) / sq**2
    else:
        to_mean = apart / sq**2
        to_p = s / sq**2 - 1 / s
        to_q = -(apart**2 + (s - sq) * (s + sq)) / sq**3
    shape = jnp.broadcast_shapes(*map(jnp.shape, operands))
    return tuple(jnp.broadcast_to(x, shape) for x in (to_mean, to_p, -to_mean, to_q)[: len(operands)])


# ---------------------------------------------------------------------------------------------------------------------
# Tangents


def _along(axis: int | None, slopes: Any, tangents: Tangents) -> jax.Array:
    """The tangent of a function of rows whose slopes these are: linear in the tangents of its operands."""
    terms = [
        slope * tangent.astype(slope.dtype)
        for slope, tangent in zip(slopes, tangents, strict=True)
        if type(tangent) is not SymbolicZero
    ]
    total = sum(terms[1:], terms[0]) if terms else jnp.zeros_like(slopes[0])
    return total if axis is None else total.sum(axis, keepdims=True)


def _dense(tangent: Any, like: jax.Array) -> jax.Array:
    """A tangent as an array of the dtype of another."""
    return jnp.zeros_like(like) if type(tangent) is SymbolicZero else tangent.astype(like.dtype)
