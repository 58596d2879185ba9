"""The C functions of ``fastkl/_kernels/src/vmath.h``: their errors are measured in ulp and held to what stands there.

The exact values are computed in ball arithmetic (python-flint) at a precision that no cancellation here exhausts, and
kept as two doubles. Arguments are random over wide ranges and, above all, from where the formulas are at their worst:
ratios next to 1, and those around 4/3 and 3/2, times a power of two, where one octave takes over from another.
"""

import itertools
import math
import pathlib
import re

import numpy as np
import pytest
from flint import arb, ctx

from fastkl._kernels import _engine

VMATH = pathlib.Path(__file__).parents[1] / "fastkl" / "_kernels" / "src" / "vmath.h"

# By function: its number in enum fkl_probe, the C function behind it, and the ulps stated beside that one's definition
# (for e^x and its excess, which one function computes, in the order of the comment).
BOUNDS = {
    "phi": (0, "vd_phi", 4.5),
    "log_ratio": (1, "vd_log_ratio", 3),
    "log1p": (2, "vd_log1p", 3),
    "exp": (3, "vd_exp_excess", 1.5),
    "exp_excess": (4, "vd_exp_excess", 5),
    "phi_over": (5, "vd_phi_over", 7),
    "less_log1p": (6, "vd_less_log1p", 4.5),
    "phi_float": (7, "vf_phi", 3.5),
    "excess_float": (8, "vf_excess", 3),
    "exp2_fraction_float": (9, "vf_exp2_fraction", 3),
    "excess2_float": (10, "vf_excess2_at", 6.5),
    "exp_float": (11, "vf_exp", 1.5),
}
FLOATS = ("phi_float", "excess_float", "exp2_fraction_float", "excess2_float", "exp_float")
# The second statement about the excess: inside the first interval it does not cancel.
EXCESS_INSIDE = (0.34, 3)

PRECISION = 1400  # bits: 1 + x for |x| >= 2**-1000, or p log(p/q) - p + q for neighbours, and 200 to spare
FMA_LEVELS = [name for name in _engine.usable_levels() if name != "baseline"]


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def random_generator(name):
    return np.random.default_rng(sorted(BOUNDS).index(name))


def by_exponent(rng, low, high, size):
    """Numbers whose logarithm is evenly spread."""
    return np.exp2(rng.uniform(low, high, size))


def pairs(rng, low, high, dtype):
    """Pairs p, q of normal numbers within [2**low, 2**high], most of them where the decomposition has its seams."""
    info = np.finfo(dtype)
    ulp = float(info.eps)
    groups = [(by_exponent(rng, low, high, 6000), by_exponent(rng, low, high, 6000))]
    mantissas = rng.uniform(1, 2, 4000)
    # Within an octave; and next to 1, from a few ulps to a tenth.
    groups.append((mantissas, rng.uniform(1, 2, 4000)))
    groups.append((mantissas, mantissas * (1 + rng.choice([-1, 1], 4000) * by_exponent(rng, math.log2(ulp), -3, 4000))))
    groups.append((mantissas, mantissas + ulp * rng.integers(-8, 9, 4000)))
    # k = round(log2(p/q)) with the mantissa's logarithm taken for linear: it steps where the mantissas differ by a
    # half, at ratios from 4/3 to 3/2.
    for seam in (3 / 2, 2 / 3, 4 / 3, 3 / 4, math.sqrt(2)):
        near = seam * (1 + rng.uniform(-1, 1, 2000) * by_exponent(rng, math.log2(ulp), -4, 2000))
        octaves = np.exp2(rng.integers(-40, 41, 2000))
        groups.append((mantissas[:2000], mantissas[:2000] * near * octaves))
    # The seam itself: p half a mantissa above q. Just past it p k log 2 + q - q' cancels most, around q = 1.5.
    q = rng.uniform(1.2, 1.6, 6000)
    p = q + 0.5 + by_exponent(rng, math.log2(ulp), -4, 6000) * rng.choice([-1, 1, 1, 1], 6000)
    groups += [(p, q), (np.sort(q), np.sort(q) + 0.5)]
    # The ends of the range.
    ends = np.array(
        list(itertools.product([2.0**low, 2.0**low * 1.5, 1.0, 1.5, 2.0**high, 2.0**high * 0.75], repeat=2))
    )
    groups.append((ends[:, 0], ends[:, 1]))
    p, q = (np.concatenate(part).astype(dtype).astype(np.float64) for part in zip(*groups, strict=True))
    return p, q


