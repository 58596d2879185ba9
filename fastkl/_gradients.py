"""The gradients of discrete divergences, for automatic differentiation: written in NumPy, a stretch of rows at a time.

With p̂ = p/Σp and q̂ = q/Σq, or p and q themselves where nothing is normalised, a divergence is a sum over bins. Its
slopes g with respect to p̂ and q̂ are those of the bins; with respect to p they are (g − Σ p̂ g)/Σp, and likewise for q.

* D(p‖q): log(p̂/q̂) + 1 and −p̂/q̂.
* Jensen-Shannon with m = w p̂ + (1 − w) q̂: w log(p̂/m) and (1 − w) log(q̂/m).

A bin's term with p = 0 counts as the constant 0, as automatic differentiation has it elsewhere: its own slope would be
−inf, and NaN in everything behind a softmax that has come down to 0 there, where the slope of the whole is 0. Logarithms
of ratios near 1 are taken of the difference p̂ − q̂, which is computed from p − q, so that nearly equal rows keep their
digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastkl._validation import Rows, decoded, gradient_for, rows_last, stretches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from fastkl._validation import Array

    Floats = NDArray[np.float64]

# So many elements at a time stay in the cache with what is computed from them.
_ELEMENTS_AT_ONCE = 1 << 15


def discrete_gradients(
    rows: Rows, factor: Array, needed: Sequence[bool], weight: float | None, normalize: bool, unit: float
) -> list[Array]:
    """Those of the gradients of a divergence of pairs of rows that are needed, in the operands' broadcast shape.

    ``weight`` is that of a Jensen-Shannon divergence, None stands for D(p‖q). They are multiplied by ``factor``, of the
    batch shape, and divided by ``unit``, the logarithm of the base. A row that is invalid has NaN in both.
    """
    shape = (*rows.batch_shape, rows.length)
    operands = tuple(np.broadcast_to(rows_last(rows, x), shape) for x in rows.operands)
    last = Rows(operands, rows.names, rows.types, -1, rows.length, rows.batch_shape)
    gradients = [gradient_for(rows) for wanted in needed if wanted]
    factors = np.broadcast_to(factor[..., np.newaxis], shape)
    most = max(1, _ELEMENTS_AT_ONCE // rows.length)
    with np.errstate(all="ignore"):
        for part, (scales, *targets) in stretches(last, (factors, *(rows_last(rows, x) for x in gradients)), most):
            p, q = (decoded(x, name).astype(np.float64) for x, name in zip(part.operands, rows.types.operands))
            for target, slopes in zip(targets, _slopes(p, q, needed, weight, normalize), strict=True):
                slopes *= scales / unit
                target[...] = slopes
    return gradients


def _slopes(p: Floats, q: Floats, needed: Sequence[bool], weight: float | None, normalize: bool) -> Iterator[Floats]:
    """Those of the gradients with respect to some rows of p and q that are needed, in nats."""
    sum_p, sum_q = p.sum(-1, keepdims=True), q.sum(-1, keepdims=True)
    valid = (p.min(-1, keepdims=True) >= 0) & (q.min(-1, keepdims=True) >= 0) & (sum_p < np.inf) & (sum_q < np.inf)
    apart = p - q
    if normalize:
        valid &= (sum_p > 0) & (sum_q > 0)
        excess = apart.sum(-1, keepdims=True)
        q = q / sum_q
        apart = (apart - q * excess) / sum_p
        p = p / sum_p
    for by_q, (total, wanted) in enumerate(zip((sum_p, sum_q), needed, strict=True)):
        if not wanted:
            continue
        if weight is None:
            slopes = _kl_by_q(p, q, apart, normalize) if by_q else _kl_by_p(p, q, apart, normalize)
        elif by_q:
            slopes = _js_by_p(q, p, -apart, normalize, 1.0 - weight, weight)
        else:
            slopes = _js_by_p(p, q, apart, normalize, weight, 1.0 - weight)
        if normalize:
            slopes /= total
        slopes[~valid[..., 0]] = np.nan
        yield slopes


def _kl_by_p(p: Floats, q: Floats, apart: Floats, normalize: bool) -> Floats:
    logs = _log_ratio(p, q, apart / q)
    if not normalize:
        return np.where(p > 0, logs + 1.0, 0.0)
    logs[p == 0] = -1.0  # less the 1 that Σ p̂ g has too
    divergence = (p * logs).sum(-1, keepdims=True)
    divergence[divergence == np.inf] = np.nan
    logs -= divergence
    return logs


def _kl_by_q(p: Floats, q: Floats, apart: Floats, normalize: bool) -> Floats:
    # Of p̂/q̂, Σ q̂ g leaves p̂/q̂ - 1.
    return np.where(p > 0, -(apart / q), 1.0) if normalize else np.where(p > 0, -(p / q), 0.0)


def _js_by_p(p: Floats, q: Floats, apart: Floats, normalize: bool, weight: float, rest: float) -> Floats:
    if 0.0 in (weight, rest):  # the mixture is one of the two, and the other does not count
        return np.zeros_like(p)
    mixture = np.maximum(weight * p + rest * q, np.finfo(np.float64).smallest_subnormal)
    logs = weight * _log_ratio(p, mixture, rest * apart / mixture)
    slopes = np.where(p > 0, logs, np.where(q > 0, -weight, 0.0))  # what is left is that of the other's term
    if normalize:
        slopes -= (p * slopes).sum(-1, keepdims=True)
    return slopes


def _log_ratio(a: Floats, b: Floats, relative: Floats) -> Floats:
    """log(a/b), given (a − b)/b: the first where that is near −1 or overflows, and log1p of the second elsewhere."""
    logs = np.log1p(relative)
    far = ~((relative > -0.5) & (relative < 1e300))
    logs[far] = np.log(a[far]) - np.log(b[far])
    return logs
