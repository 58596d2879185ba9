"""Every line of the table of corner cases in the README, for every function, level and type."""

import math

import ml_dtypes
import numpy as np
import pytest
from oracles import METRICS, VARIANTS, assert_contract, bfloat16_bits, measure, variant_id
from scipy import sparse

import fastkl
from fastkl import reference

LENGTHS = (1, 2, 3, 7, 8, 9, 16, 17, 33, 97, 1000)
FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
PAIRS = [name for name in METRICS if name != "entropy"]
DIVERGENCES = [name for name in PAIRS if name != "cross_entropy"]  # what is 0 for equal rows
OPTIONS = {"renyi": {"alpha": 0.5}}

each_module = pytest.mark.parametrize("module", [fastkl, reference], ids=["compiled", "reference"])
each_type = pytest.mark.parametrize("type_name", FLOATS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)


def cast(rows, type_name):
    """The rows in a type, and the options that it needs."""
    if type_name == "bfloat16":
        return bfloat16_bits(rows), {"dtype": "bfloat16"}
    return np.asarray(rows).astype(type_name), {}


# ---------------------------------------------------------------------------------------------------------------------
# Zeros


@each_type
@each_variant
def test_zeros(variant, type_name, level, rng):
    """Bins that are empty in p, in q, in both; at the start, at the end, and all but one of them."""
    name, options = variant
    for length in LENGTHS:
        p, q = rng.random((2, 19, length)) + 0.01
        places = (0, -1, slice(1), slice(1, None))
        for row in range(12):
            for side in ((p,), (q,), (p, q))[row % 3]:
                side[row, places[row % 4]] = 0
        p[12:] *= rng.random((7, length)) < 0.3
        q[12:] *= rng.random((7, length)) < 0.3
        (p, types), (q, _) = cast(p, type_name), cast(q, type_name)
        for normalize in (True, False):
            result = measure(fastkl, name, p, q, normalize=normalize, **options, **types)
            assert_contract(name, result, p, q, normalize=normalize, **options, **types)


# Every divergence, and for Rényi's every kind of order.
ZEROS = [(name, {}) for name in DIVERGENCES if name != "renyi"]
ZEROS += [("renyi", {"alpha": alpha}) for alpha in (0, 0.5, 1, 2, math.inf)]
each_zero = pytest.mark.parametrize("variant", ZEROS, ids=variant_id)


@pytest.mark.parametrize("type_name", [*FLOATS, "int32", "bool"])
@each_zero
def test_equal_rows_give_exactly_zero(variant, type_name, level, rng):
    name, options = variant
    for length in LENGTHS:
        p = rng.integers(0, 2, (9, length)) * (rng.random((9, length)) * 100 + 1)
        p[:, 0] = 1
        p, types = cast(p, type_name)
        result = measure(fastkl, name, p, p.copy(), **options, **types)
        assert not result.tobytes().strip(b"\0"), (length, result)
        if name != "renyi" or options["alpha"] in (1, math.inf):  # else the log of the sum
            result = measure(fastkl, name, p, p.copy(), normalize=False, **options, **types)
            assert not result.tobytes().strip(b"\0"), (length, result)


@each_type
@each_zero
def test_rows_apart_by_a_power_of_two_give_exactly_zero(variant, type_name, level, rng):
    name, options = variant
    for length in LENGTHS:
        for exponent in {"float64": (-900, -3, 1, 900), "float32": (-90, -3, 1, 90)}.get(type_name, (-3, 1, 5)):
            p = rng.integers(0, 2, (9, length)) * (rng.integers(64, 128, (9, length)) / 64)
            p[:, 0] = 1
            (a, types), (b, _) = cast(p, type_name), cast(np.ldexp(p, exponent), type_name)
            for pair in ((a, b), (b, a)):
                result = measure(fastkl, name, *pair, **options, **types)
                assert not result.tobytes().strip(b"\0"), (length, exponent, result)


