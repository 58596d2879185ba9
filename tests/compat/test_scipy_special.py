"""``fastkl.compat.scipy_special`` beside ``scipy.special``: values, exact ones, and everything NumPy does with a ufunc.

SciPy's float64 values have errors of their own, so ours are held to exact ones (ball arithmetic), and to SciPy's to
within what those errors are.
"""

import inspect
import itertools
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from dropins import assert_alike, outcome
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

import fastkl
from fastkl._kernels import _engine
from fastkl.compat import scipy_special

special = pytest.importorskip("scipy.special")

NAMES = ("rel_entr", "kl_div", "entr")
# Errors in units in the last place of float64, as the formulae in elementwise.inl.h state them; of float32, half a unit
# and what the double value before the rounding is off by.
ULPS = {"rel_entr": 3.5, "kl_div": 6.5, "entr": 3.5}
FLOAT_ULPS = 0.51

EPS = np.finfo(np.float64).eps
ODD = [np.nan, np.inf, -np.inf, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1e-310, 2.3e-308, 1e-300, 0.5, 1.0, 1e300, 1.7e308]


def pair_of(name):
    return getattr(special, name), getattr(scipy_special, name)


def operands(name, *arrays):
    return arrays[: 1 if name == "entr" else 2]


def quietly(function, *args, **kwargs):
    """The value of a call that must not warn, whatever NumPy has been told to do about floating-point errors."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*args, **kwargs)


def assert_near_scipy(name, ours, theirs, x, y):
    """Within SciPy's own error: a few units in the last place; of kl_div, of the terms that its sum is made of."""
    finite = np.isfinite(theirs) & np.isfinite(ours)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    np.testing.assert_array_equal(np.signbit(ours[theirs == 0]), np.signbit(theirs[theirs == 0]))
    ours, theirs, x, y = (np.broadcast_to(a, theirs.shape)[finite].astype(np.float64) for a in (ours, theirs, x, y))
    size = np.abs(theirs)
    if name == "kl_div":
        with np.errstate(over="ignore"):
            size = size + np.abs(x) + np.abs(y) + np.abs(special.rel_entr(x, y))
    # 2^-1074 for subnormal results.
    assert (np.abs(ours - theirs) <= 8 * EPS * size + 5e-324).all()


