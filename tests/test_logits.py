"""Softmaxes from their logits: every function, level, type and layout, against exact values."""

import inspect
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from logits_oracle import METRICS, assert_gradients, assert_logits, exact, exact_gradients, measure
from oracles import bfloat16_bits, exact_values, ulp_error
from test_accuracy import numbers, read

import fastkl
from fastkl import logits, reference
from fastkl._kernels import _batch, _engine
from fastkl._validation import LOGITS_METRICS

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 97, 1000)
LONG = (4095, 4097, 9000)  # around the length of the blocks in which long rows are read
TYPES = ("float64", "float32", "float16", "bfloat16")
TEMPERATURES = (1e-3, 0.07, 0.5, 1.0, 3.0, 20.0, 1e3)
DIVERGENCES = ("kl", "reverse_kl", "js", "js_distance")

each_type = pytest.mark.parametrize("type_name", TYPES)
each_metric = pytest.mark.parametrize("name", METRICS)
both_modules = pytest.mark.parametrize("module", [fastkl, reference], ids=["fastkl", "reference"])


@pytest.fixture(params=[*_engine.usable_levels(), "reference"])
def module(request):
    """The compiled functions at each level, and their twins."""
    if request.param == "reference":
        yield reference
        return
    before = fastkl.simd_level()
    fastkl.set_simd_level(request.param)
    yield fastkl
    fastkl.set_simd_level(before)


def cast(rows, type_name):
    """The rows in a type, and the options that the type needs."""
    if type_name == "bfloat16":
        return bfloat16_bits(rows), {"dtype": "bfloat16"}
    return np.asarray(rows).astype(type_name), {}


