"""What the mathematics promises for every pair of rows, on rows that hypothesis looks for.

Results are within 8 ulps (`BOUNDS`) of exact values that obey these laws exactly, so each law holds between results to
the ulps of the values that it compares.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from logits_oracle import BOUND as LOGITS_BOUND
from logits_oracle import METRICS as LOGITS_METRICS
from logits_oracle import measure as measure_logits
from oracles import BOUNDS, METRICS, VARIANTS, ZERO_SLACK, measure, variant_id

import fastkl

EPS = 2.0**-52
TOLERANCE = {name: 2 * bounds[0] * EPS for name, bounds in BOUNDS.items()}  # between two results
OPTIONS = {"renyi": {"alpha": 0.6}}
DIVERGENCES = [name for name in METRICS if name not in ("entropy", "cross_entropy")]

number = st.one_of(
    st.just(0.0),
    st.floats(0, 1),
    st.floats(1e-250, 1e250),
    st.integers(0, 50).map(float),
    st.floats(0.99, 1.01),
)


@st.composite
def pairs(draw, number=number, min_size=1):
    """Two rows of the same length with mass; the second sometimes close to the first."""
    p = draw(st.lists(number, min_size=min_size, max_size=40))
    if draw(st.booleans()):
        q = draw(st.lists(number, min_size=len(p), max_size=len(p)))
    else:
        size = draw(st.sampled_from([1e-15, 1e-8, 1e-3]))
        change = draw(st.lists(st.floats(-1, 1), min_size=len(p), max_size=len(p)))
        q = [x * (1 + size * c) for x, c in zip(p, change, strict=True)]
    assume(any(p) and any(q))
    return np.array(p), np.array(q)


def close(a, b, rtol, atol=0.0):
    return a == b or abs(a - b) <= rtol * max(abs(a), abs(b)) + atol


def agree(name, a, b, length):
    """Whether two results for the same value are both within the contract."""
    slack = 2.0**-94 * length if name == "wasserstein" else 2 * float(ZERO_SLACK.get(name, 0))
    return close(a, b, TOLERANCE[name], slack)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@given(pairs())
def test_never_negative(variant, level, pair):
    name, options = variant
    result = measure(fastkl, name, *pair, **options)
    assert result >= 0 and not np.signbit(result)


@pytest.mark.parametrize("name", DIVERGENCES)
@given(pairs())
def test_zero_from_itself(name, level, pair):
    p, q = pair
    for row in (p, q):
        assert measure(fastkl, name, row, row.copy(), **OPTIONS.get(name, {})) == 0


@pytest.mark.parametrize("name", ["js", "js_distance", "jeffreys", "total_variation", "hellinger", "wasserstein"])
@given(pairs())
def test_symmetric(name, level, pair):
    p, q = pair
    assert agree(name, measure(fastkl, name, p, q), measure(fastkl, name, q, p), len(p))


@pytest.mark.parametrize("name", METRICS)
@given(pairs(), st.integers(-150, 150), st.integers(-150, 150))
def test_scale_does_not_matter(name, level, pair, i, j):
    p, q = pair
    options = OPTIONS.get(name, {})
    a, b = np.ldexp(p, i), np.ldexp(q, j)
    assume(np.all(np.ldexp(a, -i) == p) and np.all(np.ldexp(b, -j) == q))
    assert agree(name, measure(fastkl, name, a, b, **options), measure(fastkl, name, p, q, **options), len(p))


@pytest.mark.parametrize("name", [name for name in METRICS if name != "wasserstein"])
@given(pairs(), st.randoms(use_true_random=False))
def test_bins_may_be_permuted(name, level, pair, random):
    p, q = pair
    order = random.sample(range(len(p)), len(p))
    options = OPTIONS.get(name, {})
    assert agree(
        name, measure(fastkl, name, p, q, **options), measure(fastkl, name, p[order], q[order], **options), len(p)
    )


@given(pairs())
def test_upper_bounds(level, pair):
    p, q = pair
    assert fastkl.total_variation(p, q) <= 1
    assert fastkl.hellinger_distance(p, q) <= 1
    assert fastkl.js_divergence(p, q) <= math.log(2) * (1 + 8 * EPS)
    assert fastkl.js_distance(p, q, base=2) <= 1 + 8 * EPS
    assert fastkl.entropy(p) <= math.log(len(p)) * (1 + 9 * EPS)
    assert fastkl.wasserstein_distance(p, q) <= (len(p) - 1) * fastkl.total_variation(p, q) * (1 + 16 * EPS) + 2.0**-80


@given(pairs())
def test_inequalities(level, pair):
    """Pinsker; Hellinger and Rényi of order ½; total variation between the Hellinger bounds; JS under Jeffreys."""
    p, q = pair
    kl, tv = fastkl.kl_divergence(p, q), fastkl.total_variation(p, q)
    hellinger, js = fastkl.hellinger_distance(p, q), fastkl.js_divergence(p, q)
    more = 1 + 64 * EPS
    assert 2 * tv**2 <= kl * more + 2.0**-198
    assert hellinger**2 <= tv * more + 2.0**-99
    assert tv <= math.sqrt(2) * hellinger * more + 2.0**-99
    assert 2 * hellinger**2 <= kl * more + 2.0**-198
    assert 4 * js <= fastkl.jeffreys_divergence(p, q) * more + 2.0**-198
    assert js <= math.log(2) * tv * more + 2.0**-99


@given(pairs())
def test_sums_of_divergences(level, pair):
    p, q = pair
    kl, reverse = fastkl.kl_divergence(p, q), fastkl.kl_divergence(q, p)
    assert close(fastkl.jeffreys_divergence(p, q), kl + reverse, 20 * EPS, 2.0**-198)
    assert close(fastkl.cross_entropy(p, q), fastkl.entropy(p) + kl, 20 * EPS, 2.0**-199)
    assert close(fastkl.js_distance(p, q) ** 2, fastkl.js_divergence(p, q), 30 * EPS, 2.0**-198)
    assert close(fastkl.renyi_divergence(p, q, 1), kl, 0)


@given(pairs(), st.lists(st.floats(0, 20), min_size=2, max_size=4).map(sorted))
def test_renyi_increases_with_its_order(level, pair, orders):
    values = [fastkl.renyi_divergence(*pair, alpha) for alpha in (0, *orders, math.inf)]
    for lower, higher in pairwise(values):
        assert lower <= higher * (1 + 32 * EPS) + 2.0**-99


@given(pairs(st.integers(0, 2**20).map(float), min_size=2), st.data())
def test_merging_bins_loses_information(level, pair, data):
    """The data-processing inequality. (The numbers are integers, so that merging them is exact.)"""
    p, q = pair
    p, q = np.rint(p), np.rint(q)
    assume(p.any() and q.any())
    starts = data.draw(st.lists(st.integers(1, len(p) - 1), unique=True, max_size=len(p) - 1).map(sorted))
    a, b = (np.add.reduceat(x, [0, *starts]) for x in (p, q))
    for name in ("kl", "reverse_kl", "jeffreys", "js", "js_distance", "total_variation", "hellinger", "renyi"):
        options = OPTIONS.get(name, {})
        merged, whole = measure(fastkl, name, a, b, **options), measure(fastkl, name, p, q, **options)
        assert merged <= whole * (1 + 2 * TOLERANCE[name]) + 2 * float(ZERO_SLACK.get(name, 0)), name


@given(pairs(min_size=2), st.floats(-100, 100), st.sampled_from([0.25, 2.0, 1024.0]))
def test_wasserstein_positions(level, pair, origin, scale):
    """A power of two of the gaps is one of the distance; one wide gap counts only what crosses it."""
    p, q = pair
    positions = np.arange(len(p)) * 1.0
    plain = fastkl.wasserstein_distance(p, q)
    assert fastkl.wasserstein_distance(p, q, positions=positions) == plain
    assert fastkl.wasserstein_distance(p, q, positions=positions * scale) == scale * plain
    assert fastkl.wasserstein_distance(p, q, positions=np.full(len(p), origin)) == 0
    two = np.array([p[0], 0]), np.array([q[0], 0])
    if p[0] and q[0] and len(p) > 1:
        # Proportional by any factor: 0 up to the slack that the oracles state.
        assert fastkl.wasserstein_distance(*two, positions=[0, 5]) <= 5 * 2.0**-95


@given(pairs(), st.floats(0, 1), st.floats(0, 5), st.sampled_from([None, 2, 10]), st.booleans())
def test_score_is_the_single_functions(level, pair, weight, alpha, base, normalize):
    p, q = pair
    scores = fastkl.score(p, q, METRICS, weight=weight, alpha=alpha, base=base, normalize=normalize)
    for name in METRICS:
        options = {"normalize": normalize}
        if name not in ("total_variation", "hellinger", "wasserstein"):
            options["base"] = base
        if name in ("js", "js_distance"):
            options["weight"] = weight
        if name == "renyi":
            options["alpha"] = alpha
        assert scores[name].tobytes() == measure(fastkl, name, p, q, **options).tobytes(), name


# ---------------------------------------------------------------------------------------------------------------------
# Softmaxes from logits

LOGITS_RTOL = 2 * LOGITS_BOUND[0] * EPS
LOGITS_SLACK = {name: 2e-30 for name in LOGITS_METRICS} | {"js_distance": 2e-15}

logit = st.one_of(
    st.floats(-30, 30),
    st.floats(-1e4, 1e4),
    st.integers(-5, 5).map(float),
    st.just(-math.inf),
)
temperature = st.one_of(st.just(1.0), st.floats(0.01, 100), st.sampled_from([1e-3, 1e3]))


@st.composite
def logit_pairs(draw, logit=logit):
    """Two rows of logits of the same length with mass; the second sometimes close to the first."""
    p = draw(st.lists(logit, min_size=1, max_size=40))
    if draw(st.booleans()):
        q = draw(st.lists(logit, min_size=len(p), max_size=len(p)))
    else:
        size = draw(st.sampled_from([1e-15, 1e-8, 1e-3]))
        change = draw(st.lists(st.floats(-1, 1), min_size=len(p), max_size=len(p)))
        q = [x + size * c for x, c in zip(p, change, strict=True)]
    assume(max(p) > -math.inf and max(q) > -math.inf)
    return np.array(p), np.array(q)


def logits_agree(name, a, b):
    return close(a, b, LOGITS_RTOL, LOGITS_SLACK[name])


@pytest.mark.parametrize("name", LOGITS_METRICS)
@given(logit_pairs(), temperature)
def test_logits_never_negative(name, level, pair, temperature):
    for dtype in (np.float64, np.float32):
        result = measure_logits(fastkl, name, *(x.astype(dtype) for x in pair), temperature=temperature)
        assert result >= 0 and not np.signbit(result)


@given(logit_pairs(), temperature)
def test_logits_zero_from_themselves(level, pair, temperature):
    for row in pair:
        scores = fastkl.score_from_logits(row, row.copy(), LOGITS_METRICS, temperature=temperature)
        for name in ("kl", "reverse_kl", "js", "js_distance"):
            assert scores[name] == 0
        assert scores["top1_agreement"] == 1
        assert logits_agree("entropy", scores["entropy"], scores["cross_entropy"])


@given(logit_pairs(), temperature)
def test_logits_are_symmetric(level, pair, temperature):
    p, q = pair
    for name in ("js", "js_distance", "top1_agreement"):
        a = measure_logits(fastkl, name, p, q, temperature=temperature)
        assert logits_agree(name, a, measure_logits(fastkl, name, q, p, temperature=temperature))


@given(logit_pairs(), temperature)
def test_cross_entropy_is_entropy_and_divergence(level, pair, temperature):
    """H(p, q) = H(p) + D(p‖q), and nothing is above its bound."""
    p, q = pair
    scores = fastkl.score_from_logits(p, q, LOGITS_METRICS, temperature=temperature)
    assert close(scores["cross_entropy"], scores["entropy"] + scores["kl"], 2 * LOGITS_RTOL, 4e-30)
    assert close(scores["js_distance"] ** 2, scores["js"], 2 * LOGITS_RTOL, 4e-30)
    assert scores["js"] <= math.log(2) * (1 + LOGITS_RTOL)
    assert scores["entropy"] <= math.log(len(p)) * (1 + LOGITS_RTOL)
    assert 4 * scores["js"] <= (scores["kl"] + scores["reverse_kl"]) * (1 + LOGITS_RTOL) + 4e-30


@pytest.mark.parametrize("name", LOGITS_METRICS)
@given(logit_pairs(), temperature, st.integers(-20, 20), st.randoms(use_true_random=False))
def test_logits_and_temperature_scale_alike(name, level, pair, temperature, exponent, random):
    """By a power of two, which loses nothing; and the cells may be permuted, which changes the top one alone."""
    p, q = pair
    expected = measure_logits(fastkl, name, p, q, temperature=temperature)
    scaled = (np.ldexp(x, exponent) for x in pair)
    result = measure_logits(fastkl, name, *scaled, temperature=math.ldexp(temperature, exponent))
    assert logits_agree(name, result, expected)
    if name != "top1_agreement":
        order = random.sample(range(len(p)), len(p))
        assert logits_agree(name, measure_logits(fastkl, name, p[order], q[order], temperature=temperature), expected)


@given(logit_pairs(st.integers(-1000, 1000).map(lambda x: x / 8)), st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_a_constant_does_not_matter(level, pair, a, b):
    p, q = pair
    p, q = np.rint(8 * p) / 8, np.rint(8 * q) / 8
    expected = fastkl.score_from_logits(p, q, LOGITS_METRICS)
    for name, value in fastkl.score_from_logits(p + a, q + b, LOGITS_METRICS).items():
        assert logits_agree(name, value, expected[name]), name


@given(logit_pairs(st.floats(-30, 30)), st.floats(0.1, 10))
def test_from_logits_and_from_probabilities(level, pair, temperature):
    """exp(x/T) as weights, whose own rounding is of the size of x ulps, gives the same."""
    weights = [np.exp((x - x.max()) / temperature) for x in pair]
    for name in ("kl", "js", "cross_entropy", "entropy"):
        value = measure(fastkl, name, *weights)
        assert close(measure_logits(fastkl, name, *pair, temperature=temperature), value, 1e-9, 1e-12), name


@given(logit_pairs(st.floats(-30, 30)), temperature)
def test_gradients_add_up_to_zero(level, pair, temperature):
    """And that of q is the loss's: T² D(p‖q) has T (q − p)."""
    grad_p, grad_q = fastkl.kl_divergence_from_logits_grad(*pair, temperature=temperature)
    size = 1 + fastkl.kl_divergence_from_logits(*pair, temperature=temperature)
    for gradient in (grad_p, grad_q):
        assert abs(gradient.sum()) <= 32 * len(gradient) * EPS * size / temperature
    _, slope = fastkl.distillation_loss(pair[1], pair[0], temperature=temperature, return_grad=True)
    np.testing.assert_allclose(slope, grad_q * temperature**2, rtol=1e-12, atol=32 * EPS * temperature)
