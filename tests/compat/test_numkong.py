"""``fastkl.compat.numkong`` against NumKong, and against exact values where NumKong's are wrong."""

import array
import doctest
import inspect

import numpy as np
import pytest
from dropins import outcome
from mpmath import mp

original = pytest.importorskip("numkong")
ml_dtypes = pytest.importorskip("ml_dtypes")

import fastkl
from fastkl.compat import numkong as drop_in

FUNCTIONS = ["kullbackleibler", "kld", "jensenshannon", "jsd"]
TYPES = ["float64", "float32", "float16", "bfloat16"]

# NumKong adds about 1e-15 (float64) or 1e-7 to q, works in float32 for all but float64, and has approximate logarithms.
# Its terms are of both signs, so its errors are relative to them; and the root of an error near 0 is much larger.
NARROW = {"rtol": 1e-4, "atol": 1e-3}
TOLERANCES = {"float64": {"rtol": 1e-9}, "float32": NARROW, "float16": NARROW, "bfloat16": NARROW}


def table(rng, rows, length, dtype="float64"):
    """Rows far from each other and without small numbers, where NumKong is right."""
    return (rng.random((rows, length)) + 0.1).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def numbers(value):
    """A result as an array, bfloat16 by its bits; None for None."""
    return None if value is None else np.asarray(value)


def alike(name, *args, rtol=1e-9, atol=0.0, **kwargs):
    """The same outcome, with numbers that are the same to within NumKong's errors; and ours, for more tests."""
    theirs, ours = (outcome(getattr(module, name), *args, **kwargs) for module in (original, drop_in))
    assert type(ours.error) is type(theirs.error), f"{ours.error!r} instead of {theirs.error!r}"
    assert str(ours.error) == str(theirs.error)
    assert type(ours.value) is type(theirs.value)
    if isinstance(theirs.value, original.Tensor):
        assert (ours.value.shape, ours.value.dtype) == (theirs.value.shape, theirs.value.dtype)
    if theirs.value is not None:
        np.testing.assert_allclose(numbers(ours.value), numbers(theirs.value), rtol=rtol, atol=atol)
    return ours.value


def calls(name):
    """A function's name with what else it is to be called with."""
    return [(name, {})] if name != "cdist" else [("cdist", {"metric": metric}) for metric in FUNCTIONS]


ALL_CALLS = [call for name in (*FUNCTIONS, "cdist") for call in calls(name)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("name", "kwargs"), ALL_CALLS, ids=str)
@pytest.mark.parametrize(
    "shapes",
    [
        ((9,), (9,)),
        ((9,), (4, 9)),
        ((4, 9), (9,)),
        ((1, 9), (9,)),
        ((1, 9), (4, 9)),
        ((4, 9), (1, 9)),
        ((4, 9), (4, 9)),
        ((1, 9), (1, 9)),
        ((1,), (1,)),
    ],
    ids=str,
)
def test_shapes_and_types(rng, dtype, name, kwargs, shapes):
    a, b = (table(rng, int(np.prod(shape[:-1])), shape[-1], dtype).reshape(shape) for shape in shapes)
    alike(name, a, b, **kwargs, **TOLERANCES[dtype])
    if name == "cdist":
        alike(name, a, table(rng, 3, shapes[0][-1], dtype), **kwargs, **TOLERANCES[dtype])


@pytest.mark.parametrize(("name", "kwargs"), ALL_CALLS, ids=str)
def test_buffers(rng, name, kwargs):
    a, b = table(rng, 2, 9)
    for make in (original.Tensor, memoryview, lambda row: array.array("d", row), as_matrix, np.ma.array, Interface):
        alike(name, make(a), make(b), **kwargs)
    both = original.Tensor(np.stack([a, b]))
    alike(name, both, original.Tensor(a), **kwargs)
    for dtype in TYPES[1:]:
        alike(name, both.astype(dtype), both.astype(dtype)[:1], **kwargs, **TOLERANCES[dtype])


def as_matrix(row):
    return row[np.newaxis].view(np.matrix)


