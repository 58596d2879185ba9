"""The divergence between Gaussians with full covariances: every level, size, type and layout, against exact values."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from gaussian_full_oracle import assert_full_gaussian, exact_pair
from oracles import bfloat16_bits

import fastkl
from fastkl import reference
from fastkl._kernels import _engine

# Up to 32 components go one pair to a lane, more go by panels of 8 rows.
SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 31, 32, 33, 40, 64)
CONDITIONS = (1.0, 1e2, 1e5, 1e10)
COV = pytest.mark.parametrize("cov", ["covariance", "cholesky"])
BOTH = pytest.mark.parametrize("module", [fastkl, reference], ids=["fastkl", "reference"])


def covariances(rng, n, d, condition):
    """Covariances with eigenvalues from 1 down to 1/condition."""
    rotation = np.linalg.qr(rng.standard_normal((n, d, d)))[0]
    values = condition ** -rng.random((n, d))
    values[:, 0], values[:, -1] = 1 / condition, 1
    return symmetric((rotation * values[:, None, :]) @ rotation.transpose(0, 2, 1))


def symmetric(matrix):
    return np.tril(matrix) + np.swapaxes(np.tril(matrix, -1), -2, -1)


def gaussians(rng, d, condition, cov="covariance", n=8):
    """Means and covariances of p and q: pairs of all the kinds that one batch may hold side by side."""
    m, mq = rng.standard_normal((2, n, d))
    s, sq = covariances(rng, n, d, condition), covariances(rng, n, d, condition)
    if cov == "cholesky":
        s, sq = np.linalg.cholesky(s), np.linalg.cholesky(sq)
    m[1:6] = mq[1:6]
    s[1] *= 2.0**-5 if cov == "cholesky" else 2.0**-10
    s[2] = sq[2]
    # One number that differs in its last bit.
    i, j = sorted(rng.integers(0, d, 2), reverse=True)
    s[3] = sq[3]
    s[3, i, j] = np.nextafter(sq[3, i, j], 9)
    # Nearly equal, closer than the smallest eigenvalue.
    s[4] = sq[4] * (1 + np.tril(rng.standard_normal((d, d))) * 0.01 / d / condition)
    s[5] = sq[5] * (1 + np.tril(rng.standard_normal((d, d))) * 1e-9 / condition)
    s[6] = sq[6]
    if cov == "covariance":
        s = symmetric(s)
    return m, s, mq, sq


def in_type(array, type_name):
    """An array in a type; rounding is symmetric, and what it does to a covariance is part of the input."""
    if type_name == "bfloat16":
        return array.astype(ml_dtypes.bfloat16)
    return array.astype(type_name)


@COV
@pytest.mark.parametrize("d", SIZES)
def test_contract_and_reference(d, cov, level, rng):
    for condition in CONDITIONS:
        operands = gaussians(rng, d, condition, cov)
        result = fastkl.gaussian_kl_full(*operands, cov=cov)
        assert_full_gaussian(result, operands, cov)
        expected = reference.gaussian_kl_full(*operands, cov=cov)
        np.testing.assert_allclose(result, expected, rtol=1e-14 * condition * d, atol=0)


@COV
@pytest.mark.parametrize("d", (3, 33))
@pytest.mark.parametrize("type_name", ["float32", "float16", "bfloat16"])
def test_types(type_name, d, cov, level, rng):
    operands = [in_type(x, type_name) for x in gaussians(rng, d, 2.0, cov)]
    result = fastkl.gaussian_kl_full(*operands, cov=cov)
    assert result.dtype == np.float32
    assert_full_gaussian(result, [x.astype(np.float64) for x in operands], cov)
    expected = reference.gaussian_kl_full(*operands, cov=cov)
    assert expected.dtype == result.dtype
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    if type_name == "bfloat16":
        bits = [bfloat16_bits(x) for x in operands]
        np.testing.assert_array_equal(fastkl.gaussian_kl_full(*bits, cov=cov, dtype="bfloat16"), result)


def test_integers_and_mixed_types(level):
    m, s = np.array([1, 2]), np.array([[4, 1], [1, 3]])
    expected = fastkl.gaussian_kl_full(m * 1.0, s * 1.0)
    for type_name in ("int8", "uint16", "int64"):
        result = fastkl.gaussian_kl_full(m.astype(type_name), s.astype(type_name))
        assert result.dtype == np.float64
        assert result == expected
    assert fastkl.gaussian_kl_full(m.astype(np.float32), s.astype(np.float32), 0, 1).dtype == np.float32
    assert fastkl.gaussian_kl_full(m.astype(np.float32), s.astype(np.float64)).dtype == np.float64


@COV
@pytest.mark.parametrize("d", (1, 2, 7, 33))
def test_ends_of_the_range(d, cov, level, rng):
    """Covariances from 1e-300 to 1e300, and components of different scales, next to each other and to themselves."""
    sizes = (1e-300, 1e-150, 1.0, 1e150, 1e300)
    pairs = [(a, b) for a in sizes for b in sizes if cov == "covariance" or a <= b]
    n = len(pairs)
    m, s, mq, sq = (np.resize(x, (n, *x.shape[1:])) for x in gaussians(rng, d, 10.0, cov))
    a, b = np.array(pairs).T
    s, sq = s * a[:, None, None], sq * b[:, None, None]
    deviation = np.sqrt(b) if cov == "covariance" else b
    m, mq = m * deviation[:, None], mq * deviation[:, None]
    with np.errstate(over="ignore"):
        kept = np.isfinite(a / b)  # others are infinite
    operands = [x[kept] for x in (m, s, mq, sq)]
    assert_full_gaussian(fastkl.gaussian_kl_full(*operands, cov=cov), operands, cov)
    spread = 10.0 ** rng.uniform(-140, 140, d)
    apart = [x * (spread if x.ndim == 2 or cov == "covariance" else 1) for x in gaussians(rng, d, 10.0, cov)]
    apart[1::2] = [x * spread[:, None] for x in apart[1::2]]
    assert_full_gaussian(fastkl.gaussian_kl_full(*apart, cov=cov), apart, cov)


@pytest.mark.parametrize("d", (1, 3, 33))
def test_subnormal_factors(d, level):
    for a, b in ((1e-320, 2e-320), (5e-324, 5e-324), (1e-320, 1e300), (1e-320, 1.0), (1.7e308, 1e308)):
        p, q, zero = a * np.eye(d), b * np.eye(d), np.zeros(d)
        result = fastkl.gaussian_kl_full(zero, p, zero, q, cov="cholesky")
        assert result == pytest.approx(float(exact_pair(zero, p, zero, q, "cholesky")), rel=1e-14)
    assert fastkl.gaussian_kl_full(zero, np.eye(d) * 1e300, zero, np.eye(d) * 1e-320, cov="cholesky") == np.inf


NAN, INF = np.nan, np.inf

# A matrix in p next to N(0, I), and what comes of it; and in q, next to N(0, I) as p.
CASES = {
    "covariance": [
        ([[0.0]], INF, NAN),
        ([[-0.0]], INF, NAN),
        ([[-1.0]], NAN, NAN),
        ([[NAN]], NAN, NAN),
        ([[INF]], NAN, NAN),
        ([[1.0, 1.0], [1.0, 1.0]], INF, NAN),
        ([[1.0, 2.0], [2.0, 1.0]], NAN, NAN),
        ([[0.0, 0.0], [0.0, 1.0]], INF, NAN),
        ([[0.0, 1.0], [1.0, 1.0]], NAN, NAN),
        ([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]], NAN, NAN),
        ([[1.0, 0.5], [0.25, 1.0]], NAN, NAN),
        ([[1.0, 0.5], [NAN, 1.0]], NAN, NAN),
        ([[1.0, NAN], [0.5, 1.0]], NAN, NAN),
        ([[1.0, INF], [INF, 1.0]], NAN, NAN),
        ([[INF, 0.0], [0.0, 1.0]], NAN, NAN),
    ],
    "cholesky": [
        ([[0.0]], INF, NAN),
        ([[-1.0]], NAN, NAN),
        ([[NAN]], NAN, NAN),
        ([[INF]], NAN, NAN),
        ([[1.0, 0.0], [5.0, 0.0]], INF, NAN),
        ([[1.0, 0.0], [NAN, 1.0]], NAN, NAN),
        ([[1.0, 0.0], [-INF, 1.0]], NAN, NAN),
        ([[1.0, 0.1], [0.0, 1.0]], NAN, NAN),
        ([[1.0, NAN], [0.0, 1.0]], NAN, NAN),
        ([[1.0, 0.0], [1.0, -1.0]], NAN, NAN),
    ],
}


@COV
@pytest.mark.parametrize("d", (3, 8, 33, 41))
def test_corner_cases(d, cov, level):
    """In every place of a matrix and of a batch; the other pairs are not touched."""
    for part, in_p, in_q in CASES[cov]:
        k = len(part)
        for at in {0, (d - k) // 2, d - k}:
            bad = np.tile(np.eye(d), (11, 1, 1))
            bad[4, at : at + k, at : at + k] = part
            mean = np.zeros((11, d))
            for module in (fastkl, reference):
                for operands, expected in (
                    ((mean, bad), in_p),
                    ((mean, bad, 0, np.eye(d)), in_p),
                    ((0, np.eye(d), mean, bad), in_q),
                ):
                    result = module.gaussian_kl_full(*operands, cov=cov)
                    np.testing.assert_equal(result[4], expected, err_msg=f"{module.__name__}: {part} in {d}")
                    assert not np.delete(result, 4).any()


@BOTH
@pytest.mark.parametrize("d", (2, 33))
def test_means(module, d, level):
    for bad in (NAN, INF, -INF):
        mean = np.zeros((3, d))
        mean[1, -1] = bad
        for operands in ((mean, np.eye(d)), (0.0, np.eye(d), mean, np.eye(d))):
            np.testing.assert_array_equal(module.gaussian_kl_full(*operands), [0, NAN, 0])
        assert np.isnan(module.gaussian_kl_full(mean, np.zeros((d, d)))[1])
    assert module.gaussian_kl_full(np.full(d, 1e200), np.eye(d)) == INF


@BOTH
def test_asymmetry(module, level):
    """As much as roundings make is let pass, and the lower triangle counts."""
    for d in (3, 33):
        for dtype, little, much in ((np.float64, 1e-9, 1e-7), (np.float32, 1e-4, 1e-3)):
            s = np.eye(d, dtype=dtype) * 4
            s[d - 1, 0] = s[0, d - 1] = 1
            expected = module.gaussian_kl_full(np.zeros(d, dtype), s)
            s[0, d - 1] += 4 * little
            assert module.gaussian_kl_full(np.zeros(d, dtype), s) == expected
            s[0, d - 1] += 4 * much
            assert np.isnan(module.gaussian_kl_full(np.zeros(d, dtype), s))


@COV
@pytest.mark.parametrize("d", (1, 3, 8, 17, 32, 33, 50))
def test_same_bits_in_every_layout(d, cov, rng):
    """A pair's bits depend on nothing but the pair: not on its place, layout, threads, or the width of vectors."""
    levels = [name for name in ("avx2", "avx512", "neon") if name in _engine.usable_levels()]
    before = fastkl.simd_level()
    n = 43
    operands = [np.resize(x, (n, *x.shape[1:])) for x in gaussians(rng, d, 100.0, cov)]
    m, s, mq, sq = operands

    def kl(*operands, **options):
        return fastkl.gaussian_kl_full(*operands, cov=cov, diagonal="neither", **options)

    results = []
    try:
        for name in levels or [before]:
            fastkl.set_simd_level(name)
            results.append(kl(*operands))
            results += [kl(*operands, n_threads=threads) for threads in (1, 2, 5)]
            results.append([kl(*(x[i] for x in operands)) for i in range(n)])
            results.append(kl(*(np.asfortranarray(x) for x in operands)))
            results.append(kl(*(x[::-1] for x in operands))[::-1])
            results.append(kl(*(x.astype(">f8") for x in operands)))
            results.append(kl(*(np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0) for x in operands)))
            results.append(kl(m, np.swapaxes(np.swapaxes(s, 1, 2).copy(), 1, 2), mq, sq))
            wide = np.zeros((n, 2 * d + 1, 3 * d))
            wide[:, 1::2, ::3] = sq
            results.append(kl(m, s, mq, wide[:, 1::2, ::3]))
            backwards = s[:, ::-1, ::-1].copy()
            results.append(kl(m, backwards[:, ::-1, ::-1], mq, sq))
            raw = np.zeros(s.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(s.shape)
            raw[...] = s
            results.append(kl(m, raw, mq, sq))
    finally:
        fastkl.set_simd_level(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@COV
@pytest.mark.parametrize("d", (3, 33))
def test_broadcasting(d, cov, level, rng):
    m, s, mq, sq = gaussians(rng, d, 100.0, cov, n=11)
    every = fastkl.gaussian_kl_full(m, s, mq, np.broadcast_to(sq[0], s.shape), cov=cov)
    np.testing.assert_array_equal(fastkl.gaussian_kl_full(m, s, mq, sq[0], cov=cov), every)
    np.testing.assert_array_equal(fastkl.gaussian_kl_full(m, s, mq, sq[:1], cov=cov), every)
    table = fastkl.gaussian_kl_full(m[:, None], s[:, None], mq, sq, cov=cov)
    assert table.shape == (11, 11)
    np.testing.assert_array_equal(np.diagonal(table), fastkl.gaussian_kl_full(m, s, mq, sq, cov=cov))
    np.testing.assert_array_equal(table[:, 0], fastkl.gaussian_kl_full(m, s, mq[0], sq[0], cov=cov))
    np.testing.assert_array_equal(table[3], fastkl.gaussian_kl_full(m[3], s[3], mq, sq, cov=cov))
    standard = fastkl.gaussian_kl_full(m, s, cov=cov)
    np.testing.assert_array_equal(standard, fastkl.gaussian_kl_full(m, s, 0, 1, cov=cov))
    np.testing.assert_array_equal(standard, fastkl.gaussian_kl_full(m, s, np.zeros(d), np.eye(d), cov=cov))


@COV
@pytest.mark.parametrize("d", (1, 3, 16, 33))
def test_diagonals(d, cov, level, rng):
    m, s, mq, sq = gaussians(rng, d, 10.0, cov, n=7)
    scales, scales_q = rng.uniform(0.5, 2, (2, 7, d))
    matrices, matrices_q = scales[..., None] * np.eye(d), scales_q[..., None] * np.eye(d)
    for module in (fastkl, reference):

        def kl(*operands, module=module, **options):
            return module.gaussian_kl_full(*operands, cov=cov, **options)

        np.testing.assert_array_equal(kl(m, scales, mq, sq), kl(m, matrices, mq, sq))
        np.testing.assert_array_equal(kl(m, s, mq, scales_q), kl(m, s, mq, matrices_q))
        np.testing.assert_array_equal(kl(m, scales, mq, scales_q), kl(m, matrices, mq, matrices_q))
        np.testing.assert_array_equal(kl(m, s, mq, scales_q[0]), kl(m, s, mq, matrices_q[0]))
        np.testing.assert_array_equal(kl(m, 2.0, mq, sq), kl(m, 2 * np.eye(d), mq, sq))
        independent = fastkl.gaussian_kl(m, scales, mq, scales_q, scale="var" if cov == "covariance" else "std")
        np.testing.assert_allclose(kl(m, scales, mq, scales_q), independent, rtol=1e-13)
        flawed = scales.copy()
        flawed[0, 0], flawed[1, -1] = 0, -1
        np.testing.assert_array_equal(kl(m, flawed, mq, sq)[:2], [INF, NAN])


@pytest.mark.parametrize("d", (3, 11, 33))
def test_bulk(d, level, rng):
    """Many blocks, shared by threads; a q that all have in common is factored once in each."""
    m, s, mq, sq = gaussians(rng, d, 100.0)
    few = fastkl.gaussian_kl_full(m, s, mq, sq), fastkl.gaussian_kl_full(m, s, mq[0], sq[0])
    n = 2000 if d < 32 else 100
    m, s, more_mq, more_sq = (np.resize(x, (n, *x.shape[1:])) for x in (m, s, mq, sq))
    for threads in (1, 2, 3):
        result = fastkl.gaussian_kl_full(m, s, more_mq, more_sq, n_threads=threads)
        np.testing.assert_array_equal(result, np.resize(few[0], n))
        result = fastkl.gaussian_kl_full(m, s, mq[0], sq[0], n_threads=threads)
        np.testing.assert_array_equal(result, np.resize(few[1], n))


@COV
@pytest.mark.parametrize("d", (200, 512))
def test_many_components(d, cov, level, rng):
    far, q = covariances(rng, 2, d, 1e3)
    near = symmetric(q * (1 + 1e-9 * rng.standard_normal((d, d))))
    if cov == "cholesky":
        far, near, q = (np.linalg.cholesky(x) for x in (far, near, q))
    p = np.stack([far, near, q])
    result = fastkl.gaussian_kl_full(1.0, p, 1.0, q, cov=cov)
    np.testing.assert_allclose(result, reference.gaussian_kl_full(1.0, p, 1.0, q, cov=cov), rtol=1e-11)
    assert result[2] == 0
    assert result[0] == fastkl.gaussian_kl_full(1.0, far, 1.0, q, cov=cov)


def test_bulk_is_not_copied(rng):
    """Nothing of the size of the operands, nor 512 by 512 matrices for many threads, is allocated."""
    for n, d in ((40_000, 8), (4, 512)):
        s = np.tile(np.eye(d), (n, 1, 1))
        tracemalloc.start()
        result = fastkl.gaussian_kl_full(0.0, s, n_threads=2)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20 + result.nbytes
        assert not result.any()


@BOTH
class TestArguments:
    def test_scalars(self, module):
        assert isinstance(module.gaussian_kl_full([0.0], [[2.0]]), np.float64)
        with pytest.raises(ValueError, match="scalars alone do not tell how many components there are"):
            module.gaussian_kl_full(0.0, 1.0)

    def test_no_pairs(self, module):
        assert module.gaussian_kl_full(np.zeros((0, 3)), np.zeros((0, 3, 3))).shape == (0,)
        assert module.gaussian_kl_full(np.zeros((0, 3)), np.eye(3)).shape == (0,)

    def test_no_components(self, module):
        with pytest.raises(ValueError, match=r"must have components: mean_p has shape \(2, 0\)"):
            module.gaussian_kl_full(np.zeros((2, 0)), np.zeros((2, 0, 0)))

    def test_lengths(self, module):
        says = r"must be equally long: mean_p has shape \(3,\), cov_p has shape \(2, 2\)"
        with pytest.raises(ValueError, match=says):
            module.gaussian_kl_full(np.zeros(3), np.eye(2))

    def test_batches_that_do_not_broadcast(self, module):
        with pytest.raises(ValueError, match=r"do not broadcast outside the components: mean_p has shape \(4, 3\)"):
            module.gaussian_kl_full(np.zeros((4, 3)), np.tile(np.eye(3), (5, 1, 1)))

    def test_shapes_that_are_ambiguous(self, module):
        m, s = np.zeros((3, 3)), np.full((3, 3), 0.5) + np.eye(3)
        with pytest.raises(ValueError, match="^cov_p is a matrix for all means, or a diagonal for each: pass diag"):
            module.gaussian_kl_full(m, s)
        as_matrix, as_diagonals = (module.gaussian_kl_full(m, s, diagonal=x) for x in ("neither", "p"))
        np.testing.assert_array_equal(as_matrix, module.gaussian_kl_full(m, s[np.newaxis]))
        np.testing.assert_array_equal(as_diagonals, [module.gaussian_kl_full(m[0], x) for x in s])
        with pytest.raises(ValueError, match="^cov_q is a matrix"):
            module.gaussian_kl_full(m[0], s, m, s)
        assert module.gaussian_kl_full(m, s, m, s, diagonal="both").shape == (3,)
        assert module.gaussian_kl_full(np.zeros((1, 1)), np.ones((1, 1))).shape == (1,)

    def test_no_matrix_where_one_is_said_to_be(self, module):
        says = r"^with diagonal='q', cov_p must have shape \(..., 3, 3\): mean_p has shape \(3,\), "
        with pytest.raises(ValueError, match=says):
            module.gaussian_kl_full(np.zeros(3), np.ones(3), np.zeros(3), np.ones(3), diagonal="q")

    def test_options(self, module):
        with pytest.raises(ValueError, match="^cov must be 'covariance' or 'cholesky', got 'precision'$"):
            module.gaussian_kl_full([0.0], [[1.0]], cov="precision")
        with pytest.raises(ValueError, match="^diagonal must be None, 'neither', 'p', 'q' or 'both', got True$"):
            module.gaussian_kl_full([0.0], [[1.0]], diagonal=True)
        with pytest.raises(ValueError, match="invalid must be"):
            module.gaussian_kl_full([0.0], [[1.0]], invalid="ignore")
        with pytest.raises(ValueError, match="n_threads must be at least 1"):
            module.gaussian_kl_full([0.0], [[1.0]], n_threads=0)

    def test_one_of_q(self, module):
        with pytest.raises(ValueError, match=r"^mean_q without cov_q: pass both, or neither for N\(0, I\)$"):
            module.gaussian_kl_full([1.0], [[1.0]], [1.0])
        with pytest.raises(ValueError, match=r"^cov_q without mean_q: "):
            module.gaussian_kl_full([1.0], [[1.0]], cov_q=[[1.0]])

    def test_complex(self, module):
        with pytest.raises(TypeError, match="cov_p has dtype complex128"):
            module.gaussian_kl_full([1.0], [[1j]])

    def test_out(self, module):
        m, s = np.zeros((4, 3)), np.tile(2 * np.eye(3), (4, 1, 1))
        out = np.empty(4)
        assert module.gaussian_kl_full(m, s, out=out) is out
        np.testing.assert_array_equal(out, module.gaussian_kl_full(m, s))
        with pytest.raises(ValueError, match="out has shape"):
            module.gaussian_kl_full(m, s, out=np.empty(3))

    def test_out_over_an_operand(self, module):
        m, s = np.zeros((4, 4)), np.tile(2 * np.eye(4), (4, 1, 1))
        expected = module.gaussian_kl_full(m, s)
        for out in (s[:, 3, 2], m[:, 0]):
            mine = out.copy()
            assert module.gaussian_kl_full(m, s, out=out) is out
            np.testing.assert_array_equal(out, expected)
            out[...] = mine

    @pytest.mark.parametrize("d", (3, 33))
    def test_invalid(self, module, d):
        def says(where, cov="covariance", **operands):
            given = {"mean_p": np.zeros((4, d)), "cov_p": np.tile(np.eye(d), (4, 1, 1))}
            given |= {"mean_q": given["mean_p"].copy(), "cov_q": given["cov_p"].copy()}
            for name, (index, value) in operands.items():
                given[name][(2, *index)] = value
                if cov == "covariance" and name.startswith("cov") and where != "mirror":
                    given[name][(2, *index[::-1])] = value
            with pytest.raises(ValueError, match="^1 of 4 rows are invalid, the first at index 2: ") as caught:
                module.gaussian_kl_full(**given, cov=cov, invalid="raise")
            return str(caught.value).split("index 2: ")[1]

        assert says("", mean_q=((1,), NAN)) == "NaN in mean_q at position 1"
        assert says("", cov_p=((1, 2), INF)) == "infinite value in cov_p at position (1, 2)"
        assert says("", cov_p=((1, 1), -1)) == "negative value in cov_p at position 1"
        assert says("", cov_q=((1, 1), 0)) == "zero in cov_q at position 1"
        mirrored = says("mirror", cov_q=((0, 2), 0.5))
        assert mirrored == "value that differs from its mirror image in cov_q at position (0, 2)"
        assert says("", cov_p=((0, 2), 2)) == "cov_p is not positive definite"
        assert says("", cov_p=((0, 2), 2), cov_q=((0, 0), -1)) == (
            "cov_p is not positive definite; negative value in cov_q at position 0"
        )
        says_factor = says("", "cholesky", cov_q=((0, 2), 2))
        assert says_factor == "value other than 0 above the diagonal in cov_q at position (0, 2)"
        module.gaussian_kl_full(np.zeros((2, d)), np.zeros((2, d)), invalid="raise")  # infinite, and no fault

    def test_invalid_diagonal(self, module):
        with pytest.raises(ValueError, match="^the row is invalid: zero in cov_q at position 1$"):
            module.gaussian_kl_full(np.zeros(2), np.eye(2), np.zeros(2), [1.0, 0.0], invalid="raise")
        hardly = np.array([[1.0, 1.0], [1.0, 1.0]])
        with pytest.raises(ValueError, match="cov_q is not positive definite"):
            module.gaussian_kl_full(np.zeros(2), np.eye(2), np.zeros(2), hardly, invalid="raise")
