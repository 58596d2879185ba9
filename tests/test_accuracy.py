"""The hard inputs: rows on which the usual formulas lose everything, from K = 1 to a million.

The small cases are stored with their exact values as bit patterns; see ``data/make_accuracy_cases.py``.
"""

import csv
import math
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from oracles import (
    BOUNDS,
    METRICS,
    VARIANTS,
    assert_contract,
    exact_row,
    measure,
    nearest,
    ulp,
    ulp_error,
    variant_id,
)

import fastkl

DATA = Path(__file__).parent / "data"
ALPHAS = {"renyi": {"alpha": 0.7}}


def read(kind, type_name):
    with open(DATA / f"{kind}-{type_name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def numbers(bits, type_name):
    unsigned = np.uint64 if type_name == "float64" else np.uint32
    return np.array([int(x, 16) for x in bits.split()], unsigned).view(type_name)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_stored_cases(variant, type_name, level):
    name, options = variant
    option = "".join(f"{key}={value}" for key, value in options.items())
    pairs = {line["case"]: [numbers(line[x], type_name) for x in "pq"] for line in read("pairs", type_name)}
    failures = []
    n_seen = 0
    for line in read("expected", type_name):
        if (line["metric"], line["option"]) != (name, option):
            continue
        n_seen += 1
        p, q = pairs[line["case"]]
        normalize = line["normalize"] == "True"
        (expected,) = numbers(line["value"], type_name)
        # Alone, and in a batch, where short rows go through other code.
        result = measure(fastkl, name, p, q, normalize=normalize, **options)
        batch = measure(fastkl, name, np.tile(p, (19, 1)), q, normalize=normalize, **options)
        assert batch.tobytes() == result.tobytes() * 19, (line["case"], normalize, result, batch)
        if math.isfinite(expected):
            error = ulp_error(result, Fraction(float(expected)))
        else:
            error = 0 if np.array_equal(result, expected, equal_nan=True) else math.inf
        if not error <= Fraction(line["ulp"]):
            failures.append(f"{line['case']}, {normalize=}: {result!r} is not {expected!r}: {error:.3g} ulp")
    assert n_seen == 2 * len(pairs)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("name", METRICS)
def test_nearly_equal(name, type_name, level, rng):
    """Relative differences from a last bit up; sums that agree, nearly agree, and don't."""
    for length in (2, 5, 33, 100, 1000):
        p = (rng.random(length) + 0.01).astype(type_name)
        last_bit = p.copy()
        last_bit[length // 2] = np.nextafter(p[length // 2], 2, dtype=p.dtype)
        rows = [last_bit, np.nextafter(p, np.where(rng.random(length) < 0.5, 0, 2).astype(type_name))]
        for exponent in range(-16, -2):
            rows.append((p * (1 + 10.0**exponent * rng.standard_normal(length))).astype(type_name))
        q = np.stack([row * p.dtype.type(scale) for row in rows for scale in (1, 4, 5)])
        p = np.broadcast_to(p, q.shape)
        options = ALPHAS.get(name, {})
        assert_contract(name, measure(fastkl, name, p, q, **options), p, q, **options)
        assert_contract(name, measure(fastkl, name, q, p, **options), q, p, **options)
        result = measure(fastkl, name, p, q, normalize=False, **options)
        assert_contract(name, result, p, q, normalize=False, **options)


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("name", METRICS)
def test_long_rows(name, type_name, level):
    """A row of 100,000: random, with a heavy head, nearly equal, half empty; p at the places of q in another order."""
    rng = np.random.default_rng(5)
    length = 100_000
    p = rng.random(length)
    head = 1 / np.arange(1, length + 1)
    near = np.nextafter(p.astype(type_name), np.dtype(type_name).type(2))
    half = np.where(rng.random(length) < 0.5, p, 0)
    options = ALPHAS.get(name, {})
    for a, b in ((p, head), (p, near), (half, p)):
        a, b = a.astype(type_name), b.astype(type_name)
        assert_contract(name, measure(fastkl, name, a, b, **options), a, b, **options)


@pytest.mark.parametrize("name", ["kl", "js", "cross_entropy", "entropy", "total_variation", "wasserstein"])
def test_a_million_bins(name, level):
    rng = np.random.default_rng(6)
    p = rng.random(1_000_000)
    q = p * (1 + 1e-12 * rng.standard_normal(1_000_000))
    assert_contract(name, measure(fastkl, name, p, q), p, q)


@pytest.mark.parametrize("type_name", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", METRICS)
def test_all_numbers_of_16_bits(name, type_name, level):
    """Every non-negative finite float16 or bfloat16 number against another, subnormal ones included."""
    n = 0x7C00 if type_name == "float16" else 0x7F80
    p = np.random.default_rng(7).permutation(np.arange(n, dtype=np.uint16)).reshape(-1, 128)
    q = p[:, ::-1].copy()
    types = {"dtype": "bfloat16"}
    if type_name == "float16":
        p, q, types = p.view(np.float16), q.view(np.float16), {}
    options = ALPHAS.get(name, {}) | types
    assert_contract(name, measure(fastkl, name, p, q, **options), p, q, **options)


# ---------------------------------------------------------------------------------------------------------------------
# The oracle itself


def test_oracle_agrees_with_mpmath(rng):
    """The normalised values again, by mpmath, from the definitions."""
    p, q = rng.random(9), rng.random(9)
    with mpmath.workdps(60):
        a, b = ([mpmath.mpf(x) / mpmath.fsum(row) for x in row.tolist()] for row in (p, q))
        both = list(zip(a, b, strict=True))
        log = mpmath.log
        w = mpmath.mpf(0.3)
        m = [w * x + (1 - w) * y for x, y in both]
        js = sum(w * x * log(x / z) + (1 - w) * y * log(y / z) for (x, y), z in zip(both, m, strict=True))
        flow = [abs(sum(x - y for x, y in both[: i + 1])) for i in range(9)]
        definitions = {
            ("kl", None): sum(x * log(x / y) for x, y in both),
            ("reverse_kl", None): sum(y * log(y / x) for x, y in both),
            ("jeffreys", None): sum((x - y) * log(x / y) for x, y in both),
            ("js", ("weight", 0.3)): js,
            ("js_distance", ("weight", 0.3)): mpmath.sqrt(js),
            ("cross_entropy", ("base", 2)): -sum(x * log(y, 2) for x, y in both),
            ("entropy", None): -sum(x * log(x) for x in a),
            ("renyi", ("alpha", 0)): mpmath.mpf(0),
            ("renyi", ("alpha", 0.5)): -2 * log(sum(mpmath.sqrt(x * y) for x, y in both)),
            ("renyi", ("alpha", 3)): log(sum(x**3 / y**2 for x, y in both)) / 2,
            ("renyi", ("alpha", math.inf)): log(max(x / y for x, y in both)),
            ("total_variation", None): sum(abs(x - y) for x, y in both) / 2,
            ("hellinger", None): mpmath.sqrt(1 - sum(mpmath.sqrt(x * y) for x, y in both)),
            ("wasserstein", None): sum(flow[:-1]),
            ("wasserstein", ("positions", tuple(i * i for i in range(9)))): sum(
                flow[i] * (2 * i + 1) for i in range(8)
            ),
        }
        for (name, option), value in definitions.items():
            exact = exact_row(name, p, q, **dict([option] if option else []))
            assert abs(mpmath.mpf(exact.value.numerator) / exact.value.denominator - value) < mpmath.mpf(10) ** -22


def test_oracle_agrees_with_closed_forms():
    third = np.array([1.0, 2.0])
    half = np.array([1.0, 1.0])
    one = np.array([1.0, 0.0])
    other = np.array([0.0, 1.0])
    tiny = np.array([1.0, 5e-324])
    assert exact_row("kl", half, one).value == math.inf
    assert float(exact_row("kl", one, half).value) == math.log(2)
    assert float(exact_row("js", one, other).value) == math.log(2)
    assert exact_row("total_variation", one, other).value == exact_row("hellinger", one, other).value == 1
    assert exact_row("total_variation", third, half).value == Fraction(1, 6)
    assert exact_row("wasserstein", third, half, positions=(0, 12)).value == 2
    assert exact_row("kl", third, 5 * third).value == exact_row("entropy", one, one).value == 0
    assert exact_row("kl", third, half, normalize=False).value == nearest_log_2() * 2
    assert float(exact_row("entropy", tiny, tiny).value / Fraction(2) ** -1074) == pytest.approx(1074 * math.log(2) + 1)
    assert math.isnan(exact_row("kl", np.zeros(2), half).value)
    assert exact_row("kl", np.zeros(2), half, normalize=False).value == 0


def nearest_log_2():
    return exact_row("entropy", np.ones(2), np.ones(2)).value


@pytest.mark.parametrize("type_name", ["float64", "float32"])
def test_ulp_error(type_name):
    """Neighbours are one ulp apart, over the whole range; infinities and NaN are right or infinitely wrong."""
    dtype = np.dtype(type_name)
    info = np.finfo(dtype)
    starts = [0, info.smallest_subnormal, info.smallest_normal / 2, info.smallest_normal, 0.7, 1, 3, info.max / 2]
    for x in np.array(starts, dtype):
        above = np.nextafter(x, dtype.type(np.inf))
        assert ulp_error(x, Fraction(float(x))) == 0
        assert ulp_error(above, Fraction(float(x))) == ulp_error(-above, -Fraction(float(x))) == 1
        assert ulp_error(x, (Fraction(float(x)) + Fraction(float(above))) / 2) == 0.5
        assert nearest(Fraction(float(above)), dtype) == above
    assert ulp(Fraction(float(info.max)), dtype) == Fraction(float(info.max - np.nextafter(info.max, dtype.type(0))))
    inf, nan = dtype.type(np.inf), dtype.type(np.nan)
    assert ulp_error(inf, math.inf) == ulp_error(nan, math.nan) == ulp_error(inf, 2 * Fraction(float(info.max))) == 0
    for result, exact in (
        (inf, 1),
        (nan, 1),
        (inf, -math.inf),
        (nan, math.inf),
        (inf, math.nan),
        (dtype.type(1), math.inf),
    ):
        assert ulp_error(result, exact) == math.inf


def test_bounds_name_every_metric():
    assert tuple(BOUNDS) == METRICS


# ---------------------------------------------------------------------------------------------------------------------
# Rounding that goes one way


def peaked(rng, rows, length):
    """Rows of one large element among equal ones, as smoothed labels are, at the first, the last or another place."""
    rest = 10.0 ** rng.uniform(-6, 0, (rows, 1))
    result = np.tile(rest, (1, length)) * rng.random((rows, 1))
    result[np.arange(rows), rng.choice([0, length - 1, length // 2], rows)] = rng.random(rows)
    return result


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@pytest.mark.parametrize("length", [2, 3, 10, 16, 17, 64, 256, 257, 1000])
def test_equal_elements_behind_a_peak(length, variant, type_name, level, rng):
    """Each of the equal terms is rounded the same way, and so are the sums while they are added to a large one."""
    name, options = variant
    p, q = peaked(rng, 12, length).astype(type_name), peaked(rng, 12, length).astype(type_name)
    assert_contract(name, measure(fastkl, name, p, q, **options), p, q, **options)


def test_smoothed_labels_float32(level):
    """5.4 ulp of KL, when four floats of a lane were added up in float."""
    p, q = (np.full(40, rest, np.float32) for rest in (0.00012198090553283691, 5.226479333941825e-05))
    p[22], q[31] = 0.5160316228866577, 0.15308532118797302
    for pair in ((p, q), (q, p)):
        p, q = (np.tile(row, (9, 1)) for row in pair)
        assert_contract("kl", measure(fastkl, "kl", p, q), p, q)


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("length", [31, 32, 128])
@pytest.mark.parametrize("kind", ["smoothed label", "two values", "few cells"])
def test_float32_rows_of_few_values(name, length, kind, level, rng):
    """Rows whose terms all have the same error, or whose sum is that of two or three: nothing averages out. Before its
    terms were nested, KL of one smoothed label in a million had 4.4 ulp, and half an ulp more by being rounded."""
    rows = 60_000
    p, q = np.zeros((2, rows, length))
    for x in (p, q):
        if kind == "few cells":
            np.put_along_axis(x, rng.integers(0, length, (rows, 4)), rng.random((rows, 4)), 1)
            x += 1e-7 * rng.random(x.shape)
        else:
            x[:] = rng.random((rows, 1)) * (10 ** -rng.uniform(0, 4, (rows, 1)) if kind == "smoothed label" else 1)
        if kind == "two values":
            x[:, ::3] = rng.random((rows, 1))
        if kind == "smoothed label":
            x[np.arange(rows), rng.integers(0, length, rows)] = length * (0.3 + rng.random(rows))
    p, q = (np.float32(x / x.sum(1, keepdims=True)) for x in (p, q))
    exact = measure(fastkl, name, np.float64(p), np.float64(q))
    errors = np.abs(measure(fastkl, name, p, q) - exact) / np.spacing(exact.astype(np.float32))
    assert errors.max() <= BOUNDS[name][1], (p[errors.argmax()], q[errors.argmax()])


@pytest.mark.parametrize("type_name", ["float64", "float32"])
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "jeffreys"])
def test_ratios_at_the_seam_of_the_octaves(name, type_name, level, rng):
    """Where log(p/q) is put together from an octave and a remainder, of opposite signs; the sums are not 1."""
    for length in (2, 3, 17):
        p = rng.random((200, length)) + 0.05
        q = p * rng.uniform(1.3, 1.55, p.shape) ** rng.choice([-1, 1], p.shape) * rng.uniform(0.5, 2, (200, 1))
        p, q = p.astype(type_name), q.astype(type_name)
        assert_contract(name, measure(fastkl, name, p, q), p, q)


def nearly_proportional(kind, length, rng):
    """p and q whose shares are equal but for a last bit, or but for cells down to 1e-290 of the mass."""
    p = rng.random(length) + 0.01
    tiny = 10.0 ** -rng.integers(20, 290)
    if kind == "rounded":
        return p, p * rng.uniform(0.3, 30)
    if kind == "one bit":
        q = 3 * np.round(p * 2**40)
        p = q / 3
        q[0] = np.nextafter(q[0], 0)
        return p, q
    if kind == "counts":
        p = np.ceil(1000 * p)
        return p, p / p.sum()
    p *= tiny
    q = p * rng.uniform(0.5, 2, length)
    heavy = 1 if kind == "one heavy cell" else min(3, length - 1)
    p[:heavy], q[:heavy] = 1, rng.choice([1, 3, 0.1])
    return p, q


@pytest.mark.parametrize("kind", ["rounded", "one bit", "counts", "one heavy cell", "heavy cells"])
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jeffreys", "js", "js_distance", "total_variation", "hellinger"])
def test_nearly_proportional(name, kind, level, rng):
    """Where p - c q is so small that c = sum(p)/sum(q) counts to more than twice the working precision."""
    for length in (2, 3, 17, 40, 300):
        pairs = [nearly_proportional(kind, length, rng) for _ in range(4)]
        p, q = (np.stack(rows) for rows in zip(*pairs, strict=True))
        assert_contract(name, measure(fastkl, name, p, q), p, q)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 2, 3])
def test_renyi_of_nearly_proportional_rows_with_a_peak(alpha, level, rng):
    """What the peak leaves the others is so little that no c of two doubles is exact enough for it."""
    for length in (2, 5, 12, 40):
        p = rng.integers(1, 5, (30, length)).astype(float)
        p[np.arange(30), rng.integers(length, size=30)] = 3.4 * 10.0 ** rng.integers(20, 39, 30)
        q = p * (1 + 10.0 ** rng.integers(-16, -10, (30, 1)) * rng.standard_normal(p.shape))
        assert_contract("renyi", fastkl.renyi_divergence(p, q, alpha=alpha), p, q, alpha=alpha)


@pytest.mark.parametrize("weight", [1e-9, 0.05, 0.3, 0.45, 0.9])
def test_weights_far_apart(weight, level, rng):
    """The rounding of the mean moves both terms of a cell, and only if both know of it does that cancel."""
    p, q = rng.random((300, 3)) ** 3, rng.random((300, 3)) ** 3
    assert_contract("js", measure(fastkl, "js", p, q, weight=weight), p, q, weight=weight)


# Rows on which earlier versions were wrong by 8 to 1e300 ulp.
FOUND = [
    ("kl", {}, [0.061873505734857726, 0.37487996481742536], [0.06059030302634252, 0.5193714401896727]),
    (
        "kl",
        {},
        [0.4841214238838033, 0.47409448487644323, 0.8355499807629566],
        [0.33416672213554055, 0.5098955218147867, 0.8362289562916696],
    ),
    (
        "js",
        {},
        [0.07965311737844871, 0.6653077852573103, 0.5469860204522158],
        [0.07195212997804695, 1.0836313667477877, 0.8225896655625782],
    ),
    ("js_distance", {}, [5e-319, 0.3, 0.6], [0, 0.3, 0.6]),
    ("hellinger", {}, [5e-319, 0.3, 0.6], [0, 0.3, 0.6]),
    ("total_variation", {}, [0.3, 0.6, 0.7, 0], [0.3, 0.6, 0.7, 1e-230]),
    ("entropy", {}, [3.7260542100669997e-90, 3.362408898273101e220], [1, 1]),
    ("entropy", {}, [2.3917305588126285e18, 2.684185772627143e-297], [1, 1]),
    ("cross_entropy", {"normalize": False}, [1e-290], [1e200]),
    ("cross_entropy", {"normalize": False}, [1e-290, 1e-291], [1e20, 1]),
    ("renyi", {"normalize": False, "alpha": 0.5}, [0.5, 0.5], [0.5, 0.5]),
    (
        "js",
        {"weight": 0.1},
        [0.7942351194182352, 0.6552117022720696, 0.16911002639223105],
        [0.35777489417142616, 0.27437711519422225, 0.13450565255105362],
    ),
    (
        "js",
        {"weight": 0.1},
        [0.8439860450923031, 0.5117797102402437, 0.3838013257400896],
        [0.6903348952805648, 0.4337115989441648, 0.4999663200632727],
    ),
    ("kl", {}, [44, 1375], [46, 1375]),
    (
        "kl",
        {},
        [0.0005988363939455535, 8.298224296464389e-05, 0.03601375229216931],
        [0.00028229418332013315, 3.688099687317506e-05, 0.016006112129853027],
    ),
]


def test_one_cell_apart(level):
    """Rows proportional but for a small cell: the rounding of its p - c q counts twice in the divergence."""
    rng = np.random.default_rng(2)
    p = rng.uniform(0.5, 2, (6000, 64))
    p[:, 1:] *= 30
    q = p.copy()
    q[:, 0] *= 1 + 0.06 * rng.choice([-1, 1]) * rng.uniform(0.9, 1.1, 6000)
    q *= 2.25
    chosen = [2797, *range(0, 6000, 40)]
    assert_contract("kl", fastkl.kl_divergence(p, q)[chosen], p[chosen], q[chosen])


@pytest.mark.parametrize("name, options, p, q", FOUND)
def test_rows_found_wrong(name, options, p, q, level):
    p, q = np.tile(p, (9, 1)), np.tile(q, (9, 1))
    result = measure(fastkl, name, p, q, **options)
    assert_contract(name, result, p, q, **options)
    assert not np.signbit(result[result == 0]).any()