def arguments(name):
    """Two arrays whose length is a multiple of 16, as `probe` wants it."""
    rng = random_generator(name)
    if name in ("phi", "log_ratio"):
        # Far enough from the largest double for the emulated fused multiply-add, and for p log(p/q) to be finite: the
        # kernels take no rows whose sums exceed 2**900 (of floats 2**100). From twice the smallest normal number up,
        # for q is brought into the octave around p. In phi, AVX-512 multiplies p by k 2**52.
        a, b = pairs(rng, -1021, 960 if name == "phi" else 980, np.float64)
    elif name == "phi_over":
        a, b = pairs(rng, -450, 450, np.float64)
    elif name == "phi_float":
        a, b = pairs(rng, -125, 118, np.float32)
    elif name in ("exp2_fraction_float", "excess2_float"):
        reach = 0.502 if name == "exp2_fraction_float" else 115
        halves = np.arange(-115, 115) + 0.5  # where k steps
        a = np.concatenate([
            rng.uniform(-reach, reach, 16000),
            rng.uniform(-0.502, 0.502, 16000),
            rng.choice([-1, 1], 8000) * by_exponent(rng, -60, 0, 8000),
            rng.choice(halves, 8000) * (1 + rng.choice([-1, 1], 8000) * by_exponent(rng, -24, -4, 8000)),
            halves,
            [0.0, reach, -reach],
        ])  # fmt: skip
        a = a.astype(np.float32).astype(np.float64)
        a = a[np.abs(a) <= reach]
        b = np.ones_like(a)
    else:
        signs = rng.choice([-1.0, 1.0], 8000)
        if name in ("log1p", "less_log1p"):
            smallest = -1000 if name == "log1p" else -500  # x - log(1 + x) is about x^2/2
            a = np.concatenate([
                signs * by_exponent(rng, smallest, -1, 8000),
                by_exponent(rng, -60, 1000, 6000),
                -1 + by_exponent(rng, -53, 0, 6000),  # down to the neighbour of -1
                rng.uniform(-0.5, 1.0, 8000),
                -1 + 2.0 ** -np.arange(1, 54),
                np.exp2(np.arange(-60, 61) + 0.5) * (1 + rng.uniform(-1e-9, 1e-9, 121)) - 1,  # where k steps
            ])  # fmt: skip
        else:
            ends = (np.arange(-1009, 1010) + 0.5) * math.log(2)
            a = np.concatenate([
                rng.uniform(-700, 700, 8000),
                rng.uniform(-1, 1, 8000),
                signs * by_exponent(rng, -400, 0, 8000),
                signs * 0.5 * math.log(2) * (1 + rng.uniform(-0.1, 0.1, 8000) ** 3),  # both sides of |x| = 0.35
                *(np.nextafter(ends, way) for way in (-np.inf, np.inf)),  # where k steps
                ends,
                [0.0, 700.0, -700.0],
            ])  # fmt: skip
            a = a[np.abs(a) <= (80 if name in FLOATS else 700)]
            if name in FLOATS:
                a = a[np.abs(a) >= 2.0**-60].astype(np.float32).astype(np.float64)
        b = np.ones_like(a)
    if name in ("log1p", "less_log1p"):
        a = a[a > -1]
        b = np.ones_like(a)
    spare = -len(a) % 16
    return np.append(a, np.full(spare, 0.5)), np.append(b, np.full(spare, 0.75))


# ---------------------------------------------------------------------------------------------------------------------
# Exact values


def exact_value(name, a, b):
    x, y = arb(a), arb(b)
    if name in ("phi", "phi_float"):
        return x * (x / y).log() - x + y
    if name == "phi_over":
        return (x / y).log() - 1 + y / x
    if name == "log_ratio":
        return (x / y).log()
    if name == "log1p":
        return (1 + x).log()
    if name == "less_log1p":
        return x - (1 + x).log()
    if name == "exp2_fraction_float":
        return (x * arb.const_log2()).exp()
    if name == "excess2_float":
        return ((x * arb.const_log2()).exp() - 1) / arb.const_log2() - x
    return x.exp() if name in ("exp", "exp_float") else x.exp() - 1 - x


