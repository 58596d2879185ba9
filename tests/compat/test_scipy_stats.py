"""``fastkl.compat.scipy_stats`` against SciPy's own functions, and against exact values where SciPy's are wrong."""

import doctest
import inspect
from fractions import Fraction

import numpy as np
import pytest
from dropins import assert_alike, outcome
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp

pytest.importorskip("scipy")

import scipy.stats

from fastkl.compat import scipy_stats
from fastkl.compat.scipy_stats import entropy

# SciPy rounds each probability and each term of the sum, which are not far from 1 here, once or twice.
FLOAT64 = {"rtol": 1e-13, "atol": 1e-14}
# It does so in the precision of its operands, and sums in that of the result.
TOLERANCES = {"float64": FLOAT64, "float32": {"rtol": 1e-5, "atol": 2e-6}, "float16": {"rtol": 1e-2, "atol": 1e-2}}


def alike(*args, tolerance=FLOAT64, **kwargs):
    assert_alike(scipy.stats.entropy, entropy, *args, **tolerance, **kwargs)


def test_signature():
    def described(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert described(entropy) == described(scipy.stats.entropy)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("base", [None, 2, 10.0, 0.5, np.float32(3), Fraction(5, 2), 1, 0, -1, np.inf, np.nan, "2"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((5,), 0),
        ((5,), -1),
        ((5,), None),
        ((3, 5), 0),
        ((3, 5), 1),
        ((3, 5), -2),
        ((3, 5), None),
        ((3, 5), (0, 1)),
        ((2, 3, 4), 1),
        ((2, 3, 4), (2, 0)),
        ((2, 3, 4), (-1, 1)),
    ],
)
def test_axis_and_base(rng, shape, axis, base, keepdims):
    p, q = rng.random((2, *shape)) + 0.01
    alike(p, None, base, axis, keepdims=keepdims)
    alike(p, q, base, axis, keepdims=keepdims)


@pytest.mark.parametrize("number", [1, 0.5, True, np.float64(0.5), np.float32(0.5), np.array(0.5)])
@pytest.mark.parametrize("type_name", ["float64", "float32", "float16", "int32"])
def test_numbers_beside_arrays(type_name, number):
    array = np.array([1, 3, 2], type_name)
    for operands in ((array, number), (number, array), (number, number)):
        alike(*operands, tolerance=TOLERANCES.get(type_name, FLOAT64))


@pytest.mark.parametrize("axis", [1, 5, -3, (0, 0), (0, 5), (), True, 0.0, 0.5, "a", [0], np.int64(0), (np.int64(0),)])
def test_axis_refused_or_odd(rng, axis):
    alike(rng.random(5), axis=axis)
    alike(rng.random((2, 5)), rng.random((2, 5)), axis=axis)


@pytest.mark.parametrize(
    ("p_shape", "q_shape"),
    [
        ((5,), (1,)),
        ((1,), (5,)),
        ((4, 5), (5,)),
        ((5,), (4, 5)),
        ((4, 5), (4, 1)),
        ((4, 1), (1, 5)),
        ((4, 5), ()),
        ((), (5,)),
        ((), ()),
        ((2, 3, 4), (3, 1)),
        ((4, 5), (4,)),
        ((4, 5), (2, 5)),
        ((0,), (0,)),
        ((0, 5), (0, 5)),
        ((4, 0), (4, 0)),
        ((4, 0), (4, 1)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, -1, None, (0, 1)])
def test_shapes(rng, p_shape, q_shape, axis):
    p, q = rng.random(p_shape), rng.random(q_shape)
    for keepdims in (False, True):
        alike(p, q, axis=axis, keepdims=keepdims)
        alike(p, axis=axis, keepdims=keepdims)


TYPES = ["float64", "float32", "float16", ">f8", ">f4", "int8", "uint8", "int32", "int64", "uint64", "bool"]


@pytest.mark.parametrize("q_type", TYPES)
@pytest.mark.parametrize("p_type", TYPES)
def test_types(rng, p_type, q_type):
    p, q = (rng.integers(1, 9, (2, 3, 40))).astype(np.float64)
    p, q = p.astype(p_type), q.astype(q_type)
    coarsest = min(
        (np.result_type(p, q), np.result_type(p, 1.0)),
        key=lambda dtype: np.finfo(dtype).precision if dtype.kind == "f" else 15,
    )
    tolerance = TOLERANCES.get(coarsest.newbyteorder("=").name, FLOAT64)
    for at in (np.s_[:], 0):
        alike(p[at], q[at], axis=-1, tolerance=tolerance)
        alike(p[at], axis=-1, base=2, tolerance=tolerance)
        alike(p[at], axis=-1, keepdims=True, tolerance=tolerance)


@pytest.mark.parametrize("dtype", ["longdouble", "complex128", "object", "U3", "M8[s]"])
def test_types_without_a_kernel(dtype):
    alike(np.array([1, 2, 3]).astype(dtype), np.array([3, 2, 1]).astype(dtype))
    alike(np.array([1, 2, 3]).astype(dtype))


@pytest.mark.parametrize(
    "operand",
    [
        [1, 2, 3],
        (1.0, 2, 3),
        [[1], [2, 3]],
        [1, 2**70, 3],
        [1, None],
        3,
        2.5,
        "abc",
        None,
        {1: 2},
        np.float32(3),
        np.ma.array([1.0, 2, 3], mask=[0, 1, 0]),
        np.matrix([[1.0, 2, 3]]),
        np.array([1.0, 2, 3, 4])[::-2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.array([5e-324, 1e-310, 2e-320]),
        np.array([1e300, 2e300, 1e10]),
    ],
    ids=repr,
)
def test_operands(operand):
    for axis in (0, -1, None):
        alike(operand, axis=axis)
        alike(operand, operand, axis=axis)
        alike([1, 2, 3], operand, axis=axis)


def test_a_memory_map(tmp_path):
    mapped = np.memmap(tmp_path / "p", np.float64, "w+", shape=(2, 3))
    mapped[...] = [[1, 2, 3], [4, 5, 6]]
    for axis in (0, 1, None):
        alike(mapped, axis=axis)


@pytest.mark.parametrize("package", ["pandas", "torch", "dask.array", "xarray"])
def test_arrays_of_others(package):
    library = pytest.importorskip(package)
    make = {"pandas": "Series", "torch": "tensor", "dask.array": "from_array", "xarray": "DataArray"}[package]
    p, q = (getattr(library, make)(np.array(values)) for values in ([1.0, 2, 3], [3.0, 2, 1]))
    theirs, ours = (outcome(function, p, q) for function in (scipy.stats.entropy, entropy))
    assert type(ours.value) is type(theirs.value)
    assert type(ours.error) is type(theirs.error)
    if theirs.error is None:
        np.testing.assert_allclose(np.asarray(ours.value), np.asarray(theirs.value), **FLOAT64)


@pytest.mark.parametrize(
    "call",
    [
        ((), {}),
        ((), {"pk": [1, 2]}),
        ((), {"pk": [1, 2], "qk": [2, 1]}),
        ((), {"qk": [2, 1]}),
        (([1, 2],), {"pk": [1, 2]}),
        (([1, 2],), {"foo": 1}),
        (([1, 2], [1, 2], 2, 0, "propagate"), {}),
        (([1, 2],), {"nan_policy": "ignore"}),
    ],
    ids=repr,
)
def test_calls(call):
    args, kwargs = call
    alike(*args, **kwargs)


def rows(*elements):
    shape = st.sampled_from([(3,), (4, 3), (2, 2, 2), (1, 4)])
    return shape.flatmap(lambda s: st.tuples(*[hnp.arrays(np.float64, s, elements=st.sampled_from(elements))] * 2))


@given(rows(0.0, -0.0, 0.5, 1.0, 3.0, -1.0, -3.0, np.inf, -np.inf, 1e-3), st.sampled_from([0, -1, None]))
def test_invalid_numbers(pair, axis):
    p, q = pair
    alike(p, axis=axis)
    alike(p, q, axis=axis)


@given(
    rows(0.0, 0.5, 1.0, 3.0, np.nan), st.sampled_from([0, -1, None]), st.sampled_from(["propagate", "omit", "raise"])
)
def test_nan_policy(pair, axis, nan_policy):
    p, q = pair
    # SciPy warns of a row that is left empty, and of what happens there, from the loop's depth: so as often.
    alike(p, axis=axis, nan_policy=nan_policy)
    alike(p, q, axis=axis, nan_policy=nan_policy, base=2)


def test_only_invalid_rows_are_scipys(rng, monkeypatch):
    handed_over = []

    def recorded(*operands, **kwargs):
        handed_over.extend(operand.shape for operand in operands if operand is not None)
        return scipy.stats.entropy(*operands, **kwargs)

    monkeypatch.setattr(scipy_stats, "scipys_entropy", recorded)
    p, q = rng.random((2, 16, 1000))
    entropy(p, q)
    assert handed_over == []
    p[3, 10], q[0, 20], p[5, 30] = np.nan, -1.0, np.inf
    values = entropy(p, q)
    assert handed_over == [(2, 16)] * 2
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(values)), [10, 20, 30])


def test_nothing_is_written_to_the_operands(rng):
    p, q = rng.random((2, 5, 3))
    p[0, 0] = np.nan
    before = p.copy(), q.copy()
    for array in (p, q):
        array.flags.writeable = False
    entropy(p, q)
    np.testing.assert_array_equal((p, q), before)


def exact(p, q=None):
    """The relative entropy of normalised rows, or the entropy of one, in 400 digits, and from there rounded once."""
    with mp.workdps(400):
        p = normalised(p)
        if q is None:
            return float(-mp.fsum(x * mp.log(x) for x in p if x))
        return float(mp.fsum(x * mp.log(x / y) for x, y in zip(p, normalised(q), strict=True) if x))


def normalised(row):
    numbers = [mp.mpf(float(x)) for x in row]
    total = mp.fsum(numbers)
    return [x / total for x in numbers]


WRONG = {
    "nearly equal": ([0.3, 0.7], [0.3, 0.7 + 1e-12]),
    "nearly equal, 1e-6 apart": ([1, 2, 4], [1, 2, 4.000001]),
    "a sum above the largest float64": ([1e308, 1e308],),
    "a sum above the largest float32": (np.full(4, 3e38, np.float32),),
    "a sum above the largest float16": (np.full(1000, 100, np.float16),),
    "q of 0 once it is normalised": ([1, 1], [1e-320, 1e300]),
}


@pytest.mark.parametrize("operands", WRONG.values(), ids=WRONG.keys())
def test_where_scipy_is_wrong(level, operands):
    right = exact(*operands)
    theirs, ours = outcome(scipy.stats.entropy, *operands).value, entropy(*operands)
    assert not abs(theirs - right) <= 1e-3 * right
    # The bounds of the accuracy contract.
    assert abs(ours - right) <= (8 if ours.dtype == np.float64 else 4) * np.spacing(ours.dtype.type(right))


def test_examples():
    failed, attempted = doctest.testmod(scipy_stats)
    assert attempted
    assert not failed
