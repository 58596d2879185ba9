"""The divergence between diagonal Gaussians: every scale, level, type and layout, against exact values."""

import numpy as np
import pytest
from gaussian_oracle import assert_gaussian
from oracles import bfloat16_bits

import fastkl
from fastkl import reference
from fastkl._kernels import _engine

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 97, 1000, 1025, 2100)
SCALES = ("var", "std", "logvar")
PRIOR = pytest.mark.parametrize("prior", [True, False], ids=["pair", "standard"])


def cast(array, type_name):
    """An array in a type, and the options that the type needs."""
    if type_name == "bfloat16":
        return bfloat16_bits(array), {"dtype": "bfloat16"}
    return array.astype(type_name), {}


def gaussians(rng, length, scale, n=17):
    """Means and scales of p and q: rows of all the kinds that one batch may hold side by side."""
    m, mq = rng.standard_normal((2, n, length)) * 3
    s, sq = rng.uniform(0.1, 3, (2, n, length))
    s[1], sq[1] = s[1] ** 8, sq[1] ** 8
    m[2], s[2] = mq[2], sq[2]
    m[3] = mq[3] * (1 + 1e-9 * rng.standard_normal(length))
    s[3] = sq[3] * (1 + 1e-9 * rng.standard_normal(length))
    m[4], s[4] = mq[4], np.nextafter(sq[4], 9)
    m[5], s[5] = mq[5], sq[5] * rng.choice([1.5, 2 / 3, 2**0.5, 1.42], length)
    s[6] = sq[6]
    if scale == "logvar":
        s, sq = np.log(s), np.log(sq)
        s[2], s[6], s[4] = sq[2], sq[6], np.nextafter(sq[4], 9)
    return m, s, mq, sq


def standard(m, s, scale):
    """The same rows next to N(0, I)."""
    m[2:6] *= 1e-6
    s[2], s[3] = (0.0, 1e-9) if scale == "logvar" else (1.0, 1 + 1e-9)
    s[5] = rng_seam(s.shape[1]) if scale != "logvar" else np.log(rng_seam(s.shape[1]))
    return m, s


def rng_seam(length):
    return np.resize([1.5, 2 / 3, 1.42, 0.7], length)


@PRIOR
@pytest.mark.parametrize("type_name", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", SCALES)
def test_contract_and_reference(scale, type_name, prior, level, rng):
    for length in LENGTHS:
        operands = gaussians(rng, length, scale, 17 if length < 100 else 7)
        if not prior:
            operands = standard(*operands[:2], scale)
        cast_operands, options = [cast(x, type_name)[0] for x in operands], cast(operands[0], type_name)[1]
        result = fastkl.gaussian_kl(*cast_operands, scale=scale, **options)
        assert result.dtype == (np.float64 if type_name == "float64" else np.float32)
        assert_gaussian(result, cast_operands, scale, **options)
        expected = reference.gaussian_kl(*cast_operands, scale=scale, **options)
        assert expected.dtype == result.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-12 if type_name == "float64" else 1e-6, atol=1e-13)


@pytest.mark.parametrize("scale", SCALES)
def test_univariate(scale, level, rng):
    operands = gaussians(rng, 67, scale, 9)
    result = fastkl.gaussian_kl(*operands, scale=scale, axis=None)
    assert result.shape == (9, 67)
    assert_gaussian(result, operands, scale, axis=None)
    np.testing.assert_allclose(result, reference.gaussian_kl(*operands, scale=scale, axis=None), rtol=1e-12, atol=1e-13)
    assert isinstance(fastkl.gaussian_kl(1.0, 2.0, axis=None), np.float64)


# What comes of a row next to N(0, 1), and next to (0, scale_q).
CASES = {
    "var": [
        ((1.0, 0.0), np.inf), ((1.0, -1.0), np.nan), ((np.nan, 1.0), np.nan), ((0.0, np.nan), np.nan),
        ((np.inf, 1.0), np.nan), ((0.0, np.inf), np.nan), ((0.0, 1.0), 0.0), ((0.0, -0.0), np.inf),
        ((0.0, 1.0, 0.0, 0.0), np.nan), ((0.0, 0.0, 0.0, 0.0), np.nan), ((0.0, 0.0, 0.0, 1.0), np.inf),
        ((0.0, 1.0, np.inf, 1.0), np.nan), ((0.0, 1.0, 0.0, -1.0), np.nan), ((0.0, 1.0, 0.0, np.inf), np.nan),
        ((0.0, 0.0, np.nan, 1.0), np.nan),
    ],
    "logvar": [
        ((1.0, -np.inf), np.inf), ((1.0, np.inf), np.nan), ((0.0, np.nan), np.nan), ((0.0, 0.0), 0.0),
        ((-np.inf, 0.0), np.nan), ((0.0, 0.0, 0.0, -np.inf), np.nan), ((0.0, -np.inf, 0.0, 0.0), np.inf),
        ((0.0, 0.0, 0.0, np.inf), np.nan), ((0.0, 1e9), np.inf), ((0.0, 1e308, 0.0, -1e308), np.inf),
    ],
}  # fmt: skip
CASES["std"] = CASES["var"]


