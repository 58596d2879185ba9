"""fastkl.compat.torch_distributions against torch.distributions, and against exact values where the two differ."""

import doctest
import inspect

import mpmath
import numpy as np
import pytest
from dropins import outcome
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
ours = pytest.importorskip("fastkl.compat.torch_distributions")

from torch import distributions as td
from torch.distributions import kl as registry

FLOATS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BATCHES = [((), ()), ((4,), ()), ((3, 1), (4,)), ((2, 3), (2, 3))]


def normal(rng, batch, dtype=torch.float64):
    return td.Normal(
        *(torch.from_numpy(np.asarray(x)).to(dtype) for x in (rng.normal(size=batch), rng.random(batch) + 0.5))
    )


def independent(rng, batch, dtype=torch.float64, event=(3,)):
    return td.Independent(normal(rng, (*batch, *event), dtype), len(event))


def planes(rng, batch, dtype=torch.float64):
    return independent(rng, batch, dtype, (2, 3))


def multivariate(rng, batch, dtype=torch.float64, by="covariance_matrix"):
    factor = rng.normal(size=(*batch, 3, 3)) + 3 * np.eye(3)
    covariance = torch.from_numpy(factor @ np.swapaxes(factor, -1, -2)).to(dtype)
    parameter = torch.linalg.cholesky(covariance) if by == "scale_tril" else covariance
    return td.MultivariateNormal(torch.from_numpy(rng.normal(size=(*batch, 3))).to(dtype), **{by: parameter})


def by_factor(rng, batch, dtype=torch.float64):
    return multivariate(rng, batch, dtype, "scale_tril")


def by_precision(rng, batch, dtype=torch.float64):
    return multivariate(rng, batch, dtype, "precision_matrix")


def of_multivariate(rng, batch, dtype=torch.float64):
    return td.Independent(multivariate(rng, (*batch, 2), dtype), 1)


def by_probs(rng, batch, dtype=torch.float64):
    # In halves, what has been divided by its sum does not pass for probabilities.
    return td.Categorical(torch.from_numpy(rng.random((*batch, 5)) + 0.1).to(dtype), validate_args=False)


def by_logits(rng, batch, dtype=torch.float64):
    return td.Categorical(logits=torch.from_numpy(rng.normal(size=(*batch, 5))).to(dtype))


PAIRS = {
    "normal": (normal, normal),
    "independent": (independent, independent),
    "planes": (planes, planes),
    "multivariate": (multivariate, by_factor),
    "precision": (by_precision, multivariate),
    "of multivariate": (of_multivariate, of_multivariate),
    "probs": (by_probs, by_probs),
    "logits": (by_logits, by_logits),
    "mixed": (by_probs, by_logits),
    "mixed back": (by_logits, by_probs),
}


@pytest.fixture
def alone(monkeypatch):
    """Makes a call of the original an error: what is tested is computed here."""

    def refuse(p, q):
        raise AssertionError("handed to the original")

    monkeypatch.setattr(td, "kl_divergence", refuse)


def assert_handed_over(p, q, monkeypatch):
    asked = []

    def spy(*pair):
        asked.append(pair)
        return registry.kl_divergence(*pair)

    theirs = outcome(registry.kl_divergence, p, q)
    with monkeypatch.context() as patched:
        patched.setattr(td, "kl_divergence", spy)
        found = outcome(ours.kl_divergence, p, q)
    assert asked == [(p, q)]
    assert (type(found.error), str(found.error)) == (type(theirs.error), str(theirs.error))
    assert found.warnings == theirs.warnings
    if theirs.error is None:
        torch.testing.assert_close(found.value, theirs.value, rtol=0, atol=0, equal_nan=True)


def test_examples_of_the_docstrings():
    assert doctest.testmod(ours).failed == 0