def run(program, **variables):
    """What a Python of its own prints."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(fastkl.__file__))} | variables
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


# ---- exact values ------------------------------------------------------------------------------------------------


def exact_value(name, x, y):
    x, y = arb(x), arb(y)
    if name == "entr":
        return -x * x.log()
    value = x * (x / y).log()
    return value if name == "rel_entr" else value - x + y


@np.errstate(all="ignore")
def arguments(dtype):
    """Positive pairs: all over the range, next to each other, around the seams of the formulae, at the ends."""
    rng = np.random.default_rng(5)
    info = np.finfo(dtype)
    low, tiny, high = (np.log2(float(value)) for value in (info.smallest_subnormal, info.tiny, info.max))
    groups = [np.exp2(rng.uniform(low, high, (2, 1500)))]
    for exponent in (low + 0.5, low + 12, tiny, 0.6 * tiny, 0, high - 1):
        x = rng.uniform(1, 2, 1000) * 2.0**exponent
        near = 1 + rng.choice([-1, 1], 1000) * np.exp2(rng.uniform(np.log2(info.eps), -1, 1000))
        for seam in (1, 4 / 3, 3 / 2, 3 / 4, 2 / 3):
            groups.append(np.array([x, x * seam * near])[:, :200])
        groups.append(np.array([x, x * np.exp2(rng.integers(-30, 31, 1000)) * near])[:, 200:400])
        groups.append(np.array([x, np.exp2(rng.uniform(low, high, 1000))])[:, 400:600])
    groups.append(np.array(list(itertools.product([v for v in ODD if 0 < v < np.inf], repeat=2))).T)
    x, y = np.concatenate(groups, axis=1).astype(dtype)
    good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    return x[good], y[good]


@pytest.fixture(scope="module")
def exact():
    """Arguments, exact values as two doubles, and their fourth parts, which are finite; computed once for all levels."""
    known = {}

    def values(name, dtype):
        if (name, dtype) not in known:
            x, y = arguments(dtype)
            high, low, quarter = np.empty((3, x.size))
            with ctx.workprec(2400):  # bits: x log(x/y) - x + y over the range of exponents, and 200 to spare
                for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
                    value = exact_value(name, a, b)
                    high[i] = float(value)
                    low[i] = float(value - arb(high[i])) if np.isfinite(high[i]) else 0.0
                    quarter[i] = float(value / 4)
            known[name, dtype] = x, y, high, low, quarter
        return known[name, dtype]

    return values


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", NAMES)
def test_error(level, name, dtype, exact):
    x, y, high, low, quarter = exact(name, dtype)
    result = quietly(getattr(scipy_special, name), *operands(name, x, y))
    assert result.dtype == dtype
    info = np.finfo(dtype)
    # Next to the largest number an error of some last bits makes the difference between finite and infinite.
    size, most, slack = np.abs(quarter), float(info.max) / 4, 8 * float(info.eps)
    infinite = size > most * (1 + slack)
    assert infinite.any()
    np.testing.assert_array_equal(result[infinite], np.copysign(np.inf, quarter[infinite]))
    there = size < most * (1 - slack)
    with np.errstate(over="ignore"):
        rounded = high.astype(dtype)
    bound = ULPS[name] if dtype == np.float64 else FLOAT_ULPS
    error = np.abs((result[there].astype(np.float64) - high[there]) - low[there])
    errors = error / np.spacing(np.abs(rounded[there])).astype(np.float64)
    worst = errors.argmax()
    assert errors[worst] <= bound, (errors[worst], x[there][worst].item().hex(), y[there][worst].item().hex())
    if name == "kl_div":
        assert (result >= 0).all()
        assert (getattr(scipy_special, name)(x, x) == 0).all()


def at_every_level(function):
    before, results = _engine.level(), {}
    try:
        for level in _engine.usable_levels():
            _engine.set_level(level)
            results[level] = function()
    finally:
        _engine.set_level(before)
    return results


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", NAMES)
def test_levels_agree(name, dtype, exact):
    x, y, *_ = exact(name, dtype)
    results = at_every_level(lambda: getattr(scipy_special, name)(*operands(name, x, y)))
    fused = [result for level, result in results.items() if level != "baseline"]
    for result in fused[1:]:
        np.testing.assert_array_equal(result.view(np.uint8), fused[0].view(np.uint8))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", NAMES)
def test_an_element_does_not_depend_on_its_neighbours(level, name, dtype, rng):
    # One in three is odd, so that few vectors hold ordinary numbers alone.
    with np.errstate(over="ignore", under="ignore"):
        x, y = (np.where(rng.random(1000) < 0.3, rng.choice(ODD, 1000), rng.random(1000)).astype(dtype) for _ in "xy")
    function = getattr(scipy_special, name)
    whole = function(*operands(name, x, y))
    for length in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 97):
        part = function(*operands(name, x[5 : 5 + length], y[5 : 5 + length]))
        np.testing.assert_array_equal(part.view(np.uint8), whole[5 : 5 + length].view(np.uint8))
    spread = np.zeros((3, 1000, 2), dtype)
    spread[0, :, 0], spread[1, ::-1, 0] = x, y
    function(*operands(name, spread[0, :, 0], spread[1, ::-1, 0]), out=spread[2, ::-1, 1])
    np.testing.assert_array_equal(np.ascontiguousarray(spread[2, ::-1, 1]).view(np.uint8), whole.view(np.uint8))
    assert not spread[2, :, 0].any()
    for k in range(20):
        assert function(*operands(name, x[k], y[k])).tobytes() == whole[k].tobytes()


# ---- beside SciPy ------------------------------------------------------------------------------------------------


def test_odd_numbers(level):
    for name, dtype in itertools.product(NAMES, (np.float64, np.float32)):
        with np.errstate(all="ignore"):
            numbers = np.array(ODD, dtype)
        x, y = numbers[:, None], numbers[None, :]
        if name == "entr":
            y = np.ones_like(x)
        theirs, ours = (quietly(function, *operands(name, x, y)) for function in pair_of(name))
        # SciPy's kl_div is wrong wherever x/y or x log(x/y) leaves the range: see the tests of what is mended.
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64)
            sound = np.isfinite(wide / y) & np.isfinite(special.rel_entr(wide, y.astype(np.float64))) | ~(wide > 0)
            sound |= (y <= 0) | np.isnan(wide) | np.isnan(y) | (name != "kl_div")
            sound &= ~((wide > 0) & (wide / y == 0) & (name == "kl_div"))
        sound = np.broadcast_to(sound, ours.shape)
        x, y = (np.broadcast_to(a, ours.shape)[sound] for a in (x, y))
        assert sound.mean() > 0.7
        assert_near_scipy(name, ours[sound], theirs[sound], x, y)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (40000,)])
@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int8", "int16", "uint16", "int32", "int64", "bool"]
)
@pytest.mark.parametrize("name", NAMES)
def test_types_and_shapes(name, dtype, shape, rng):
    x, y = (rng.integers(0, 2 if dtype == "bool" else 9, shape).astype(dtype) for _ in "xy")
    theirs, ours = (quietly(function, *operands(name, x, y)) for function in pair_of(name))
    assert type(ours) is type(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert_near_scipy(name, np.asarray(ours), np.asarray(theirs), np.asarray(x), np.asarray(y))


finite = st.floats(min_value=0, max_value=1e290, allow_subnormal=True)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20), st.sampled_from(NAMES))
def test_random_numbers(pairs, name):
    # Quotients of what is left stay in range, which SciPy's kl_div needs.
    x, y = (np.array(part) for part in zip(*pairs, strict=True))
    y = np.where((x > 0) & (y > 0), np.clip(y, x * 1e-15, x * 1e15), y)
    theirs, ours = (quietly(function, *operands(name, x, y)) for function in pair_of(name))
    assert_near_scipy(name, ours, theirs, x, y)


BINARY_CALLS = {
    "broadcast": lambda f, x, y: f(x[:, None], y[None, :3]),
    "scalar": lambda f, x, y: f(x, 0.25),
    "both scalars": lambda f, x, y: f(0.5, 0.25),
    "list": lambda f, x, y: f([0.5, 1], [[1], [2]]),
    "empty list": lambda f, x, y: f([], 1.0),
    "out": lambda f, x, y: f(x, y, out=np.empty_like(x)),
    "out by position": lambda f, x, y: f(x, y, np.empty_like(x)),
    "out as a tuple": lambda f, x, y: f(x, y, out=(np.empty_like(x),)),
    "out float32": lambda f, x, y: f(x, y, out=np.empty(x.shape, np.float32)),
    "out float16": lambda f, x, y: f(x, y, out=np.empty(x.shape, np.float16)),
    "out integer": lambda f, x, y: f(x, y, out=np.empty(x.shape, int)),
    "out of another shape": lambda f, x, y: f(x, y, out=np.empty(3)),
    "out larger": lambda f, x, y: f(x, y, out=np.empty((2, *x.shape))),
    "out is x": lambda f, x, y: f(x, y, out=x),
    "out is y": lambda f, x, y: f(x, y, out=y),
    "out overlaps": lambda f, x, y: f(x[:-1], y[1:], out=x[1:]),
    "out overlaps backwards": lambda f, x, y: f(x[1:], y[:-1], out=y[:0:-1]),
    "where": lambda f, x, y: f(x, y, where=x > y, out=np.zeros_like(x)),
    "dtype": lambda f, x, y: f(x, y, dtype=np.float32),
    "dtype, casting": lambda f, x, y: f(x, y, dtype="f", casting="unsafe"),
    "signature": lambda f, x, y: f(x, y, signature="ff->f", casting="same_kind"),
    "no such signature": lambda f, x, y: f(x, y, signature="gg->g"),
    "casting": lambda f, x, y: f(x.astype(int), y, casting="no"),
    "order": lambda f, x, y: f(x.reshape(-1, 2), y.reshape(-1, 2), order="F"),
    "fortran": lambda f, x, y: f(np.asfortranarray(x.reshape(-1, 2)), y.reshape(-1, 2)),
    "transposed": lambda f, x, y: f(x.reshape(-1, 2).T, y.reshape(-1, 2).T),
    "reversed": lambda f, x, y: f(x[::-1], y[::2].repeat(2)[: len(x)]),
    "swapped bytes": lambda f, x, y: f(x.astype(">f8"), y.astype(">f8")),
    "unaligned": lambda f, x, y: f(np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float64), y),
    "complex": lambda f, x, y: f(x + 1j, y),
    "long double": lambda f, x, y: f(x.astype(np.longdouble), y),
    "object": lambda f, x, y: f(x.astype(object), y),
    "string": lambda f, x, y: f("a", y),
    "None": lambda f, x, y: f(None, y),
    "one argument": lambda f, x, y: f(x),
    "no arguments": lambda f, x, y: f(),
    "four arguments": lambda f, x, y: f(x, y, None, None),
    "shapes": lambda f, x, y: f(x, y[:3]),
    "unknown keyword": lambda f, x, y: f(x, y, axis=0),
    "masked": lambda f, x, y: f(np.ma.masked_less(x, 0.5), y),
    "matrix": lambda f, x, y: f(x.reshape(-1, 2).view(np.matrix), 0.5),
    "subok": lambda f, x, y: f(x.reshape(-1, 2).view(np.matrix), 0.5, subok=False),
    "reduce": lambda f, x, y: f.reduce(x.reshape(-1, 4), axis=1),
    "reduce a row": lambda f, x, y: f.reduce(x[:9]),
    "reduce along the first axis": lambda f, x, y: f.reduce(x.reshape(4, -1)),
    "reduce nothing": lambda f, x, y: f.reduce(x[:0]),
    "accumulate": lambda f, x, y: f.accumulate(x[:50]),
    "reduceat": lambda f, x, y: f.reduceat(x, [0, 4, 10]),
    "outer": lambda f, x, y: f.outer(x[:5], y[:7]),
    "at": lambda f, x, y: f.at(x, [0, 1, 1], 0.5),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("how", BINARY_CALLS)
@pytest.mark.parametrize("name", ["rel_entr", "kl_div"])
def test_calls(name, how, rng):
    # Far enough from each other for SciPy's kl_div; 1, so that what is reduced is finite for a while.
    x, y = rng.uniform(0.1, 1, 100), rng.uniform(1.5, 3, 100)
    call = BINARY_CALLS[how]
    theirs, ours = ([call, function] for function in pair_of(name))
    results = []
    for call, function in (theirs, ours):
        a, b = x.copy(), y.copy()
        with np.errstate(all="warn"):
            result = outcome(call, function, a, b)
        results.append((result, a, b))
    (theirs, *their_operands), (ours, *our_operands) = results
    assert type(ours.error) is type(theirs.error)
    assert str(ours.error) == str(theirs.error)
    assert ours.warnings == theirs.warnings
    assert type(ours.value) is type(theirs.value)
    if isinstance(theirs.value, np.ndarray | np.generic):
        assert ours.value.dtype == theirs.value.dtype
        assert ours.value.shape == theirs.value.shape
        assert ours.value.strides == theirs.value.strides
        # Of what one call hands on to the next, errors grow; float16 has 11 bits.
        rtol = 1e-3 if theirs.value.dtype == np.float16 else 1e-6 if theirs.value.dtype == np.float32 else 1e-11
        np.testing.assert_allclose(ours.value, theirs.value, rtol=rtol)
        if isinstance(theirs.value, np.ma.MaskedArray):
            np.testing.assert_array_equal(ours.value.mask, theirs.value.mask)
    for a, b in zip(our_operands, their_operands, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)


UNARY_CALLS = {
    "scalar": lambda f, x: f(0.5),
    "list": lambda f, x: f([[0.5, 1], [2, 0]]),
    "out": lambda f, x: f(x, out=x),
    "out overlaps": lambda f, x: f(x[:-1], out=x[1:]),
    "where": lambda f, x: f(x, where=x > 0.5, out=np.zeros_like(x)),
    "dtype": lambda f, x: f(x, dtype="f", casting="unsafe"),
    "every other": lambda f, x: f(x[::2]),
    "masked": lambda f, x: f(np.ma.masked_less(x, 0.5)),
    "complex": lambda f, x: f(x + 1j),
    "long double": lambda f, x: f(np.longdouble(1)),
    "two arguments too many": lambda f, x: f(x, None, None),
    "reduce": lambda f, x: f.reduce(x),
}


@pytest.mark.parametrize("how", UNARY_CALLS)
def test_calls_of_entr(how, rng):
    x = rng.uniform(0.1, 0.9, 100)
    theirs, ours = (outcome(UNARY_CALLS[how], function, x.copy()) for function in pair_of("entr"))
    assert type(ours.error) is type(theirs.error)
    assert str(ours.error) == str(theirs.error)
    assert ours.warnings == theirs.warnings
    assert type(ours.value) is type(theirs.value)
    if theirs.error is None:
        assert ours.value.dtype == theirs.value.dtype
        np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-6 if theirs.value.dtype == np.float32 else 1e-14)


def test_pandas_keeps_its_index():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([0.25, 0.75], index=["a", "b"], name="p")
    for name in ("rel_entr", "kl_div"):
        theirs, ours = (function(series, [0.5, 0.5]) for function in pair_of(name))
        pandas.testing.assert_series_equal(ours, theirs, rtol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_attributes(name):
    theirs, ours = pair_of(name)
    assert type(ours) is type(theirs)
    for attribute in ("__name__", "nin", "nout", "nargs", "ntypes", "types", "identity", "signature"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert repr(ours) == repr(theirs)
    assert outcome(inspect.signature, ours).value == outcome(inspect.signature, theirs).value
    with warnings.catch_warnings():
        # A ufunc does not know its module: pickle asks all that are loaded, some of which warn of what they are asked.
        warnings.simplefilter("ignore", DeprecationWarning)
        assert pickle.loads(pickle.dumps(ours)) is ours
    assert ours.__doc__.count("Parameters\n") == 1
    assert "Examples" in ours.__doc__


def test_nothing_else_is_public():
    assert sorted(scipy_special.__all__) == sorted(NAMES)


# ---- what is mended ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "theirs"),
    [
        (0.1, np.nextafter(0.1, 1), None),  # noise, here and next
        (0.3, 0.3 * (1 - 1e-9), None),
        (1e-300, 1e300, -np.inf),  # x/y is 0
        (1e300, 1e-300, np.inf),  # x/y is infinite
        (1.7e308, 0.5e308, np.inf),  # x log(x/y) is infinite
    ],
)
def test_wrong_values_of_kl_div(level, x, y, theirs):
    with ctx.workprec(2400):
        exact_one = exact_value("kl_div", float(x), float(y))
        ours, scipys = scipy_special.kl_div(x, y), special.kl_div(x, y)
        error, their_error = (abs(float(arb(float(v)) / exact_one - 1)) for v in (ours, scipys))
    assert error <= 6.5 * float(np.finfo(ours.dtype).eps)
    if theirs is None:
        assert their_error > 1e-3
    else:
        assert scipys == theirs


def test_negative_values_of_kl_div(rng):
    x = rng.random(1000)
    y = x * (1 + 1e-9 * rng.standard_normal(1000))
    assert (special.kl_div(x, y) < 0).any()
    assert (scipy_special.kl_div(x, y) > 0).all()


def test_kl_div_of_one_infinity():
    for x, y in ((np.inf, 1.0), (1.0, np.inf), (np.inf, 5e-324)):
        assert np.isnan(special.kl_div(x, y))
        assert scipy_special.kl_div(x, y) == np.inf
    assert np.isnan(scipy_special.kl_div(np.inf, np.inf))


# ---- SciPy's own tests -------------------------------------------------------------------------------------------


# In a Python of its own, because their marks are unknown here. The functions of test_basic look theirs up as attributes
# of `special`; the parameters of test_cython_special are triples with SciPy's function in front.
SCIPYS_TESTS = """
import inspect, types
from scipy import special
from scipy.special.tests import test_basic, test_cython_special
from fastkl.compat import scipy_special