class Interface:
    """What has no buffer, but tells where its memory is."""

    def __init__(self, values):
        self.values = values
        self.__array_interface__ = values.__array_interface__


@pytest.mark.parametrize(
    "layout", ["reversed rows", "every other row", "broadcast", "Fortran order", "every other column"]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_layouts(rng, name, layout):
    views = {
        "reversed rows": lambda x: x[::-1],
        "every other row": lambda x: x[::2],
        "broadcast": lambda x: np.broadcast_to(x[0], x.shape),
        "Fortran order": np.asfortranarray,
        "every other column": lambda x: x[:, ::2],
    }
    a, b = table(rng, 4, 8), table(rng, 4, 8)
    alike(name, views[layout](a), views[layout](b))
    alike(name, a[0, ::2], b[0, ::2])
    alike("cdist", views[layout](a), b[:, : views[layout](a).shape[1]].copy(), name)


OUT_TYPES = [
    "f64",
    "float64",
    "d",
    "f8",
    "f32",
    "float32",
    "f",
    "f16",
    "e",
    "bf16",
    "bfloat16",
    "int8",
    "uint8",
    "int64",
    "e4m3",
]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("out_dtype", [*OUT_TYPES, original.bfloat16, original.float16], ids=str)
def test_out_dtype(rng, out_dtype, dtype):
    a, b = table(rng, 3, 40, dtype), table(rng, 3, 40, dtype)
    # What is a digit of bfloat16 and of the smaller types apart, is so after rounding; bfloat16 is compared by its bits.
    for name, kwargs in ALL_CALLS:
        alike(name, a, b, out_dtype=out_dtype, **kwargs, rtol=1e-4 if dtype == "float64" else 2e-2)
        alike(name, a[0], b[0], out_dtype=out_dtype, **kwargs, rtol=1e-4)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16, "int8", "uint8", "int32", "uint64"], ids=str
)
@pytest.mark.parametrize(("name", "kwargs"), ALL_CALLS, ids=str)
def test_out(rng, name, kwargs, dtype):
    a, b = table(rng, 3, 40), table(rng, 3, 40)
    shapes = [(3, 3)] if name == "cdist" else [(3,), (5,), (3, 1), (4, 2), (3, 3)]
    for shape in shapes:
        theirs, ours = np.full((2, *shape), 7).astype(dtype)
        assert getattr(original, name)(a, b, out=theirs, **kwargs) is None
        assert getattr(drop_in, name)(a, b, out=ours, **kwargs) is None
        np.testing.assert_allclose(
            ours.astype(float), theirs.astype(float), rtol=1e-2 if theirs.itemsize == 2 else 1e-6
        )


def test_out_of_other_kinds(rng):
    a, b = table(rng, 3, 40), table(rng, 3, 40)
    right = np.asarray(drop_in.kld(a, b))
    for dtype in ("float64", "float32", "bfloat16"):
        out = original.zeros((3,), dtype=dtype)
        assert drop_in.kld(a, b, out=out) is None
        np.testing.assert_allclose(np.asarray(out.astype("float64")), right, rtol=1e-2 if dtype == "bfloat16" else 1e-6)
    out = array.array("d", [0, 0, 0])
    drop_in.kld(a, b, out=out)
    np.testing.assert_array_equal(out, right)
    out = np.zeros((6, 6))
    drop_in.cdist(a, b, "kld", out=out[::2, 1:4])
    np.testing.assert_array_equal(out[::2, 1:4], np.asarray(drop_in.cdist(a, b, "kld")))
    assert not out[1::2].any()
    assert not out[:, [0, 4, 5]].any()
    bits = np.zeros(3, np.uint64)
    drop_in.kld(a, b, out=bits, out_dtype="f64")
    np.testing.assert_array_equal(bits.view(np.float64), right)


