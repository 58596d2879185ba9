"""Exact values of the functions of logits, and how far a result may be from them.

The values are those of the textbook formulas on the logits and the temperature as given, in ball arithmetic, as in
``oracles``; nothing here is measured from a largest logit but to keep the exponents small.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from flint import arb, ctx
from oracles import exact_values, ulp

from fastkl import reference

METRICS = ("kl", "reverse_kl", "js", "js_distance", "cross_entropy", "entropy", "top1_agreement")

# The accuracy contract: ulps allowed in a (float64, float32) result, and what may be added, in nats.
BOUND = (32, 16)
SLACK = (Fraction(1, 10**30), Fraction(1, 10**15))

# The reference holds float64 rows to the precision of a softmax in float64: exp(x) loses |x| ulps.
REFERENCE_BOUND = 4096

_PRECISIONS = (128, 256, 512, 1024, 2048, 4096)
_TIGHT = 80  # bits
_SMALL = arb(2) ** -180  # as good as exact beside the slack, whatever the value

_FUNCTIONS = {
    "kl": "kl_divergence_from_logits",
    "js": "js_divergence_from_logits",
    "js_distance": "js_distance_from_logits",
    "cross_entropy": "cross_entropy_from_logits",
    "entropy": "entropy_from_logits",
}


def measure(module, name, p, q, **options):
    """Call the function behind a metric's name in `fastkl` or `fastkl.reference`."""
    if name == "reverse_kl":
        return module.kl_divergence_from_logits(q, p, **options)
    if name == "top1_agreement":
        return module.score_from_logits(p, q, (name,), **options)[name]
    function = getattr(module, _FUNCTIONS[name])
    return function(p, **options) if name == "entropy" else function(p, q, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Values


def exact(name, p, q, *, axis=-1, dtype=None, temperature=1.0, base=None, weight=0.5):
    """The exact value of every row: an object array of Fractions, infinities and NaN, of the batch's shape."""
    if name == "entropy":
        q = p
    p, q = _broadcast(p, q, axis, dtype)
    result = np.empty(p.shape[:-1], object)
    for index in np.ndindex(result.shape):
        result[index] = _exact_row(name, p[index], q[index], float(temperature), base, weight)
    return result


def _broadcast(p, q, axis, dtype):
    p, q = exact_values(p, dtype), exact_values(q, dtype)
    ndim = max(p.ndim, q.ndim)
    return np.broadcast_arrays(*(np.moveaxis(a.reshape((1,) * (ndim - a.ndim) + a.shape), axis, -1) for a in (p, q)))


_known: dict = {}


def _exact_row(name, p, q, temperature, base, weight):
    key = (name, p.tobytes(), q.tobytes(), temperature, base, weight)
    if key not in _known:
        _known[key] = _value(name, p.tolist(), q.tolist(), temperature, base, weight)
    return _known[key]


def is_valid(row):
    """Whether a list of logits has a softmax."""
    return all(x < math.inf for x in row) and max(row) > -math.inf


def _value(name, p, q, temperature, base, weight):
    if name == "entropy":
        q = p
    if not (is_valid(p) and is_valid(q)):
        return math.nan
    if name == "top1_agreement":
        return Fraction(p.index(max(p)) == q.index(max(q)))
    if name == "reverse_kl":
        name, p, q = "kl", q, p
    if name in ("kl", "cross_entropy") and any(y == -math.inf < x for x, y in zip(p, q, strict=True)):
        return -math.inf if base is not None and base < 1 else math.inf
    for precision in _PRECISIONS:
        with ctx.workprec(precision):
            value = _FORMULAS[name](_log_softmax(p, temperature), _log_softmax(q, temperature), arb(weight))
            value = value if base is None else value / arb(base).log()
            if value.rel_accuracy_bits() >= _TIGHT or value.rad() < _SMALL:
                if name == "js_distance":
                    value = value.nonnegative_part().sqrt()
                return _fraction(value)
    raise ArithmeticError(f"{name}: no precision up to {precision} bits is enough for this row")


def _fraction(ball):
    if abs(ball.mid()) < arb(2) ** -1200:  # below all floats; exp(-1e30) is no number to be written out
        return Fraction(0)
    mantissa, exponent = ball.mid().man_exp()
    return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


def _log_softmax(row, temperature):
    """log p of each cell, None where p is 0."""
    largest = arb(max(row))
    scaled = [None if x == -math.inf else (arb(x) - largest) / arb(temperature) for x in row]
    log_sum = sum((x.exp() for x in scaled if x is not None), arb(0)).log()
    return [None if x is None else x - log_sum for x in scaled]


def _kl(log_p, log_q, weight):
    pairs = [(x, y) for x, y in zip(log_p, log_q, strict=True) if x is not None]
    return sum((x.exp() * (x - y) for x, y in pairs), arb(0))


def _cross_entropy(log_p, log_q, weight):
    pairs = [(x, y) for x, y in zip(log_p, log_q, strict=True) if x is not None]
    return -sum((x.exp() * y for x, y in pairs), arb(0))


def _js(log_p, log_q, weight):
    value = arb(0)
    for x, y in zip(log_p, log_q, strict=True):
        p, q = (arb(0) if z is None else z.exp() for z in (x, y))
        m = weight * p + (1 - weight) * q
        if x is not None and weight != 0:
            value += weight * p * (x - m.log())
        if y is not None and weight != 1:
            value += (1 - weight) * q * (y - m.log())
    return value


_FORMULAS = {"kl": _kl, "js": _js, "js_distance": _js, "cross_entropy": _cross_entropy, "entropy": _cross_entropy}


def exact_gradients(p, q, *, axis=-1, dtype=None, temperature=1.0, base=None):
    """The gradients of the divergence by the logits of p and of q, and a size for each row's errors to be measured by.

    Two pairs of a float64 array of the operands' shape, the exact values rounded, and one of the batch's shape: the
    largest p (|log(p/q)| + Σ p |log(p/q)|)/T of a row, and its largest max(p, q)/T.
    """
    p, q = _broadcast(p, q, axis, dtype)
    gradients, sizes = np.full((2, *p.shape), np.nan), np.zeros((2, *p.shape[:-1]))
    unit = 1.0 if base is None else math.log(base)
    for index in np.ndindex(p.shape[:-1]):
        a, b = p[index].tolist(), q[index].tolist()
        if not (is_valid(a) and is_valid(b)):
            continue
        with ctx.workprec(512):
            log_p, log_q = _log_softmax(a, temperature), _log_softmax(b, temperature)
            shares = [[arb(0) if x is None else x.exp() for x in logs] for logs in (log_p, log_q)]
            scale = 1 / (arb(temperature) * (1 if base is None else arb(base).log()))
            gradients[(1, *index)] = [float(((y - x) * scale).mid()) for x, y in zip(*shares, strict=True)]
            sizes[(1, *index)] = max(float(max(x, y).mid()) for x, y in zip(*shares, strict=True))
            if any(y == -math.inf < x for x, y in zip(a, b, strict=True)):
                continue
            kl = _kl(log_p, log_q, None)
            ratios = [arb(0) if x is None else x - y for x, y in zip(log_p, log_q, strict=True)]
            terms = list(zip(shares[0], ratios, strict=True))
            gradients[(0, *index)] = [float((x * (ratio - kl) * scale).mid()) for x, ratio in terms]
            total = sum((x * abs(ratio) for x, ratio in terms), arb(0))
            sizes[(0, *index)] = max(float((x * (abs(ratio) + total)).mid()) for x, ratio in terms)
    sizes /= temperature * abs(unit)
    return [(np.moveaxis(gradient, -1, axis), size) for gradient, size in zip(gradients, sizes, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Distances


def assert_logits(module, name, result, p, q, *, factor=1, **options):
    """Assert that every row of ``result`` is within the contract of ``factor`` times its exact value."""
    expected = exact(name, p, q, **options)
    result = np.asarray(result)
    assert result.shape == expected.shape
    for index in np.ndindex(expected.shape):
        used = _excess(module, name, result[index], expected[index], factor, options.get("base"))
        assert used <= 1, (
            f"{name} {options}: row {index} gives {result[index]!r}, not {float(expected[index] * factor)!r}: "
            f"{used:.3g} of what is allowed"
        )


def allowance(name, value, dtype, *, factor=1, base=None, bound=None):
    """How far from ``factor`` times a finite exact value the contract allows a result to be."""
    is_float = dtype == np.float32
    slack = SLACK[is_float] * factor / Fraction(1 if base is None else abs(math.log(base)))
    if name == "js_distance":  # of the divergence that it is the root of
        slack = slack / (2 * value) if value**2 > slack else Fraction(math.sqrt(slack))
    return (bound or BOUND[is_float]) * ulp(value * factor, dtype) + slack


def _excess(module, name, result, value, factor, base):
    """How much of the allowance the error of a result uses: at most 1 is within the contract."""
    if not isinstance(value, Fraction):
        return 0.0 if result == value or (math.isnan(result) and math.isnan(value)) else math.inf
    dtype = result.dtype
    if not math.isfinite(result):
        largest = Fraction(float(np.finfo(dtype).max))
        return 0.0 if abs(value * factor) > largest and (result > 0) == (value > 0) else math.inf
    bound = REFERENCE_BOUND if module is reference and dtype == np.float64 else None
    allowed = allowance(name, value, dtype, factor=factor, base=base, bound=bound)
    return float(abs(Fraction(float(result)) - value * factor) / allowed)


def assert_gradients(module, gradients, p, q, *, factor=1.0, **options):
    """Assert that gradients, of p and q or of q alone, are within the contract's ulps and slack at each row's size."""
    axis = options.get("axis", -1)
    base = options.get("base")
    unit = options.get("temperature", 1.0) * (1.0 if base is None else math.log(base))
    for gradient, (expected, size) in zip(gradients, exact_gradients(p, q, **options)[-len(gradients) :], strict=True):
        assert gradient.shape == expected.shape
        is_float = gradient.dtype == np.float32
        bound = REFERENCE_BOUND if module is reference and not is_float else BOUND[is_float]
        eps, slack = float(np.finfo(gradient.dtype).eps), float(SLACK[is_float])
        allowed = bound * eps * np.expand_dims(size, axis) + slack / abs(unit)
        np.testing.assert_array_equal(np.isnan(gradient), np.isnan(expected))
        error = np.abs(gradient.astype(np.float64) - expected * factor)
        worst = np.nanmax(error / (allowed * factor), initial=0.0)
        assert worst <= 1, f"{options}: {worst:.3g} of what is allowed"
