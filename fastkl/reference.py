"""The functions in plain NumPy, written to be read: what each of :mod:`fastkl.discrete` and its sisters computes.

Names, signatures, options, errors and corner cases are those of the compiled functions, whose docstrings describe them;
here each docstring is the formula. Operands are arrays in memory, or lists: Dask's arrays, pandas' frames and xarray's
arrays raise TypeError. Rows are held in float64, and every formula allocates arrays of the size of its operands: this
is the definition and the baseline, not the way to score a million pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import numpy as np

from fastkl import _validation as validation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import SupportsIndex

    from numpy.typing import ArrayLike

    from fastkl._validation import Array, FullRows, Result, Rows

__all__ = [
    "clipped_ratio_objective",
    "cross_entropy",
    "cross_entropy_from_logits",
    "distillation_loss",
    "entropy",
    "entropy_from_logits",
    "gaussian_kl",
    "gaussian_kl_full",
    "gaussian_kl_grad",
    "hellinger_distance",
    "jeffreys_divergence",
    "js_distance",
    "js_distance_from_logits",
    "js_divergence",
    "js_divergence_from_logits",
    "kl_divergence",
    "kl_divergence_from_logits",
    "kl_divergence_from_logits_grad",
    "kl_estimate",
    "renyi_divergence",
    "reparameterize",
    "score",
    "score_from_logits",
    "total_variation",
    "wasserstein_distance",
]


def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """Σ p log(p/q)."""
    unit = validation.log_base(base)
    return _reduce(lambda x: _kl(x) / unit, p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def jeffreys_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """Σ (p − q) log(p/q), which is D(p‖q) + D(q‖p)."""
    unit = validation.log_base(base)
    return _reduce(lambda x: _jeffreys(x) / unit, p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    weight: float = 0.5,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """w Σ p log(p/m) + (1 − w) Σ q log(q/m), with m = w p + (1 − w) q."""
    w = validation.js_weight(weight)
    unit = validation.log_base(base)
    return _reduce(lambda x: _js(x, w) / unit, p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def js_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    weight: float = 0.5,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """√ of the Jensen-Shannon divergence in the given base."""
    w = validation.js_weight(weight)
    unit = validation.log_base(base, above=1.0)
    return _reduce(lambda x: np.sqrt(_js(x, w) / unit), p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """−Σ p log q."""
    unit = validation.log_base(base)
    return _reduce(lambda x: _cross_entropy(x) / unit, p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def entropy(
    p: ArrayLike,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """−Σ p log p."""
    unit = validation.log_base(base)
    return _reduce(lambda x: _entropy(x) / unit, p, p, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def renyi_divergence(
    p: ArrayLike,
    q: ArrayLike,
    alpha: float,
    *,
    normalize: bool = True,
    base: float | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """log(Σ pᵅ q¹⁻ᵅ) / (α − 1); at α = 1 and α = ∞ its limits, Σ p log(p/q) and log max p/q."""
    order = validation.renyi_order(alpha)
    unit = validation.log_base(base)
    return _reduce(lambda x: _renyi(x, order) / unit, p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def total_variation(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """½ Σ |p − q|."""
    return _reduce(_total_variation, p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def hellinger_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    normalize: bool = True,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """√(½ Σ (√p − √q)²)."""
    return _reduce(_hellinger, p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def wasserstein_distance(
    p: ArrayLike,
    q: ArrayLike,
    *,
    positions: ArrayLike | None = None,
    normalize: bool = True,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """Σᵢ |(p₁ + … + pᵢ) − (q₁ + … + qᵢ)| (xᵢ₊₁ − xᵢ), with x the positions of the bins."""
    length = validation.row_pairs(p, q, axis, dtype).length
    at = validation.bin_positions(positions, length)
    return _reduce(lambda x: _wasserstein(x, at), p, q, normalize, axis, keepdims, out, n_threads, invalid, dtype)


def score(
    p: ArrayLike,
    q: ArrayLike,
    metrics: Iterable[str] = ("kl", "reverse_kl", "js"),
    *,
    normalize: bool = True,
    base: float | None = None,
    weight: float = 0.5,
    alpha: float | None = None,
    positions: ArrayLike | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> dict[str, Result]:
    """Several measures of the same pairs, by name."""
    names = validation.metric_names(metrics, alpha=alpha)
    rows = validation.row_pairs(p, q, axis, dtype)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    unit = validation.log_base(base, above=1.0 if "js_distance" in names else 0.0)
    w = validation.js_weight(weight)
    order = math.nan if alpha is None else validation.renyi_order(alpha)
    at = validation.bin_positions(positions, rows.length)
    formulas: dict[str, Callable[[_Pair], Array]] = {
        "kl": lambda x: _kl(x) / unit,
        "reverse_kl": lambda x: _kl(x) / unit,
        "jeffreys": lambda x: _jeffreys(x) / unit,
        "js": lambda x: _js(x, w) / unit,
        "js_distance": lambda x: np.sqrt(_js(x, w) / unit),
        "cross_entropy": lambda x: _cross_entropy(x) / unit,
        "entropy": lambda x: _entropy(x) / unit,
        "renyi": lambda x: _renyi(x, order) / unit,
        "total_variation": _total_variation,
        "hellinger": _hellinger,
        "wasserstein": lambda x: _wasserstein(x, at),
    }
    a, b = _operands(rows)
    operands = {"reverse_kl": (b, a), "entropy": (a, a)}
    fault = validation.weights_fault(normalize)
    result = {}
    for name in names:
        target, _ = validation.target_for(rows, keepdims, None)
        _fill(target, formulas[name], *operands.get(name, (a, b)), normalize)
        result[name] = validation.deliver(rows, target, None, fault, keepdims, None, invalid)
    return result


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
    """Σ p log(p/q) with p and q the softmax of logits/T."""
    unit = validation.log_base(base)
    return _reduce_logits(
        lambda x: _kl(x) / unit, p_logits, q_logits, temperature, axis, keepdims, out, n_threads, invalid, dtype
    )


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
    """w Σ p log(p/m) + (1 − w) Σ q log(q/m), with m = w p + (1 − w) q, of the softmax of logits/T."""
    w = validation.js_weight(weight)
    unit = validation.log_base(base)
    return _reduce_logits(
        lambda x: _js(x, w) / unit, p_logits, q_logits, temperature, axis, keepdims, out, n_threads, invalid, dtype
    )


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
    """√ of the Jensen-Shannon divergence in the given base, of the softmax of logits/T."""
    w = validation.js_weight(weight)
    unit = validation.log_base(base, above=1.0)
    return _reduce_logits(
        lambda x: np.sqrt(_js(x, w) / unit),
        p_logits,
        q_logits,
        temperature,
        axis,
        keepdims,
        out,
        n_threads,
        invalid,
        dtype,
    )


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
    """−Σ p log q with p and q the softmax of logits/T."""
    unit = validation.log_base(base)
    return _reduce_logits(
        lambda x: _cross_entropy(x) / unit,
        p_logits,
        q_logits,
        temperature,
        axis,
        keepdims,
        out,
        n_threads,
        invalid,
        dtype,
    )


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
    """−Σ p log p with p the softmax of logits/T."""
    unit = validation.log_base(base)
    return _reduce_logits(
        lambda x: _entropy(x) / unit, p_logits, p_logits, temperature, axis, keepdims, out, n_threads, invalid, dtype
    )


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
    """Several measures of the same pairs, by name."""
    names = validation.metric_names(metrics, validation.LOGITS_METRICS)
    rows = validation.row_pairs(p_logits, q_logits, axis, dtype, validation.LOGITS)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    degree = validation.softmax_temperature(temperature)
    unit = validation.log_base(base, above=1.0 if "js_distance" in names else 0.0)
    w = validation.js_weight(weight)
    formulas: dict[str, Callable[[_Pair], Array]] = {
        "kl": lambda x: _kl(x) / unit,
        "reverse_kl": lambda x: _kl(x) / unit,
        "js": lambda x: _js(x, w) / unit,
        "js_distance": lambda x: np.sqrt(_js(x, w) / unit),
        "cross_entropy": lambda x: _cross_entropy(x) / unit,
        "entropy": lambda x: _entropy(x) / unit,
        "top1_agreement": lambda _: (a.argmax(-1) == b.argmax(-1)).astype(np.float64),
    }
    a, b = _operands(rows)
    operands = {"reverse_kl": (b, a), "entropy": (a, a)}
    result = {}
    for name in names:
        target, _ = validation.target_for(rows, keepdims, None)
        target[...] = _from_logits(formulas[name], *operands.get(name, (a, b)), degree)
        result[name] = validation.deliver(rows, target, None, validation.logits_fault, keepdims, None, invalid)
    return result


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
    """T² Σ p log(p/q), with p the softmax of the teacher's logits/T and q the student's; its gradient is T (q − p)."""
    rows = validation.row_pairs(teacher_logits, student_logits, axis, dtype, validation.DISTILLED)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    degree = validation.distillation_temperature(temperature)
    mean = validation.loss_reduction(reduction) == "batchmean"
    a, b = _operands(rows)
    target, _ = validation.target_for(rows, False, None)
    losses = _from_logits(lambda x: degree**2 * _kl(x), a, b, degree)
    target[...] = losses
    loss = validation.deliver(rows, target, None, validation.logits_fault, False, None, invalid)
    n_rows = losses.size if mean else 1
    with np.errstate(all="ignore"):
        if reduction != "none":
            loss = rows.types.result.type(losses.sum() / n_rows)
        gradient = _from_logits(lambda x: degree * _slope_of_q(x) / n_rows, a, b, degree)
    return (loss, _as_gradient(rows, gradient)) if return_grad else loss


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
    """p (log(p/q) − D(p‖q))/T and (q − p)/T."""
    rows = validation.row_pairs(p_logits, q_logits, axis, dtype, validation.LOGITS)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    degree = validation.softmax_temperature(temperature)
    unit = validation.log_base(base)
    a, b = _operands(rows)
    target, _ = validation.target_for(rows, False, None)
    target[...] = _from_logits(_kl, a, b, degree)
    validation.deliver(rows, target, None, validation.logits_fault, False, None, invalid)
    grad_p = _from_logits(lambda x: _slope_of_p(x) / degree / unit, a, b, degree)
    grad_q = _from_logits(lambda x: _slope_of_q(x) / degree / unit, a, b, degree)
    return _as_gradient(rows, grad_p), _as_gradient(rows, grad_q)


# ---------------------------------------------------------------------------------------------------------------------
# The formulas, over the last axis of a pair of rows


class _Rows(NamedTuple):
    """The numbers of one operand as they enter the formulas: its shares, or what was given if not to be normalised."""

    values: Array
    logs: Array


class _Pair(NamedTuple):
    p: _Rows
    q: _Rows
    difference: Array  # p − q, with a small relative error also where p and q agree to the last digit
    normalized: bool


def _kl(x: _Pair) -> Array:
    if x.normalized:
        return _sum(_deviance(x.p.values, x.q.values, x.p.logs, x.q.logs, x.difference))
    return _sum(_product(x.p.values, _log_ratio(x.p.values, x.q.values, x.p.logs, x.q.logs, x.difference)))


def _jeffreys(x: _Pair) -> Array:
    return _sum(_product(x.difference, _log_ratio(x.p.values, x.q.values, x.p.logs, x.q.logs, x.difference)))


def _js(x: _Pair, w: float) -> Array:
    if w in (0, 1):
        return np.zeros(x.difference.shape[:-1])
    p, q = x.p, x.q
    m = w * p.values + (1 - w) * q.values
    log_m = np.logaddexp(np.log(w) + p.logs, np.log1p(-w) + q.logs)
    # The deviance subtracts p − m and q − m, whose weighted sum is 0.
    to_p = _deviance(p.values, m, p.logs, log_m, (1 - w) * x.difference)
    to_q = _deviance(q.values, m, q.logs, log_m, -w * x.difference)
    return _sum(w * to_p + (1 - w) * to_q)


def _cross_entropy(x: _Pair) -> Array:
    return 0.0 - _sum(_product(x.p.values, x.q.logs))


def _entropy(x: _Pair) -> Array:
    return 0.0 - _sum(_product(x.p.values, x.p.logs))


def _renyi(x: _Pair, alpha: float) -> Array:
    if alpha == 1:
        return _kl(x)
    p, q = x.p, x.q
    log_ratio = _log_ratio(p.values, q.values, p.logs, q.logs, x.difference)
    if alpha == math.inf:
        result = np.where(p.values > 0, log_ratio, -np.inf).max(-1)
    elif alpha == 0:
        inside = _sum(np.where(p.values > 0, q.values, 0.0))
        outside = _sum(np.where(p.values > 0, 0.0, q.values))
        result = np.where(x.normalized & (outside < 0.5), -np.log1p(-outside), -np.log(inside))
    else:
        # pᵅ q¹⁻ᵅ = exp(log p + (α − 1) log(p/q)), summed relative to the largest so as not to overflow.
        exponent = np.where(p.values > 0, p.logs + (alpha - 1) * log_ratio, -np.inf)
        largest = exponent.max(-1, keepdims=True)
        log_sum = largest[..., 0] + np.log(_sum(np.exp(exponent - largest)))
        log_sum = np.where(np.isposinf(largest[..., 0]), np.inf, log_sum)
        if x.normalized:
            # Near 1, the sum is better known by how far it is from Σ p = 1.
            excess = _sum(_product(p.values, np.expm1((alpha - 1) * log_ratio)))
            log_sum = np.where(np.abs(excess) < 0.5, np.log1p(excess), log_sum)
        result = log_sum / (alpha - 1)
    if x.normalized:
        result = np.maximum(result, 0.0)
    overlap = ((p.values > 0) & (q.values > 0)).any(-1)
    return np.where(overlap, result, np.inf)


def _total_variation(x: _Pair) -> Array:
    result = _sum(np.abs(x.difference)) / 2
    return np.minimum(result, 1.0) if x.normalized else result


def _hellinger(x: _Pair) -> Array:
    # √p − √q = (p − q)/(√p + √q)
    roots = np.sqrt(x.p.values) + np.sqrt(x.q.values)
    steps = np.where(roots > 0, x.difference / roots, 0.0)
    # hypot squares them without leaving the range of floats
    result: Array = np.hypot.reduce(steps, axis=-1) / math.sqrt(2)
    return np.minimum(result, 1.0) if x.normalized else result


def _wasserstein(x: _Pair, positions: Array | None) -> Array:
    flow = np.abs(np.cumsum(x.difference, -1)[..., :-1])
    return _sum(flow if positions is None else flow * np.diff(positions))


def _slope_of_p(x: _Pair) -> Array:
    """How the divergence changes with the logits/T of p; there is no telling where it is infinite."""
    p, q = x.p, x.q
    divergence = _kl(x)[..., np.newaxis]
    slope = _product(p.values, _log_ratio(p.values, q.values, p.logs, q.logs, x.difference) - divergence)
    return np.where(divergence == np.inf, np.nan, slope)


def _slope_of_q(x: _Pair) -> Array:
    return 0.0 - x.difference


def _sum(terms: Array) -> Array:
    total: Array = terms.sum(-1)
    return total


def _product(x: Array, y: Array) -> Array:
    """x·y, with 0·∞ = 0: a bin that p leaves empty adds nothing."""
    return np.where(x == 0, 0.0, x * y)


def _log_ratio(p: Array, q: Array, log_p: Array, log_q: Array, difference: Array) -> Array:
    """log(p/q), with a small relative error also where p and q are close."""
    close = np.abs(difference) < q / 2
    return np.where(close, np.log1p(difference / q), log_p - log_q)


def _deviance(p: Array, q: Array, log_p: Array, log_q: Array, difference: Array) -> Array:
    """p log(p/q) − p + q, which is ≥ 0: where both sum to 1, its sum is that of p log(p/q), and nothing cancels."""
    far = _product(p, _log_ratio(p, q, log_p, log_q, difference)) - difference
    # With s = (p − q)/(p + q), log(p/q) = 2 artanh s, and the deviance is (p − q) s + p (2 artanh s − 2 s).
    # For |s| < 0.05, five terms of the series in brackets leave an error of s¹¹/13 < 4e-16 of the deviance.
    ratio = difference / q
    s = np.where(np.abs(difference) < q / 2, ratio / (2 + ratio), 1.0)
    z = s * s
    series = 2 * s * z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z / 11))))
    result = np.where(np.abs(s) < 0.05, difference * s + p * series, far)
    return np.where((p == 0) & (q == 0), 0.0, np.maximum(result, 0.0))  # a subnormal one may be rounded below 0


# ---------------------------------------------------------------------------------------------------------------------
# Lower triangular matrices, over the last two axes


def _lower(matrix: Array) -> Array:
    """Whether a matrix is a Cholesky factor but for its diagonal: all others finite, and 0 above."""
    result: Array = np.all(np.isfinite(matrix) & (np.triu(matrix, 1) == 0), axis=(-2, -1), keepdims=True)
    return result


def _symmetric(matrix: Array, asymmetry: float) -> Array:
    """Whether a matrix is finite, and as symmetric as a covariance must be."""
    deviations = np.sqrt(np.diagonal(matrix, axis1=-2, axis2=-1))
    allowed = asymmetry * deviations[..., :, np.newaxis] * deviations[..., np.newaxis, :]
    mirrored = np.abs(matrix - np.swapaxes(matrix, -2, -1)) <= allowed
    result: Array = np.all(np.isfinite(matrix) & mirrored, axis=(-2, -1), keepdims=True)
    return result


def _times(matrix: Array, vector: Array) -> Array:
    product: Array = (matrix @ vector[..., np.newaxis])[..., 0]
    return product


def _factor(cov: Array) -> Array:
    """The Cholesky factor; NaN in it where there is none, 0 on its diagonal where a column is 0."""
    factor = np.zeros(cov.shape)
    for j in range(cov.shape[-1]):
        column = cov[..., j:, j] - _times(factor[..., j:, :j], factor[..., j, :j])
        empty = (column == 0).all(-1, keepdims=True)
        pivot = np.where(column[..., :1] > 0, column[..., :1], np.nan)
        factor[..., j:, j] = np.where(empty, 0.0, column / np.sqrt(pivot))
    return factor


def _factor_difference(difference: Array, q: Array) -> tuple[Array, Array]:
    """E = Lp − Lq from Σp − Σq = Lq Eᵀ + E Lqᵀ + E Eᵀ, column by column, and (Lp_jj / Lq_jj)² − 1."""
    e: Array = np.zeros(np.broadcast_shapes(difference.shape, q.shape))
    change = np.zeros(e.shape[:-1])
    for j in range(e.shape[-1]):
        column = difference[..., j:, j] - _times(q[..., j:, :j], e[..., j, :j])
        column = column - _times(e[..., j:, :j], q[..., j, :j] + e[..., j, :j])
        scale = q[..., j, j]
        root = np.sqrt(scale**2 + column[..., 0])
        e[..., j, j] = column[..., 0] / (scale + root)
        e[..., j + 1 :, j] = (column[..., 1:] - q[..., j + 1 :, j] * e[..., j, j, np.newaxis]) / root[..., np.newaxis]
        change[..., j] = column[..., 0] / scale / scale
    return e, change


def _solve_lower(factor: Array, right: Array) -> Array:
    """factor⁻¹ right."""
    solution = np.zeros((*np.broadcast_shapes(factor.shape[:-2], right.shape[:-2]), *right.shape[-2:]))
    for i in range(factor.shape[-1]):
        rest = right[..., i, :] - (factor[..., i, np.newaxis, :i] @ solution[..., :i, :])[..., 0, :]
        solution[..., i, :] = rest / factor[..., i, i, np.newaxis]
    return solution


def _off_diagonal(matrix: Array) -> Array:
    """Σ_{i>j} N_ij²."""
    total: Array = np.sum(np.tril(matrix, -1) ** 2, (-2, -1))
    return total


def _spread(p: Array, q: Array) -> Array:
    """Σ_j (r_j² − 1 − log r_j²) for the quotients r_j = 1 + x_j of the diagonals: x² + 2 (x − log(1 + x)) each."""
    s, t = (np.diagonal(x, axis1=-2, axis2=-1) for x in (p, q))
    x = (s - t) / t
    far = (s / t) ** 2 - 1 - 2 * (np.log(s) - np.log(t))
    return _sum(np.where(np.abs(x) < 0.5, x**2 + 2 * _log1p_excess(x), far))


def _log1p_excess(x: Array) -> Array:
    """x − log(1 + x)."""
    one = np.ones(x.shape)
    return _deviance(one, one + x, np.zeros(x.shape), np.log1p(x), -x)


# ---------------------------------------------------------------------------------------------------------------------
# From the operands to pairs of rows, and back


def gaussian_kl(
    mean_p: ArrayLike,
    scale_p: ArrayLike,
    mean_q: ArrayLike | None = None,
    scale_q: ArrayLike | None = None,
    *,
    scale: Literal["var", "std", "logvar"] = "var",
    axis: SupportsIndex | None = -1,
    keepdims: bool = False,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """½ Σ [(μp − μq)²/vq + r − 1 − log r] with r = vp/vq; q is N(0, I) if left out."""
    validation.gaussian_scale(scale)
    operands, names = validation.gaussian_operands(mean_p, scale_p, mean_q, scale_q)
    rows = validation.gaussian_rows(operands, names, axis, dtype)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    target, copy_to = validation.target_for(rows, keepdims, out)
    m, s, *prior = (_last_axis(rows, x, name) for x, name in zip(rows.operands, rows.types.operands, strict=True))
    mq, sq = prior or (np.float64(0), np.float64(0 if scale == "logvar" else 1))
    with np.errstate(all="ignore"):
        if scale == "logvar":
            apart = np.where(m == mq, 0, ((m - mq) * np.exp(-sq / 2)) ** 2)
            ratio_part = np.expm1(s - sq) - np.minimum(s - sq, 1000)  # beyond, the first is infinite
        else:
            power = 1 if scale == "var" else 2
            apart = (m - mq) ** 2 / sq**power
            change = (s - sq) / sq  # r = (1 + change)^power
            log_ratio = np.where(np.abs(change) < 0.5, np.log1p(change), np.log(s) - np.log(sq))
            ratio_part = change + (power - 1) * (change + change**2) - power * log_ratio
        no_width = -np.inf if scale == "logvar" else 0
        valid = np.isfinite(m) & np.isfinite(mq) & (s >= no_width) & (s < np.inf) & (sq > no_width) & (sq < np.inf)
        terms = np.where(valid, np.where(s == no_width, np.inf, apart + ratio_part), np.nan)
        target[...] = 0.5 * np.sum(terms, -1)
    return validation.deliver(rows, target, copy_to, validation.gaussian_fault(scale), keepdims, out, invalid)


def gaussian_kl_full(
    mean_p: ArrayLike,
    cov_p: ArrayLike,
    mean_q: ArrayLike | None = None,
    cov_q: ArrayLike | None = None,
    *,
    cov: Literal["covariance", "cholesky"] = "covariance",
    diagonal: Literal["neither", "p", "q", "both"] | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """½ [(μp − μq)ᵀ Σq⁻¹ (μp − μq) + tr(Σq⁻¹ Σp) − d − log det(Σq⁻¹ Σp)]; q is N(0, I) if left out."""
    validation.covariance_kind(cov)
    operands, names = validation.gaussian_operands(mean_p, cov_p, mean_q, cov_q, "cov")
    rows = validation.full_gaussian_rows(operands, names, diagonal, dtype)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    target, copy_to = validation.target_for(rows, False, out)
    m, s, *prior = (_whole(rows, i) for i in range(len(operands)))
    mq, sq = prior or (np.zeros(rows.length), np.eye(rows.length))
    # N = Lq⁻¹ (Lp − Lq) has Lp_jj / Lq_jj − 1 on its diagonal, and I + N is a factor of Lq⁻¹ Σp Lq⁻ᵀ, so that the trace
    # less d and the logarithm are Σ_j (r_j² − 1 − log r_j²) + Σ_{i>j} N_ij² with r_j = 1 + N_jj.
    with np.errstate(all="ignore"):
        if cov == "cholesky":
            p, q = (np.where(_lower(x), x, np.nan) for x in (s, sq))
            twice = _spread(p, q) + _off_diagonal(_solve_lower(q, p - q))
        else:
            tolerances = (rows.asymmetry[1], rows.asymmetry[-1])  # the unit matrix passes any
            p, q = (_factor(np.where(_symmetric(x, t), x, np.nan)) for x, t in zip((s, sq), tolerances, strict=True))
            far = _spread(p, q) + _off_diagonal(_solve_lower(q, p))
            difference, change = _factor_difference(s - sq, q)
            near = np.sum(_log1p_excess(change), -1) + _off_diagonal(_solve_lower(q, difference))
            twice = np.where((far < 1) & (near >= 0), near, far)
        apart = _solve_lower(q, (m - mq)[..., np.newaxis])
        twice = twice + np.sum(apart**2, (-2, -1))
        p_scales, q_scales = (np.diagonal(x, axis1=-2, axis2=-1) for x in (p, q))
        valid = np.isfinite(m).all(-1) & np.isfinite(mq).all(-1) & (p_scales >= 0).all(-1) & (q_scales > 0).all(-1)
        values = np.where((p_scales == 0).any(-1) | np.isnan(twice), np.inf, twice / 2)
        target[...] = np.where(valid, values, np.nan)
    return validation.deliver(rows, target, copy_to, validation.full_gaussian_fault(rows, cov), False, out, invalid)


def gaussian_kl_grad(
    mean_p: ArrayLike,
    scale_p: ArrayLike,
    mean_q: ArrayLike | None = None,
    scale_q: ArrayLike | None = None,
    *,
    scale: Literal["var", "std", "logvar"] = "var",
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> tuple[Array, ...]:
    """± (μp − μq)/vq for the means; ½ (1/vq − 1/vp) and ½ (1 − vp/vq − (μp − μq)²/vq)/vq for variances."""
    validation.gaussian_scale(scale)
    operands, names = validation.gaussian_operands(mean_p, scale_p, mean_q, scale_q)
    rows = validation.elements(operands, names, dtype)
    validation.invalid_choice(invalid)
    m, s, *prior = (
        validation.decoded(x, name).astype(np.float64)
        for x, name in zip(rows.operands, rows.types.operands, strict=True)
    )
    mq, sq = prior or (np.float64(0), np.float64(0 if scale == "logvar" else 1))
    with np.errstate(all="ignore"):
        if scale == "logvar":
            excess = np.expm1(s - sq)  # vp/vq − 1
            mean = np.where(m == mq, 0, (m - mq) * np.exp(-sq))
            p, q = excess / 2, -(mean * (m - mq) + excess) / 2
        else:
            power = 1 if scale == "var" else 2
            excess = (s - sq) / sq * (1 if power == 1 else (s + sq) / sq)
            mean = (m - mq) / sq**power
            p, q = power / 2 * excess / s, -power / 2 * (mean * (m - mq) + excess) / sq
        no_width = -np.inf if scale == "logvar" else 0
        valid = np.isfinite(m) & np.isfinite(mq) & (s >= no_width) & (s < np.inf) & (sq > no_width) & (sq < np.inf)
        slopes = (np.where(valid, x, np.nan) for x in (mean, p, -mean, q))
        gradients = tuple(
            np.broadcast_to(x, rows.batch_shape).astype(rows.types.result)
            for x, _ in zip(slopes, operands, strict=False)
        )
    validation.deliver(rows, gradients[0], None, validation.gaussian_fault(scale), False, None, invalid)
    return gradients


def reparameterize(
    mean: ArrayLike,
    scale: ArrayLike,
    *,
    scale_kind: Literal["var", "std", "logvar"] = "logvar",
    rng: np.random.Generator | int | None = None,
) -> Result:
    """μ + σ ε, with ε from N(0, 1)."""
    validation.gaussian_scale(scale_kind, "scale_kind")
    rows = validation.gaussian_rows((mean, scale), ("mean", "scale"), None, None)
    means, scales = (validation.decoded(x, name) for x, name in zip(rows.operands, rows.types.operands, strict=True))
    result = rows.types.result
    with np.errstate(all="ignore"):
        deviation = scales.astype(result)
        if scale_kind != "std":
            deviation = np.sqrt(deviation) if scale_kind == "var" else np.exp(deviation / 2)
        valid = np.isfinite(means) & (deviation >= 0) & (deviation < np.inf)
        noise = np.random.default_rng(rng).standard_normal(rows.batch_shape, result)
        sample = np.where(valid, means + deviation * noise, np.nan).astype(result)
    return sample if rows.batch_shape else sample[()]


def kl_estimate(
    logp: ArrayLike,
    logq: ArrayLike,
    *,
    kind: Literal["k1", "k2", "k3"] = "k3",
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """With log r = logq − logp: k1 = −log r, k2 = ½ (log r)², k3 = r − 1 − log r."""
    validation.estimator(kind)

    def formula(p: Array, q: Array) -> Array:
        log_r = q - p
        valid = (p < np.inf) & (q < np.inf)
        if kind == "k1":
            return np.where(valid, p - q, np.nan)
        if kind == "k2":
            return np.where(valid, 0.5 * log_r * log_r, np.nan)
        # Near 0, where e^x − 1 and x cancel, the series x²/2 (1 + x/3 (1 + x/4 (...))).
        series = np.ones_like(log_r)
        for n in range(12, 2, -1):
            series = 1 + series * log_r / n
        # Where r is infinite, so is k3; where it is 0, −log r alone is.
        k3 = np.where(log_r > 1000, np.inf, np.expm1(log_r) - log_r)
        return np.where(valid, np.where(np.abs(log_r) < 0.1, log_r * log_r / 2 * series, k3), np.nan)

    return _by_element(formula, (logp, logq), ("logp", "logq"), out, n_threads, invalid, dtype)


def clipped_ratio_objective(
    logp_new: ArrayLike,
    logp_old: ArrayLike,
    advantage: ArrayLike,
    *,
    clip: float = 0.2,
    out: Array | None = None,
    n_threads: int | None = None,
    invalid: Literal["nan", "raise"] = "nan",
    dtype: Literal["bfloat16"] | None = None,
) -> Result:
    """Min(r A, clip(r, 1 − ε, 1 + ε) A) with r = exp(logp_new − logp_old)."""
    limit = validation.clip_range(clip)

    def formula(new: Array, old: Array, a: Array) -> Array:
        r = np.exp(new - old)
        objective = np.where(a == 0, 0, np.minimum(r * a, np.clip(r, 1 - limit, 1 + limit) * a))
        valid = (new < np.inf) & (old < np.inf) & ~np.isnan(r) & np.isfinite(a)
        return np.where(valid, objective, np.nan)

    names = ("logp_new", "logp_old", "advantage")
    return _by_element(formula, (logp_new, logp_old, advantage), names, out, n_threads, invalid, dtype)


def _by_element(
    formula: Callable[..., Array],
    operands: tuple[ArrayLike, ...],
    names: tuple[str, ...],
    out: Array | None,
    n_threads: int | None,
    invalid: str,
    dtype: str | None,
) -> Result:
    rows = validation.elements(operands, names, dtype)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    target, copy_to = validation.target_for(rows, False, out)
    numbers = (validation.decoded(x, name) for x, name in zip(rows.operands, rows.types.operands, strict=True))
    with np.errstate(all="ignore"):
        target[...] = formula(*(x.astype(np.float64) for x in numbers))
    return validation.deliver(rows, target, copy_to, validation.log_probability_fault, False, out, invalid)


def _reduce(
    formula: Callable[[_Pair], Array],
    p: ArrayLike,
    q: ArrayLike,
    normalize: bool,
    axis: SupportsIndex,
    keepdims: bool,
    out: Array | None,
    n_threads: int | None,
    invalid: str,
    dtype: str | None,
) -> Result:
    rows = validation.row_pairs(p, q, axis, dtype)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    target, copy_to = validation.target_for(rows, keepdims, out)
    _fill(target, formula, *_operands(rows), normalize)
    return validation.deliver(rows, target, copy_to, validation.weights_fault(normalize), keepdims, out, invalid)


def _fill(target: Array, formula: Callable[[_Pair], Array], p: Array, q: Array, normalize: bool) -> None:
    with np.errstate(all="ignore"):
        values = formula(_pair(p, q, normalize))
        target[...] = np.where(_valid(p, normalize) & _valid(q, normalize), values, np.nan)


def _operands(rows: Rows) -> tuple[Array, Array]:
    p, q = rows.operands
    p_type, q_type = rows.types.operands
    p_rows = _last_axis(rows, p, p_type)
    return p_rows, p_rows if q is p else _last_axis(rows, q, q_type)


def _last_axis(rows: Rows, operand: Array, type_name: str) -> Array:
    """An operand in float64, its rows along the last axis."""
    decoded = validation.decoded(operand, type_name).astype(np.float64)
    # One layout for both operands, for NumPy adds up a row in an order that depends on it, and equal rows must have
    # equal sums.
    return np.ascontiguousarray(validation.rows_last(rows, decoded))


def _whole(rows: FullRows, i: int) -> Array:
    """An operand of full Gaussians in float64: a mean as a vector, a scale as a matrix."""
    operand = validation.decoded(rows.operands[i], rows.types.operands[i]).astype(np.float64)
    if i % 2 == 1:
        return operand if rows.whole[i] else operand[..., np.newaxis] * np.eye(rows.length)
    return np.broadcast_to(operand, (*operand.shape[:-1], rows.length))


def _valid(row: Array, normalize: bool) -> Array:
    """Whether all numbers of a row are finite and none negative, and, if it is to be normalised, one is positive."""
    valid: Array = np.all((row >= 0) & (row < np.inf), axis=-1)
    return valid & np.any(row, axis=-1) if normalize else valid


def _pair(p: Array, q: Array, normalize: bool) -> _Pair:
    if not normalize:
        return _Pair(_Rows(p, np.log(p)), _Rows(q, np.log(q)), p - q, False)
    a, scaled_p, total_p = _shares(p)
    b, scaled_q, _ = _shares(q)
    # p/Σp − q/Σq, from the differences of the numbers, which are exact where these are close.
    apart = scaled_p - scaled_q
    difference = (apart - b.values * apart.sum(-1, keepdims=True)) / total_p
    return _Pair(a, b, difference, True)


def _shares(row: Array) -> tuple[_Rows, Array, Array]:
    """Each number divided by the sum of its row; the numbers times a power of two, and their sum."""
    # A power of two first, which loses nothing and leaves neither a sum that overflows nor a row of subnormal numbers.
    exponent = np.frexp(row.max(-1, keepdims=True))[1]
    scaled = np.ldexp(row, -exponent)
    total = scaled.sum(-1, keepdims=True)
    # A share may be below the smallest float and yet be more than nothing: its logarithm is that of the parts.
    smallest_normal, smallest = np.finfo(np.float64).smallest_normal, np.finfo(np.float64).smallest_subnormal
    shares = np.where(row > 0, np.maximum(scaled / total, smallest), 0.0)
    log_parts = np.log(row) - (np.log(total) + exponent * math.log(2))
    logs = np.where(shares < smallest_normal, log_parts, np.log(shares))
    # That of a share near 1 comes from what the others leave of 1.
    others = np.where(shares > 0.5, 0.0, scaled).sum(-1, keepdims=True) / total
    logs = np.where(shares > 0.5, np.log1p(-others), logs)
    return _Rows(shares, logs), scaled, total


# ---------------------------------------------------------------------------------------------------------------------
# From logits to pairs of rows


def _reduce_logits(
    formula: Callable[[_Pair], Array],
    p: ArrayLike,
    q: ArrayLike,
    temperature: float,
    axis: SupportsIndex,
    keepdims: bool,
    out: Array | None,
    n_threads: int | None,
    invalid: str,
    dtype: str | None,
) -> Result:
    rows = validation.row_pairs(p, q, axis, dtype, validation.LOGITS)
    validation.thread_bound(n_threads)
    validation.invalid_choice(invalid)
    degree = validation.softmax_temperature(temperature)
    target, copy_to = validation.target_for(rows, keepdims, out)
    target[...] = _from_logits(formula, *_operands(rows), degree)
    return validation.deliver(rows, target, copy_to, validation.logits_fault, keepdims, out, invalid)


def _from_logits(formula: Callable[[_Pair], Array], a: Array, b: Array, temperature: float) -> Array:
    """A formula of the softmax of two rows of logits; NaN where one of them has none."""
    with np.errstate(all="ignore"):
        values = np.array(formula(_softmax_pair(a, b, temperature)))
        values[~(_has_softmax(a) & _has_softmax(b))] = np.nan
    return values


def _has_softmax(row: Array) -> Array:
    """Whether a row of logits holds no NaN and no +inf, and not -inf alone."""
    largest = row.max(-1)
    has: Array = (largest > -np.inf) & (largest < np.inf)
    return has


def _as_gradient(rows: Rows, values: Array) -> Array:
    """The gradient of the rows along the axis that they came along, in the type of the results."""
    gradient = validation.gradient_for(rows)
    validation.rows_last(rows, gradient)[...] = values
    return gradient


def _softmax(row: Array, temperature: float) -> _Rows:
    """exp(logits/T), divided by its sum."""
    below = (row - row.max(-1, keepdims=True)) / temperature
    below = np.where(row > -np.inf, np.maximum(below, -np.finfo(np.float64).max), -np.inf)
    # The logarithm of the largest share comes from what the others leave of 1, for they may be next to nothing.
    is_first = np.arange(row.shape[-1]) == row.argmax(-1, keepdims=True)
    others = np.where(is_first, 0.0, np.exp(below)).sum(-1, keepdims=True)
    logs = below - np.log1p(others)
    # As in _shares(), one below the smallest float is more than nothing.
    shares = np.where(row > -np.inf, np.maximum(np.exp(logs), np.finfo(np.float64).smallest_subnormal), 0.0)
    return _Rows(shares, logs)


def _softmax_pair(a: Array, b: Array, temperature: float) -> _Pair:
    p, q = _softmax(a, temperature), _softmax(b, temperature)
    # With d = (a − b)/T, log(p/q) is d less a number that is the same for the whole row. A constant that was added to
    # the logits of one side may take most of the digits of a − b, so this is held as two numbers, the second being what
    # the first has lost in rounding; and d is measured from a place where both sides have mass.
    difference = a - b
    back = a - difference
    lost = (a - (difference + back)) + (back - b)
    place = (p.logs + q.logs).argmax(-1, keepdims=True)
    steps = [x - np.take_along_axis(x, place, -1) for x in (difference, lost)]
    both = np.isfinite(a) & np.isfinite(b)
    d = np.where(both, (steps[0] + steps[1]) / temperature, 0.0)
    # Both sides sum to 1, which gives that number where it is small: Σ p exp(−d) over the common support is Σ q there,
    # but for a factor.
    excess = np.where(both, p.values * np.expm1(-d), 0.0)
    only_p, only_q = (np.where(both, 0.0, x.values).sum(-1, keepdims=True) for x in (p, q))
    small = np.abs(excess).sum(-1, keepdims=True) + only_p + only_q < 0.5
    by_sums = np.log1p(excess.sum(-1, keepdims=True) - only_p) - np.log1p(-only_q)
    by_logs = np.take_along_axis(p.logs - q.logs, place, -1)
    log_ratio = np.where(both, d + np.where(small, by_sums, by_logs), p.logs - q.logs)
    return _Pair(p, q, np.where(np.abs(log_ratio) < 1, q.values * np.expm1(log_ratio), p.values - q.values), True)