def test_out_over_an_operand(rng):
    a, b = table(rng, 3, 3), table(rng, 3, 3)
    for name, kwargs, right in (
        ("kld", {}, np.asarray(drop_in.kld(a, b))[:, np.newaxis]),
        ("cdist", {"metric": "jsd"}, np.asarray(drop_in.cdist(a, b, "jsd"))),
    ):
        operand = a.copy()
        getattr(drop_in, name)(operand, b, out=operand, **kwargs)
        np.testing.assert_array_equal(operand[:, : right.shape[1]], right)


def test_dtype_of_bits(rng):
    a, b = table(rng, 3, 9, "bfloat16"), table(rng, 3, 9, "bfloat16")
    for dtype in ("bf16", "bfloat16", original.bfloat16):
        for bits in ("uint16", "int16", "float16", ml_dtypes.bfloat16):
            for name in FUNCTIONS:
                alike(name, a.view(bits), b.view(bits), dtype, rtol=1e-4)
                alike(name, a[0].view(bits), b[0].view(bits), dtype=dtype, rtol=1e-4)
    alike("cdist", a.view("uint16"), b.view("uint16"), "jsd", dtype="bf16", rtol=1e-4)
    alike("kld", a.view("uint16"), a.view("float16"), "f16")


A, B = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]), np.array([[0.3, 0.3, 0.4], [0.1, 0.2, 0.7]])

REFUSED = {
    "integers": ((A.astype("i4"), B.astype("i4")), {}),
    "bool": ((A > 0, B > 0), {}),
    "complex": ((A.astype("c16"), B.astype("c16")), {}),
    "longdouble": ((A.astype("g"), B.astype("g")), {}),
    "foreign bytes": ((A.astype(">f8"), B.astype(">f8")), {}),
    "mixed": ((A, B.astype("f4")), {}),
    "lists": ((A.tolist(), B.tolist()), {}),
    "numbers": ((1.0, 2.0), {}),
    "None": ((None, A), {}),
    "bytes": ((b"abc", b"abd"), {}),
    "a scalar": ((np.float64(1), np.float64(1)), {}),
    "no axes": ((np.array(1.0), np.array(1.0)), {}),
    "three axes": ((A[np.newaxis], B[np.newaxis]), {}),
    "no rows": ((A[:0], B[:0]), {}),
    "no columns": ((A[:, :0], B[:, :0]), {}),
    "an empty row": ((A[0, :0], B[0, :0]), {}),
    "other lengths": ((A, B[:, :2]), {}),
    "other lengths of rows": ((A[0], B[0, :2]), {}),
    "columns apart": ((np.ones((2, 6))[:, ::2], B), {}),
    "elements apart": ((np.ones(6)[::2], B[0]), {}),
    "an unknown dtype": ((A, B), {"dtype": "half"}),
    "an unsupported dtype": ((A.view("u1"), B.view("u1")), {"dtype": "e4m3"}),
    "an integer dtype": ((A, B), {"dtype": "int64"}),
    "NumPy's dtype": ((A, B), {"dtype": np.float64}),
    "a number for a dtype": ((A, B), {"dtype": 3}),
    "an unknown out_dtype": ((A, B), {"out_dtype": "i32"}),
    "a complex out_dtype": ((A, B), {"out_dtype": "complex64"}),
    "out is a number": ((A, B), {"out": 3}),
    "out is a list": ((A, B), {"out": [0.0, 0.0]}),
    "complex out": ((A, B), {"out": np.zeros((2, 2), complex)}),
    "bool out": ((A, B), {"out": np.zeros((2, 2), bool)}),
    "Fortran order out": ((A, B), {"out": np.zeros((2, 2), order="F")}),
    "out without axes": ((A, B), {"out": np.zeros(())}),
    "out with three axes": ((A, B), {"out": np.zeros((2, 2, 1))}),
    "out of another type": ((A, B), {"out": np.zeros((2, 2), "f4"), "out_dtype": "f64"}),
}


