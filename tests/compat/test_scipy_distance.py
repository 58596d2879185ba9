"""``fastkl.compat.scipy_distance`` against SciPy's own functions, and against exact values where SciPy's are wrong."""

import doctest
import inspect
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from dropins import assert_alike, outcome
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp

pytest.importorskip("scipy")

import scipy.spatial.distance as original

from fastkl.compat import scipy_distance as drop_in

# SciPy rounds each probability and each term; under the root, what is left of that near a distance d is 1e-16/d.
FLOAT64 = {"rtol": 1e-12, "atol": 1e-8}
# It does so in the precision of its operands, and sums in that of the result.
TOLERANCES = {"float64": FLOAT64, "float32": {"rtol": 1e-4, "atol": 1e-3}, "float16": {"rtol": 3e-2, "atol": 3e-2}}


def alike(name, *args, tolerance=FLOAT64, **kwargs):
    assert_alike(getattr(original, name), getattr(drop_in, name), *args, **tolerance, **kwargs)


@pytest.mark.parametrize("name", drop_in.__all__)
def test_signature(name):
    def described(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert described(getattr(drop_in, name)) == described(getattr(original, name))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    "base", [None, 2, 10.0, 1.5, 0.5, np.float32(3), Fraction(5, 2), 2**70, 1, 0, -1, np.inf, np.nan, "2", [2, 3]]
)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5,), 0), ((5,), -1), ((3, 5), 0), ((3, 5), 1), ((2, 3, 4), 1), ((2, 3, 4), -3)],
)
def test_axis_and_base(rng, shape, axis, base, keepdims):
    p, q = rng.random((2, *shape)) + 0.01
    alike("jensenshannon", p, q, base, axis=axis, keepdims=keepdims)


@pytest.mark.parametrize(
    "base",
    [True, *(kind(2) for kind in (np.int8, np.uint8, np.int16, np.int32, np.float16, np.float32, np.longdouble))],
)
@pytest.mark.parametrize("type_name", ["float64", "float32", "float16"])
def test_types_of_the_base(rng, type_name, base):
    p, q = (rng.random((2, 3, 5)) + 0.01).astype(type_name)
    tolerance = TOLERANCES["float16" if base is not True and base.itemsize < 4 else type_name]
    for pair in ((p, q), (p[0], q[0])):
        alike("jensenshannon", *pair, base, axis=-1, tolerance=tolerance)


def test_odd_keepdims_and_no_rows():
    alike("jensenshannon", [0.5, 0.5], [0.2, 0.8], keepdims=None)
    for row in (np.zeros(3), np.array([1.0, np.inf, 2.0]), np.ones(3)):
        alike("jensenshannon", np.zeros((0, 3)), row, axis=-1)
        alike("jensenshannon", row, np.zeros((0, 3)), axis=-1)


@pytest.mark.parametrize("axis", [None, 1, 5, -3, (0,), (0, 1), (0, 0), (), True, 0.0, "a", np.int64(0)])
def test_axis_refused_or_odd(rng, axis):
    alike("jensenshannon", rng.random(5), rng.random(5), axis=axis)
    alike("jensenshannon", rng.random((2, 5)), rng.random((2, 5)), axis=axis)