@pytest.mark.parametrize("type_name", FLOATS)
@each_zero
def test_one_bin_gives_exactly_zero(variant, type_name, level, rng):
    """Whatever it holds: normalised, it holds 1."""
    name, options = variant
    p, q = (rng.random((2, 19, 1)) + 0.01) * (1 if type_name == "float16" else 1e3)
    (p, types), (q, _) = cast(p, type_name), cast(q, type_name)
    result = measure(fastkl, name, p, q, **options, **types)
    assert not result.tobytes().strip(b"\0"), result


@pytest.mark.parametrize("name", DIVERGENCES)
def test_counts_apart_by_a_power_of_two_give_exactly_zero(name, level, rng):
    for length in LENGTHS:
        p = rng.integers(1, 30, (9, length), dtype=np.int8)
        for q in (p * np.int8(4), p.astype(np.int64) << 40, p * np.float32(0.25), p.astype(np.uint16) << 10):
            result = measure(fastkl, name, p, q, **OPTIONS.get(name, {}))
            assert not result.tobytes().strip(b"\0")


@each_type
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
def test_disjoint_supports(normalize, type_name, level, rng):
    for length in LENGTHS[1:]:
        p, q = rng.random((2, 19, length)) + 0.01
        on = rng.random((19, length)) < 0.5
        on[:, 0], on[:, -1] = True, False
        (p, types), (q, _) = cast(p * on, type_name), cast(q * ~on, type_name)
        types["normalize"] = normalize
        for function in (fastkl.kl_divergence, fastkl.jeffreys_divergence, fastkl.cross_entropy):
            assert np.all(function(p, q, **types) == np.inf)
        for alpha in (0, 0.5, 1, 2, math.inf):
            assert np.all(fastkl.renyi_divergence(p, q, alpha, **types) == np.inf)
        for name in ("js", "js_distance", "total_variation", "hellinger"):
            result = measure(fastkl, name, p, q, **types)
            assert_contract(name, result, p, q, **types)
            if normalize and name in ("total_variation", "hellinger"):
                assert np.all(result <= 1)
    if normalize:
        one, other = np.eye(2)
        assert fastkl.js_divergence(one, other) == pytest.approx(math.log(2), rel=1e-15)
        assert fastkl.js_divergence(one, other, base=2) == fastkl.js_distance(one, other, base=2) == 1
        assert fastkl.total_variation(one, other) == fastkl.hellinger_distance(one, other) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Invalid rows

BAD = {
    "NaN": math.nan,
    "negative NaN": -math.nan,
    "negative": -1.0,
    "infinite": math.inf,
    "negative infinite": -math.inf,
}


@pytest.mark.parametrize("kind", [*BAD, "smallest negative", "all zero", "all negative zero"])
@each_type
def test_an_invalid_row_poisons_only_itself(type_name, kind, level, rng):
    """NaN for it, and for its neighbours the bits that they have without it."""
    for length in (1, 2, 3, 8, 9, 17, 33, 1000):
        clean = rng.random((2, 41, length)) + 0.01
        clean[:, :, 0] = 0.5
        (clean, types) = cast(clean, type_name)
        for side in (0, 1):
            dirty = clean.copy()
            rows = np.array([0, 5, 6, 17, 40])
            at = (rows * 31) % length
            if kind.startswith("all"):
                dirty[side, rows] = 0 if kind == "all zero" else (0x8000 if type_name == "bfloat16" else -0.0)
            elif kind == "smallest negative":
                if type_name == "bfloat16":
                    dirty[side, rows, at] = 0x8001
                else:
                    dirty[side, rows, at] = -np.finfo(type_name).smallest_subnormal
            else:
                dirty[side, rows, at] = cast(BAD[kind], type_name)[0]
            good = np.setdiff1d(np.arange(41), rows)
            # (A row without mass is an error only where it has to have mass 1.)
            for normalize in (True, False)[: 1 if kind.startswith("all") else 2]:
                options = {"alpha": 0.7, "weight": 0.3, "normalize": normalize, **types}
                expected, result = (fastkl.score(*pair, METRICS, **options) for pair in (clean, dirty))
                for name in METRICS:
                    if name == "entropy" and side == 1:
                        assert result[name].tobytes() == expected[name].tobytes()
                    else:
                        assert np.isnan(result[name][rows]).all(), (name, normalize, length, result[name][rows])
                        assert result[name][good].tobytes() == expected[name][good].tobytes(), (name, normalize, length)