@pytest.mark.parametrize(("args", "kwargs"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_alike(args, kwargs):
    for name in FUNCTIONS:
        alike(name, *args, **kwargs)
        alike("cdist", *args, metric=name, **kwargs)


@pytest.mark.parametrize("metric", ["js", "kl", "KLD", "jensen-shannon", b"kld", 3, None, ["kld"]], ids=str)
def test_unknown_metrics(metric):
    alike("cdist", A, B, metric)


@pytest.mark.parametrize("threads", [0, 1, 2, -1, True, np.int64(2), 10**6, 10**30, None, 1.5, "2"], ids=str)
def test_threads(threads):
    for metric in ("kld", "jsd", "euclidean"):
        alike("cdist", A, B, metric, threads=threads)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (3, 2), (1, 4), (2, 1), (1,)], ids=str)
def test_out_of_cdist_has_its_shape(shape):
    alike("cdist", A, B, "kld", out=np.zeros(shape))
    alike("cdist", A[0], B, "kld", out=np.zeros(shape))


def test_out_of_a_pair_is_left_alone():
    for out in (np.zeros(1), np.zeros(3), np.zeros((1, 1))):
        alike("kld", A[0], B[0], out=out)
        alike("cdist", A[0], B[0], "kld", out=out)
        assert not out.any()


def test_rows_of_other_numbers():
    alike("kld", np.concatenate([A, A[:1]]), B)
    alike("jsd", A, np.concatenate([B, B]))


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "angular", "inner", "dot"])
def test_other_metrics_are_numkongs(metric):
    for kwargs in ({}, {"threads": 2}, {"out_dtype": "f32"}, {"dtype": "f64"}):
        alike("cdist", A, B, metric, **kwargs, rtol=0)
    alike("cdist", A, B)
    out = np.zeros((2, 2))
    assert drop_in.cdist(A, B, metric, out=out) is None
    np.testing.assert_array_equal(out, np.asarray(original.cdist(A, B, metric)))


def test_calls():
    """What Python itself refuses, with TypeError as NumKong does, but in other words."""
    for function, args, kwargs in (
        ("kld", (), {}),
        ("kld", (A,), {}),
        ("kld", (), {"a": A, "b": B}),
        ("kld", (A, B, "f64", None), {}),
        ("kld", (A, B), {"threads": 2}),
        ("kld", (A, B, "f64"), {"dtype": "f64"}),
        ("cdist", (A,), {}),
        ("cdist", (A, B, "kld", 2), {}),
        ("cdist", (A, B, "kld"), {"metric": "kld"}),
    ):
        for module in (original, drop_in):
            with pytest.raises(TypeError):
                getattr(module, function)(*args, **kwargs)


def test_signatures():
    """As NumKong's stub file has them; its functions have none that can be asked for."""
    pair = ["a", "b", "/", "dtype=None", "*", "out=None", "out_dtype=None"]
    pairs = ["a", "b", "/", "metric='euclidean'", "*", "threads=1", "dtype=None", "out=None", "out_dtype=None"]
    for name in (*FUNCTIONS, "cdist"):
        signature = inspect.signature(getattr(drop_in, name))
        bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        shown = str(signature.replace(parameters=bare, return_annotation=signature.empty))
        assert shown == f"({', '.join(pairs if name == 'cdist' else pair)})"


# What the documentation says is not as in NumKong.


