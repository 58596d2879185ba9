"""Exact values of every discrete function, and how far a result may be from them.

The values are those of the formulas on the numbers as given, evaluated in ball arithmetic (python-flint's ``arb``) at
a precision raised until the ball is far smaller than an ulp; total variation and the Wasserstein distance are rational
and are computed in integers. The formulas are the textbook ones, deliberately not those of the kernels: what
cancels costs precision here, not correctness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

import ml_dtypes
import numpy as np
from flint import arb, ctx

# One row of every function that `score` knows. `entropy` ignores q.
METRICS = (
    "kl", "reverse_kl", "jeffreys", "js", "js_distance", "cross_entropy", "entropy", "renyi",
    "total_variation", "hellinger", "wasserstein",
)  # fmt: skip

# The accuracy contract: ulps allowed in a (float64, float32) result.
#
# Rényi has 16 (8): its logarithm stands behind a power whose exponent alpha log(p/q) is itself rounded. Wasserstein
# has the ulps of total variation, whose running sum it is, plus WASSERSTEIN_SLACK.
BOUNDS = {
    "kl": (8, 4),
    "reverse_kl": (8, 4),
    "jeffreys": (8, 4),
    "js": (8, 4),
    "js_distance": (8, 4),
    "cross_entropy": (8, 4),
    "entropy": (8, 4),
    "renyi": (16, 8),
    "total_variation": (8, 4),
    "hellinger": (8, 4),
    "wasserstein": (8, 4),
}

# Between two bins the Wasserstein distance is |P_i - Q_i| times the gap, P_i and Q_i being the cumulated shares. These
# may agree by accident to any number of digits while the gap is as wide as one likes, so that no fixed precision gives
# the product a relative error: a share of the span of the positions, the resolution of the cumulated shares, is
# allowed for (two doubles for float64, one double for float32).
WASSERSTEIN_SLACK = {np.dtype(np.float64): Fraction(1, 2**95), np.dtype(np.float32): Fraction(1, 2**45)}

# Where a Rényi divergence is exactly 0, its rows are divided by sums that are held to two doubles: where the shares
# come out the same by another way than equal sums or a power of two, as in 5:10 and 1:2, a share is still off by a
# rounding of the second double. (Wasserstein distances have a slack of their own, above.)
ZERO_SLACK = {"renyi": Fraction(1, 2**100)}

_TIGHT = 80  # bits; the values are right to far below an ulp (2**-53)
_PRECISIONS = (192, 384, 768, 1536, 3072, 6144, 12288)


@dataclass(frozen=True)
class Exact:
    """The exact value of one row; `scale` is the size whose ulps the contract counts, `span` what slack is a share of.

    With normalised rows the scale is the value itself. A plain sum (``normalize=False``) may cancel, and the scale is
    then what its terms amount to: see `_scale_of`.
    """

    value: Fraction | float  # the floats are nan and +-inf
    scale: Fraction = Fraction(0)
    span: Fraction = Fraction(0)


# ---------------------------------------------------------------------------------------------------------------------
# Values


def exact_values(array, dtype=None):
    """The numbers of `array` as float64, which holds every one of them exactly (integers up to 2**53)."""
    array = np.asarray(array)
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def exact(name, p, q=None, *, axis=-1, dtype=None, **options):
    """`Exact` of every row of a batch, as an object array of the batch's shape."""
    q = p if q is None else q
    p, q = exact_values(p, dtype), exact_values(q, dtype)
    ndim = max(p.ndim, q.ndim)
    p, q = (np.moveaxis(a.reshape((1,) * (ndim - a.ndim) + a.shape), axis, -1) for a in (p, q))
    p, q = np.broadcast_arrays(p, q)
    result = np.empty(p.shape[:-1], object)
    for index in np.ndindex(result.shape):
        result[index] = exact_row(name, p[index], q[index], **options)
    return result


_known: dict = {}


def exact_row(name, p, q, *, normalize=True, base=None, weight=0.5, alpha=None, positions=None):
    """`Exact` of one pair of float64 rows (remembered: every level and layout asks for the same ones)."""
    if positions is not None:
        positions = tuple(np.asarray(positions, np.float64).tolist())
    key = (name, p.tobytes(), q.tobytes(), normalize, base, weight, alpha, positions)
    if key not in _known:
        _known[key] = _exact_row(name, p.tolist(), q.tolist(), normalize, base, weight, alpha, positions)
    return _known[key]