@pytest.mark.parametrize("type_name", ["int8", "int16", "int32", "int64"])
def test_negative_integers(type_name, level):
    for length in (1, 3, 9, 33, 1000):
        p = np.full((20, length), 7, type_name)
        q = p.copy()
        q[3, -1] = -1
        q[11, 0] = np.iinfo(type_name).min
        for name in PAIRS:
            result = measure(fastkl, name, p, q, **OPTIONS.get(name, {}))
            assert np.isnan(result[[3, 11]]).all() and np.isfinite(np.delete(result, [3, 11])).all()


@each_type
@each_variant
def test_negative_zero_is_zero(variant, type_name, level, rng):
    name, options = variant
    minus = 0x8000 if type_name == "bfloat16" else -0.0
    for length in (2, 3, 9, 33, 1000):
        (p, q), types = cast((rng.random((2, 19, length)) + 0.01) * (rng.random((2, 19, length)) < 0.6), type_name)
        for normalize in (True, False):
            expected = measure(fastkl, name, p, q, normalize=normalize, **options, **types)
            a, b = (np.where(x == 0, np.asarray(minus, x.dtype), x) for x in (p, q))
            result = measure(fastkl, name, a, b, normalize=normalize, **options, **types)
            np.testing.assert_array_equal(result, expected)


@each_module
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
def test_rows_without_mass(normalize, module):
    zero, one = np.zeros(3), np.ones(3)
    for name in METRICS:
        if name != "renyi":
            for p, q in ((zero, one), (one, zero), (zero, zero)):
                result = measure(module, name, p, q, normalize=normalize)
                if name == "entropy" and p is one:
                    assert math.isfinite(result)
                else:
                    assert_contract(name, result, p, q, normalize=normalize)


@each_module
def test_invalid_raise(module):
    p = np.full((6, 4), 0.25)
    q = p.copy()
    for bad, what in (
        (math.nan, "NaN"),
        (-1, "negative value"),
        (math.inf, "infinite value"),
        (-math.inf, "negative value"),
    ):
        for side, other, name in ((p, q, "p"), (q, p, "q")):
            dirty = side.copy()
            dirty[2, 1] = dirty[4, 3] = bad
            pair = (dirty, other) if name == "p" else (other, dirty)
            for metric in ("kl", "js", "renyi", "total_variation", "wasserstein"):
                with pytest.raises(ValueError, match=rf"\b2 of 6 rows.*\b2: {what} in {name}\b"):
                    measure(module, metric, *pair, invalid="raise", **OPTIONS.get(metric, {}))
            with pytest.raises(ValueError, match=f"{what} in {name}"):
                module.score(*pair, invalid="raise")
    zero = p.copy()
    zero[5] = 0
    with pytest.raises(ValueError, match=r"1 of 6 rows.*5: sum is zero in p"):
        module.entropy(zero, invalid="raise")
    with pytest.raises(ValueError, match=r"sum is zero in q"):
        module.kl_divergence(p, zero, invalid="raise")
    assert module.cross_entropy(zero, p, invalid="raise", normalize=False)[5] == 0
    assert np.all(module.kl_divergence(p, np.eye(4)[[0, 1, 2, 3, 0, 1]], invalid="raise") == np.inf)
    with pytest.raises(ValueError, match="NaN in p"):
        module.kl_divergence([math.nan, 1], [1, 1], invalid="raise")


# ---------------------------------------------------------------------------------------------------------------------
# Shapes and errors