def test_signature():
    assert inspect.signature(ours.kl_divergence) == inspect.signature(registry.kl_divergence)


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("pair", PAIRS)
def test_values(pair, dtype, batches, rng, alone):
    p, q = (make(rng, batch, FLOATS[dtype]) for make, batch in zip(PAIRS[pair], batches, strict=True))
    theirs = registry.kl_divergence(p, q)
    torch.testing.assert_close(ours.kl_divergence(p, q), theirs)
    assert ours.kl_divergence(p, p).eq(0).all()
    wider = p.expand((2, *p.batch_shape))
    torch.testing.assert_close(ours.kl_divergence(wider, q), registry.kl_divergence(wider, q))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pair", ["normal", "independent", "probs", "logits"])
def test_halves(pair, dtype, rng, alone):
    p, q = (make(rng, (20,), FLOATS[dtype]) for make in PAIRS[pair])
    found = ours.kl_divergence(p, q)
    assert found.dtype is FLOATS[dtype]
    # The original's formula in this type, with a rounding error of numbers up to some 10 at each of its steps.
    torch.testing.assert_close(found, registry.kl_divergence(p, q), rtol=0, atol=30 * torch.finfo(FLOATS[dtype]).eps)


@pytest.mark.parametrize("pair", PAIRS)
def test_against_samples(pair, rng):
    """The mean of log p - log q over samples of p, which must not be further away than six of its standard errors."""
    p, q = (make(rng, (3,)) for make in PAIRS[pair])
    torch.manual_seed(0)
    x = p.sample((20_000,))
    differences = p.log_prob(x) - q.log_prob(x)
    error = differences.std(0) / len(x) ** 0.5
    assert ((differences.mean(0) - ours.kl_divergence(p, q)).abs() <= 6 * error).all()


def made_of_leaves(p):
    """A distribution like another one, and the parameters it has been made of, to be differentiated."""
    if isinstance(p, td.Independent):
        base, leaves = made_of_leaves(p.base_dist)
        return td.Independent(base, p.reinterpreted_batch_ndims), leaves
    names = {
        td.Normal: ("loc", "scale"),
        td.MultivariateNormal: ("loc", "scale_tril"),
        td.Categorical: ("logits" if "logits" in p.__dict__ else "probs",),
    }[type(p)]
    leaves = {name: getattr(p, name).clone().requires_grad_() for name in names}
    return type(p)(**leaves), list(leaves.values())


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients(pair, rng):
    given = [make(rng, batch) for make, batch in zip(PAIRS[pair], ((4, 1), (3,)), strict=True)]
    results = []
    for function in (ours.kl_divergence, registry.kl_divergence):
        (p, leaves), (q, more) = (made_of_leaves(x) for x in given)
        leaves += more
        value = function(p, q).square().sum()
        first = torch.autograd.grad(value, leaves, retain_graph=True)
        again = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in again), leaves)
        results.append((*first, *again, *second))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


def test_gradients_of_what_a_distribution_is_made_of(rng, alone):
    """Through Categorical's own normalisation, down to probabilities of 0, as the original has them."""
    weights = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 1.0]], requires_grad=True)
    others = torch.tensor([[1.0, 2.0, 1.0], [1.0, 0.0, 3.0]], requires_grad=True)
    slopes = [
        torch.autograd.grad(function(td.Categorical(weights), td.Categorical(others)).sum(), (weights, others))
        for function in (ours.kl_divergence, registry._kl_categorical_categorical)
    ]
    for x, y in zip(*slopes, strict=True):
        torch.testing.assert_close(x, y)


@given(
    st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 1.0, 7.0]), min_size=2, max_size=6),
    st.lists(st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 1.0, 7.0]), min_size=6, max_size=6),
)
def test_zeros(p, q):
    q = q[: len(p)]
    if not sum(p) or not sum(q):
        return
    pair = [td.Categorical(torch.tensor(x, dtype=torch.float64)) for x in (p, q)]
    with mpmath.workdps(60):
        a, b = ([mpmath.mpf(x) / mpmath.fsum(row) for x in row] for row in (p, q))
        exact = mpmath.fsum(x * mpmath.log(x / y) if y else mpmath.inf for x, y in zip(a, b, strict=True) if x)
    found = float(ours.kl_divergence(*pair))
    assert found >= 0
    # Categorical has rounded each probability, each to a relative 2^-53 twice over; log p/q takes that over as it is.
    assert found == float(exact) or abs(found - exact) <= 1e-14