@pytest.fixture(scope="module")
def exact():
    """The arguments of a function and its exact values as two doubles, computed once for all levels."""
    known = {}

    def values(name):
        if name not in known:
            a, b = arguments(name)
            high, low = np.empty_like(a), np.empty_like(a)
            with ctx.workprec(PRECISION):
                for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
                    value = exact_value(name, x, y)
                    high[i] = float(value)
                    low[i] = float(value - arb(high[i]))
            known[name] = a, b, high, low
        return known[name]

    return values


def ulp_errors(result, high, low, dtype=np.float64):
    """|result - (high + low)| in the spacing of `dtype`'s numbers at the exact value; 0 where both are exactly 0."""
    return np.abs((result - high) - low) / np.spacing(np.abs(high).astype(dtype)).astype(np.float64)


def probe(name, a, b):
    return _engine.probe(BOUNDS[name][0], a, b)


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOUNDS)
def test_error(level, name, exact):
    if name in FLOATS and level not in FMA_LEVELS:
        return  # without fused multiply-adds, floats are computed as doubles
    a, b, high, low = exact(name)
    dtype = np.float32 if name in FLOATS else np.float64
    result = probe(name, a, b)
    assert np.isfinite(result).all()
    # A result that is subnormal has lost its last bits whatever computed it.
    representable = (high == 0) | (np.abs(high) >= 2 * float(np.finfo(dtype).tiny))
    assert representable.mean() > 0.9
    errors = np.where(representable, ulp_errors(result, high, low, dtype), 0)
    worst = errors.argmax()
    assert errors[worst] <= BOUNDS[name][2], f"{errors[worst]:.3f} ulp at {a[worst].hex()}, {b[worst].hex()}"


def test_error_of_the_excess_inside(level, exact):
    a, b, high, low = exact("exp_excess")
    reach, bound = EXCESS_INSIDE
    inside = (np.abs(a) <= reach) & (high >= 2 * np.finfo(np.float64).tiny)
    errors = np.where(inside, ulp_errors(probe("exp_excess", a, b), high, low), 0)
    worst = errors.argmax()
    assert errors[worst] <= bound, f"{errors[worst]:.3f} ulp at {a[worst].hex()}"


@pytest.mark.parametrize("name", BOUNDS)
def test_levels_agree(name, exact):
    a, b, _, _ = exact(name)
    before = _engine.level()
    try:
        results = []
        for level in FMA_LEVELS:
            _engine.set_level(level)
            results.append(probe(name, a, b))
    finally:
        _engine.set_level(before)
    for other in results[1:]:
        np.testing.assert_array_equal(other.view(np.int64), results[0].view(np.int64))


def test_deviance_is_not_negative_and_0_for_equals(level, exact):
    a, b, _, _ = exact("phi")
    assert (probe("phi", a, b) >= 0).all()
    assert (probe("phi", a, a) == 0).all()
    assert (probe("log_ratio", a, a) == 0).all()


def test_exponential_beyond_its_range(level):
    a = np.array([-np.inf, -1e308, -701, 701, 1e308, np.inf, 0, 0] * 2)
    expected = probe("exp", np.clip(a, -700, 700), a)
    np.testing.assert_array_equal(probe("exp", a, a), expected)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_those_stated(name):
    _, function, bound = BOUNDS[name]
    source = VMATH.read_text()
    definition = re.search(rf"^FKL_INLINE v[df] {function}\(", source, re.MULTILINE)
    assert definition, f"vmath.h has no {function}"
    comment = source[source.rindex("/*", 0, definition.start()) : definition.start()]
    stated = [float(number) for number in re.findall(r"([\d.]+)\s+(?:\*\s+)?ulp", comment)]
    if function == "vd_exp_excess":
        assert stated == [BOUNDS["exp"][2], BOUNDS["exp_excess"][2], EXCESS_INSIDE[1]]
    else:  # a second number is the error away from the worst place
        assert stated[0] == bound
