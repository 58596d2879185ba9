"""Every function, at every level, for every type and awkward lengths, against the exact values and the reference."""

import numpy as np
import pytest
from oracles import METRICS, VARIANTS, assert_contract, bfloat16_bits, exact_values, measure, variant_id

import fastkl
from fastkl import reference

# They straddle the lane widths.
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 97, 1000)
TYPES = ("float64", "float32", "float16", "bfloat16", "int64", "uint8")

# The reference divides each number by a rounded sum: it is right to some 1e-12 of the value and 1e-14 of the mass.
REFERENCE_RTOL, REFERENCE_ATOL = 1e-12, 1e-14


def cast(rows, type_name):
    """The rows in a type, with integers as counts, and the options that the type needs."""
    if type_name == "bfloat16":
        return bfloat16_bits(rows), {"dtype": "bfloat16"}
    scale = 100 if np.dtype(type_name).kind in "iu" else 1
    return (rows * scale).astype(type_name), {}


def pairs(rng, length):
    """Pairs of rows of all the kinds that one batch may hold side by side."""
    n = 19 if length <= 33 else 7
    p = rng.random((n, length)) + 0.01
    q = rng.random((n, length)) + 0.01
    q[1] = p[1]
    q[2] = p[2] * (1 + 1e-3 * rng.standard_normal(length))
    p[3, rng.random(length) < 0.3] = 0
    q[4, rng.random(length) < 0.3] = 0
    p[5], q[5] = p[5] ** 20, q[5] ** 20
    zero = rng.random(length) < 0.5
    p[6, zero], q[6, ~zero] = 0, 0
    return p, q


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_contract_and_reference(variant, normalize, type_name, level, rng):
    name, options = variant
    for length in LENGTHS:
        p, q = pairs(rng, length)
        (p, types), (q, _) = cast(p, type_name), cast(q, type_name)
        result = measure(fastkl, name, p, q, normalize=normalize, **options, **types)
        assert result.dtype == (np.float32 if type_name in ("float32", "float16", "bfloat16") else np.float64)
        assert_contract(name, result, p, q, normalize=normalize, **options, **types)

        expected = measure(reference, name, p, q, normalize=normalize, **options, **types)
        assert expected.dtype == result.dtype
        mass = 1 if normalize else max(exact_values(x, types.get("dtype")).sum(-1).max() for x in (p, q))
        # A power, a logarithm of it, and the division by alpha - 1 leave more of the mass's error.
        mass *= 1 / abs(1 - options["alpha"]) if options.get("alpha") in (0.5, 0.999) else 1
        np.testing.assert_allclose(
            result,
            expected,
            rtol=REFERENCE_RTOL + 16 * np.finfo(result.dtype).eps,
            atol=REFERENCE_ATOL * mass * (length if name == "wasserstein" else 1),
        )


@pytest.mark.parametrize("type_name", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "plain"])
def test_wasserstein_positions(normalize, type_name, level, rng):
    for length in LENGTHS:
        p, q = pairs(rng, length)
        (p, types), (q, _) = cast(p, type_name), cast(q, type_name)
        gaps = rng.random(length) * 10.0 ** rng.integers(-3, 3, length)
        gaps[rng.random(length) < 0.2] = 0
        for positions in (np.cumsum(gaps) - 7, np.cumsum(gaps).astype(np.float32), list(range(length))):
            options = {"positions": positions, "normalize": normalize, **types}
            result = fastkl.wasserstein_distance(p, q, **options)
            assert_contract("wasserstein", result, p, q, **options)


@pytest.mark.parametrize("base", [None, 2, 10, 0.5, 1.0000001])
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jeffreys", "js", "cross_entropy", "entropy", "renyi"])
def test_base(name, base, level, rng):
    p, q = pairs(rng, 33)
    options = {"base": base} | ({"alpha": 2} if name == "renyi" else {})
    assert_contract(name, measure(fastkl, name, p, q, **options), p, q, **options)


@pytest.mark.parametrize("weight", [0, 1e-9, 0.1, 0.5, 2 / 3, 1 - 2**-53, 1])
@pytest.mark.parametrize("name", ["js", "js_distance"])
def test_weight(name, weight, level, rng):
    p, q = pairs(rng, 33)
    for normalize in (True, False):
        options = {"weight": weight, "normalize": normalize}
        assert_contract(name, measure(fastkl, name, p, q, **options), p, q, **options)


@pytest.mark.parametrize("type_name", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["js", "js_distance", "kl"])
def test_rows_of_nearly_the_same_weight(name, type_name, level, rng):
    """Up to some difference of the sums the terms of the rows as they are will do, and beyond it they will not."""
    for length in (2, 5, 17, 40, 128, 300):
        p, q = rng.random((2, 60, length)) ** rng.choice([0.1, 1, 8], (60, 1)) + 1e-6
        p[:20, rng.random(length) < 0.4] = 0  # one row of a pair has nearly all of the divergence
        q[20:40] = p[20:40] + 1e-3 * rng.random((20, length))
        p[:, 0], q[:, -1] = 0.3, 0.2
        q *= p.sum(-1, keepdims=True) / q.sum(-1, keepdims=True)
        q[:, 0] *= 1 + rng.choice([-1, 1], 60) * np.exp2(-rng.uniform(10, 54, 60))
        (p, types), (q, _) = cast(p, type_name), cast(q, type_name)
        assert_contract(name, measure(fastkl, name, p, q, **types), p, q, **types)


@pytest.mark.parametrize("alpha", [0, 1e-9, 0.1, 0.5, 1 - 1e-9, 1, 1 + 1e-9, 1.5, 2, 3, 30, 1e6, np.inf])
def test_alpha(alpha, level, rng):
    p, q = pairs(rng, 33)
    for normalize in (True, False):
        options = {"alpha": alpha, "normalize": normalize}
        assert_contract("renyi", fastkl.renyi_divergence(p, q, **options), p, q, **options)


def test_score(level, rng):
    """A metric has the bits that the function of its name has."""
    for length in LENGTHS:
        p, q = pairs(rng, length)
        positions = np.cumsum(rng.random(length))
        for normalize in (True, False):
            single = {
                name: measure(fastkl, name, p, q, normalize=normalize, **options)
                for name, options in {
                    **{metric: {"base": 3} for metric in METRICS},
                    "js": {"base": 3, "weight": 0.3},
                    "js_distance": {"base": 3, "weight": 0.3},
                    "renyi": {"base": 3, "alpha": 2},
                    "total_variation": {},
                    "hellinger": {},
                    "wasserstein": {"positions": positions},
                }.items()
            }
            options = {"base": 3, "weight": 0.3, "alpha": 2, "positions": positions, "normalize": normalize}
            for metrics in (METRICS, METRICS[::-1], *((name,) for name in METRICS), METRICS[2:5]):
                scores = fastkl.score(p, q, metrics, **options)
                assert tuple(scores) == metrics
                for name in metrics:
                    assert scores[name].tobytes() == single[name].tobytes(), (name, metrics, length)
    assert tuple(fastkl.score(p, q)) == ("kl", "reverse_kl", "js")
