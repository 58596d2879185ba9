"""Exact values of the divergence between Gaussians with full covariances, and how far a result may be from them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from flint import arb, arb_mat, ctx
from oracles import exact_values

# The accuracy contract: the relative error allowed in a (float64, float32) result, times the condition number.
BOUND = (1e-14, 1e-6)

_PRECISIONS = (256, 512, 1024, 2048, 4096, 8192)

_known: dict = {}


def exact_pair(mean_p, cov_p, mean_q, cov_q, cov="covariance"):
    """The exact divergence of a pair of positive definite Gaussians, as a Fraction; lower triangles are read."""
    operands = [np.ascontiguousarray(exact_values(x)) for x in (mean_p, cov_p, mean_q, cov_q)]
    key = (cov, *(x.tobytes() for x in operands))
    if key not in _known:
        _known[key] = _exact_pair(*operands, cov)
    return _known[key]


def _exact_pair(mean_p, cov_p, mean_q, cov_q, cov):
    if np.array_equal(mean_p, mean_q) and np.array_equal(np.tril(cov_p), np.tril(cov_q)):
        return Fraction(0)
    d = len(mean_p)
    for precision in _PRECISIONS:
        with ctx.workprec(precision):
            p, q = _matrix(cov_p, cov), _matrix(cov_q, cov)
            apart = arb_mat(d, 1, [arb(x) - arb(y) for x, y in zip(mean_p.tolist(), mean_q.tolist(), strict=True)])
            try:
                ratio, solved = q.solve(p), q.solve(apart)
            except ZeroDivisionError:  # singular, as far as these digits go
                continue
            twice = q.det().log() - p.det().log() + (apart.transpose() * solved)[0, 0]
            for i in range(d):
                twice += ratio[i, i] - 1
            if twice.rel_accuracy_bits() >= 80:
                mantissa, exponent = (twice / 2).mid().man_exp()
                return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)
    raise ArithmeticError(f"no precision up to {precision} bits is enough for this pair")


def _matrix(array, cov):
    d = len(array)
    lower = np.tril(array)
    if cov == "covariance":
        lower = lower + np.tril(array, -1).T
    matrix = arb_mat(d, d, [arb(x) for x in lower.ravel().tolist()])
    return matrix if cov == "covariance" else matrix * matrix.transpose()


def condition(array, cov):
    """The condition number of a covariance, after its components have been brought to one scale if they are far apart.

    (Scaling a component changes neither the divergence nor the roundings.)
    """
    array = exact_values(array)
    if cov == "cholesky":
        return float(np.linalg.cond(array / np.abs(array).max(axis=1)[:, None])) ** 2
    scale = np.sqrt(np.diagonal(array))
    return float(np.linalg.cond(array / scale[:, None] / scale))


def assert_full_gaussian(result, operands, cov="covariance"):
    """Assert that every result is within the contract of its exact value; the operands are not broadcast."""
    mean_p, cov_p, mean_q, cov_q = operands
    result = np.asarray(result)
    assert result.shape == mean_p.shape[:-1]
    bound = BOUND[result.dtype == np.float32]
    for i, value in enumerate(result):
        expected = exact_pair(mean_p[i], cov_p[i], mean_q[i], cov_q[i], cov)
        assert value >= 0, f"pair {i} gives {value!r}"
        if expected == 0:
            assert value == 0, f"pair {i} gives {value!r} instead of 0"
            continue
        assert math.isfinite(value), f"pair {i} gives {value!r}"
        kappa = max(1.0, condition(cov_p[i], cov), condition(cov_q[i], cov))
        error = abs(float((Fraction(float(value)) - expected) / expected))
        assert error <= bound * kappa, f"pair {i} gives {value!r}, {error:.3g} off at condition {kappa:.3g}"
