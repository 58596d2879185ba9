"""Exact values of the divergence between diagonal Gaussians, and how far a result may be from them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from flint import arb, ctx
from oracles import exact_values, ulp_error

# The accuracy contract: ulps allowed in a (float64, float32) result.
BOUND = (16, 8)

_PRECISIONS = (192, 384, 768, 1536, 3072, 6144)


def exact_gaussian(operands, scale, axis=-1, dtype=None):
    """The exact divergence of every row: an object array of Fractions, infinities and NaN, of the batch's shape.

    ``operands`` are the means and scales of p, and of q unless it is N(0, I).
    """
    arrays = [exact_values(operand, dtype) for operand in operands]
    if axis is None:
        arrays = [array[..., np.newaxis] for array in arrays]
    else:
        ndim = max(array.ndim for array in arrays)
        arrays = [np.moveaxis(a.reshape((1,) * (ndim - a.ndim) + a.shape), axis, -1) for a in arrays]
    arrays = np.broadcast_arrays(*arrays)
    result = np.empty(arrays[0].shape[:-1], object)
    for index in np.ndindex(result.shape):
        result[index] = _exact_row([array[index].tolist() for array in arrays], scale)
    return result


def _exact_row(rows, scale):
    one = 0.0 if scale == "logvar" else 1.0
    if len(rows) == 2:
        rows = [*rows, [0.0] * len(rows[0]), [one] * len(rows[0])]
    means_p, scales_p, means_q, scales_q = rows
    no_width = -math.inf if scale == "logvar" else 0.0
    if any(not math.isfinite(x) for x in means_p + means_q):
        return math.nan
    if any(not (no_width <= x < math.inf) for x in scales_p + scales_q) or no_width in scales_q:
        return math.nan
    if no_width in scales_p:
        return math.inf
    if rows[0] == means_q and scales_p == scales_q:
        return Fraction(0)
    for precision in _PRECISIONS:
        with ctx.workprec(precision):
            value = arb(0)
            for m, s, mq, sq in zip(means_p, scales_p, means_q, scales_q, strict=True):
                value += _term(scale, arb(m), arb(s), arb(mq), arb(sq))
            if value.rel_accuracy_bits() >= 80:
                mantissa, exponent = (value / 2).mid().man_exp()
                return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)
    raise ArithmeticError(f"no precision up to {precision} bits is enough for this row")


def _term(scale, m, s, mq, sq):
    if scale == "logvar":
        log_ratio, ratio, precision = s - sq, (s - sq).exp(), (-sq).exp()
    else:
        power = 1 if scale == "var" else 2
        ratio, precision = (s / sq) ** power, 1 / sq**power
        log_ratio = power * (s / sq).log()
    return (m - mq) ** 2 * precision + ratio - 1 - log_ratio


def assert_gaussian(result, operands, scale, axis=-1, dtype=None):
    """Assert that every result is within the contract of its exact value."""
    result = np.asarray(result)
    expected = exact_gaussian(operands, scale, axis, dtype)
    assert result.shape == expected.shape
    bound = BOUND[result.dtype == np.float32]
    for index in np.ndindex(expected.shape):
        error = ulp_error(result[index], expected[index], result.dtype)
        assert error <= bound, f"{scale}: row {index} gives {result[index]!r}, {error:.3g} ulp from the exact value"