def _exact_row(name, p, q, normalize, base, weight, alpha, positions):
    if name == "entropy":
        q = p
    if any(not (0 <= x < math.inf) for x in p + q) or (normalize and not (any(p) and any(q))):
        return Exact(math.nan)
    infinite = Exact(-math.inf if base is not None and base < 1 else math.inf)
    if name == "reverse_kl":
        return _exact_row("kl", q, p, normalize, base, weight, alpha, positions)
    if name == "renyi":
        if alpha == 1:
            return _exact_row("kl", p, q, normalize, base, weight, alpha, positions)
        if not any(x and y for x, y in zip(p, q, strict=True)):
            return infinite
    if name in ("kl", "cross_entropy", "jeffreys") or (name == "renyi" and alpha > 1):
        sides = [(p, q), (q, p)] if name == "jeffreys" else [(p, q)]
        if any(x and not y for a, b in sides for x, y in zip(a, b, strict=True)):
            return infinite
    if name in ("total_variation", "wasserstein"):
        return _rational(name, p, q, normalize, positions)

    def evaluate():
        pairs = [(arb(x), arb(y)) for x, y in zip(p, q, strict=True) if x or y]
        value, scale = _FORMULAS[name](pairs, normalize, weight, alpha)
        if base is not None and name not in ("js_distance", "hellinger"):
            value, scale = value / arb(base).log(), abs(scale / arb(base).log())
        if name == "js_distance":
            value = value / (arb(base).log() if base is not None else 1)
            value = value.nonnegative_part().sqrt() if base is None or base > 1 else arb.nan()
            scale = value
        return value, scale

    if name == "js_distance" and base is not None and base < 1:
        return Exact(math.nan)
    for precision in _PRECISIONS:
        with ctx.workprec(precision):
            value, scale = evaluate()
            # (A plain sum may be anything down to 0; there the ball has to be small beside the scale.)
            small = scale * arb(2) ** -_TIGHT
            if value.is_exact() or value.rel_accuracy_bits() >= _TIGHT or (not normalize and value.rad() < small):
                value, scale = _fraction(value), abs(_fraction(scale))
                return Exact(value, abs(value) if normalize else max(scale, abs(value)))
        if _is_zero(name, p, q, normalize, weight, alpha):
            return Exact(Fraction(0))
    raise ArithmeticError(f"{name}: no precision up to {precision} bits is enough for this row")


def _fraction(ball):
    mantissa, exponent = ball.mid().man_exp()
    return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


# Each formula takes the pairs with p > 0 or q > 0, as exact balls, and gives (value, scale). Rows are divided by their
# sums P and Q, which is what log P and log Q below do. The scales are those of a plain sum; see `Exact`.


def _kl(pairs, normalize, weight, alpha):
    P, Q = _sums(pairs)
    value = sum((p * (p / q).log() for p, q in pairs if p != 0), arb(0))
    if normalize:
        value = value / P + (Q / P).log()
        return value, value
    deviance = value - P + Q  # the sum of p log(p/q) - p + q, terms that are never negative
    return value, deviance + abs(P - Q)


def _jeffreys(pairs, normalize, weight, alpha):
    P, Q = _sums(pairs) if normalize else (arb(1), arb(1))
    value = sum(((p / P - q / Q) * (p / q).log() for p, q in pairs), arb(0))
    # Shares add up to 1 on both sides, so log(Q/P) times their difference drops out.
    return value, value  # no term is negative, of shares or of plain numbers


def _js(pairs, normalize, weight, alpha):
    P, Q = _sums(pairs) if normalize else (arb(1), arb(1))
    w = arb(weight)
    value = arb(0)
    for p, q in pairs:
        p, q = p / P, q / Q
        m = w * p + (1 - w) * q
        if p != 0 and weight != 0:
            value += w * p * (p / m).log()
        if q != 0 and weight != 1:
            value += (1 - w) * q * (q / m).log()
    return value, value  # the linear parts of its two deviances cancel, so no term is negative


def _cross_entropy(pairs, normalize, weight, alpha):
    P, Q = _sums(pairs)
    terms = [p * q.log() for p, q in pairs if p != 0]
    value = -sum(terms, arb(0))
    return (value / P + Q.log(),) * 2 if normalize else (value, sum(map(abs, terms), arb(0)))