@each_module
@pytest.mark.parametrize("name", METRICS)
def test_empty(name, module):
    options = OPTIONS.get(name, {})
    for shape, axis, result_shape in (
        ((0, 5), -1, (0,)),
        ((5, 0), 0, (0,)),
        ((3, 0, 5), 2, (3, 0)),
        ((0, 2, 5), 1, (0, 5)),
    ):
        result = measure(module, name, np.ones(shape), np.ones(shape), axis=axis, **options)
        assert result.shape == result_shape and result.dtype == np.float64
        kept = measure(
            module, name, np.ones(shape, np.float32), np.ones(shape, np.float32), axis=axis, keepdims=True, **options
        )
        assert kept.shape == tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape))
        assert kept.dtype == np.float32
    for shape, axis in (((0,), -1), ((4, 0), 1), ((0, 4), 0), ((0, 0), 0)):
        with pytest.raises(ValueError, match=r"\(.*0.*\)"):
            measure(module, name, np.ones(shape), np.ones(shape), axis=axis, **options)


@each_module
@pytest.mark.parametrize("name", PAIRS)
def test_shapes_that_do_not_fit(name, module):
    options = OPTIONS.get(name, {})
    for p, q, axis in (
        ((2, 3), (2, 4), -1),
        ((2, 3), (2, 1), -1),
        ((3,), (1,), -1),
        ((2, 3), (4, 3), -1),
        ((5, 3), (3,), 0),
    ):
        with pytest.raises(ValueError) as caught:
            measure(module, name, np.ones(p), np.ones(q), axis=axis, **options)
        first, second = (q, p) if name == "reverse_kl" else (p, q)
        assert str(first) in str(caught.value) and str(second) in str(caught.value)
    for axis in (2, -3):
        with pytest.raises(ValueError, match=str(axis)):
            measure(module, name, np.ones((2, 3)), np.ones((2, 3)), axis=axis, **options)
    with pytest.raises(ValueError):
        measure(module, name, 1.0, 1.0, **options)


@each_module
@pytest.mark.parametrize("name", METRICS)
def test_options_that_are_impossible(name, module):
    p = np.ones((4, 3))
    options = OPTIONS.get(name, {})

    def rejects(error, match, **wrong):
        with pytest.raises(error, match=match):
            measure(module, name, p, p, **(options | wrong))

    rejects(ValueError, "n_threads.*0", n_threads=0)
    rejects(ValueError, "n_threads.*-2", n_threads=-2)
    rejects(TypeError, "n_threads", n_threads=1.5)
    rejects(ValueError, "invalid.*'ignore'", invalid="ignore")
    rejects(ValueError, "dtype.*'float8'", dtype="float8")
    rejects(TypeError, "bfloat16", dtype="bfloat16")
    rejects(TypeError, "axis", axis=None)
    if name not in ("total_variation", "hellinger", "wasserstein"):
        for base in (0, 1, -2, math.nan, math.inf):
            rejects(ValueError, f"base.*{base}", base=base)
    if name in ("js", "js_distance"):
        for weight in (-0.1, 1.5, math.nan):
            rejects(ValueError, f"weight.*{weight}", weight=weight)
    if name == "renyi":
        for alpha in (-0.1, math.nan, -math.inf):
            rejects(ValueError, f"alpha.*{alpha}", alpha=alpha)
    if name == "wasserstein":
        for positions in ([0, 1], [[0, 1, 2]], [0, 2, 1], [0, 1, math.nan], [0, 1, math.inf], [-1.7e308, 0, 1.7e308]):
            rejects(ValueError, "positions", positions=positions)


@each_module
@pytest.mark.parametrize("name", METRICS)
def test_operands_that_are_not_numbers(name, module):
    good = np.ones((2, 3))
    masked = np.ma.masked_array(good, [[True, False, False]] * 2)
    for bad, advice in (
        (good.astype(complex), "real"),
        (good.astype(object), "float64"),
        (good.astype(str), "float64"),
        (good.astype("datetime64[s]"), "float64"),
        (good.astype(np.longdouble), "float64"),
        (masked, "filled"),
        (sparse.csr_matrix(good), "toarray"),
        (sparse.csr_array(good), "toarray"),
    ):
        for pair in ((bad, good), (good, bad), (bad, bad))[:: 2 if name == "entropy" else 1]:
            with pytest.raises(TypeError, match=advice):
                measure(module, name, *pair, **OPTIONS.get(name, {}))