# Where the original's value is wrong, as README.md lists them.
def wrong_ones():
    probs = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    near = probs * (1 + torch.tensor([1e-10, -1e-10, 0.0], dtype=torch.float64))
    zero = torch.tensor(0.0, dtype=torch.float64)
    far = torch.tensor([0.0, -150.0])
    return {
        "near probs": (td.Categorical(probs), td.Categorical(near)),
        "near logits": (td.Categorical(logits=probs), td.Categorical(logits=near)),
        "tiny probability": (td.Categorical(logits=torch.tensor([0.0, -1.0])), td.Categorical(logits=far)),
        "near normals": (td.Normal(zero, 1.0 + zero), td.Normal(zero + 1e-9, 1.0 + 1e-9 + zero)),
        "near multivariate": (
            td.MultivariateNormal(zero.expand(3), scale_tril=torch.eye(3, dtype=torch.float64)),
            td.MultivariateNormal(zero.expand(3) + 1e-9, scale_tril=torch.eye(3, dtype=torch.float64)),
        ),
    }


def exact(p, q):
    with mpmath.workdps(100):
        if isinstance(p, td.Categorical):
            rows = []
            for x in (p, q):
                given = [mpmath.mpf(float(y)) for y in x._param]
                weights = [mpmath.exp(y) for y in given] if x._param is x.__dict__.get("logits") else given
                rows.append([y / mpmath.fsum(weights) for y in weights])
            return float(mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(*rows, strict=True) if x))
        m, s, mq, sq = (
            [mpmath.mpf(float(x)) for x in numbers.reshape(-1)]
            for d in (p, q)
            for numbers in ((d.loc, d.scale) if isinstance(d, td.Normal) else (d.loc, d.scale_tril.diagonal()))
        )
        terms = (
            ((a - c) / e) ** 2 + (b / e) ** 2 - 1 - 2 * mpmath.log(b / e)
            for a, b, c, e in zip(m, s, mq, sq, strict=True)
        )
        return float(mpmath.fsum(terms) / 2)


@pytest.mark.parametrize("case", wrong_ones())
def test_where_the_original_is_wrong(case):
    p, q = wrong_ones()[case]
    value = exact(p, q)
    theirs, found = registry.kl_divergence(p, q), ours.kl_divergence(p, q)
    assert not abs(float(theirs) - value) <= 1e-3 * value
    eps = torch.finfo(found.dtype).eps
    assert abs(float(found) - value) <= 32 * eps * value


def test_hands_over(rng, monkeypatch):
    one = torch.ones(3)
    normals = td.Normal(one, one)
    for p, q in [
        (td.Beta(one, one), td.Beta(2 * one, one)),
        (normals, td.Laplace(one, one)),  # no formula
        (td.Poisson(one), normals),  # NotImplementedError
        (normals, td.Normal(torch.ones(4), torch.ones(4))),  # shapes that do not broadcast
        (td.Independent(normals, 1), td.Independent(normals, 0)),  # NotImplementedError
        (td.Independent(td.Laplace(one, one), 1), td.Independent(td.Laplace(one, one), 1)),
        (normals, td.Normal(one.double(), one.double())),
        (td.Normal(one, one.double()), normals),
        (td.Normal(torch.ones(3, 0), 1.0), td.Normal(torch.ones(2, 0), 1.0)),
        (td.Independent(td.Normal(torch.ones(3, 0), 1.0), 1),) * 2,
        (td.Normal(torch.ones(3, 0), 1.0), td.Normal(torch.ones(3, 1), 1.0)),
        (td.Categorical(torch.ones(3, 0), validate_args=False),) * 2,
        (td.MultivariateNormal(torch.ones(2, 0), scale_tril=torch.ones(0, 0), validate_args=False),) * 2,
        (td.Categorical(one), td.Categorical(torch.ones(4))),
        (td.Categorical(one.expand(2, 3)), td.Categorical(one.expand(4, 3))),
        (td.MultivariateNormal(one, torch.eye(3)), td.MultivariateNormal(torch.ones(4), torch.eye(4))),
        (td.MultivariateNormal(one.clone().requires_grad_(), torch.eye(3)), td.MultivariateNormal(one, torch.eye(3))),
        (td.Normal(one.to("meta"), 1.0, validate_args=False), normals),
        (td.HalfNormal(one), td.HalfNormal(2 * one)),
        (td.OneHotCategorical(one), td.OneHotCategorical(one)),
    ]:
        if p.batch_shape == () or "meta" not in str(getattr(p, "loc", one).device):
            assert_handed_over(p, q, monkeypatch)
        else:
            assert type(outcome(ours.kl_divergence, p, q).error) is type(outcome(registry.kl_divergence, p, q).error)