NAMES = scipy_special.__all__

class DropIns:
    def __getattr__(self, name):
        return getattr(scipy_special if name in NAMES else special, name)

test_basic.special = DropIns()
ours = {getattr(special, name): getattr(scipy_special, name) for name in NAMES}
for name, function in list(vars(test_basic).items()):
    if name.startswith("test") and any(f"special.{tested}" in inspect.getsource(function) for tested in NAMES):
        function()
        print(name)
for theirs, *rest in test_cython_special.PARAMS:
    if theirs in ours:
        test_cython_special.test_cython_api((ours[theirs], *rest))
        print(theirs.__name__)
"""


def test_those_of_scipy(level):
    passed = run(SCIPYS_TESTS, FASTKL_SIMD=level).split()
    assert set(passed) >= {*NAMES, "test_entr", "test_kl_div", "test_rel_entr"}


# ---- threads -----------------------------------------------------------------------------------------------------

PROGRAM = """
import hashlib
import numpy as np
from fastkl.compat import scipy_special
rng = np.random.default_rng(0)
x, y = rng.random((2, 300_001))
x[::7] = 0
parts = [scipy_special.rel_entr(x, y), scipy_special.kl_div(x[::-1], y), scipy_special.entr(x)]
scipy_special.kl_div(x, y, out=x)
print(hashlib.sha256(b"".join(part.tobytes() for part in [*parts, x])).hexdigest())
"""


def test_number_of_threads_does_not_matter():
    assert len({run(PROGRAM, FASTKL_NUM_THREADS=number) for number in ("1", "2", "5")}) == 1


def test_assert_alike_sees_a_scalar():
    assert_alike(special.entr, scipy_special.entr, 0.5, rtol=4 * EPS)