@each_module
def test_scores_that_are_impossible(module):
    p = np.ones((4, 3))
    for error, match, arguments in (
        (TypeError, "kl", {"metrics": "kl"}),
        (ValueError, "metric", {"metrics": ()}),
        (ValueError, "'kld'.*reverse_kl", {"metrics": ("kld",)}),
        (ValueError, "alpha", {"metrics": ("renyi",)}),
        (ValueError, "alpha.*-1", {"metrics": ("renyi",), "alpha": -1}),
        (ValueError, "weight.*2", {"metrics": ("js",), "weight": 2}),
        (ValueError, "base.*1", {"base": 1}),
        (ValueError, "positions", {"metrics": ("wasserstein",), "positions": [0, 1]}),
        (ValueError, "n_threads", {"n_threads": 0}),
        (ValueError, "invalid", {"invalid": "drop"}),
    ):
        with pytest.raises(error, match=match):
            module.score(p, p, **arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Types


def expected_dtype(a, b):
    """bfloat16 and float16 count as float32 in the result; 8-bit integers fit into them, wider ones don't."""
    if a in INTEGERS and b in INTEGERS:
        return np.float64
    small = {"float16", "bfloat16", "float32", "int8", "uint8", "bool"}
    if "bfloat16" in (a, b):
        return np.float32 if {a, b} <= small else np.float64
    return np.float32 if np.result_type(a, b).itemsize <= 4 else np.float64


@pytest.mark.parametrize("name", METRICS)
def test_every_pair_of_types(name, level, rng):
    """Numbers that all types hold: mixed or not, the exact value is the same."""
    p, q = rng.integers(0, 100, (2, 5, 9))
    p[0], q[0] = p[0] % 2, q[0] % 2
    p[:, 0] = q[:, 0] = 1
    types = {name: np.dtype(name) for name in (*FLOATS[:3], *INTEGERS)} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    for a, b in [(a, b) for a in types for b in types]:
        x, y = p.astype(types[a]), q.astype(types[b])
        result = measure(fastkl, name, x, y, **OPTIONS.get(name, {}))
        want = np.float32 if name == "entropy" and a in FLOATS[1:] else expected_dtype(a, a if name == "entropy" else b)
        assert result.dtype == want, (a, b)
        assert_contract(name, result, x, y, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", METRICS)
def test_the_range_of_every_integer_type(name, level, rng):
    """To the largest number; int64 and uint64 as float64 holds them."""
    for type_name in INTEGERS[:-1]:
        largest = np.iinfo(type_name).max
        p, q = rng.integers(0, largest, (2, 5, 33), dtype=type_name, endpoint=True)
        p[0, 3], q[1, 5] = largest, largest
        q[2] = p[2]
        result = measure(fastkl, name, p, q, **OPTIONS.get(name, {}))
        assert_contract(name, result, p, q, **OPTIONS.get(name, {}))


@each_module
@pytest.mark.parametrize("name", METRICS)
def test_scalars_and_lists(name, module):
    options = OPTIONS.get(name, {})
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.1, 0.4, 0.5])
    expected = measure(module, name, p, q, **options)
    assert type(expected) is np.float64
    assert type(measure(module, name, p.astype(np.float32), q.astype(np.float32), **options)) is np.float32
    assert type(measure(module, name, p.astype(np.float16), q.astype(np.float32), **options)) is np.float32
    for a, b in ((p.tolist(), q.tolist()), (tuple(p), tuple(q)), (memoryview(p), memoryview(q))):
        result = measure(module, name, a, b, **options)
        assert type(result) is np.float64 and result == expected
    rows = measure(module, name, [p.tolist()] * 2, q.tolist(), **options)
    assert isinstance(rows, np.ndarray)
    assert np.all(rows == expected)
    kept = measure(module, name, p, q, keepdims=True, **options)
    assert isinstance(kept, np.ndarray) and kept.shape == (1,) and kept[0] == expected