def _renyi(pairs, normalize, weight, alpha):
    P, Q = _sums(pairs) if normalize else (arb(1), arb(1))
    if alpha == 0:
        total = sum((q for p, q in pairs if p != 0), arb(0))
        value = (Q / total).log()
        return value, value if normalize else abs(value) + 1
    pairs = [(p, q) for p, q in pairs if p != 0 and q != 0]
    if math.isinf(alpha):
        largest = pairs[0][0] / pairs[0][1]
        for p, q in pairs[1:]:
            largest = largest.max(p / q)
        value = (largest * Q / P).log()
        return value, value if normalize else abs(value) + 1
    a = arb(alpha)
    exponents = [(a - 1) * (p / q).log() for p, q in pairs]
    terms = [p * t.exp() for (p, _), t in zip(pairs, exponents, strict=True)]
    total = sum(terms, arb(0))
    value = (total.log() - a * P.log() - (1 - a) * Q.log()) / (a - 1)
    if normalize:
        return value, value
    # A power p (p/q)**(alpha-1) = p exp(t) is known to 1 + |t| ulps, and so is the logarithm of their sum.
    error = sum((x * (1 + abs(t)) for x, t in zip(terms, exponents, strict=True)), arb(0)) / total
    return value, abs(value) + error / abs(a - 1)


def _hellinger(pairs, normalize, weight, alpha):
    P, Q = _sums(pairs) if normalize else (arb(1), arb(1))
    steps = ((p / P).sqrt() - (q / Q).sqrt() for p, q in pairs)
    value = (sum((step * step for step in steps), arb(0)) / 2).sqrt()
    return value, value


_FORMULAS = {
    "kl": _kl,
    "jeffreys": _jeffreys,
    "js": _js,
    "js_distance": _js,
    "cross_entropy": _cross_entropy,
    "entropy": _cross_entropy,
    "renyi": _renyi,
    "hellinger": _hellinger,
}


def _sums(pairs):
    return sum((p for p, _ in pairs), arb(0)), sum((q for _, q in pairs), arb(0))


def _is_zero(name, p, q, normalize, weight, alpha):
    """Whether a value that no precision separates from 0 is 0."""
    if not normalize:
        return name in ("js", "js_distance", "hellinger") and p == q
    support = [(x > 0, y > 0) for x, y in zip(p, q, strict=True)]
    if name in ("entropy", "cross_entropy"):
        return sum(y for _, y in support) == 1
    if name == "renyi" and alpha == 0:
        return all(x for x, y in support if y)
    if name in ("js", "js_distance") and weight in (0, 1):
        return True
    p, q, _ = _integers(p, q)
    return all(x * sum(q) == y * sum(p) for x, y in zip(p, q, strict=True))