@pytest.mark.parametrize("scale", SCALES)
def test_corner_cases(scale, level):
    """In every place of a row, whatever its length; the other rows are not touched."""
    for numbers, expected in CASES[scale]:
        for length in (1, 2, 9, 17, 300):
            for at in {0, length // 2, length - 1}:
                operands = [np.full((3, length), x) for x in (0.5, 1.0, 0.25, 2.0)[: len(numbers)]]
                untouched = fastkl.gaussian_kl(*operands, scale=scale)[0]
                for operand, x in zip(operands, numbers, strict=True):
                    operand[1, at] = x
                for module in (fastkl, reference):
                    result = module.gaussian_kl(*operands, scale=scale)
                    if length == 1 or not np.isfinite(expected):
                        np.testing.assert_equal(result[1], expected, err_msg=f"{module.__name__} {numbers}")
                    np.testing.assert_allclose(result[[0, 2]], untouched, rtol=1e-13)


@PRIOR
@pytest.mark.parametrize("scale", SCALES)
def test_ends_of_the_range(scale, prior, level, rng):
    """Subnormal and huge numbers, whose squares and ratios overflow where the result does not."""
    for length in (1, 3, 20):
        n = 60
        signs = rng.choice([-1.0, 1.0], (2, n, length))
        m, mq = signs * 10.0 ** rng.uniform(-320, 308, (2, n, 1)) * rng.uniform(0.5, 1.5, (2, n, length))
        if scale == "logvar":
            s, sq = rng.uniform(-1, 1, (2, n, length)) * 10.0 ** rng.uniform(-5, 4, (2, n, 1))
        else:
            s, sq = 10.0 ** rng.uniform(-318, 307.5, (2, n, 1)) * rng.uniform(0.5, 1.5, (2, n, length))
        sq[::3] = s[::3] * rng.uniform(0.3, 3, (n // 3, length)) if scale != "logvar" else s[::3] + 0.1
        # Means whose distance is of the size of the standard deviation, so that both parts count.
        with np.errstate(over="ignore", under="ignore"):
            deviation = {"var": np.sqrt, "std": np.abs, "logvar": lambda x: np.exp(x / 2)}[scale](sq)
        close = np.isfinite(deviation) & (deviation > 0) & (np.arange(n)[:, None] % 2 == 0)
        m = np.where(close, np.clip(deviation, 0, 1e307), m)
        mq = np.where(close, 0.0, mq)
        operands = (m, s, mq, sq) if prior else (m, s)
        assert_gaussian(fastkl.gaussian_kl(*operands, scale=scale), operands, scale)


@pytest.mark.parametrize("length", [1, 59, 117, 118, 234, 1000])
@pytest.mark.parametrize("scale", SCALES)
def test_rows_of_one_value(scale, length, level, rng):
    """All the roundings of a sum may go one way, next to the seams of the octaves too."""
    values = np.concatenate([rng.uniform(0.3465, 0.349, 12), rng.uniform(-0.4, 0.4, 6), rng.uniform(0.69, 0.7, 3)])
    s = np.repeat(values[:, None], length, 1)
    if scale != "logvar":
        s = np.exp(s)
    m = np.zeros_like(s)
    assert_gaussian(fastkl.gaussian_kl(m, s, scale=scale), (m, s), scale)
    sq = s - 0.07 if scale == "logvar" else s[::-1]
    assert_gaussian(fastkl.gaussian_kl(m, s, m, sq, scale=scale), (m, s, m, sq), scale)


def test_largest_result(level):
    """Half of a sum that overflows may not."""
    m = np.array([[1.5e154, 0.0]])
    assert_gaussian(fastkl.gaussian_kl(m, [[1.0, 1.0]]), (m, np.ones((1, 2))), "var")
    assert np.isfinite(fastkl.gaussian_kl(m, [[1.0, 1.0]])).all()
    s = np.array([[710.0]])
    assert_gaussian(fastkl.gaussian_kl([[0.0]], s, scale="logvar"), (np.zeros((1, 1)), s), "logvar")
    assert fastkl.gaussian_kl([0.0], [-1e308], [0.0], [1e308], scale="logvar") == 1e308


@pytest.mark.parametrize("scale", SCALES)
def test_same_bits_in_every_layout(scale, rng):
    """A row's bits depend on nothing but the row: not on its place, the layout, the threads, or on AVX2 or AVX-512."""
    levels = [name for name in ("avx2", "avx512", "neon") if name in _engine.usable_levels()]
    before = fastkl.simd_level()
    for length in (1, 3, 16, 17, 300, 1500):
        operands = gaussians(rng, length, scale, 83)
        results = []
        try:
            for name in levels or [before]:
                fastkl.set_simd_level(name)
                whole = fastkl.gaussian_kl(*operands, scale=scale)
                results.append(whole)
                results.append(fastkl.gaussian_kl(*operands, scale=scale, n_threads=1))
                results.append([fastkl.gaussian_kl(*(x[i] for x in operands), scale=scale) for i in range(83)])
                results.append(fastkl.gaussian_kl(*(np.asfortranarray(x) for x in operands), scale=scale))
                results.append(fastkl.gaussian_kl(*(x.T.copy() for x in operands), scale=scale, axis=0))
                results.append(fastkl.gaussian_kl(*(x[::-1] for x in operands), scale=scale)[::-1])
                flipped = [x[:, ::-1].copy()[:, ::-1] for x in operands]
                results.append(fastkl.gaussian_kl(*flipped, scale=scale))
                results.append(fastkl.gaussian_kl(*(x.astype(">f8") for x in operands), scale=scale))
        finally:
            fastkl.set_simd_level(before)
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("scale", SCALES)
def test_broadcasting(scale, level, rng):
    for length in (1, 5, 40):
        m, s, mq, sq = gaussians(rng, length, scale, 19)
        every = fastkl.gaussian_kl(m, s, np.broadcast_to(mq[0], m.shape), np.broadcast_to(sq[0], s.shape), scale=scale)
        for prior in ((mq[0], sq[0]), (mq[:1], sq[0])):
            np.testing.assert_array_equal(fastkl.gaussian_kl(m, s, *prior, scale=scale), every)
        scalars = fastkl.gaussian_kl(m, s, 0.5, 1.5, scale=scale)
        filled = fastkl.gaussian_kl(m, s, np.full_like(m, 0.5), np.full_like(s, 1.5), scale=scale)
        np.testing.assert_array_equal(scalars, filled)
        table = fastkl.gaussian_kl(m[:, None], s[:, None], mq, sq, scale=scale)
        assert table.shape == (19, 19)
        np.testing.assert_array_equal(np.diagonal(table), fastkl.gaussian_kl(m, s, mq, sq, scale=scale))
        one = fastkl.gaussian_kl(m, s, 0, 0 if scale == "logvar" else 1, scale=scale)
        np.testing.assert_allclose(fastkl.gaussian_kl(m, s, scale=scale), one, rtol=1e-13)


@pytest.mark.parametrize("module", [fastkl, reference], ids=["fastkl", "reference"])
class TestArguments:
    def test_python_numbers_take_the_others_type(self, module):
        m = np.ones((2, 3), np.float32)
        assert module.gaussian_kl(m, 2.0).dtype == np.float32
        assert module.gaussian_kl(m, np.float64(2.0)).dtype == np.float64
        assert module.gaussian_kl(m, m, 0, 1).dtype == np.float32
        assert module.gaussian_kl([1, 2], 3).dtype == np.float64

    def test_one_of_q(self, module):
        with pytest.raises(ValueError, match=r"^mean_q without scale_q: pass both, or neither for N\(0, I\)$"):
            module.gaussian_kl([1.0], [1.0], [1.0])

    def test_unknown_scale(self, module):
        with pytest.raises(ValueError, match="^scale must be 'var', 'std' or 'logvar', got 'variance'$"):
            module.gaussian_kl([1.0], [1.0], scale="variance")

    def test_lengths(self, module):
        with pytest.raises(ValueError, match=r"rows must be equally long along axis -1: mean_p has shape \(2, 3\), "):
            module.gaussian_kl(np.ones((2, 3)), np.ones((2, 1)))

    def test_scalars_have_no_axis(self, module):
        with pytest.raises(ValueError, match="scalars have no axis to reduce, pass axis=None"):
            module.gaussian_kl(1.0, 2.0)

    def test_empty_rows(self, module):
        with pytest.raises(ValueError, match="must not be empty"):
            module.gaussian_kl(np.ones((2, 0)), np.ones((2, 0)))

    def test_no_rows(self, module):
        assert module.gaussian_kl(np.ones((0, 3)), np.ones((0, 3))).shape == (0,)
        assert module.gaussian_kl(np.ones((0, 3)), np.ones((0, 3)), axis=None).shape == (0, 3)

    def test_complex(self, module):
        with pytest.raises(TypeError, match="scale_p has dtype complex128"):
            module.gaussian_kl([1.0], [1j])

    def test_invalid_rows(self, module):
        m, s = np.zeros((4, 3)), np.ones((4, 3))
        s[1, 2] = s[3, 0] = -1
        says = "^2 of 4 rows are invalid, the first at index 1: negative value in scale_p at position 2$"
        with pytest.raises(ValueError, match=says):
            module.gaussian_kl(m, s, invalid="raise")
        s[1, 2] = s[3, 0] = 1
        with pytest.raises(ValueError, match="at index 2: zero in scale_q at position 1$"):
            module.gaussian_kl(m, s, m, np.where(np.arange(12).reshape(4, 3) == 7, 0, s), invalid="raise")

    def test_invalid_rows_of_one_array_twice(self, module):
        zeros = np.zeros((4, 3))
        with pytest.raises(ValueError, match="zero in scale_q at position 0$"):
            module.gaussian_kl(zeros, zeros, zeros, zeros, invalid="raise")
        with pytest.raises(ValueError, match="negative value in scale_p at position 0$"):
            module.gaussian_kl(zeros - 1, zeros - 1, invalid="raise")

    def test_python_numbers_out_of_range(self, module):
        m = np.ones(2, np.float32)
        assert np.isnan(module.gaussian_kl(m, m, 10**300, 1))
        assert module.gaussian_kl(m, m, 10**30, 1).dtype == np.float32

    def test_keepdims_and_out(self, module):
        m, s = np.zeros((4, 3, 2)), np.full((4, 3, 2), 2.0)
        expected = module.gaussian_kl(m, s, axis=1)
        out = np.empty((4, 1, 2))
        assert module.gaussian_kl(m, s, axis=1, keepdims=True, out=out) is out
        np.testing.assert_array_equal(out[:, 0], expected)
        assert module.gaussian_kl(m, s, axis=None, keepdims=True).shape == m.shape

    def test_out_over_an_operand(self, module):
        m, s = np.arange(12.0).reshape(4, 3), np.full((4, 3), 2.0)
        expected = module.gaussian_kl(m, s, axis=None)
        assert module.gaussian_kl(m, s, axis=None, out=m) is m
        np.testing.assert_array_equal(m, expected)


class TestReparameterize:
    @pytest.mark.parametrize("module", [fastkl, reference], ids=["fastkl", "reference"])
    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_mean_and_deviation(self, module, dtype):
        mean, logvar = np.full((200_000, 2), [1.0, -3.0], dtype), np.log(np.full(2, [4.0, 0.25], dtype))
        sample = module.reparameterize(mean, logvar, rng=0)
        assert sample.dtype == dtype
        np.testing.assert_allclose(sample.mean(0), [1, -3], atol=0.02)
        np.testing.assert_allclose(sample.std(0), [2, 0.5], rtol=0.01)

    def test_scales_agree(self):
        var = np.array([0.5, 2.0, 4.0])
        samples = [
            fastkl.reparameterize(1.0, x, scale_kind=kind, rng=3)
            for kind, x in (("var", var), ("std", np.sqrt(var)), ("logvar", np.log(var)))
        ]
        for sample in samples[1:]:
            np.testing.assert_allclose(sample, samples[0], rtol=1e-15)
        np.testing.assert_array_equal(reference.reparameterize(1.0, var, scale_kind="var", rng=3), samples[0])

    def test_generators(self):
        m, s = np.zeros(5), np.zeros(5)
        first = fastkl.reparameterize(m, s, rng=np.random.default_rng(7))
        np.testing.assert_array_equal(first, fastkl.reparameterize(m, s, rng=7))
        assert not np.array_equal(first, fastkl.reparameterize(m, s, rng=8))

    def test_corner_cases(self):
        sample = fastkl.reparameterize([1.0, np.nan, np.inf, 1.0, 1.0], [0.0, 1.0, 1.0, -1.0, np.inf], scale_kind="var")
        np.testing.assert_array_equal(sample, [1.0, np.nan, np.nan, np.nan, np.nan])
        assert isinstance(fastkl.reparameterize(0.0, 0.0), np.float64)