def test_what_has_been_registered_anew(rng, monkeypatch):
    class Mine(td.Normal):
        pass

    monkeypatch.setattr(registry, "_KL_REGISTRY", dict(registry._KL_REGISTRY))
    monkeypatch.setattr(registry, "_KL_MEMOIZE", {})
    p = Mine(torch.zeros(2), torch.ones(2))
    assert_handed_over(p, p, monkeypatch)
    td.register_kl(Mine, Mine)(lambda p, q: torch.tensor(42.0))
    assert ours.kl_divergence(p, p) == 42.0
    assert ours.kl_divergence(normal(rng, ()), normal(rng, ())) != 42.0
    td.register_kl(td.Normal, td.Normal)(lambda p, q: torch.tensor(43.0))
    for q in (normal(rng, (2,)), independent(rng, ())):
        assert ours.kl_divergence(q, q) == 43.0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of what PyTorch itself calls
def test_tangents(rng):
    p, q = normal(rng, (3,)), normal(rng, (3,))

    def divergence(function, loc):
        return function(td.Normal(loc, p.scale, validate_args=False), q).sum()

    for transform in (lambda f: torch.func.jvp(f, (p.loc,), (p.scale,)), lambda f: torch.func.hessian(f)(p.loc)):
        found, expected = (
            transform(lambda loc, function=function: divergence(function, loc))
            for function in (ours.kl_divergence, registry.kl_divergence)
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler itself calls
@pytest.mark.parametrize("pair", ["normal", "planes", "probs", "logits", "mixed"])
def test_compiled(pair, rng):
    torch._dynamo.reset()
    p, q = (make(rng, (4,)) for make in PAIRS[pair])
    compiled = torch.compile(ours.kl_divergence, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(p, q), registry.kl_divergence(p, q))


def test_vmap(rng):
    loc, scale = (torch.from_numpy(x) for x in (rng.normal(size=(4, 3)), rng.random((4, 3)) + 0.5))

    def divergence(function, a, b):
        pair = (td.Normal(x, b, validate_args=False) for x in (a, torch.zeros(3, dtype=torch.float64)))
        return function(*(td.Independent(x, 1, validate_args=False) for x in pair))

    found, expected = (
        torch.vmap(lambda a, b, function=function: divergence(function, a, b))(loc, scale)
        for function in (ours.kl_divergence, registry.kl_divergence)
    )
    torch.testing.assert_close(found, expected)


def test_no_distributions():
    """validate_args=False lets through what is none: NaN, with the kernels' rules about zero widths."""
    one = torch.ones(4)
    p = td.Normal(
        torch.tensor([0.0, 0.0, torch.nan, 0.0]), torch.tensor([-1.0, 0.0, 1.0, torch.inf]), validate_args=False
    )
    found = ours.kl_divergence(p, td.Normal(0 * one, one))
    torch.testing.assert_close(found, torch.tensor([torch.nan, torch.inf, torch.nan, torch.nan]), equal_nan=True)
    with pytest.raises(ValueError, match="Expected parameter"):
        ours.kl_divergence(td.Normal(0 * one, -one, validate_args=True), p)