@pytest.mark.parametrize(
    ("p_shape", "q_shape"),
    [
        ((5,), (1,)),
        ((1,), (5,)),
        ((4, 5), (5,)),
        ((5,), (4, 5)),
        ((5, 4), (5,)),
        ((4, 4), (4,)),
        ((4, 5), (4, 1)),
        ((4, 1), (1, 5)),
        ((4, 5), ()),
        ((), ()),
        ((2, 3, 4), (3, 1)),
        ((2, 3, 4), (2, 1, 4)),
        ((4, 5), (2, 5)),
        ((0,), (0,)),
        ((0, 5), (0, 5)),
        ((4, 0), (4, 0)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_shapes(rng, p_shape, q_shape, axis):
    p, q = rng.random(p_shape), rng.random(q_shape)
    for keepdims in (False, True):
        alike("jensenshannon", p, q, axis=axis, keepdims=keepdims)


TYPES = ["float64", "float32", "float16", ">f8", ">f4", "int8", "uint8", "int32", "int64", "uint64", "bool"]


@pytest.mark.parametrize("q_type", TYPES)
@pytest.mark.parametrize("p_type", TYPES)
def test_types(rng, p_type, q_type):
    p, q = rng.integers(0, 9, (2, 3, 40)).astype(np.float64)
    p, q = p.astype(p_type), q.astype(q_type)
    floating = [np.dtype(x).newbyteorder("=").name for x in (p_type, q_type) if np.dtype(x).kind == "f"]
    tolerance = TOLERANCES[min(floating, key=lambda name: np.finfo(name).precision, default="float64")]
    for at in (np.s_[:], 0):
        for base in (None, 2):
            for keepdims in (False, True):
                alike("jensenshannon", p[at], q[at], base, axis=-1, keepdims=keepdims, tolerance=tolerance)
    # These take everything for float64.
    alike("cdist", p, q, "js")
    alike("cdist", p, q, drop_in.jensenshannon, base=2)
    alike("pdist", p, "js")


@pytest.mark.parametrize("dtype", ["longdouble", "complex128", "object", "U3", "M8[s]"])
def test_types_without_a_kernel(dtype):
    p, q = np.array([[1, 2, 3], [4, 2, 1]]).astype(dtype), np.array([[3, 2, 1], [1, 1, 2]]).astype(dtype)
    alike("jensenshannon", p, q)
    alike("cdist", p, q, "js")
    alike("pdist", p, "js")


@pytest.mark.parametrize(
    "operand",
    [
        [[1, 2, 3], [3, 1, 1]],
        ((1.0, 2, 3),),
        [[1], [2, 3]],
        [1, 2, 3],
        3,
        "abc",
        None,
        np.ma.array([[1.0, 2, 3]], mask=[[0, 1, 0]]),
        np.matrix([[1.0, 2, 3]]),
        np.arange(12.0).reshape(2, 6)[::-1, ::-2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.array([[1e300, 2e300, 1e299], [5e-300, 1e-300, 2e-310]]),
        np.ones((2, 2, 3)),
        np.ones((0, 3)),
        np.ones((2, 0)),
        np.ones((1, 3)),
    ],
    ids=repr,
)
def test_operands(operand):
    other = [[3, 2, 1], [5, 0, 1]]
    alike("jensenshannon", operand, other, axis=-1)
    for metric in ("js", original.jensenshannon):
        alike("cdist", operand, other, metric)
        alike("cdist", other, operand, metric)
        alike("pdist", operand, metric)


METRICS = ["js", "JS", "jensenshannon", "JensenShannon", "test_jensenshannon", "euclidean", "cityblock", "foo", 3, None]
FUNCTIONS = [original.jensenshannon, drop_in.jensenshannon, lambda u, v, **options: float(np.abs(u - v).max())]
OPTIONS = [
    {},
    {"base": 2},
    {"base": 1},
    {"w": None},
    {"w": np.ones(5)},
    {"keepdims": True},
    {"axis": 0},
    {"p": 3},
]

OUTS = {
    "for cdist": lambda: np.empty((4, 3)),
    "for pdist": lambda: np.empty(6),
    "a number": lambda: 3,
    "too short": lambda: np.empty(5),
    "Fortran order": lambda: np.empty((4, 3), order="F"),
    "float32": lambda: np.empty((4, 3), np.float32),
    "float32 for pdist": lambda: np.empty(6, np.float32),
    "strided": lambda: np.empty((4, 6))[:, ::2],
    "strided for pdist": lambda: np.empty(12)[::2],
    "matrix": lambda: np.empty((4, 3)).view(np.matrix),
}


def tables(rng):
    a, b = rng.random((4, 5)), rng.random((3, 5))
    return ("cdist", (a, b)), ("pdist", (a,))


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@pytest.mark.parametrize(
    "metric", [*METRICS, *FUNCTIONS], ids=lambda metric: getattr(metric, "__module__", str(metric))
)
def test_metrics_and_options(rng, metric, options):
    for name, operands in tables(rng):
        alike(name, *operands, metric, **options)


@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS.keys())
@pytest.mark.parametrize("metric", ["js", "euclidean", original.jensenshannon], ids=str)
def test_out(rng, metric, out):
    for name, operands in tables(rng):
        alike(name, *operands, metric, out=out())


def test_the_default_metric(rng):
    for name, operands in tables(rng):
        alike(name, *operands)


def test_out_is_returned(rng):
    a, b = rng.random((4, 5)), rng.random((3, 5))
    for out in (np.empty((4, 3)), np.empty((4, 3))[:]):
        assert drop_in.cdist(a, b, "js", out=out) is out
        np.testing.assert_array_equal(out, drop_in.cdist(a, b, "js"))
    out = np.empty(6)
    assert drop_in.pdist(a, "js", out=out) is out
    np.testing.assert_array_equal(out, drop_in.pdist(a, "js"))


def rows(*elements):
    shape = st.sampled_from([(3,), (4, 3), (2, 2, 2), (5, 2)])
    return shape.flatmap(lambda s: st.tuples(*[hnp.arrays(np.float64, s, elements=st.sampled_from(elements))] * 2))


NUMBERS = (0.0, -0.0, 0.5, 1.0, 3.0, -1.0, -3.0, np.nan, np.inf, -np.inf, 1e-3)


def assume_apart(distances):
    """Of rows nearly equal SciPy's distances are noise, or NaN with a warning; and rows may be so after normalising."""
    assume(not (distances < 1e-6).any())


@given(rows(*NUMBERS), st.sampled_from([0, -1, None]), st.sampled_from([None, 2]))
def test_invalid_numbers(pair, axis, base):
    p, q = pair
    ours = outcome(drop_in.jensenshannon, p, q, base, axis=axis)
    assume_apart(ours.value)
    alike("jensenshannon", p, q, base, axis=axis)


@given(hnp.arrays(np.float64, st.sampled_from([(4, 3), (3, 2), (1, 4)]), elements=st.sampled_from(NUMBERS)))
def test_invalid_numbers_in_tables(table):
    for metric in ("js", original.jensenshannon):
        for name, operands in (("cdist", (table, table[1:] + 0.5)), ("cdist", (table[:1], table)), ("pdist", (table,))):
            theirs, ours = (outcome(getattr(module, name), *operands, metric) for module in (original, drop_in))
            assert type(ours.error) is type(theirs.error)
            if theirs.error is None:
                assume_apart(ours.value)
                np.testing.assert_allclose(ours.value, theirs.value, **FLOAT64)
            # Each pair has its warnings, once; but those of the pairs that are SciPy's come together.
            assert sorted(map(str, ours.warnings)) == sorted(map(str, theirs.warnings))


@pytest.mark.parametrize(
    ("size", "length"), [(2, 3), (3, 2), (31, 2), (33, 3), (64, 65), (65, 17), (100, 4), (257, 33)]
)
def test_every_pair_in_its_place(rng, size, length):
    table = rng.standard_exponential((size, length))
    table[rng.random(table.shape) < 0.1] = 0.0
    alike("pdist", table, "js")
    np.testing.assert_array_equal(
        drop_in.pdist(table, "js"), drop_in.cdist(table, table, "js")[np.triu_indices(size, 1)]
    )
    table[[0, size // 3, size - 1]] = 0.0
    table[size // 2, 0] = np.nan
    alike("pdist", table, "js")
    alike("cdist", table, table[: size // 2 + 1], "js")


def test_few_and_long_rows_take_small_blocks(rng, monkeypatch):
    monkeypatch.setattr(drop_in, "_RESULTS_AT_ONCE", 100)
    table = rng.random((40, 5))
    alike("pdist", table, "js")


def test_no_copies_of_pairs(rng):
    a, b = rng.random((2, 150, 1000))
    for function, tables in ((drop_in.cdist, (a, b)), (drop_in.pdist, (a,))):
        tracemalloc.start()
        function(*tables, "js")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20  # the pairs' elements are 86 MiB or more, their distances 0.2 MiB


def test_only_invalid_rows_are_scipys(rng, monkeypatch):
    handed_over = []

    def recorded(*operands, **kwargs):
        handed_over.append(tuple(operand.shape for operand in operands if isinstance(operand, np.ndarray)))
        return original.cdist(*operands, **kwargs)

    monkeypatch.setattr(drop_in, "scipys_cdist", recorded)
    a, b = rng.random((30, 5)), rng.random((20, 5))
    drop_in.cdist(a, b, "js")
    assert handed_over == []
    a[[3, 7], 1], b[4, 2] = -1.0, np.nan
    drop_in.cdist(a, b, "js")
    assert handed_over == [((2, 5), (20, 5)), ((28, 5), (1, 5))]


def normalised(row):
    numbers = [mp.mpf(float(x)) for x in row]
    total = mp.fsum(numbers)
    return [x / total for x in numbers]


def exact(p, q):
    """The distance in 400 digits, rounded once."""
    with mp.workdps(400):
        p, q = normalised(p), normalised(q)
        means = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        terms = (x * mp.log(x / m) for row in (p, q) for x, m in zip(row, means, strict=True) if x)
        return float(mp.sqrt(mp.fsum(terms) / 2))


WRONG = {
    "nearly equal": ([0.3, 0.7], [0.3, 0.7 + 1e-12]),
    "proportional but for the last bits": ([0.1, 0.2, 0.7], [0.3, 0.6, 2.1]),
    "a sum above the largest float64": ([1e308, 1e308], [1.0, 3.0]),
}


@pytest.mark.parametrize("pair", WRONG.values(), ids=WRONG.keys())
def test_where_scipy_is_wrong(level, pair):
    right = exact(*pair)
    p, q = np.array(pair)
    for function, call in (
        ("jensenshannon", lambda function: function(p, q)),
        ("cdist", lambda function: function([p], [q], "js")[0, 0]),
        ("pdist", lambda function: function([p, q], "js")[0]),
    ):
        theirs = outcome(call, getattr(original, function)).value
        ours = call(getattr(drop_in, function))
        assert not abs(theirs - right) <= 1e-3 * right
        assert abs(ours - right) <= 8 * np.spacing(right)  # the bound of the accuracy contract


def test_examples():
    failed, attempted = doctest.testmod(drop_in)
    assert attempted
    assert not failed