def test_options_may_be_none():
    assert drop_in.kld(A[0], B[0], None, out=None, out_dtype=None) == drop_in.kld(A[0], B[0])
    with pytest.raises(TypeError):
        original.kld(A[0], B[0], None)


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_memory_that_is_not_the_callers(metric):
    """NumKong reads past elements that are narrower than it is told, and past the start of a reversed row."""
    measure = getattr(drop_in, metric)
    for a, dtype in ((A.astype("f4"), "f64"), (A, "f32"), (A.view("u1"), "f64")):
        with pytest.raises(ValueError, match="cannot be read as"):
            measure(a, a.copy(), dtype)
        with pytest.raises(ValueError, match="cannot be read as"):
            drop_in.cdist(a[0], a[0], metric, dtype=dtype)
    a, b = A[:, ::-1], B[:, ::-1]
    assert measure(a[0], b[0]) == measure(a[0].copy(), b[0].copy())
    right = np.asarray(measure(a.copy(), b.copy()))
    np.testing.assert_array_equal(np.asarray(measure(a, b)), right)
    np.testing.assert_array_equal(np.asarray(measure(a[0], b)), np.asarray(measure(a[0].copy(), b)))
    out = np.zeros(2)
    measure(a, b, out=out[::-1])
    np.testing.assert_array_equal(out[::-1], right)
    # It writes past the end of an out that is too short, and into one that is read-only.
    for shape in ((1,), (1, 4)):
        with pytest.raises(ValueError, match="too short"):
            measure(A, B, out=np.zeros(shape))
    out = np.zeros((2, 2))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        measure(A, B, out=out)
    with pytest.raises(ValueError, match="read-only"):
        drop_in.cdist(A, B, metric, out=out)
    assert not out.any()


@pytest.mark.parametrize("wrong", [np.nan, -1.0, np.inf])
def test_invalid_numbers_are_nan(wrong):
    a = A.copy()
    a[0, 1] = wrong
    for metric in FUNCTIONS:
        np.testing.assert_array_equal(np.isnan(np.asarray(getattr(drop_in, metric)(a, B))), [True, False])
        np.testing.assert_array_equal(np.isnan(np.asarray(getattr(drop_in, metric)(B, a))), [True, False])


def test_all_threads_and_one(rng, monkeypatch):
    used = []

    def recorded(*args, n_threads, **kwargs):
        used.append(n_threads)
        return fastkl.kl_divergence(*args, n_threads=n_threads, **kwargs)

    monkeypatch.setitem(drop_in._MEASURES, "kld", recorded)
    for threads in (1, 3, 0, -1):
        drop_in.cdist(A, B, "kld", threads=threads)
    drop_in.cdist(A, B, "kld")
    assert used == [1, 3, None, None, 1]


def exact(metric, p, q):
    """Of the numbers as they are, in 60 digits, rounded once."""
    with mp.workdps(60):
        p, q = ([mp.mpf(float(x)) for x in row] for row in (p, q))
        if metric == "kld":
            if any(x and not y for x, y in zip(p, q, strict=True)):
                return np.inf
            return float(mp.fsum(x * mp.log(x / y) for x, y in zip(p, q, strict=True) if x))
        means = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        terms = (x * mp.log(x / m) for row in (p, q) for x, m in zip(row, means, strict=True) if x)
        return float(mp.sqrt(mp.fsum(terms) / 2))


WRONG = [
    ("kld", [1, 0], [0, 1]),
    ("kld", [0.5, 0.5], [1, 0]),
    ("kld", [0.5, 0.5], [1, 1e-20]),
    ("kld", [0.3, 0.7], [0.3 + 1e-12, 0.7 - 1e-12]),
    ("jsd", [1, 0], [0, 1]),
    ("jsd", [0.5, 0.5], [1, 0]),
    ("jsd", [0, 0], [0.5, 0.5]),
    ("jsd", [0.3, 0.7], [0.3 + 1e-12, 0.7 - 1e-12]),
]


@pytest.mark.parametrize(("metric", "p", "q"), WRONG, ids=str)
def test_where_numkong_is_wrong(level, metric, p, q):
    p, q = np.array(p, float), np.array(q, float)
    right = exact(metric, p, q)
    theirs, ours = getattr(original, metric)(p, q), getattr(drop_in, metric)(p, q)
    if not (metric == "jsd" and 0 in (*p, *q)) or original.get_capabilities()["skylake"]:  # its kernels for AVX-512
        assert not abs(theirs - right) <= 1e-3 * right or (np.isinf(right) and theirs != right)
    # 8 ulp, the bound of the accuracy contract: what it is relative to, Σ φ + |Σp − Σq|, is the result itself here.
    assert ours == right or abs(ours - right) <= 8 * np.spacing(right)


def test_examples():
    failed, attempted = doctest.testmod(drop_in)
    assert attempted
    assert not failed
