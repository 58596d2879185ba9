"""The estimators and the objective of policy training: every kind, type and layout, against exact values."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from oracles import bfloat16_bits, exact_values, ulp_error

import fastkl
from fastkl import reference
from fastkl._kernels import _engine

KINDS = ("k1", "k2", "k3")
TYPES = ("float64", "float32", "float16", "bfloat16")
MODULES = pytest.mark.parametrize("module", [fastkl, reference], ids=["fastkl", "reference"])

# Ulps allowed in a (float64, float32) result. In float64, k1 is one rounding; the error of k2 is that of its difference
# twice and that of the product, 1.5 times the distance of two numbers next to 1 and 3 times just below a power of two;
# k3 is one term of a Gaussian row; the objective is an exponential, to 1 ulp, and up to nine roundings. Results in
# float32 are computed in float64, and rounded.
BOUNDS = {"k1": (0.5, 0.501), "k2": (3, 0.501), "k3": (6, 0.501), "objective": (8, 0.501)}


# Each as a function of two operands.
FUNCTIONS = {
    "k1": lambda module, a, b, **options: module.kl_estimate(a, b, kind="k1", **options),
    "k2": lambda module, a, b, **options: module.kl_estimate(a, b, kind="k2", **options),
    "k3": lambda module, a, b, **options: module.kl_estimate(a, b, **options),
    "objective": lambda module, a, b, **options: module.clipped_ratio_objective(a, b, 1.5, **options),
}


def exact_estimate(kind, logp, logq):
    """The exact value of an estimator of finite numbers: a Fraction, or inf far beyond the largest float."""
    log_r = Fraction(logq) - Fraction(logp)
    if kind == "k1":
        return -log_r
    if kind == "k2":
        return log_r * log_r / 2
    if abs(log_r) > 10_000:
        return math.inf if log_r > 0 else -1 - log_r  # and less than 1e-4000
    if log_r == 0:
        return Fraction(0)
    # What cancels in e^x - 1 - x is twice the leading zeros of x.
    lost = 2 * max(0, log_r.denominator.bit_length() - log_r.numerator.bit_length())
    with mpmath.workprec(200 + lost):
        x = as_mpf(log_r)
        return as_fraction(mpmath.exp(x) - 1 - x)


def exact_objective(new, old, advantage, clip):
    """The exact value of the clipped objective of finite numbers, of which all beyond e^10000 is as good as that."""
    log_r = min(max(Fraction(new) - Fraction(old), -10_000), 10_000)
    with mpmath.workprec(200):
        r = as_fraction(mpmath.exp(as_mpf(log_r)))
    a, e = Fraction(advantage), Fraction(clip)
    return min(r * a, min(max(r, 1 - e), 1 + e) * a)


def as_mpf(x):
    return mpmath.mpf(x.numerator) / x.denominator


def as_fraction(x):
    mantissa, exponent = x.man_exp
    return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


def assert_within(name, result, exact):
    bound = BOUNDS[name][result.dtype == np.float32]
    for value, expected in zip(result.flat, exact, strict=True):
        error = ulp_error(value, expected, result.dtype)
        assert error <= bound, f"{name} gives {value!r}, {error:.3g} ulp from {float(expected)!r}"


def cast(array, type_name):
    """An array in a type, and the options that the type needs."""
    if type_name == "bfloat16":
        return bfloat16_bits(array), {"dtype": "bfloat16"}
    return array.astype(type_name), {}


def logarithms(rng):
    """Pairs of all the kinds that a batch may hold: far apart, nearly equal, of sequences, of densities."""
    p = np.concatenate([-rng.exponential(2, 200), rng.normal(0, 5, 100), -rng.uniform(1000, 5000, 60)])
    q = p + rng.normal(0, 1, p.size) * np.resize([1, 10, 1e-1, 1e-3, 1e-6, 1e-9, 1e-12], p.size)
    q[::17] = p[::17]
    q[1::17] = np.nextafter(p[1::17], 0)
    q[2::17] = p[2::17] + np.resize([0.3465, -0.3466, 0.6931, 0.02, 1.0], q[2::17].size)
    q[3::34] = p[3::34] + rng.uniform(500, 720, q[3::34].size)
    q[20::34] = p[20::34] - rng.uniform(500, 2000, q[20::34].size)
    return p, q


ENDS = [
    *((x, y) for x in (1e308, -1e308, 1e160, -1e160, 0.0, 5e-324, -5e-324, 1e-155) for y in (-1e308, 1e308, -1e155)),
    *((x, 0.0) for x in (1e-160, -1e-160, 3e-154, 1e-300, -1e-162, -5e-324, 1.5e154, -1.8e154, -709.7, -709.79)),
    *((0.0, x) for x in (1e-160, 3e-154, -1e-20, 1e-20, 709.7, 709.79, 716.4, -716.4, 1e-5, -1e-8)),
]  # fmt: skip


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_estimates(kind, type_name, level, rng):
    (logp, options), (logq, _) = (cast(x, type_name) for x in logarithms(rng))
    result = fastkl.kl_estimate(logp, logq, kind=kind, **options)
    assert result.dtype == (np.float64 if type_name == "float64" else np.float32)
    pairs = zip(exact_values(logp, **options), exact_values(logq, **options), strict=True)
    assert_within(kind, result, [exact_estimate(kind, *pair) for pair in pairs])
    expected = reference.kl_estimate(logp, logq, kind=kind, **options)
    assert expected.dtype == result.dtype
    # The exponential of the reference sees a difference that has been rounded.
    np.testing.assert_allclose(result, expected, rtol=1e-12 if type_name == "float64" else 3e-7)
    if kind != "k1":
        assert (result >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_at_the_ends_of_the_range(kind, level):
    logp, logq = np.array(ENDS).T
    result = fastkl.kl_estimate(logp, logq, kind=kind)
    assert_within(kind, result, [exact_estimate(kind, *pair) for pair in ENDS])


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_of_floats_at_the_ends_of_their_range(kind, level):
    pairs = np.array([(0, 88.7), (0, 89), (0, 1e-19), (3e38, -3e38), (-3e38, 3e38), (1.8e19, 0), (1e-22, 0)], "f4")
    result = fastkl.kl_estimate(*pairs.T, kind=kind)
    for x, pair in zip(result, pairs, strict=True):
        # Half of k3, doubled, has the spacing of subnormal numbers twice.
        assert ulp_error(x, exact_estimate(kind, *map(float, pair))) <= 1


@MODULES
@pytest.mark.parametrize(
    ("logp", "logq", "expected"),
    [
        (-1.0, -math.inf, (math.inf, math.inf, math.inf)),
        (-math.inf, -1.0, (-math.inf, math.inf, math.inf)),
        (-math.inf, 1e308, (-math.inf, math.inf, math.inf)),
        (-math.inf, -math.inf, (math.nan,) * 3),
        (math.nan, -1.0, (math.nan,) * 3),
        (-1.0, math.nan, (math.nan,) * 3),
        (math.nan, -math.inf, (math.nan,) * 3),
        (-math.inf, math.nan, (math.nan,) * 3),
        (math.inf, -1.0, (math.nan,) * 3),
        (-1.0, math.inf, (math.nan,) * 3),
        (-math.inf, math.inf, (math.nan,) * 3),
        (math.inf, math.inf, (math.nan,) * 3),
        (-3000.0, -3000.0, (0.0, 0.0, 0.0)),
        (0.0, 0.0, (0.0, 0.0, 0.0)),
        (0, -800, (800.0, 320000.0, 799.0)),
        (0, 800, (-800.0, 320000.0, math.inf)),
    ],
)
def test_corner_cases_of_estimates(module, logp, logq, expected, level):
    """Alone, and in every place of a batch, in which nothing else is touched."""
    for kind, value in zip(KINDS, expected, strict=True):
        np.testing.assert_equal(module.kl_estimate(logp, logq, kind=kind), value)
        for dtype in (np.float64, np.float32, np.float16):
            for at in (0, 8, 70):
                batch = np.full((2, 71), -1.0, dtype)
                batch[1] = -1.5
                untouched = module.kl_estimate(batch[0, 0], batch[1, 0], kind=kind)
                with np.errstate(over="ignore"):
                    batch[:, at] = logp, logq
                result = module.kl_estimate(*batch, kind=kind)
                if np.isfinite(batch[:, at]).all() and math.isfinite(value):
                    np.testing.assert_array_equal(result[at], value)
                elif abs(logq) < 1e300 and abs(logp) < 1e300:
                    np.testing.assert_equal(result[at], value)
                np.testing.assert_array_equal(np.delete(result, at), untouched)


def test_mean_of_estimates_over_all_outcomes(level, rng):
    """Σ p k1 = Σ p k3 = D(p‖q), however close p and q are."""
    for apart in (1.0, 1e-2, 1e-4):
        logp = np.log(rng.dirichlet(np.ones(50), 20))
        logq = logp + apart * rng.standard_normal(logp.shape)
        logq -= np.log(np.exp(logq).sum(-1, keepdims=True))
        p = np.exp(logp)
        divergence = fastkl.kl_divergence(p, np.exp(logq))
        # p and q are exponentials of rounded numbers, and so off by some 1e-16 of themselves.
        for kind, slack in (("k1", 1e-15), ("k3", 1e-15)):
            mean = (p * fastkl.kl_estimate(logp, logq, kind=kind)).sum(-1)
            np.testing.assert_allclose(mean, divergence, rtol=1e-11, atol=slack)
        second_order = (p * fastkl.kl_estimate(logp, logq, kind="k2")).sum(-1)
        np.testing.assert_allclose(second_order, divergence, rtol=5 * apart)


def test_mean_of_estimates_over_samples(level, rng):
    """k1 and k3 are unbiased, within five standard errors; next to equality k3 has the smaller variance by far."""
    p, q = rng.dirichlet(np.ones(20), 2)
    divergence = fastkl.kl_divergence(p, q)
    samples = rng.choice(20, 200_000, p=p)
    for kind in ("k1", "k3"):
        estimates = fastkl.kl_estimate(np.log(p)[samples], np.log(q)[samples], kind=kind)
        error = estimates.std() / math.sqrt(samples.size)
        assert abs(estimates.mean() - divergence) < 5 * error
        # Samples of a density, under which log-probabilities may be positive.
        x = rng.normal(0, 0.1, 200_000)
        logs = [-0.5 * ((x - mean) / 0.1) ** 2 - math.log(0.1 * math.sqrt(2 * math.pi)) for mean in (0.0, 0.01)]
        estimates = fastkl.kl_estimate(*logs, kind=kind)
        error = estimates.std() / math.sqrt(x.size)
        assert abs(estimates.mean() - fastkl.gaussian_kl([0.0], [0.01], [0.01], [0.01])) < 5 * error
    assert estimates.std() < 0.2 * fastkl.kl_estimate(*logs, kind="k1").std()


def objective_cases(rng):
    old, new = logarithms(rng)
    return new, old, rng.standard_normal(new.size) * np.resize([1, 1e-3, 1e3], new.size)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("clip", [0.0, 0.2, 0.5, 1.0, 3.0])
def test_objective(clip, type_name, rng):
    operands = [cast(x, type_name)[0] for x in objective_cases(rng)]
    options = cast(operands[0], type_name)[1]
    result = fastkl.clipped_ratio_objective(*operands, clip=clip, **options)
    assert result.dtype == (np.float64 if type_name == "float64" else np.float32)
    numbers = zip(*(exact_values(x, **options) for x in operands), strict=True)
    assert_within("objective", result, [exact_objective(*x, clip) for x in numbers])
    expected = reference.clipped_ratio_objective(*operands, clip=clip, **options)
    assert expected.dtype == result.dtype
    within = np.abs(exact_values(operands[0], **options) - exact_values(operands[1], **options)) < 700
    rtol = 1e-12 if type_name == "float64" else 3e-7
    np.testing.assert_allclose(result[within], expected[within], rtol=rtol)


def test_objective_where_the_ratio_is_out_of_range():
    """The product need not be, if the advantage is at the other end."""
    cases = [
        (new, old, advantage)
        for new, old in ((720.0, 0.0), (-10.0, -1410.0), (0.0, -1450.5), (1e308, -1e308), (5e15, -0.3))
        for advantage in (-1e-300, -5e-324, -1e-310, -1.0, 1e-300, 5e-324, 1e308)
    ]
    cases += [(old, new, -advantage) for new, old, advantage in cases]
    cases += [(-760.0, 0.0, 1e300), (-1400.25, 0.1, 1e308), (-700.1, 0.0, 1e-9), (-760.0, 0.0, -1e300)]
    for clip in (0.2, 1.0, 2.0):
        result = fastkl.clipped_ratio_objective(*np.array(cases).T, clip=clip)
        assert_within("objective", result, [exact_objective(*case, clip) for case in cases])


@MODULES
@pytest.mark.parametrize(
    ("new", "old", "advantage", "expected"),
    [
        (-1.0, -1.0, 3.0, 3.0),
        (-1.0, -1.0, -3.0, -3.0),
        (0.0, -math.inf, 2.0, 2.4),
        (0.0, -math.inf, -2.0, -math.inf),
        (0.0, -math.inf, 0.0, 0.0),
        (800.0, 0.0, 2.0, 2.4),
        (800.0, 0.0, -2.0, -math.inf),
        (800.0, 0.0, 0.0, 0.0),
        (800.0, 0.0, -0.0, 0.0),
        (-math.inf, 0.0, 2.0, 0.0),
        (-math.inf, 0.0, -2.0, -1.6),
        (-math.inf, 0.0, 0.0, 0.0),
        (-800.0, 0.0, 2.0, 0.0),
        (-math.inf, -math.inf, 0.0, math.nan),
        (math.inf, 0.0, 1.0, math.nan),
        (0.0, math.inf, 1.0, math.nan),
        (math.inf, math.inf, 0.0, math.nan),
        (math.nan, 0.0, 0.0, math.nan),
        (0.0, math.nan, 1.0, math.nan),
        (0.0, 0.0, math.nan, math.nan),
        (0.0, 0.0, math.inf, math.nan),
        (0.0, -math.inf, -math.inf, math.nan),
    ],
)
def test_corner_cases_of_the_objective(module, new, old, advantage, expected):
    np.testing.assert_equal(module.clipped_ratio_objective(new, old, advantage), expected)
    for dtype in (np.float64, np.float32, np.float16):
        batch = np.zeros((3, 71), dtype)
        batch[2] = 5
        batch[:, 40] = new, old, advantage
        result = module.clipped_ratio_objective(*batch)
        np.testing.assert_equal(result[40], result.dtype.type(expected))
        np.testing.assert_array_equal(np.delete(result, 40), 5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_in_every_layout(name, rng):
    """A number's bits depend on the operands' alone: not on its place, the layout, the threads, AVX2 or AVX-512."""
    operands = [np.tile(x, 120).reshape(-1, 90) for x in logarithms(rng)]
    levels = [x for x in ("avx2", "avx512", "neon") if x in _engine.usable_levels()]
    before = fastkl.simd_level()
    results = []
    try:
        for level in levels or [before]:
            fastkl.set_simd_level(level)
            results.append(FUNCTIONS[name](fastkl, *operands))
            results.append(FUNCTIONS[name](fastkl, *operands, n_threads=1))
            results.append([FUNCTIONS[name](fastkl, *(x[i] for x in operands)) for i in range(len(operands[0]))])
            results.append(FUNCTIONS[name](fastkl, *(x.T.copy() for x in operands)).T)
            results.append(FUNCTIONS[name](fastkl, *(x[::-1, ::-1] for x in operands))[::-1, ::-1])
            results.append(FUNCTIONS[name](fastkl, *(x.astype(">f8") for x in operands)))
            results.append(FUNCTIONS[name](fastkl, *(np.asfortranarray(x) for x in operands)))
    finally:
        fastkl.set_simd_level(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@MODULES
@pytest.mark.parametrize("name", FUNCTIONS)
class TestArguments:
    def test_broadcasting(self, module, name):
        p, q = -np.arange(12.0).reshape(3, 4) / 8, -np.arange(4.0) / 4
        result = FUNCTIONS[name](module, p[:, None], q)
        assert result.shape == (3, 1, 4)
        np.testing.assert_array_equal(result[:, 0], FUNCTIONS[name](module, p, np.broadcast_to(q, p.shape)))
        table = FUNCTIONS[name](module, q[:, None], q)
        np.testing.assert_array_equal(table[1], FUNCTIONS[name](module, q[1], q))

    def test_scalars(self, module, name):
        result = FUNCTIONS[name](module, -1.0, -2.0)
        assert type(result) is np.float64
        assert result == FUNCTIONS[name](module, [-1.0], [-2.0])[0]
        assert type(FUNCTIONS[name](module, np.float32(-1), -2)) is np.float32

    def test_types(self, module, name):
        p, q = np.array([-1, -2, -3]), np.array([-2, -2, 0])
        expected = FUNCTIONS[name](module, p.astype(float), q.astype(float))
        for dtype in (np.int8, np.int64):
            result = FUNCTIONS[name](module, p.astype(dtype), q.astype(dtype))
            np.testing.assert_array_equal(result, expected, strict=True)
        np.testing.assert_array_equal(FUNCTIONS[name](module, p.tolist(), q.tolist()), expected, strict=True)
        half, single, double = (q.astype(dtype) for dtype in (np.float16, np.float32, np.float64))
        for other in (half, single):
            result = FUNCTIONS[name](module, p.astype(np.float16), other)
            np.testing.assert_array_equal(result, expected.astype(np.float32), strict=True)
        assert FUNCTIONS[name](module, single, double).dtype == np.float64
        result = FUNCTIONS[name](module, bfloat16_bits(p), half, dtype="bfloat16")
        np.testing.assert_array_equal(result, expected.astype(np.float32), strict=True)

    def test_nothing(self, module, name):
        assert FUNCTIONS[name](module, np.ones((0, 3)), np.ones(3)).shape == (0, 3)
        assert FUNCTIONS[name](module, [], []).shape == (0,)

    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_out(self, module, name, dtype):
        p, q = -np.linspace(0, 3, 40_000, dtype=dtype).reshape(200, 200), np.full((200, 200), -1, dtype)
        expected = FUNCTIONS[name](module, p, q)
        out = np.full((200, 400), np.nan, dtype)
        assert FUNCTIONS[name](module, p, q, out=out[:, ::2]).base is out
        np.testing.assert_array_equal(out[:, ::2], expected)
        assert np.isnan(out[:, 1::2]).all()
        assert FUNCTIONS[name](module, p, q, out=p) is p
        np.testing.assert_array_equal(p, expected)
        with pytest.raises(ValueError, match=r"^out has shape \(3,\) .*, but the result has shape \(200, 200\)"):
            FUNCTIONS[name](module, p, q, out=np.empty(3, dtype))

    def test_invalid(self, module, name):
        p, q = np.full((2, 3), -1.0), np.full((2, 3), -2.0)
        p[0, 1], q[1, 2] = -np.inf, -np.inf  # a ratio of 0 and one of infinity are numbers
        FUNCTIONS[name](module, p, q, invalid="raise")
        p[1, 0] = np.nan
        p[1, 2] = -np.inf
        a, b = ("logp_new", "logp_old") if name == "objective" else ("logp", "logq")
        with pytest.raises(ValueError, match=rf"^2 of 6 rows are invalid, the first at index \(1, 0\): NaN in {a} at"):
            FUNCTIONS[name](module, p, q, invalid="raise")
        p[1, 0] = 0
        with pytest.raises(ValueError, match=f": zero probability in {a} at position 0; zero probability in {b} at"):
            FUNCTIONS[name](module, p, q, invalid="raise")
        with pytest.raises(ValueError, match=f"^the row is invalid: infinite value in {b} at position 0$"):
            FUNCTIONS[name](module, 0.0, np.inf, invalid="raise")

    def test_refused(self, module, name):
        with pytest.raises(ValueError, match=r"^shapes do not broadcast: .* has shape \(2,\), .* has shape \(3,\)"):
            FUNCTIONS[name](module, [1, 2], [1, 2, 3])
        with pytest.raises(TypeError, match="has dtype complex128"):
            FUNCTIONS[name](module, [1.0], [1j])
        with pytest.raises(ValueError, match="^n_threads must be at least 1, got 0$"):
            FUNCTIONS[name](module, [1.0], [1.0], n_threads=0)
        with pytest.raises(ValueError, match="^invalid must be 'nan' or 'raise', got 'ignore'$"):
            FUNCTIONS[name](module, [1.0], [1.0], invalid="ignore")


@MODULES
class TestOptions:
    def test_unknown_kind(self, module):
        with pytest.raises(ValueError, match="^kind must be 'k1', 'k2' or 'k3', got 'k4'$"):
            module.kl_estimate([-1.0], [-1.0], kind="k4")

    @pytest.mark.parametrize("clip", [-0.1, math.nan, math.inf])
    def test_impossible_clip(self, module, clip):
        with pytest.raises(ValueError, match=f"^clip must be at least 0 and finite, got {clip}$"):
            module.clipped_ratio_objective(0.0, 0.0, 1.0, clip=clip)

    def test_clip_that_is_no_number(self, module):
        with pytest.raises(TypeError, match="^clip must be a number, got str$"):
            module.clipped_ratio_objective(0.0, 0.0, 1.0, clip="0.2")

    def test_invalid_advantage(self, module):
        with pytest.raises(ValueError, match="^1 of 2 rows are invalid, .*: infinite value in advantage"):
            module.clipped_ratio_objective(0.0, 0.0, [1.0, -np.inf], invalid="raise")