def pairs(rng, length, n=23):
    """Pairs of rows of all the kinds that one batch may hold side by side."""
    p, q = rng.standard_normal((2, n, length)) * 3
    q[1] = p[1]
    q[2] = p[2] + 1e-3 * rng.standard_normal(length)
    q[3] = p[3] + 5
    p[4], q[4] = p[4] * 3000, q[4] * 3000  # to ±1e4: all mass in one cell, and hardly ever in the same
    p[5], q[5] = 2.0, -1.0
    q[6] = p[6] * (1 + 2.0**-20)
    if n > 7:
        masked = rng.random(length) < 0.3
        p[7, masked], q[8, masked] = -np.inf, -np.inf
        p[9, masked], q[9, masked] = -np.inf, -np.inf
        p[10, masked], q[10, ~masked] = -np.inf, -np.inf
        p[11, : length // 2], q[11, : length // 3] = -np.inf, -np.inf
        q[12, -1] = np.inf
        p[13, 0] = np.nan
        p[14], q[15] = -np.inf, -np.inf
        p[16, :-1], q[17, 1:] = -np.inf, -np.inf
        p[18] *= 20  # hard labels: entropies near 0
        p[19], q[19] = p[19] * 20, p[19] * 20 + rng.standard_normal(length)
    return p, q


# ---------------------------------------------------------------------------------------------------------------------
# Values


@each_type
@each_metric
def test_contract(name, type_name, module, rng):
    for length in LENGTHS:
        (p, types), (q, _) = (cast(x, type_name) for x in pairs(rng, length, 23 if length < 100 else 7))
        result = measure(module, name, p, q, **types)
        assert result.dtype == (np.float64 if type_name == "float64" else np.float32)
        assert_logits(module, name, result, p, q, **types)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@each_metric
def test_stored_cases(name, type_name, level):
    """The hard ones, with their exact values as bit patterns; see ``data/make_logits_cases.py``."""
    pairs = {line["case"]: [numbers(line[x], type_name) for x in "pq"] for line in read("logits", type_name)}
    failures = []
    n_seen = 0
    for line in read("expected-logits", type_name):
        if line["metric"] != name:
            continue
        n_seen += 1
        p, q = pairs[line["case"]]
        (expected,) = numbers(line["value"], type_name)
        # Alone, and in a batch, where short rows go through other code.
        result = measure(fastkl, name, p, q, temperature=float(line["temperature"]))
        batch = measure(fastkl, name, np.tile(p, (19, 1)), np.tile(q, (19, 1)), temperature=float(line["temperature"]))
        assert batch.tobytes() == result.tobytes() * 19, (line, result, batch)
        if math.isfinite(expected):
            error = ulp_error(result, Fraction(float(expected)))
        else:
            error = 0 if np.array_equal(result, expected, equal_nan=True) else math.inf
        if not error <= float(line["ulp"]):
            failures.append(f"{line}: {result!r} is not {expected!r}: {error:.3g} ulp")
    assert n_seen == 3 * len(pairs)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("type_name", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ["kl", "js", "cross_entropy"])
def test_rows_of_several_blocks(name, type_name, module, rng):
    for length in LONG:
        p, q = pairs(rng, length, 7)
        p[0, -1], q[0, 0] = 30, 25  # a largest logit that comes late, and one that comes early
        q[6] = p[6] * (1 + 1e-9)
        (p, types), (q, _) = (cast(x[[0, 2, 6]], type_name) for x in (p, q))
        assert_logits(module, name, measure(module, name, p, q, **types), p, q, **types)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("name", ["kl", "js", "entropy"])
def test_largest_logits_along_a_long_row(name, type_name, module, rng):
    """What a sum that is built block by block is measured by changes on the way: once, at each step, or back and forth;
    blocks without any mass; differences that drift along the row."""
    length = 9000
    p, q = rng.standard_normal((2, 9, length))
    p[0, 5000], q[0, 5001] = 60, 90
    p[1] += np.linspace(-400, 400, length)
    q[1] += np.linspace(400, -400, length)
    p[2] += np.linspace(-2000, 0, length)
    q[2] = p[2] + 1e-6 * rng.standard_normal(length)
    p[3, :5000], q[3, :4096] = -np.inf, -np.inf
    p[3, 7000:], q[3, 8192:] = -np.inf, -np.inf
    q[4] = p[4] + np.linspace(-1, 1, length) ** 3
    q[5] = p[5] + 100 + np.linspace(0, 1e-7, length)
    p[6] += 50 * (np.arange(length) // 1000)
    q[6] = p[6] + 3 * (np.arange(length) // 3000)
    p[7] += 300 * np.sin(np.arange(length) / 700)
    q[7] = p[7] * 1.01
    p[8] += np.linspace(0, 9000, length)  # q's mass lies where p's weights are nothing beside those to come
    p, q = p.astype(type_name), q.astype(type_name)
    assert_logits(module, name, measure(module, name, p, q), p, q)


@pytest.mark.parametrize("type_name", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", ["kl", "entropy"])
def test_a_vocabulary(name, type_name, module):
    """Rows of 151,936 logits, against others and against nearly the same."""
    rng = np.random.default_rng(8)
    p = rng.standard_normal(151_936) * 2
    p[rng.integers(0, p.size, 20)] += 12
    for q in (rng.standard_normal(p.size) * 2, p + 1e-3 * rng.standard_normal(p.size)):
        (a, types), (b, _) = (cast(x, type_name) for x in (p, q))
        assert_logits(module, name, measure(module, name, a, b, **types), a, b, **types)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("type_name", ["float64", "float32"])
@each_metric
def test_temperature(name, type_name, temperature, module, rng):
    for length in (2, 9, 33, 97):
        (p, _), (q, _) = (cast(x, type_name) for x in pairs(rng, length))
        result = measure(module, name, p, q, temperature=temperature)
        assert_logits(module, name, result, p, q, temperature=temperature)


@pytest.mark.parametrize("offset", [0, 5, 1000])
@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_nearly_equal(name, type_name, offset, module, rng):
    """Differences from 0.1 down to one last bit, with a constant between the two sides or without."""
    for length in (2, 5, 16, 33, 100, 1000):
        p = (rng.standard_normal(length) * 3).astype(type_name)
        last_bit = p + p.dtype.type(offset)
        last_bit[length // 2] = np.nextafter(last_bit[length // 2], np.inf, dtype=p.dtype)
        rows = [last_bit, np.nextafter(p + p.dtype.type(offset), np.where(rng.random(length) < 0.5, -1e9, 1e9))]
        for exponent in range(-16, 0):
            rows.append(p + offset + 10.0**exponent * rng.standard_normal(length))
        q = np.stack(rows).astype(type_name)
        p = np.broadcast_to(p, q.shape)
        for temperature in (1.0, 0.3):
            result = measure(module, name, p, q, temperature=temperature)
            assert_logits(module, name, result, p, q, temperature=temperature)
            assert (result >= 0).all()


def test_divergences_of_nearly_equal_float32_rows_have_digits(module, rng):
    """It is not the slack of the contract that lets the test above pass: float32 rows have digits where D is 1e-13."""
    p = (rng.standard_normal((20, 1000)) * 3).astype(np.float32)
    q = np.nextafter(p, np.where(rng.random(p.shape) < 0.5, -1e9, 1e9).astype(np.float32))
    expected = exact("kl", p, q).astype(np.float64)
    assert (expected < 1e-12).all() and (expected > 1e-14).all()
    np.testing.assert_allclose(module.kl_divergence_from_logits(p, q), expected, rtol=3e-6)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("name", ["entropy", "cross_entropy", "kl", "js"])
def test_nearly_all_mass_in_one_cell(name, type_name, module, rng):
    gaps = np.concatenate([[0.0], np.geomspace(1e-3, 800, 60)])
    for length in (2, 3, 9, 40):
        p, q = np.zeros((2, gaps.size, length))
        at = length // 2
        p[:, at] = gaps
        q[:, at] = gaps * 1.25
        p, q = p.astype(type_name), q.astype(type_name)
        assert_logits(module, name, measure(module, name, p, q), p, q)
        q = (p + 1e-3 * rng.standard_normal(p.shape)).astype(type_name)
        assert_logits(module, name, measure(module, name, p, q), p, q)
        p[-4:, at], q[:] = [1250, 5000, 1e4, 1e5], 0.0
        for a, b in ((p, q), (q, p)):
            assert_logits(module, name, measure(module, name, a, b), a, b)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_rows(name, type_name, module, rng):
    """Exactly 0, masked or not, at every temperature; and with a constant in between that the type can hold."""
    for length in (*LENGTHS, *LONG):
        p, _ = pairs(rng, length)
        p, types = cast(p[[0, 1, 4, 5, 7, 9, 16]], type_name)
        valid = (exact_values(p, types.get("dtype")) > -np.inf).any(-1)
        for temperature in TEMPERATURES:
            result = measure(module, name, p, p.copy(), temperature=temperature, **types)
            assert not result[valid].any() and np.isnan(result[~valid]).all()
        grid = rng.integers(-40, 40, (5, length)) / 8
        for constant in (-7.0, 3.0, 16.0):
            shifted, _ = cast(grid + constant, type_name)
            result = measure(module, name, cast(grid, type_name)[0], shifted, temperature=0.7, **types)
            assert (np.abs(result) <= (1e-15 if name == "js_distance" else 1e-30)).all()


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@each_metric
def test_ends_of_the_range(name, type_name, module, rng):
    """Logits whose differences, divided by the temperature, are beyond all exponents of a float."""
    for scale in (1e4, 1e30) if type_name == "float32" else (1e4, 1e30, 1e250):
        for length in (1, 2, 9, 33):
            p, q = (rng.standard_normal((2, 12, length)) * scale).astype(type_name)
            q[6:] = p[6:] * q.dtype.type(1 + 1e-3)
            for temperature in (1e-3, 1.0, 1e3):
                result = measure(module, name, p, q, temperature=temperature)
                assert_logits(module, name, result, p, q, temperature=temperature)
    smallest = np.array([[0, 5e-324, 1e-310], [1e-45, 0, 3e-39]]).astype(type_name)
    for temperature in (1e-3, 1.0):
        result = measure(module, name, smallest, smallest[::-1], temperature=temperature)
        assert_logits(module, name, result, smallest, smallest[::-1], temperature=temperature)


@pytest.mark.parametrize("type_name", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_masks_of_either_side(name, type_name, module, rng):
    """Where q masks all that p has, q lies where p is next to nothing, below what weights are told apart by."""
    for length in (17, 33, 129):
        p, _ = cast(rng.standard_normal((12, length)) * 4, type_name)
        q, types = cast(p + rng.standard_normal((12, length)) / 100, type_name)
        p[rng.random(p.shape) < 0.3] = -np.inf
        q[rng.random(q.shape) < 0.3] = -np.inf
        q[np.arange(6), p[:6].argmax(-1)] = -np.inf
        for temperature in (1e-3, 0.05, 1.0):
            result = measure(module, name, p, q, temperature=temperature, **types)
            assert_logits(module, name, result, p, q, temperature=temperature, **types)


@pytest.mark.parametrize("type_name", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_mass_that_moves_far(name, type_name, module, rng):
    """Elements of which one side has next to all and the other next to nothing, beside others that both have."""
    for length in (17, 33, 129):
        for by in (15.0, 30.0, 70.0):
            p, _ = cast(rng.standard_normal((12, length)) * 4, type_name)
            q = p + rng.standard_normal((12, length)).astype(p.dtype)
            p[:4, 0] += p.dtype.type(by)
            p[4:8][rng.random((4, length)) < 0.7] -= p.dtype.type(by)
            q[8:][rng.random((4, length)) < 0.7] -= p.dtype.type(by)
            assert_logits(module, name, measure(module, name, p, q), p, q)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_logits_of_any_size(name, type_name, module, rng):
    """One logit, a row of them, or all but one, so large that nothing of the others is left beside them."""
    for length in (9, 25, 33, 322):
        for size in (1e9, 1e12, 1e15, 1e18, 1e30):
            p, q = (cast(rng.standard_normal((8, length)) * 4, type_name)[0] for _ in range(2))
            p[0, 3] = q[1, length - 1] = size
            q[2] = -size
            q[3], q[3, 4] = size, 3
            p[4, 5] = q[4, 7] = size
            p[5] += p.dtype.type(size)
            q[6, 2] = p[6, 2] = -size
            q[7, 1], q[7, 2] = -np.inf, size
            for temperature in (0.5, 1.0):
                result = measure(module, name, p, q, temperature=temperature)
                assert_logits(module, name, result, p, q, temperature=temperature)


@pytest.mark.parametrize("base", [2, 10, 0.5, 1.0000001])
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "cross_entropy", "entropy"])
def test_base(name, base, module, rng):
    p, q = pairs(rng, 33)
    assert_logits(module, name, measure(module, name, p, q, base=base), p, q, base=base)
    p, q = p.astype(np.float32), q.astype(np.float32)
    assert_logits(module, name, measure(module, name, p, q, base=base), p, q, base=base)


@pytest.mark.parametrize("weight", [0, 1e-9, 0.1, 2 / 3, 1 - 2**-53, 1])
@pytest.mark.parametrize("name", ["js", "js_distance"])
def test_weight(name, weight, module, rng):
    for type_name in ("float64", "float32"):
        (p, _), (q, _) = (cast(x, type_name) for x in pairs(rng, 33))
        result = measure(module, name, p, q, weight=weight)
        assert_logits(module, name, result, p, q, weight=weight)


# What comes of logits next to (0, …, 0): of p and q at one place.
CASES = [
    ((np.nan, 0.0), dict.fromkeys(METRICS, np.nan)),
    ((0.0, np.nan), dict.fromkeys(METRICS, np.nan) | {"entropy": 0.0}),
    ((np.inf, 0.0), dict.fromkeys(METRICS, np.nan)),
    ((0.0, np.inf), dict.fromkeys(METRICS, np.nan) | {"entropy": 0.0}),
    ((np.inf, np.inf), dict.fromkeys(METRICS, np.nan)),
    ((0.0, -np.inf), {"kl": np.inf, "reverse_kl": 0.0, "cross_entropy": np.inf, "js": 0.0, "js_distance": 0.0}),
    ((-1e4, -np.inf), {"kl": np.inf, "cross_entropy": np.inf}),
    ((-np.inf, 0.0), {"kl": 0.0, "reverse_kl": np.inf, "cross_entropy": 0.0}),
    ((-np.inf, -np.inf), {"kl": 0.0, "reverse_kl": 0.0, "js": 0.0, "cross_entropy": 0.0, "top1_agreement": 0.0}),
]  # 0.0 stands for what is finite


@pytest.mark.parametrize(("numbers", "expected"), CASES, ids=str)
def test_corner_cases(numbers, expected, module):
    """In every place of a row, whatever its length; the other rows are not touched."""
    for length in (2, 3, 9, 17, 300, 5000):
        for at in {0, length // 2, length - 1}:
            p, q = np.zeros((2, 3, length))
            p[:, 0], q[:, -1] = 1.0, 1.5
            untouched = module.score_from_logits(p[:1], q[:1], METRICS)
            p[1, at], q[1, at] = numbers
            result = module.score_from_logits(p, q, METRICS)
            for name, number in expected.items():
                if number == 0:
                    assert np.isfinite(result[name][1]), name
                else:
                    np.testing.assert_equal(result[name][1], number, err_msg=name)
            for name in METRICS:
                np.testing.assert_allclose(result[name][[0, 2]], untouched[name][0], rtol=1e-13)


def test_rows_without_mass(module):
    nothing, row = np.full(5, -np.inf), np.arange(5.0)
    for p, q in ((nothing, row), (row, nothing), (nothing, nothing)):
        for name, value in module.score_from_logits(p, q, METRICS).items():
            assert np.isnan(value) or (name == "entropy" and p is row)


def test_top1_agreement_takes_the_first_of_equal_logits(module, rng):
    for length in (1, 2, 9, 40, 5000):
        p, q = rng.integers(0, 3, (2, 60, length)).astype(np.float32)
        q[::2] = p[::2]
        p[5, : length // 2] = -np.inf
        result = module.score_from_logits(p, q, ("top1_agreement",), temperature=0.1, base=2)["top1_agreement"]
        np.testing.assert_array_equal(result, p.argmax(-1) == q.argmax(-1))
        assert result.dtype == np.float32


@both_modules
def test_score(module, rng):
    """A metric has the bits that the function of its name has."""
    for length in LENGTHS:
        for type_name in ("float64", "float32"):
            p, q = (x.astype(type_name) for x in pairs(rng, length))
            common = {"temperature": 0.7, "base": 3}
            scores = module.score_from_logits(p, q, METRICS, weight=0.3, **common)
            assert tuple(scores) == METRICS
            for name in METRICS:
                options = common | ({"weight": 0.3} if name.startswith("js") else {})
                single = measure(module, name, p, q, **options)
                assert scores[name].tobytes() == single.tobytes(), (name, length)
    assert tuple(module.score_from_logits(p, q)) == ("kl", "reverse_kl", "js")


@pytest.mark.parametrize("name", [name for name in METRICS if name != "reverse_kl"])
def test_layouts_and_broadcasting(name, module, rng):
    p, q = pairs(rng, 17)
    expected = measure(module, name, p, q)

    def agrees(result, values=expected):
        np.testing.assert_allclose(result, values, rtol=1e-13, atol=1e-30)

    agrees(measure(module, name, p.T, q.T.copy(), axis=0))
    agrees(measure(module, name, np.asfortranarray(p), q[:, ::-1].copy()[:, ::-1]))
    agrees(measure(module, name, p.astype(">f8"), np.repeat(q, 2, 1)[:, ::2]))
    agrees(measure(module, name, p[:, None, :], q[:, None, :], axis=2, keepdims=True)[:, 0, 0])
    if name != "entropy":
        table = measure(module, name, p[:, None], q)
        agrees(np.diagonal(table))
        agrees(measure(module, name, p[0], q), table[0])
        agrees(measure(module, name, p, q[:1]), table[:, 0])
    out = np.full((23, 1), -1.0)
    assert measure(module, name, p, q, keepdims=True, out=out) is out if name != "top1_agreement" else True
    if name != "top1_agreement":
        agrees(out[:, 0])
        over = p.copy()
        agrees(measure(module, name, over, q, out=over[:, 3]))


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@each_type
def test_gradients(type_name, module, rng):
    for length in (1, 2, 3, 8, 9, 17, 33, 97):
        (p, types), (q, _) = (cast(x, type_name) for x in pairs(rng, length, 23))
        for options in ({}, {"temperature": 0.3}, {"temperature": 20.0, "base": 2}):
            gradients = module.kl_divergence_from_logits_grad(p, q, **options, **types)
            for gradient in gradients:
                assert gradient.dtype == (np.float64 if type_name == "float64" else np.float32)
            assert_gradients(module, gradients, p, q, **options, **types)


def test_gradients_of_long_rows(module, rng):
    for length in (1000, 4097):
        p, q = rng.standard_normal((2, 3, length)) * 2
        p[0, -5] = 12
        gradients = module.kl_divergence_from_logits_grad(p, q, temperature=0.8)
        assert_gradients(module, gradients, p, q, temperature=0.8)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_gradients_are_those_of_the_divergence(temperature, module, rng):
    """Finite differences with 80 digits."""
    p, q = rng.standard_normal((2, 6)) * 2
    grad_p, grad_q = module.kl_divergence_from_logits_grad(p, q, temperature=temperature, base=2)
    with mpmath.workdps(80):
        step = mpmath.mpf(10) ** -20
        for gradient, side in ((grad_p, 0), (grad_q, 1)):
            for i in range(6):
                values = []
                for sign in (-1, 1):
                    rows = [[mpmath.mpf(x) for x in row.tolist()] for row in (p, q)]
                    rows[side][i] += sign * step
                    values.append(_mpmath_kl(*rows, temperature) / mpmath.log(2))
                slope = (values[1] - values[0]) / (2 * step)
                assert abs(gradient[i] - slope) <= 1e-13 * max(1, *abs(gradient)) / temperature


def _mpmath_kl(a, b, temperature):
    logs = []
    for row in (a, b):
        scaled = [x / mpmath.mpf(temperature) for x in row]
        total = mpmath.log(mpmath.fsum(mpmath.exp(x) for x in scaled))
        logs.append([x - total for x in scaled])
    return mpmath.fsum(mpmath.exp(x) * (x - y) for x, y in zip(*logs, strict=True))


def test_gradients_where_the_divergence_is_infinite(module):
    p, q = np.zeros((2, 3, 4))
    q[0, 2] = -np.inf
    p[1, 2] = -np.inf
    q[2, 0] = np.nan
    grad_p, grad_q = module.kl_divergence_from_logits_grad(p, q)
    assert np.isnan(grad_p[[0, 2]]).all() and np.isnan(grad_q[2]).all()
    np.testing.assert_allclose(grad_q[0], [1 / 12, 1 / 12, -1 / 4, 1 / 12], rtol=1e-13)
    np.testing.assert_allclose(grad_q[1], [-1 / 12, -1 / 12, 1 / 4, -1 / 12], rtol=1e-13)
    np.testing.assert_allclose(grad_p[1], 0, atol=1e-16)
    assert grad_p[1, 2] == 0


def test_gradients_in_every_layout(module, rng):
    p, q = pairs(rng, 17)
    expected = module.kl_divergence_from_logits_grad(p, q)

    def agree(gradients, values=expected):
        for gradient, value in zip(gradients, values, strict=True):
            np.testing.assert_allclose(gradient, value, rtol=1e-12, atol=1e-16)

    agree([x.T for x in module.kl_divergence_from_logits_grad(p.T, q.T, axis=0)])
    agree([x[:, :, 0] for x in module.kl_divergence_from_logits_grad(p[..., None], q[..., None], axis=1)])
    agree(module.kl_divergence_from_logits_grad(p[:, ::-1].copy()[:, ::-1], np.asfortranarray(q).astype(">f8")))
    one = module.kl_divergence_from_logits_grad(p, q[0])
    assert one[1].shape == p.shape
    agree(one, module.kl_divergence_from_logits_grad(p, np.broadcast_to(q[0], p.shape)))
    table = module.kl_divergence_from_logits_grad(p[:, None], q)
    assert table[0].shape == (23, 23, 17)
    agree([x[np.arange(23), np.arange(23)] for x in table])
    agree(module.kl_divergence_from_logits_grad(p[0], q[0]), [x[0] for x in expected])


# ---------------------------------------------------------------------------------------------------------------------
# Distillation


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.0, 4.0, 1e3])
@each_type
def test_distillation_of_each_row(type_name, temperature, module, rng):
    for length in (2, 9, 33, 1000):
        (student, types), (teacher, _) = (cast(x, type_name) for x in pairs(rng, length, 23 if length < 100 else 7))
        options = {"temperature": temperature, **types}
        losses, gradient = module.distillation_loss(student, teacher, reduction="none", return_grad=True, **options)
        assert losses.dtype == gradient.dtype == (np.float64 if type_name == "float64" else np.float32)
        alone = module.distillation_loss(student, teacher, reduction="none", **options)
        for values in (losses, alone):
            assert_logits(module, "kl", values, teacher, student, factor=temperature**2, **options)
        if length < 100:
            assert_gradients(module, (gradient,), teacher, student, factor=temperature**2, **options)


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_distillation_of_a_batch(temperature, module, rng):
    student, teacher = rng.standard_normal((2, 4, 5, 11)) * 3
    for type_name in ("float64", "float32"):
        s, t = student.astype(type_name), teacher.astype(type_name)
        exact_sum = sum(exact("kl", t, s, temperature=temperature).ravel()) * temperature**2
        _, slope = exact_gradients(t, s, temperature=temperature)
        rtol = 1e-12 if type_name == "float64" else 2e-6
        for reduction, n in (("sum", 1), ("batchmean", 20)):
            loss, gradient = module.distillation_loss(
                s, t, temperature=temperature, reduction=reduction, return_grad=True
            )
            assert type(loss) is np.dtype(type_name).type and gradient.dtype == type_name
            assert loss == pytest.approx(float(exact_sum / n), rel=rtol)
            factor = temperature**2 / n
            np.testing.assert_allclose(gradient, factor * slope[0], rtol=0, atol=rtol * factor * slope[1].max())
            alone = module.distillation_loss(s, t, temperature=temperature, reduction=reduction)
            assert alone == pytest.approx(float(exact_sum / n), rel=rtol)
        assert module.distillation_loss(s, t, temperature=temperature) == alone


def test_distillation_is_that_of_pytorch(module, rng):
    torch = pytest.importorskip("torch")
    student, teacher = rng.standard_normal((2, 12, 30)) * 2
    s = torch.tensor(student, requires_grad=True)
    for temperature in (0.5, 1.0, 4.0):
        expected = torch.nn.functional.kl_div(
            torch.log_softmax(s / temperature, -1),
            torch.softmax(torch.tensor(teacher) / temperature, -1),
            reduction="batchmean",
        )
        (slope,) = torch.autograd.grad(expected * temperature**2, s)
        loss, gradient = module.distillation_loss(student, teacher, temperature=temperature, return_grad=True)
        assert loss == pytest.approx(expected.item() * temperature**2, rel=1e-12)
        np.testing.assert_allclose(gradient, slope.numpy(), rtol=1e-12, atol=1e-16)


def test_distillation_broadcasts(module, rng):
    student, teacher = rng.standard_normal((7, 5)), rng.standard_normal((3, 7, 5))
    loss, gradient = module.distillation_loss(student, teacher, temperature=2.0, return_grad=True)
    every = module.distillation_loss(np.broadcast_to(student, (3, 7, 5)), teacher, temperature=2.0, return_grad=True)
    assert gradient.shape == (3, 7, 5) and loss == every[0]
    np.testing.assert_array_equal(gradient, every[1])
    turned = module.distillation_loss(student.T, np.moveaxis(teacher, 2, 1), temperature=2.0, return_grad=True, axis=1)
    assert turned[0] == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(np.moveaxis(turned[1], 1, 2), gradient, rtol=1e-13)
    row, slope = module.distillation_loss(student[0], teacher[0, 0], return_grad=True)
    assert type(row) is np.float64 and slope.shape == (5,)
    assert row == pytest.approx(module.kl_divergence_from_logits(teacher[0, 0], student[0]), rel=1e-14)


def test_distillation_without_rows(module):
    for shape in ((0, 4), (3, 0, 4)):
        nothing = np.empty(shape, np.float32)
        loss, gradient = module.distillation_loss(nothing, nothing, return_grad=True)
        assert np.isnan(loss) and loss.dtype == np.float32 and gradient.shape == shape
        assert module.distillation_loss(nothing, nothing, reduction="sum") == 0
        assert module.distillation_loss(nothing, nothing, reduction="none").shape == shape[:-1]
        assert np.isnan(module.distillation_loss(nothing, nothing, invalid="raise"))


def test_distillation_of_rows_that_are_not_valid(module, rng):
    student, teacher = rng.standard_normal((2, 6, 5))
    student[4, 1] = np.nan
    for reduction in ("sum", "batchmean"):
        loss, gradient = module.distillation_loss(student, teacher, reduction=reduction, return_grad=True)
        assert np.isnan(loss) and np.isnan(gradient[4]).all() and np.isfinite(np.delete(gradient, 4, 0)).all()
    says = "^1 of 6 rows are invalid, the first at index 4: NaN in student_logits at position 1$"
    for reduction in ("sum", "batchmean", "none"):
        with pytest.raises(ValueError, match=says):
            module.distillation_loss(student, teacher, reduction=reduction, invalid="raise", return_grad=True)
    student[4, 1], teacher[5] = -np.inf, -np.inf
    with pytest.raises(ValueError, match="at index 5: every value is -inf in teacher_logits$"):
        module.distillation_loss(student, teacher, invalid="raise")
    loss, gradient = module.distillation_loss(student[:5], teacher[:5], invalid="raise", return_grad=True)
    assert loss == np.inf and np.isfinite(gradient).all()


@pytest.mark.parametrize("at_once", [1, 3, 7, 24, 100])
def test_long_batches_are_summed_in_stretches(at_once, monkeypatch, rng):
    """Which gives the same gradients, and the same sum but for the order of additions."""
    p, q = rng.standard_normal((2, 3, 8, 5, 4))
    turned = np.moveaxis(p, -1, 1), np.moveaxis(q, -1, 1).copy()
    operands = [((p, q), -1), ((p, q[0]), -1), ((p[:, :1], q[2]), -1), ((p[0, 0], q), -1), (turned, 1)]

    def results():
        for (a, b), axis in operands:
            yield fastkl.distillation_loss(a, b, reduction="sum", return_grad=True, axis=axis)
            yield fastkl.distillation_loss(a, b, temperature=3.0, return_grad=True, axis=axis)
            yield fastkl.kl_divergence_from_logits_grad(a, b, axis=axis)

    whole = list(results())
    monkeypatch.setattr(logits, "_ROWS_AT_ONCE", at_once)
    for expected, result in zip(whole, results(), strict=True):
        for x, y in zip(expected, result, strict=True):
            np.testing.assert_allclose(y, x, rtol=0 if np.ndim(x) else 1e-14)
    q[1, 2, :, 3] = np.nan
    for function in (fastkl.distillation_loss, fastkl.kl_divergence_from_logits_grad):
        with pytest.raises(ValueError, match=r"^5 of 120 rows are invalid, the first at index \(1, 2, 0\): NaN in "):
            function(p, q, invalid="raise")


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


REDUCTIONS = [
    "kl_divergence_from_logits", "js_divergence_from_logits", "js_distance_from_logits", "cross_entropy_from_logits",
    "entropy_from_logits",
]  # fmt: skip
PAIRS = [*(name for name in logits.__all__ if not name.startswith(("entropy", "distillation")))]


def test_the_kernels_know_the_names():
    assert LOGITS_METRICS == METRICS
    assert tuple(_batch.LOGITS_OPS) == (*METRICS, "kl_grad", "kl_grad_q")


@pytest.mark.parametrize("name", logits.__all__)
def test_the_twins_have_the_same_signature(name):
    compiled, twin = (inspect.signature(getattr(module, name)) for module in (fastkl, reference))
    assert compiled == twin


@both_modules
class TestArguments:
    @pytest.mark.parametrize("name", PAIRS)
    def test_shapes(self, module, name):
        function = getattr(module, name)
        with pytest.raises(ValueError, match=r"long .*: p_logits has shape \(2, 3\), q_logits has shape \(2, 1\)$"):
            function(np.ones((2, 3)), np.ones((2, 1)))
        with pytest.raises(ValueError, match=r"outside .*: p_logits has shape \(2, 3\), q_logits has shape \(4, 3\)$"):
            function(np.ones((2, 3)), np.ones((4, 3)))
        with pytest.raises(ValueError, match="must not be empty: p_logits has shape"):
            function(np.ones((2, 0)), np.ones((2, 0)))
        with pytest.raises(ValueError, match=r"no rows: p_logits has shape \(\)"):
            function(1.0, [1.0])
        with pytest.raises(np.exceptions.AxisError):
            function([1.0], [1.0], axis=1)

    def test_names_of_teacher_and_student(self, module):
        with pytest.raises(ValueError, match=r"teacher_logits has shape \(2, 4\), student_logits has shape \(2, 3\)$"):
            module.distillation_loss(np.ones((2, 3)), np.ones((2, 4)))
        with pytest.raises(TypeError, match="^student_logits has dtype complex128"):
            module.distillation_loss([1j], [1.0])

    def test_types(self, module):
        for name in PAIRS:
            with pytest.raises(TypeError, match="^p_logits has dtype complex128"):
                getattr(module, name)([1j], [1.0])
            with pytest.raises(TypeError, match="^q_logits is a masked array"):
                getattr(module, name)([1.0], np.ma.masked_array([1.0]))
        with pytest.raises(TypeError, match="^p_logits has dtype <U1"):
            module.entropy_from_logits(["a"])

    @pytest.mark.parametrize("name", logits.__all__)
    def test_options(self, module, name):
        function = getattr(module, name)
        row = [0.0, 1.0]
        operands = (row,) if name == "entropy_from_logits" else (row, row)
        for temperature in (0, -1.0, math.nan, math.inf, 10**400, -math.inf):
            with pytest.raises(ValueError, match=rf"^temperature must be a finite number > 0, got {temperature}$"):
                function(*operands, temperature=temperature)
        for temperature in ("1", None, [1.0], np.ones(1), 1j):
            with pytest.raises(TypeError, match=r"^temperature must be a number, got "):
                function(*operands, temperature=temperature)
        function(*operands, temperature=np.float32(2))
        with pytest.raises(ValueError, match="^n_threads must be at least 1, got 0$"):
            function(*operands, n_threads=0)
        with pytest.raises(ValueError, match="^invalid must be 'nan' or 'raise', got 'ignore'$"):
            function(*operands, invalid="ignore")
        with pytest.raises(ValueError, match="^dtype must be None or 'bfloat16', got 'float8'$"):
            function(*operands, dtype="float8")
        if name != "distillation_loss":
            with pytest.raises(ValueError, match="^base must be None, for nats, or a finite number > .*, got 1$"):
                function(*operands, base=1)
        if name.startswith(("js", "score")):
            with pytest.raises(ValueError, match="^weight must be between 0 and 1, got 2$"):
                function(*operands, weight=2)

    def test_base_of_a_distance(self, module):
        with pytest.raises(ValueError, match="> 1, got 0.5$"):
            module.js_distance_from_logits([1.0], [1.0], base=0.5)
        with pytest.raises(ValueError, match="> 1, got 0.5$"):
            module.score_from_logits([1.0], [1.0], ("kl", "js_distance"), base=0.5)

    def test_metrics(self, module):
        with pytest.raises(ValueError, match="^unknown metric 'renyi'; the metrics are kl, .*, top1_agreement$"):
            module.score_from_logits([1.0], [1.0], ("kl", "renyi"))
        with pytest.raises(ValueError, match="must name at least one metric"):
            module.score_from_logits([1.0], [1.0], ())
        with pytest.raises(TypeError, match="several names, got the string 'kl'"):
            module.score_from_logits([1.0], [1.0], "kl")
        assert list(module.score_from_logits([1.0], [1.0], iter(["js", "kl", "js"]))) == ["js", "kl"]

    def test_distillation(self, module):
        with pytest.raises(ValueError, match="^reduction must be 'batchmean', 'sum' or 'none', got 'mean'$"):
            module.distillation_loss([1.0], [1.0], reduction="mean")
        with pytest.raises(ValueError, match=r"^temperature must be between 1e-150 and 1e150, .*, got 1e\+200$"):
            module.distillation_loss([1.0], [1.0], temperature=1e200)

    @pytest.mark.parametrize("name", PAIRS)
    def test_invalid_rows(self, module, name):
        function = getattr(module, name)
        p, q = np.zeros((2, 4, 3))
        p[1, 2] = p[3, 0] = np.nan
        q[1, 0] = np.inf
        says = r"2 of 4 .* at index 1: NaN in p_logits at position 2; \+inf in q_logits at position 0$"
        with pytest.raises(ValueError, match=says):
            function(p, q, invalid="raise")
        p[:] = 0
        q[1, 0], q[2] = -np.inf, -np.inf
        with pytest.raises(ValueError, match="^1 of 4 .* at index 2: every value is -inf in q_logits$"):
            function(p, q, invalid="raise")
        function(p[:2], q[:2], invalid="raise")  # an infinite divergence is a result like any other
        with pytest.raises(ValueError, match="^the row is invalid: NaN in p_logits at position 0$"):
            function(*[np.full(2, np.nan)] * 2, invalid="raise")

    def test_invalid_rows_of_one_operand(self, module):
        p = np.zeros((3, 2))
        p[2] = -np.inf
        with pytest.raises(ValueError, match="^1 of 3 .* at index 2: every value is -inf in p_logits$"):
            module.entropy_from_logits(p, invalid="raise")
        out = np.empty(3)
        with pytest.raises(ValueError, match="1 of 3"):
            module.kl_divergence_from_logits(p, np.zeros(2), invalid="raise", out=out)
        np.testing.assert_array_equal(out, [0, 0, np.nan])

    @pytest.mark.parametrize("name", REDUCTIONS)
    def test_out_keepdims_and_empty_batches(self, module, name):
        function = getattr(module, name)

        def call(x, **options):
            return function(x, **options) if name == "entropy_from_logits" else function(x, x[::-1].copy(), **options)

        x = np.arange(24.0).reshape(2, 3, 4) ** 1.5
        expected = call(x, axis=1)
        out = np.empty((2, 1, 4))
        assert call(x, axis=1, keepdims=True, out=out) is out
        np.testing.assert_array_equal(out[:, 0], expected)
        with pytest.raises(ValueError, match=r"out has shape \(2, 4\) and dtype float32, but the result has shape"):
            call(x, axis=1, out=np.empty((2, 4), np.float32))
        assert call(np.empty((0, 3), np.float32)).dtype == np.float32
        assert call(np.empty((0, 3))).shape == (0,)
        assert type(call(np.ones(3))) is np.float64 and type(call(np.ones(3, np.float32))) is np.float32

    def test_result_types(self, module):
        for a, b, expected in (
            ("float32", "float64", np.float64), ("float16", "float32", np.float32), ("float16", "float16", np.float32),
            ("int8", "float32", np.float32), ("int64", "int64", np.float64), ("bool", "float16", np.float32),
        ):  # fmt: skip
            p, q = np.array([0, 1, 1]).astype(a), np.array([1, 1, 0]).astype(b)
            assert module.kl_divergence_from_logits(p, q).dtype == expected
            assert {x.dtype for x in module.kl_divergence_from_logits_grad(p, q)} == {np.dtype(expected)}
            loss, gradient = module.distillation_loss(p, q, return_grad=True)
            assert loss.dtype == gradient.dtype == expected
            assert_logits(module, "kl", module.kl_divergence_from_logits(p, q), p, q)

    def test_neither_warns_nor_sets_flags(self, module):
        rows = np.array([[math.nan, 1, 0], [math.inf, 1, 0], [-math.inf, -math.inf, -math.inf], [1e308, -1e308, 0],
                         [-math.inf, 800, -1e4], [0, 0, 0], [1, 0, 2]])  # fmt: skip
        with np.errstate(all="raise"):
            for temperature in (1e-3, 1.0, 1e3):
                module.score_from_logits(rows[:, None], rows, METRICS, temperature=temperature)
                module.kl_divergence_from_logits_grad(rows[:, None], rows, temperature=temperature)
                for reduction in ("sum", "batchmean", "none"):
                    module.distillation_loss(rows[3:, None], rows[3:], temperature=temperature, reduction=reduction)