# ---------------------------------------------------------------------------------------------------------------------
# Results: keepdims and out


@each_module
@pytest.mark.parametrize("name", METRICS)
def test_keepdims(name, module, rng):
    p = rng.random((2, 3, 4))
    q = p if name == "entropy" else rng.random((3, 4))
    for axis in (-1, -2, 2, 1):
        plain = measure(module, name, p, q, axis=axis, **OPTIONS.get(name, {}))
        kept = measure(module, name, p, q, axis=axis, keepdims=True, **OPTIONS.get(name, {}))
        assert kept.shape == np.expand_dims(plain, axis).shape
        assert kept.tobytes() == plain.tobytes()


@each_module
@pytest.mark.parametrize("name", METRICS)
def test_out(name, module, rng):
    options = OPTIONS.get(name, {})
    p, q = rng.random((2, 6, 5, 7))
    expected = measure(module, name, p, q, **options)
    places = {
        "contiguous": np.full((6, 5), 9.0),
        "fortran": np.full((6, 5), 9.0, order="F"),
        "strided": np.full((12, 15), 9.0)[::2, ::3],
        "reversed": np.full((6, 5), 9.0)[::-1, ::-1],
        "unaligned": np.ndarray((6, 5), np.float64, bytearray(6 * 5 * 8 + 1), 1),
    }
    for kind, out in places.items():
        assert measure(module, name, p, q, out=out, **options) is out
        assert out.tobytes() == expected.tobytes(), kind
    kept = np.empty((6, 5, 1))
    assert measure(module, name, p, q, out=kept, keepdims=True, **options) is kept
    assert kept.tobytes() == expected.tobytes()
    around = np.full((8, 7), 9.0)
    measure(module, name, p, q, out=around[1:-1, 1:-1], **options)
    assert around.sum() == pytest.approx(9 * (56 - 30) + expected.sum())
    scalar = np.empty(())
    assert measure(module, name, p[0, 0], q[0, 0], out=scalar, **options) is scalar
    assert scalar == expected[0, 0]

    frozen = np.empty((6, 5))
    frozen.flags.writeable = False
    for wrong in (
        np.empty((5, 6)),
        np.empty(30),
        np.empty((6, 5, 1)),
        np.empty((6, 5), np.float32),
        np.empty((6, 5), ">f8"),
        frozen,
    ):
        with pytest.raises(ValueError, match="out"):
            measure(module, name, p, q, out=wrong, **options)
    with pytest.raises(TypeError, match="out"):
        measure(module, name, p, q, out=expected.tolist(), **options)


@each_module
@pytest.mark.parametrize("name", METRICS)
def test_out_that_overlaps_an_operand(name, module, rng):
    options = OPTIONS.get(name, {})
    p, q = rng.random((2, 9, 9))
    expected = measure(module, name, p, q, **options)
    for side in (0, 1):
        for view in (
            lambda x: x[0],
            lambda x: x[:, 4],
            lambda x: x[::-1, 8],
            lambda x: x.ravel()[3:12],
            lambda x: x[5, ::-1],
        ):
            pair = [p.copy(), q.copy()]
            result = measure(module, name, *pair, out=view(pair[side]), **options)
            assert result.tobytes() == expected.tobytes()


def test_no_function_warns_or_sets_flags(level, rng):
    """Whatever is in the rows, under `np.errstate(all="raise")` too (and warnings are errors in these tests)."""
    rows = np.array([[math.nan, 1, 0], [math.inf, 1, 0], [-1, 1, 0], [0, 0, 0], [5e-324, 1e308, 1e38], [1, 0, 2]])
    small = np.where(rows > 1e38, 3e38, rows).astype(np.float32)
    with np.errstate(all="raise"):
        for name, options in VARIANTS:
            for normalize in (True, False):
                for module in (fastkl, reference):
                    measure(module, name, rows[:, None], rows, normalize=normalize, **options)
                    measure(module, name, small, small[::-1], normalize=normalize, **options)
