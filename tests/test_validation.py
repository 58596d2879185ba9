"""What is accepted and what is refused, and with which words: the same for the kernels and for the reference."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

from fastkl import discrete, reference
from fastkl._kernels import _batch
from fastkl._validation import METRICS

PAIR_FUNCTIONS = [name for name in discrete.__all__ if name not in ("entropy", "score")]
REDUCTIONS = [*PAIR_FUNCTIONS, "entropy"]
WITH_BASE = [name for name in REDUCTIONS if not name.startswith(("total", "hellinger", "wasserstein"))]


@pytest.fixture(params=[discrete, reference], ids=["discrete", "reference"])
def module(request):
    return request.param


def call(module, name, p, q, **options):
    """One reduction with whatever arguments it needs."""
    if name == "entropy":
        return module.entropy(p, **options)
    if name == "renyi_divergence":
        return module.renyi_divergence(p, q, options.pop("alpha", 2.0), **options)
    return getattr(module, name)(p, q, **options)


def ramp(*shape, dtype=np.float64):
    """Positive numbers, all different where the dtype can tell them apart."""
    return (np.arange(math.prod(shape)).reshape(shape) % 100 + 1).astype(dtype)


class TestShapes:
    @pytest.mark.parametrize("name", PAIR_FUNCTIONS)
    @pytest.mark.parametrize(
        ("p_shape", "q_shape", "axis"),
        [((3,), (4,), -1), ((3,), (1,), -1), ((2, 1), (2, 3), -1), ((3, 4), (4,), 0), ((3, 4), (2, 4), 0)],
    )
    def test_rows_of_different_lengths(self, module, name, p_shape, q_shape, axis):
        with pytest.raises(ValueError, match="equally long") as caught:
            call(module, name, np.ones(p_shape), np.ones(q_shape), axis=axis)
        assert str(p_shape) in str(caught.value)
        assert str(q_shape) in str(caught.value)

    @pytest.mark.parametrize("name", PAIR_FUNCTIONS)
    def test_batches_that_do_not_broadcast(self, module, name):
        with pytest.raises(ValueError, match=r"broadcast.*\(2, 5\).*\(3, 5\)"):
            call(module, name, np.ones((2, 5)), np.ones((3, 5)))

    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0)])
    def test_empty_rows(self, module, name, shape):
        with pytest.raises(ValueError, match="must not be empty") as caught:
            call(module, name, np.ones(shape), np.ones(shape))
        assert str(shape) in str(caught.value)

    @pytest.mark.parametrize("name", REDUCTIONS)
    def test_no_axis_to_reduce(self, module, name):
        with pytest.raises(ValueError, match=r"no rows.*\(\)"):
            call(module, name, 0.5, 0.5)

    def test_scalar_beside_an_array(self, module):
        with pytest.raises(ValueError, match=r"no rows.*\(3,\).*\(\)"):
            module.kl_divergence([1, 2, 3], 1.0)

    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("axis", [2, -3])
    def test_axis_out_of_bounds(self, module, name, axis):
        with pytest.raises(np.exceptions.AxisError, match=rf"{axis} .*\(2, 3\)"):
            call(module, name, np.ones((2, 3)), np.ones((2, 3)), axis=axis)

    @pytest.mark.parametrize("axis", [None, (0, 1), 0.0, -1.0, "last"])
    def test_axis_of_another_type(self, module, axis):
        with pytest.raises(TypeError, match="axis must be an int"):
            module.kl_divergence(np.ones((2, 3)), np.ones((2, 3)), axis=axis)

    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_no_rows_give_an_empty_result(self, module, name, axis):
        shape = (4, 0) if axis == 0 else (0, 4)
        result = call(module, name, np.ones(shape, np.float32), np.ones(shape, np.float32), axis=axis)
        assert result.shape == (0,)
        assert result.dtype == np.float32

    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_one_row_gives_a_scalar(self, module, name, dtype):
        assert type(call(module, name, ramp(5, dtype=dtype), ramp(5, dtype=dtype))) is dtype

    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
    def test_keepdims(self, module, name, axis):
        p, q = ramp(3, 4, 5), ramp(3, 4, 5)[::-1, ::-1, ::-1]
        shape = list(p.shape)
        shape[axis] = 1
        kept = call(module, name, p, q, axis=axis, keepdims=True)
        assert kept.shape == tuple(shape)
        np.testing.assert_array_equal(kept.squeeze(axis), call(module, name, p, q, axis=axis))

    def test_keepdims_of_one_row_is_an_array(self, module):
        assert module.kl_divergence([1, 2], [2, 1], keepdims=True).shape == (1,)

    @pytest.mark.parametrize(
        ("p_shape", "q_shape", "axis", "batch_shape"),
        [
            ((5,), (3, 4, 5), -1, (3, 4)),
            ((3, 4, 5), (5,), 2, (3, 4)),
            ((4, 5), (3, 4, 5), -2, (3, 5)),
            ((4, 1), (3, 4, 5), 1, (3, 5)),
            ((3, 1, 5), (1, 4, 5), -1, (3, 4)),
            ((5,), (1, 4, 5), 0, (4, 5)),
            ((0, 5), (1, 5), -1, (0,)),
        ],
    )
    def test_broadcasting(self, module, p_shape, q_shape, axis, batch_shape):
        p, q = ramp(*p_shape), ramp(*q_shape) ** 2
        result = module.jeffreys_divergence(p, q, axis=axis, normalize=False)
        assert result.shape == batch_shape
        formula = ((p - q) * np.log(p / q)).sum(axis)
        np.testing.assert_allclose(result, formula, rtol=1e-12)


class TestTypes:
    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize(
        ("operand", "advice"),
        [
            (np.ones(3, np.complex128), "complex128; pass real numbers"),
            (np.ones(3, object), "object; pass an array of numbers"),
            ([1.0, None, 2.0], "object; pass an array of numbers"),
            ([10**30, 1, 2], "object; pass an array of numbers"),
            (["a", "b", "c"], "<U1; pass float64"),
            (np.ones(3, np.longdouble), "astype"),
            (np.ones(3, "m8[s]"), "pass float64"),
            (np.ones(3, "M8[s]"), "pass float64"),
            (np.zeros(3, [("x", float)]), "pass float64"),
            (np.ones(3, ml_dtypes.float8_e4m3fn), "pass float64"),
            (np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0]), "masked.*filled"),
            (scipy.sparse.csr_array(np.ones((1, 3))), "sparse.*toarray"),
            (scipy.sparse.csr_matrix(np.ones((1, 3))), "sparse.*toarray"),
        ],
    )
    def test_refused(self, module, name, operand, advice):
        if getattr(operand, "dtype", None) == np.float64 and np.longdouble is np.float64:
            pytest.skip("longdouble is float64 here")
        with pytest.raises(TypeError, match=f"^p .*{advice}"):
            call(module, name, operand, np.ones(3))
        if name != "entropy":
            with pytest.raises(TypeError, match=f"^q .*{advice}"):
                call(module, name, np.ones(3), operand)

    @pytest.mark.parametrize(
        ("p_type", "q_type", "result_type"),
        [
            ("float64", "float64", "float64"),
            ("float32", "float32", "float32"),
            ("float16", "float16", "float32"),
            ("bfloat16", "bfloat16", "float32"),
            ("float32", "float64", "float64"),
            ("float16", "float64", "float64"),
            ("float16", "float32", "float32"),
            ("bfloat16", "float16", "float32"),
            ("bfloat16", "float32", "float32"),
            ("bfloat16", "float64", "float64"),
            ("bfloat16", "int8", "float32"),
            ("bfloat16", "uint8", "float32"),
            ("bfloat16", "bool", "float32"),
            ("bfloat16", "int16", "float64"),
            ("bfloat16", "uint16", "float64"),
            ("bfloat16", "int32", "float64"),
            ("float16", "int8", "float32"),
            ("float16", "bool", "float32"),
            ("float16", "int16", "float32"),
            ("float16", "int32", "float64"),
            ("float32", "int16", "float32"),
            ("float32", "int32", "float64"),
            ("float32", "uint64", "float64"),
            ("int8", "int8", "float64"),
            ("int8", "uint64", "float64"),
            ("int32", "int64", "float64"),
            ("bool", "bool", "float64"),
            ("bool", "float32", "float32"),
        ],
    )
    def test_result_dtype(self, module, p_type, q_type, result_type):
        def ones(name):
            return np.ones((2, 3), ml_dtypes.bfloat16 if name == "bfloat16" else name)

        for p, q in ((p_type, q_type), (q_type, p_type)):
            result = module.kl_divergence(ones(p), ones(q))
            assert result.dtype == result_type
            np.testing.assert_array_equal(result, 0)

    @pytest.mark.parametrize("name", ["float64", "float32", "float16", "int16", "int32", "int64", "uint16", "uint64"])
    def test_swapped_bytes(self, module, name):
        native = ramp(3, 7, dtype=name)
        swapped = native.astype(native.dtype.newbyteorder())
        other = native[::-1]
        expected = module.kl_divergence(native, other)
        result = module.kl_divergence(swapped, other)
        np.testing.assert_array_equal(result, expected)
        assert result.dtype == expected.dtype
        assert result.dtype.isnative
        np.testing.assert_array_equal(module.kl_divergence(swapped, swapped[::-1]), expected)

    def test_bfloat16_as_bit_patterns(self, module):
        p = ramp(4, 9).astype(ml_dtypes.bfloat16)
        q = p[::-1]
        expected = module.kl_divergence(p.astype(np.float32), q.astype(np.float32))
        assert expected.any()
        for p_given, q_given in ((p, q), (p.view(np.uint16), q.view(np.uint16)), (p, q.view(np.uint16))):
            np.testing.assert_allclose(
                module.kl_divergence(p_given, q_given, dtype="bfloat16"), expected, rtol=3e-7, strict=True
            )
        np.testing.assert_allclose(module.kl_divergence(p, q), expected, rtol=3e-7, strict=True)
        counts = module.kl_divergence(p.view(np.uint16), q.view(np.uint16))
        assert counts.dtype == np.float64
        assert not np.allclose(counts, expected)

    def test_bfloat16_beside_another_type(self, module):
        p, q = ramp(4, 9).astype(ml_dtypes.bfloat16), ramp(4, 9)[::-1].copy()
        expected = module.kl_divergence(p.astype(np.float64), q)
        result = module.kl_divergence(p.view(np.uint16), q, dtype="bfloat16")
        np.testing.assert_allclose(result, expected, rtol=1e-13, strict=True)

    def test_bfloat16_patterns_must_be_uint16(self, module):
        with pytest.raises(TypeError, match=r"uint16.*float32 and float64"):
            module.kl_divergence(np.ones(3, np.float32), np.ones(3), dtype="bfloat16")

    def test_other_dtype_options(self, module):
        with pytest.raises(ValueError, match="dtype must be None or 'bfloat16', got 'float32'"):
            module.kl_divergence([1, 2], [1, 2], dtype="float32")

    def test_lists_and_array_likes(self, module):
        class Holder:
            def __array__(self, dtype=None, copy=None):
                return np.array([[1, 3], [3, 1]])

        expected = module.kl_divergence(np.array([[1, 3], [3, 1]]), np.array([[3, 1], [3, 1]]))
        np.testing.assert_array_equal(module.kl_divergence([[1, 3], [3, 1]], ((3, 1), (3, 1))), expected)
        np.testing.assert_array_equal(module.kl_divergence(Holder(), [3, 1]), expected)
        np.testing.assert_array_equal(module.kl_divergence([[True, False]], [[True, True]]), [math.log(2)])

    def test_subclasses_give_plain_arrays(self, module, tmp_path):
        mapped = np.memmap(tmp_path / "p", np.float64, "w+", shape=(2, 3))
        mapped[:] = ramp(2, 3)
        assert type(module.kl_divergence(mapped, ramp(2, 3))) is np.ndarray

    def test_torch_tensors(self, module):
        torch = pytest.importorskip("torch")
        p = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
        np.testing.assert_array_equal(module.kl_divergence(p, p), np.zeros(2, np.float32), strict=True)


class TestOut:
    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("keepdims", [False, True])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_is_filled_and_returned(self, module, name, keepdims, axis, dtype):
        p, q = ramp(3, 4, 5, dtype=dtype), ramp(3, 4, 5, dtype=dtype)[::-1, ::-1, ::-1]
        expected = call(module, name, p, q, axis=axis, keepdims=keepdims)
        out = np.full_like(expected, np.nan)
        assert call(module, name, p, q, axis=axis, keepdims=keepdims, out=out) is out
        np.testing.assert_array_equal(out, expected, strict=True)

    def test_of_one_row(self, module):
        out = np.empty(())
        assert module.kl_divergence([1, 3], [3, 1], out=out) is out
        assert out == module.kl_divergence([1, 3], [3, 1])

    @pytest.mark.parametrize("layout", ["fortran", "strided", "negative", "unaligned", "mapped"])
    def test_layouts(self, module, layout, tmp_path):
        p, q = ramp(6, 4, 5), ramp(6, 4, 5)[::-1, ::-1, ::-1]
        expected = module.kl_divergence(p, q)
        if layout == "fortran":
            out = np.empty((6, 4), order="F")
        elif layout == "strided":
            out = np.full((12, 12), -1.0)[::2, 1::3]
        elif layout == "negative":
            out = np.empty((6, 4))[::-1, ::-1]
        elif layout == "unaligned":
            out = np.empty(6 * 4, np.dtype([("pad", "u1"), ("value", "f8")]))["value"].reshape(6, 4)
            assert not out.flags.aligned
        else:
            out = np.memmap(tmp_path / "out", np.float64, "w+", shape=(6, 4))
        assert module.kl_divergence(p, q, out=out) is out
        np.testing.assert_array_equal(out, expected)

    def test_leaves_its_surroundings_alone(self, module):
        table = np.full((6, 9), -1.0)
        module.kl_divergence(ramp(6, 5), ramp(6, 5)[::-1], out=table[:, 4])
        assert (np.delete(table, 4, axis=1) == -1).all()

    @pytest.mark.parametrize("keepdims", [False, True])
    def test_overlapping_an_operand(self, module, keepdims):
        for take in (lambda p, q: p[:, 0], lambda p, q: p[::-1, 3], lambda p, q: q[:, -1], lambda p, q: q.ravel()[:6]):
            p, q = ramp(6, 5), ramp(6, 5)[::-1].copy()
            expected = module.kl_divergence(p, q, keepdims=keepdims)
            out = take(p, q)
            if keepdims:
                out = out[:, np.newaxis]
            assert module.kl_divergence(p, q, out=out, keepdims=keepdims) is out
            np.testing.assert_array_equal(out, expected)

    def test_overlapping_positions(self, module):
        p, q = ramp(5, 5), ramp(5, 5)[::-1].copy()
        positions = np.array([0.0, 1.0, 5.0, 7.0, 100.0])
        expected = module.wasserstein_distance(p, q, positions=positions.copy())
        np.testing.assert_array_equal(module.wasserstein_distance(p, q, positions=positions, out=positions), expected)

    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize(
        ("out", "message"),
        [
            (np.empty(3), r"shape \(3,\).*shape \(2,\)"),
            (np.empty((2, 1)), r"shape \(2, 1\).*shape \(2,\)"),
            (np.empty(()), r"shape \(\).*shape \(2,\)"),
            (np.empty(2, np.float32), "dtype float32.*dtype float64"),
            (np.empty(2, np.int64), "dtype int64.*dtype float64"),
            (np.empty(2, np.dtype(np.float64).newbyteorder()), "dtype .f8.*dtype float64"),
            (np.broadcast_to(1.0, 2), "read-only"),
        ],
    )
    def test_that_does_not_fit(self, module, name, out, message):
        with pytest.raises(ValueError, match=message):
            call(module, name, np.ones((2, 3)), np.ones((2, 3)), out=out)

    def test_shape_with_keepdims(self, module):
        with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(1, 2\)"):
            module.kl_divergence(np.ones((3, 2)), np.ones((3, 2)), axis=0, keepdims=True, out=np.empty(2))

    @pytest.mark.parametrize("out", [[0.0, 0.0], (np.empty(2),), 1.0, np.ma.masked_array(np.empty(2))])
    def test_of_another_type(self, module, out):
        with pytest.raises(TypeError, match=r"out must be a numpy\.ndarray"):
            module.kl_divergence(np.ones((2, 3)), np.ones((2, 3)), out=out)


class TestOptions:
    @pytest.mark.parametrize("name", WITH_BASE)
    @pytest.mark.parametrize("base", [0, -2, 1, 1.0, True, math.nan, math.inf, "e", "2", [2], 2j])
    def test_impossible_base(self, module, name, base):
        with pytest.raises(ValueError, match=r"base must be None.*got") as caught:
            call(module, name, [1, 3], [3, 1], base=base)
        assert repr(base) in str(caught.value)

    @pytest.mark.parametrize("name", WITH_BASE)
    @pytest.mark.parametrize("base", [2, 10.0, np.float32(2), np.int8(2), Fraction(5, 2), 10**400])
    def test_base(self, module, name, base):
        nats = call(module, name, [1, 3], [3, 1])
        expected = nats / math.sqrt(math.log(base)) if name == "js_distance" else nats / math.log(base)
        assert call(module, name, [1, 3], [3, 1], base=base) == pytest.approx(expected, rel=1e-14, abs=0)

    def test_base_below_one(self, module):
        nats = module.js_divergence([1, 3], [3, 1])
        assert module.js_divergence([1, 3], [3, 1], base=0.5) == pytest.approx(-nats / math.log(2), rel=1e-14, abs=0)
        with pytest.raises(ValueError, match=r"base must be None.*> 1, got 0\.5"):
            module.js_distance([1, 3], [3, 1], base=0.5)
        with pytest.raises(ValueError, match=r"base must be None.*> 1, got 0\.5"):
            module.score([1, 3], [3, 1], ("kl", "js_distance"), base=0.5)

    @pytest.mark.parametrize("name", ["total_variation", "hellinger_distance", "wasserstein_distance"])
    def test_no_base_without_a_logarithm(self, module, name):
        with pytest.raises(TypeError, match="base"):
            call(module, name, [1, 3], [3, 1], base=2)

    @pytest.mark.parametrize("name", ["js_divergence", "js_distance"])
    def test_weight(self, module, name):
        for weight in (-0.1, 1.5, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"weight must be between 0 and 1, got {weight}"):
                call(module, name, [1, 3], [3, 1], weight=weight)
        for weight in ("half", None, [0.5], np.array([0.5])):
            with pytest.raises(TypeError, match="weight must be a number, got"):
                call(module, name, [1, 3], [3, 1], weight=weight)
        assert call(module, name, [1, 3], [3, 1], weight=0) == 0
        assert call(module, name, [1, 3], [3, 1], weight=np.float32(1)) == 0

    def test_alpha(self, module):
        for alpha in (-0.1, -math.inf, math.nan):
            with pytest.raises(ValueError, match=f"alpha must be at least 0.*got {alpha}"):
                module.renyi_divergence([1, 3], [3, 1], alpha)
        for alpha in ("two", None, [2.0]):
            with pytest.raises(TypeError, match="alpha must be a number, got"):
                module.renyi_divergence([1, 3], [3, 1], alpha)
        assert module.renyi_divergence([1, 3], [3, 1], math.inf) == pytest.approx(math.log(3), rel=1e-14, abs=0)

    @pytest.mark.parametrize("name", REDUCTIONS)
    def test_n_threads(self, module, name):
        for n_threads in (0, -1):
            with pytest.raises(ValueError, match=f"n_threads must be at least 1, got {n_threads}"):
                call(module, name, [1, 3], [3, 1], n_threads=n_threads)
        for n_threads in (1.0, "2", [2]):
            with pytest.raises(TypeError, match="n_threads must be None or an int, got"):
                call(module, name, [1, 3], [3, 1], n_threads=n_threads)
        expected = call(module, name, [1, 3], [3, 1])
        for n_threads in (1, np.int64(2), 10**30):
            assert call(module, name, [1, 3], [3, 1], n_threads=n_threads) == expected

    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("invalid", ["ignore", None, True])
    def test_invalid(self, module, name, invalid):
        with pytest.raises(ValueError, match="invalid must be 'nan' or 'raise', got"):
            call(module, name, [1, 3], [3, 1], invalid=invalid)

    @pytest.mark.parametrize(
        ("positions", "message"),
        [
            ([0.0, 1.0], r"shape \(3,\).*got shape \(2,\)"),
            ([[0.0, 1.0, 2.0]], r"shape \(3,\).*got shape \(1, 3\)"),
            (1.0, r"shape \(3,\).*got shape \(\)"),
            ([0.0, math.nan, 1.0], "must be finite, got nan at index 1"),
            ([0.0, 1.0, math.inf], "must be finite, got inf at index 2"),
            ([0.0, 2.0, 1.0], r"must not decrease, got 2\.0 before 1\.0 at index 1"),
            ([-1e308, 0.0, 1e308], "further apart"),
        ],
    )
    def test_impossible_positions(self, module, positions, message):
        with pytest.raises(ValueError, match=f"positions .*{message}"):
            module.wasserstein_distance([1, 2, 3], [3, 2, 1], positions=positions)
        with pytest.raises(ValueError, match=f"positions .*{message}"):
            module.score([1, 2, 3], [3, 2, 1], ("wasserstein",), positions=positions)

    def test_positions_of_another_type(self, module):
        with pytest.raises(TypeError, match=r"^positions has dtype complex128"):
            module.wasserstein_distance([1, 2], [2, 1], positions=[1j, 2j])

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint64, ">f8", ml_dtypes.bfloat16])
    def test_positions(self, module, dtype):
        positions = np.array([[0, 9], [3, 9], [3, 9], [5, 9]]).astype(dtype)[:, 0]
        result = module.wasserstein_distance([1, 0, 0, 0], [0, 0, 0, 1], positions=positions)
        assert result == 5.0
        assert type(result) is np.float64


class TestInvalidRows:
    @pytest.mark.parametrize("name", REDUCTIONS)
    @pytest.mark.parametrize("bad", [math.nan, -1.0, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
    def test_what_and_where(self, module, name, bad, dtype):
        what = "NaN" if math.isnan(bad) else "negative value" if bad < 0 else "infinite value"
        p, q = ramp(6, 5).astype(dtype), ramp(6, 5).astype(dtype)
        p[2, 3] = p[4, 1] = bad
        with pytest.raises(ValueError, match=f"2 of 6 rows are invalid, the first at index 2: {what} in p at position"):
            call(module, name, p, q, invalid="raise")
        if name != "entropy":
            with pytest.raises(ValueError, match=f"the first at index 2: {what} in q at position 3"):
                call(module, name, q, p, invalid="raise")

    @pytest.mark.parametrize("name", REDUCTIONS)
    def test_sum_of_zero(self, module, name):
        p, q = ramp(6, 5), ramp(6, 5)
        p[2] = 0
        with pytest.raises(ValueError, match="1 of 6 rows are invalid, the first at index 2: sum is zero in p"):
            call(module, name, p, q, invalid="raise")
        call(module, name, p, q, invalid="raise", normalize=False)

    def test_in_both_operands(self, module):
        with pytest.raises(ValueError, match="the row is invalid: NaN in p at position 1; sum is zero in q"):
            module.kl_divergence([1, math.nan], [0, 0], invalid="raise")

    def test_negative_integers(self, module):
        with pytest.raises(ValueError, match="negative value in q at position 1"):
            module.kl_divergence([1, 2], [1, -2], invalid="raise")

    def test_bit_patterns(self, module):
        q = np.array([1.0, -2.0], ml_dtypes.bfloat16).view(np.uint16)
        with pytest.raises(ValueError, match="negative value in q at position 1"):
            module.kl_divergence(q & 0x7FFF, q, dtype="bfloat16", invalid="raise")

    def test_negative_zero_is_zero(self, module):
        module.kl_divergence([1.0, -0.0], [1.0, -0.0], invalid="raise")

    def test_index_into_a_broadcast_batch(self, module):
        p, q = ramp(4, 1, 3, 5), ramp(6, 3, 5)
        q[2, 1, 4] = math.nan
        with pytest.raises(ValueError, match=r"4 of 72 rows are invalid, the first at index \(0, 2, 1\): NaN in q at"):
            module.kl_divergence(p, q, invalid="raise")

    def test_index_with_another_axis(self, module):
        p, q = ramp(5, 4, 3), ramp(4, 3)
        p[2, :, 1] = 0
        with pytest.raises(ValueError, match=r"1 of 15 rows are invalid, the first at index \(2, 1\): sum is zero in"):
            module.kl_divergence(p, q, axis=1, invalid="raise")

    def test_far_into_a_large_batch(self, module):
        p = np.ones((50_000, 2), np.float32)
        p[[30_001, 49_999]] = 0
        out = np.empty((100_000,), np.float32)[::2]
        with pytest.raises(ValueError, match="2 of 50000 rows are invalid, the first at index 30001: sum is zero in p"):
            module.kl_divergence(p, np.ones(2, np.float32), invalid="raise", out=out)

    @pytest.mark.parametrize("overlap", [False, True])
    def test_out_is_filled(self, module, overlap):
        p, q = ramp(6, 5), ramp(6, 5)[::-1].copy()
        p[2, 3] = math.nan
        expected = module.kl_divergence(p, q)
        out = q[:, 0] if overlap else np.empty(6)
        with pytest.raises(ValueError, match="1 of 6"):
            module.kl_divergence(p, q, invalid="raise", out=out)
        np.testing.assert_array_equal(out, expected)

    def test_good_rows_pass(self, module):
        p, q = ramp(6, 5), ramp(6, 5)[::-1]
        np.testing.assert_array_equal(module.kl_divergence(p, q, invalid="raise"), module.kl_divergence(p, q))
        assert module.kl_divergence(np.ones((0, 5)), np.ones(5), invalid="raise").shape == (0,)
        # An infinite divergence is a result like any other.
        assert module.kl_divergence([1, 0], [0, 1], invalid="raise") == math.inf

    @pytest.mark.parametrize("name", REDUCTIONS)
    def test_no_floating_point_errors(self, module, name):
        p = np.array([[0.0, 1.0], [math.nan, 1.0], [1e-320, 1.0], [math.inf, 1.0], [0.0, 0.0], [-1.0, 1.0]])
        with np.errstate(all="raise"):
            assert np.isnan(call(module, name, p, p)).tolist() == [False, True, False, True, True, True]

    def test_score(self, module):
        p = ramp(6, 5)
        p[3, 0] = -1
        with pytest.raises(ValueError, match="1 of 6 rows are invalid, the first at index 3: negative value in p"):
            module.score(p, ramp(6, 5), ("total_variation", "kl"), invalid="raise")


class TestScore:
    def test_the_kernels_know_the_names(self):
        assert tuple(_batch.OPS) == METRICS

    def test_names_and_order(self, module):
        names = ("wasserstein", "kl", "renyi", "entropy", "kl")
        scores = module.score([[1, 3]], [[3, 1]], names, alpha=2)
        assert list(scores) == ["wasserstein", "kl", "renyi", "entropy"]
        assert list(module.score([1, 3], [3, 1], iter(METRICS), alpha=2)) == list(METRICS)
        assert list(module.score([1, 3], [3, 1])) == ["kl", "reverse_kl", "js"]

    def test_refused_names(self, module):
        with pytest.raises(ValueError, match="unknown metric 'KL'; the metrics are kl, reverse_kl"):
            module.score([1, 3], [3, 1], ("js", "KL"))
        with pytest.raises(ValueError, match="got none"):
            module.score([1, 3], [3, 1], ())
        with pytest.raises(TypeError, match=r"got the string 'kl'; pass \('kl',\)"):
            module.score([1, 3], [3, 1], "kl")
        with pytest.raises(ValueError, match="'renyi' needs an order: pass alpha"):
            module.score([1, 3], [3, 1], ("renyi",))

    @pytest.mark.parametrize(
        "options", [{}, {"base": 2, "weight": 0.25}, {"axis": 0, "keepdims": True, "normalize": False}]
    )
    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_agrees_with_each_function(self, module, options, dtype):
        p, q = ramp(5, 5, dtype=dtype), ramp(5, 5, dtype=dtype)[::-1, ::-1] ** 2
        positions = [0.0, 1.0, 1.5, 4.0, 10.0]
        base = {key: value for key, value in options.items() if key == "base"}
        weight = {key: value for key, value in options.items() if key == "weight"}
        common = {key: value for key, value in options.items() if key not in ("base", "weight")}
        expected = {
            "kl": module.kl_divergence(p, q, **base, **common),
            "reverse_kl": module.kl_divergence(q, p, **base, **common),
            "jeffreys": module.jeffreys_divergence(p, q, **base, **common),
            "js": module.js_divergence(p, q, **weight, **base, **common),
            "js_distance": module.js_distance(p, q, **weight, **base, **common),
            "cross_entropy": module.cross_entropy(p, q, **base, **common),
            "entropy": module.entropy(p, **base, **common),
            "renyi": module.renyi_divergence(p, q, 3.0, **base, **common),
            "total_variation": module.total_variation(p, q, **common),
            "hellinger": module.hellinger_distance(p, q, **common),
            "wasserstein": module.wasserstein_distance(p, q, positions=positions, **common),
        }
        scores = module.score(p, q, METRICS, alpha=3.0, positions=positions, **options)
        for name, values in expected.items():
            np.testing.assert_allclose(scores[name], values, rtol=2e-7 if dtype == np.float32 else 1e-14, strict=True)

    def test_one_pair_gives_scalars(self, module):
        assert {type(value) for value in module.score([1, 3], [3, 1]).values()} == {np.float64}
