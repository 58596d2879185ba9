"""Exact values of the discrete family, and of KL from logits, by ball arithmetic (python-flint), and errors in ulp.

Floats are taken as the rational numbers they are. Every formula below is the textbook one: precision is raised until
the ball is narrow, so cancellation needs no care here. Independent of the package and of its tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from flint import arb, ctx

_PRECISIONS = (256, 1024, 4096, 16384)
_RELATIVE_BITS = 100


def _kl(p, q):
    return sum((x * (x / y).log() for x, y in zip(p, q, strict=True) if x > 0), arb(0))


def _js(p, q):
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (_kl(p, m) + _kl(q, m)) / 2


def _wasserstein(p, q):
    total = difference = arb(0)
    for x, y in zip(p[:-1], q[:-1], strict=True):
        difference += x - y
        total += abs(difference)
    return total


def _hellinger(p, q):
    differences = [x.sqrt() - y.sqrt() for x, y in zip(p, q, strict=True)]
    return _root(sum((d * d for d in differences), arb(0)) / 2)  # d**2 is not finite for a ball around 0


def _root(x):
    return x.sqrt() if x > 0 else arb(0, 1)  # of a ball around 0: not known yet, or 0


FORMULAE = {
    "kl_divergence": _kl,
    "jeffreys_divergence": lambda p, q: _kl(p, q) + _kl(q, p),
    "js_divergence": _js,
    "js_distance": lambda p, q: _root(_js(p, q)),
    "cross_entropy": lambda p, q: -sum((x * y.log() for x, y in zip(p, q, strict=True) if x > 0), arb(0)),
    "entropy": lambda p, q: -sum((x * x.log() for x in p if x > 0), arb(0)),
    "renyi_divergence": lambda p, q: sum((x * x / y for x, y in zip(p, q, strict=True) if x > 0), arb(0)).log(),
    "total_variation": lambda p, q: sum((abs(x - y) for x, y in zip(p, q, strict=True)), arb(0)) / 2,
    "hellinger_distance": _hellinger,
    "wasserstein_distance": _wasserstein,
}
"""Public function -> its formula; Rényi's for α=2."""

_INFINITE_WHERE_Q_IS_ZERO = ("kl_divergence", "cross_entropy", "renyi_divergence", "jeffreys_divergence")


def exact_value(function: str, p: Sequence[float], q: Sequence[float], normalize: bool = True) -> arb | float:
    """The value of ``function`` of one pair of rows: a ball of at least 100 bits, or a float where it is 0 or inf."""
    p, q = ([float(x) for x in row] for row in (p, q))
    missing = any(x > 0 and y == 0 for x, y in zip(p, q, strict=True))
    if function == "jeffreys_divergence":
        missing = missing or any(y > 0 and x == 0 for x, y in zip(p, q, strict=True))
    if missing and function in _INFINITE_WHERE_Q_IS_ZERO:
        return math.inf
    return _narrow(lambda x, y: FORMULAE[function](x, y), p, q, normalize)


def kl_from_logits(p: Sequence[float], q: Sequence[float]) -> float:
    """The divergence of the softmaxes of two rows of finite logits."""

    def formula(x: list[arb], y: list[arb]) -> arb:
        return _kl(*(_divided_by_sum([logit.exp() for logit in row]) for row in (x, y)))

    return float(_narrow(formula, *([float(x) for x in row] for row in (p, q)), False))


def scale_unnormalised(p: Sequence[float], q: Sequence[float]) -> float:
    """Σ(p log(p/q) − p + q) + |Σp − Σq|, the unit of the bound for ``normalize=False``."""
    p, q = ([float(x) for x in row] for row in (p, q))
    return float(_narrow(lambda x, y: _kl(x, y) - sum(x) + sum(y) + abs(sum(x) - sum(y)), p, q, False))


def _narrow(formula, p, q, normalize: bool) -> arb | float:
    for precision in _PRECISIONS:
        with ctx.workprec(precision):
            x, y = ([arb(value) for value in row] for row in (p, q))
            if normalize:
                x, y = _divided_by_sum(x), _divided_by_sum(y)
            value = formula(x, y)
            if value.rel_accuracy_bits() >= _RELATIVE_BITS:
                return value
    if not (value.is_finite() and value.contains(0)):
        raise ArithmeticError(f"neither narrow nor 0: {value}")
    return 0.0


def _divided_by_sum(row: list[arb]) -> list[arb]:
    total = sum(row, arb(0))
    return [value / total for value in row]


def ulp_error(got: float, exact: arb | float, dtype: np.dtype | type, scale: float | None = None) -> float:
    """|got − exact| in units in the last place of ``scale``, by default of the exact value rounded to ``dtype``.

    An infinity, a NaN or a zero that should have been something else is infinitely wrong, and the other way round.
    """
    got = float(got)
    if not isinstance(exact, arb):
        return 0.0 if got == exact else math.inf
    type_ = np.dtype(dtype).type
    with np.errstate(over="ignore", under="ignore"):
        nearest = type_(float(exact.mid()))
        if not (math.isfinite(got) and np.isfinite(nearest)):
            return 0.0 if got == nearest else math.inf
        unit = abs(np.spacing(nearest if scale is None else min(type_(scale), np.finfo(type_).max)))
    with ctx.workprec(_PRECISIONS[0]):
        return float((abs(arb(got) - exact) / arb(float(unit))).mid())