def _integers(*rows):
    """The rows as integers over one common denominator, and that denominator (a power of two)."""
    ratios = [[x.as_integer_ratio() for x in row] for row in rows]
    denominator = max(d for row in ratios for _, d in row)
    return *([n * (denominator // d) for n, d in row] for row in ratios), denominator


def _rational(name, p, q, normalize, positions):
    p, q, denominator = _integers(p, q)
    P, Q = sum(p), sum(q)
    if normalize:
        differences, denominator, mass = (x * Q - y * P for x, y in zip(p, q, strict=True)), P * Q, Fraction(1)
    else:
        differences, mass = (x - y for x, y in zip(p, q, strict=True)), Fraction(max(P, Q), denominator)
    if name == "total_variation":
        value = Fraction(sum(map(abs, differences)), 2 * denominator)
        return Exact(value, value)
    x, unit = _integers(positions) if positions is not None else (range(len(p)), 1)
    gaps = (b - a for a, b in pairwise(x))
    flows = accumulate(differences)
    value = Fraction(sum(abs(flow) * gap for flow, gap in zip(flows, gaps, strict=False)), denominator * unit)
    return Exact(value, value, mass * Fraction(x[-1] - x[0], unit))


# ---------------------------------------------------------------------------------------------------------------------
# Distances


def ulp(value, dtype):
    """The spacing of `dtype`'s numbers at |value| (a Fraction); that of the subnormals below the normal range."""
    info = np.finfo(dtype)
    value = abs(Fraction(value))
    exponent = info.minexp
    if value:
        exponent = value.numerator.bit_length() - value.denominator.bit_length()
        exponent -= value < Fraction(2) ** exponent
    return Fraction(2) ** (min(max(exponent, info.minexp), info.maxexp - 1) - info.nmant)


def nearest(value, dtype):
    """The number of `dtype` nearest to a Fraction; the infinity on its side beyond the largest one."""
    if not isinstance(value, Fraction):
        return np.dtype(dtype).type(value)
    unit = ulp(value, dtype)
    value = round(value / unit) * unit  # to even, and exact from here on
    largest = Fraction(float(np.finfo(dtype).max))
    return np.dtype(dtype).type(float(value) if abs(value) <= largest else math.inf if value > 0 else -math.inf)


def ulp_error(result, exact, dtype=None, *, scale=None):
    """|result - exact| in ulps, of `dtype` (the result's), at `scale` or else at the exact value.

    0 where both are the same infinity or NaN, or where the exact value lies beyond the largest float and the result is
    the infinity on its side; infinite where only one of them is finite.
    """
    dtype = np.dtype(dtype or np.asarray(result).dtype)
    result = float(result)
    if isinstance(exact, float) and not math.isfinite(exact):
        return 0.0 if result == exact or (math.isnan(result) and math.isnan(exact)) else math.inf
    exact = Fraction(exact)
    if math.isnan(result):
        return math.inf
    if math.isinf(result):
        largest = Fraction(float(np.finfo(dtype).max))
        return 0.0 if abs(exact) > largest and (result > 0) == (exact > 0) else math.inf
    return _float(abs(Fraction(result) - exact) / ulp(exact if scale is None else scale, dtype))


def allowance(name, exact, dtype):
    """How far from a finite `Exact` the contract allows a result of `dtype` to be."""
    dtype = np.dtype(dtype)
    allowed = BOUNDS[name][dtype == np.float32] * ulp(exact.scale, dtype) + WASSERSTEIN_SLACK[dtype] * exact.span
    return allowed if exact.value else max(allowed, ZERO_SLACK.get(name, 0))


def excess(name, result, exact):
    """How much of the `allowance` the error of `result` uses: at most 1 is within the contract."""
    if not (isinstance(exact.value, Fraction) and math.isfinite(result)):
        return ulp_error(result, exact.value)
    return _float(abs(Fraction(float(result)) - exact.value) / allowance(name, exact, np.asarray(result).dtype))


def _float(value):
    """The nearest float64, which for a Fraction beyond the largest one is inf."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def assert_contract(name, result, p, q=None, *, axis=-1, dtype=None, **options):
    """Assert that every row of `result` is within the contract of its exact value."""
    expected = exact(name, p, q, axis=axis, dtype=dtype, **options)
    result = np.asarray(result)
    assert result.shape == expected.shape
    worst = max(np.ndindex(expected.shape), key=lambda i: excess(name, result[i], expected[i]), default=None)
    if worst is None or excess(name, result[worst], expected[worst]) <= 1:
        return
    value = expected[worst].value
    ndim = max(np.ndim(p), np.ndim(p if q is None else q))
    rows = []
    for operand in (p,) if q is None else (p, q):
        operand = np.asarray(operand)
        operand = np.moveaxis(operand.reshape((1,) * (ndim - operand.ndim) + operand.shape), axis, -1)
        operand = np.broadcast_to(operand, (*expected.shape, operand.shape[-1]))[worst]
        rows.append(f"{operand.dtype}{operand[:40].tolist()}{'...' if len(operand) > 40 else ''}")
    raise AssertionError(
        f"{name} {options}: {result.dtype} {result[worst]!r} is not {_float(value)!r}: "
        f"{ulp_error(result[worst], value, result.dtype):.3g} ulp, "
        f"{excess(name, result[worst], expected[worst]):.3g} of what is allowed, row {worst}:\n" + "\n".join(rows)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Calling

_FUNCTIONS = {
    "kl": "kl_divergence",
    "jeffreys": "jeffreys_divergence",
    "js": "js_divergence",
    "js_distance": "js_distance",
    "cross_entropy": "cross_entropy",
    "entropy": "entropy",
    "renyi": "renyi_divergence",
    "total_variation": "total_variation",
    "hellinger": "hellinger_distance",
    "wasserstein": "wasserstein_distance",
}


def measure(module, name, p, q, **options):
    """Call the function behind a metric's name in `fastkl` or `fastkl.reference`."""
    if name == "reverse_kl":
        return module.kl_divergence(q, p, **options)
    function = getattr(module, _FUNCTIONS[name])
    return function(p, **options) if name == "entropy" else function(p, q, **options)


def bfloat16_bits(array):
    """The bit patterns of the bfloat16 numbers nearest to those of `array`, as uint16."""
    return np.asarray(array).astype(ml_dtypes.bfloat16).view(np.uint16)


# What "every function" means in the tests: the metrics, and for those with a parameter, one value of each kind.
VARIANTS = [
    *((name, {}) for name in METRICS if name != "renyi"),
    ("kl", {"base": 2}),
    ("entropy", {"base": 10}),
    ("js", {"weight": 0.3}),
    ("js", {"weight": 1}),
    ("js_distance", {"base": 2}),
    *(("renyi", {"alpha": alpha}) for alpha in (0, 0.5, 0.999, 1, 2, math.inf)),
]


def variant_id(variant):
    name, options = variant
    return "-".join([name, *(f"{key}{value}" for key, value in options.items())])
