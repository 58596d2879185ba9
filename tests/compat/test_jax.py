"""fastkl.jax: the values of the functions for NumPy arrays, and the derivatives of the formulas in jax.numpy."""

import doctest
import inspect
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import fastkl

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.test_util import check_grads

import fastkl.jax


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param)
    yield request.param
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# The formulas, for automatic differentiation to compare with.


def kl_formula(p, q, normalize=True):
    if normalize:
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * jnp.log(p / q)).sum(-1)


def js_formula(p, q, weight=0.5, normalize=True):
    if normalize:
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    m = weight * p + (1 - weight) * q
    return (weight * p * jnp.log(p / m) + (1 - weight) * q * jnp.log(q / m)).sum(-1)


def logits_formula(a, b, temperature=1.0):
    p, q = jax.nn.log_softmax(a / temperature), jax.nn.log_softmax(b / temperature)
    return (jnp.exp(p) * (p - q)).sum(-1)


def distillation_formula(student, teacher, temperature=1.0, reduction="batchmean"):
    losses = temperature**2 * logits_formula(teacher, student, temperature)
    return {"batchmean": losses.mean, "sum": losses.sum, "none": lambda: losses}[reduction]()


def gaussian_formula(m, s, mq=0.0, sq=None, scale="var"):
    if sq is None:
        sq = 0.0 if scale == "logvar" else 1.0
    v, vq = {"var": lambda x: x, "std": lambda x: x**2, "logvar": jnp.exp}[scale](jnp.stack([s, s * 0 + sq]))
    return 0.5 * ((m - mq) ** 2 / vq + v / vq - 1 - jnp.log(v / vq)).sum(-1)


# Each function with options, its formula with the same, and how many operands it takes.
CASES = {
    "kl": (fastkl.jax.kl_divergence, kl_formula, 2, {}),
    "kl-as_they_are": (fastkl.jax.kl_divergence, kl_formula, 2, {"normalize": False}),
    "js": (fastkl.jax.js_divergence, js_formula, 2, {"weight": 0.3}),
    "js-as_they_are": (fastkl.jax.js_divergence, js_formula, 2, {"normalize": False}),
    "logits": (fastkl.jax.kl_divergence_from_logits, logits_formula, 2, {"temperature": 2.0}),
    "distillation": (fastkl.jax.distillation_loss, distillation_formula, 2, {"temperature": 3.0}),
    "distillation-sum": (fastkl.jax.distillation_loss, distillation_formula, 2, {"reduction": "sum"}),
    "distillation-none": (fastkl.jax.distillation_loss, distillation_formula, 2, {"reduction": "none"}),
    **{
        f"gaussian-{scale}-{n}": (fastkl.jax.gaussian_kl, gaussian_formula, n, {"scale": scale})
        for scale in ("var", "std", "logvar")
        for n in (2, 4)
    },
}
each_case = pytest.mark.parametrize("function, formula, n_operands, options", CASES.values(), ids=CASES)


def of_numpy(function):
    return getattr(fastkl, function.__name__)


def operands_of(rng, n, *shape):
    """Numbers that do for all functions: weights, scales and logits; away from 0, where derivatives go beyond bounds."""
    return [jnp.asarray(rng.random(shape) + 0.5) for _ in range(n)]


@each_case
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int32", "bool"])
def test_values_are_those_for_numpy(function, formula, n_operands, options, dtype, float64, rng):
    operands = [jnp.asarray(rng.integers(1, 9, (3, 5))).astype(dtype) for _ in range(n_operands)]
    expected = of_numpy(function)(*map(np.asarray, operands), **options)
    result = function(*operands, **options)
    assert isinstance(result, jax.Array)
    assert result.shape == np.shape(expected)
    assert result.dtype == expected.dtype
    if function is fastkl.jax.distillation_loss:  # the total of losses that were rounded to their type
        np.testing.assert_allclose(result, expected, rtol=2 * np.finfo(result.dtype).eps)
    else:
        np.testing.assert_array_equal(result, expected)


def test_values_without_float64(rng):
    """Arrays are float32 to JAX, but integers reach the kernels as they are, and only the result is float32."""
    p, q = rng.random((2, 3, 5))
    expected = fastkl.js_divergence(p.astype("float32"), q.astype("float32"))
    np.testing.assert_array_equal(fastkl.jax.js_divergence(p, q), expected)
    p, q = rng.integers(1, 2**30, (2, 3, 5))
    result = fastkl.jax.js_divergence(p, q)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, fastkl.js_divergence(p, q).astype("float32"))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_options_and_broadcasting(axis, keepdims, float64, rng):
    p, q, one = rng.random((3, 4, 5)), rng.random((1, 4, 5)), rng.random((4, 5))
    for function, options in (
        (fastkl.jax.kl_divergence, {"base": 2}),
        (fastkl.jax.js_divergence, {"base": 10.0, "weight": 0.25}),
        (fastkl.jax.kl_divergence_from_logits, {"base": 2, "temperature": 0.5}),
        (fastkl.jax.gaussian_kl, {"scale": "logvar"}),
    ):
        for other in (p[::-1], q, one) if axis else (p[::-1],):
            result = function(p, other, axis=axis, keepdims=keepdims, **options)
            expected = of_numpy(function)(p, other, axis=axis, keepdims=keepdims, **options)
            assert result.shape == expected.shape
            np.testing.assert_array_equal(result, expected)
    elements = fastkl.jax.gaussian_kl(p, 1.0, 0.5, one, axis=None)
    np.testing.assert_array_equal(elements, fastkl.gaussian_kl(p, 1.0, 0.5, one, axis=None))


def test_numbers_take_the_type_of_the_arrays(x64, rng):
    mean = jnp.asarray(rng.random((3, 5)), "float32")
    expected = fastkl.gaussian_kl(np.asarray(mean), 1.5)
    for scale in (1.5, jnp.float32(1.5), jnp.asarray(1.5)):
        result = fastkl.jax.gaussian_kl(mean, scale)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)
    assert fastkl.jax.gaussian_kl(0.0, 1.0, axis=None).dtype == (np.float64 if x64 else np.float32)


@each_case
def test_derivatives(function, formula, n_operands, options, float64, rng):
    """Gradients, Hessians and what vmap and jit make of them are those of the formula, to its own rounding errors."""
    operands = operands_of(rng, n_operands, 2, 3)
    every = tuple(range(n_operands))
    weights = jnp.asarray(rng.random(2))

    def derived(f, *x):
        def total(*x):
            return (weights * f(*x, **options)).sum()

        by_rows = jax.vmap(jax.grad(lambda *x: f(*x, **options).sum(), every))
        return jax.hessian(total, every)(*x), by_rows(*x)

    results = jax.jit(partial(derived, function))(*operands)
    expected = jax.jit(partial(derived, formula))(*operands)
    for mine, theirs in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["logits", "gaussian-var-2"])
def test_numerical_derivatives(name, float64, rng):
    """Forward, in reverse, and each of either, against finite differences; without help from the formulas."""
    function, _, n_operands, options = CASES[name]
    # A central difference with JAX's step of 1e-5 is good for some 1e-10 of derivatives of about 1; twice of one, 1e-5.
    check_grads(jax.jit(partial(function, **options)), operands_of(rng, n_operands, 3), order=2, rtol=1e-4, atol=1e-5)


def test_third_derivatives(float64, rng):
    p, q = operands_of(rng, 2, 3)
    for function, formula in (
        (fastkl.jax.kl_divergence_from_logits, logits_formula),
        (fastkl.jax.gaussian_kl, gaussian_formula),
    ):
        third, expected = (jax.jit(jax.jacfwd(jax.hessian(f)))(p, q) for f in (function, formula))
        np.testing.assert_allclose(third, expected, rtol=1e-10, atol=1e-12)


def test_derivative_of_one_operand_alone(float64, rng):
    """The others may be integers, and hold what their own derivatives are not defined for."""
    student, teacher = operands_of(rng, 2, 3, 5)
    for x in (jnp.arange(15).reshape(3, 5), teacher):
        for function, formula in (
            (fastkl.jax.distillation_loss, distillation_formula),
            (fastkl.jax.kl_divergence_from_logits, lambda p, q: logits_formula(p, q)),
        ):
            slope, expected = (jax.jit(jax.grad(lambda s, f=f: f(s, x).sum()))(student) for f in (function, formula))  # noqa: B023
            np.testing.assert_allclose(slope, expected, rtol=1e-11, atol=1e-14)
    labels = jnp.array([1.0, 0.0, 0.0])
    slope = jax.grad(fastkl.jax.kl_divergence, argnums=1)(labels, student[0, :3])
    np.testing.assert_allclose(slope, 1 / student[0, :3].sum() - labels / student[0, :3], rtol=1e-14)


def test_tangents_of_integers_are_nothing(rng):
    p, counts = rng.random((2, 5)).astype("float32"), np.arange(1, 11).reshape(2, 5)
    nothing = np.zeros(counts.shape, jax.dtypes.float0)
    _, tangent = jax.jvp(fastkl.jax.kl_divergence, (p, counts), (p, nothing))
    _, expected = jax.jvp(lambda x: fastkl.jax.kl_divergence(x, counts), (p,), (p,))
    np.testing.assert_array_equal(tangent, expected)


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0), (1, 0)])
def test_vmap_is_one_call(in_axes, float64, rng, monkeypatch):
    calls = []
    p, q = (rng.random((4, 4, 5)[axis is None :]) for axis in in_axes)
    for function in (
        fastkl.jax.kl_divergence,
        partial(fastkl.jax.kl_divergence, axis=0),
        fastkl.jax.distillation_loss,
        partial(fastkl.jax.gaussian_kl, axis=None),
    ):
        rows = [
            function(
                *(x if axis is None else np.moveaxis(x, axis, 0)[i] for x, axis in zip((p, q), in_axes, strict=True))
            )
            for i in range(4)
        ]
        kernel = fastkl.jax._Kernel.__call__
        monkeypatch.setattr(fastkl.jax._Kernel, "__call__", lambda *x, k=kernel: calls.append(1) or k(*x))
        calls.clear()
        mapped = jax.block_until_ready(jax.vmap(function, in_axes)(p, q))
        monkeypatch.undo()
        assert len(calls) == 1
        np.testing.assert_allclose(mapped, rows, rtol=1e-15)


def test_vmap_over_scalars(float64, rng):
    mean, scales = rng.random((3, 5)), rng.random(4) + 0.5
    mapped = jax.vmap(fastkl.jax.gaussian_kl, (None, 0))(mean, scales)
    np.testing.assert_array_equal(mapped, [fastkl.gaussian_kl(mean, scale) for scale in scales])


def test_inside_loops_and_branches(float64, rng):
    p, q = operands_of(rng, 2, 3, 5)
    _, scanned = jax.lax.scan(lambda _, x: (0, fastkl.jax.kl_divergence(*x)), 0, (p, q))
    np.testing.assert_array_equal(scanned, fastkl.kl_divergence(p, q))
    kept = jax.grad(jax.checkpoint(lambda x: fastkl.jax.js_divergence(x, q).sum()))(p)
    np.testing.assert_allclose(kept, jax.grad(lambda x: js_formula(x, q).sum())(p), rtol=1e-11, atol=1e-14)
    chosen = jax.jit(lambda n: jax.lax.cond(n > 0, fastkl.jax.kl_divergence, fastkl.jax.js_divergence, p, q))(0)
    np.testing.assert_array_equal(chosen, fastkl.js_divergence(p, q))


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    "p, q, kl, js",
    [
        # A term with p = 0 is the constant 0; D(p‖q) = log 2 in the first.
        ([0, 1], [1, 1], ([-1 - np.log(2), 0], [0.5, -0.5]), ([-0.5 + 0.5 * np.log(0.75), 0], None)),
        ([0, 1], [0, 1], ([-1, 0], [1, 0]), ([0, 0], [0, 0])),
        ([1, 1], [0, 1], ([NAN, NAN], [-INF, 0.5]), None),
        ([1, 0], [0, 1], ([NAN, NAN], [-INF, 1]), ([0, -0.5 - 0.5 * np.log(2)], [-0.5 - 0.5 * np.log(2), 0])),
        ([-1, 2], [1, 1], ([NAN, NAN], [NAN, NAN]), ([NAN, NAN], [NAN, NAN])),
        ([NAN, 1], [1, 1], ([NAN, NAN], [NAN, NAN]), ([NAN, NAN], [NAN, NAN])),
        ([0, 0], [1, 1], ([NAN, NAN], [NAN, NAN]), ([NAN, NAN], [NAN, NAN])),
    ],
)
def test_gradients_of_corner_cases(p, q, kl, js, float64):
    p, q = jnp.array(p, float), jnp.array(q, float)
    np.testing.assert_allclose(jax.jit(jax.grad(fastkl.jax.kl_divergence, (0, 1)))(p, q), kl, rtol=1e-15, atol=1e-16)
    for mine, expected in zip(jax.jit(jax.grad(fastkl.jax.js_divergence, (0, 1)))(p, q), js or (), strict=False):
        if expected is not None:
            np.testing.assert_allclose(mine, expected, rtol=1e-15, atol=1e-16)


def test_gradients_without_normalising_of_corner_cases(float64):
    p, q = jnp.array([0.0, 0.0, 1.0, 2.0]), jnp.array([0.0, 1.0, 0.0, 1.0])
    to_p, to_q = jax.grad(partial(fastkl.jax.kl_divergence, normalize=False), (0, 1))(p, q)
    np.testing.assert_allclose(to_p, [0, 0, INF, np.log(2) + 1], rtol=1e-15)
    np.testing.assert_allclose(to_q, [0, 0, -INF, -2], rtol=1e-15)
    to_p, to_q = jax.grad(partial(fastkl.jax.js_divergence, normalize=False), (0, 1))(p, q)
    np.testing.assert_allclose(to_p, [0, -0.5, np.log(2) / 2, np.log(4 / 3) / 2], rtol=1e-15)
    np.testing.assert_allclose(to_q, [0, np.log(2) / 2, -0.5, np.log(2 / 3) / 2], rtol=1e-15)


def test_softmax_that_has_come_down_to_zero():
    """What the convention about p = 0 is for: no NaN from an infinite slope times a probability of 0."""
    logits, q = jnp.array([200.0, 0.0, 199.0]), jnp.array([0.3, 0.3, 0.4])
    slope = jax.grad(lambda x: fastkl.jax.kl_divergence(jax.nn.softmax(x), q))(logits)
    expected, _ = fastkl.kl_divergence_from_logits_grad(np.asarray(logits, float), np.log([0.3, 0.3, 0.4]))
    np.testing.assert_allclose(slope, expected, atol=1e-6)  # float32 probabilities


def test_gradients_of_nearly_equal_rows():
    """Of differences of 1e-6, float32 keeps a relative 6e-8 for each of the numbers: what is left is good for 1e-5."""
    q = np.array([0.25, 0.125, 0.625], "float32")
    p = (q * np.array([1, 1 + 1e-6, 1 - 1e-6])).astype("float32")
    slopes = jax.grad(fastkl.jax.kl_divergence, (0, 1))(jnp.asarray(p), jnp.asarray(q))
    a, b = (x.astype(float) / x.astype(float).sum() for x in (p, q))
    exact = np.log(a / b) - (a * np.log(a / b)).sum(), 1 - a / b
    np.testing.assert_allclose(slopes, exact, rtol=1e-5)


def test_minus_infinity_among_logits(float64):
    p, q = jnp.array([1.0, -INF, 0.0]), jnp.array([0.0, 1.0, 2.0])
    slopes = jax.grad(fastkl.jax.kl_divergence_from_logits, (0, 1))(p, q)
    np.testing.assert_array_equal(slopes, fastkl.kl_divergence_from_logits_grad(p, q))
    hessian = jax.jit(jax.hessian(fastkl.jax.kl_divergence_from_logits))(p, q)
    finite = jax.jit(jax.hessian(logits_formula))(p[jnp.array([0, 2])], q[jnp.array([0, 2])])
    assert np.isfinite(hessian).all()
    assert np.all(hessian[1] == 0) and np.all(hessian[:, 1] == 0)
    # With q's share on the bins that p has constant, the rest is as if there were no other bin.
    np.testing.assert_allclose(hessian[::2, ::2], finite, rtol=1e-12)


def test_batches_without_rows(x64):
    nothing = jnp.zeros((0, 5))
    for function in (fastkl.jax.kl_divergence, fastkl.jax.gaussian_kl):
        assert function(nothing, nothing).shape == (0,)
        assert jax.vmap(function)(nothing, nothing).shape == (0,)
        assert jax.grad(lambda x: function(x, nothing).sum())(nothing).shape == (0, 5)  # noqa: B023
    assert np.isnan(fastkl.jax.distillation_loss(nothing, nothing))
    assert fastkl.jax.distillation_loss(nothing, nothing, reduction="sum") == 0


@pytest.mark.parametrize(
    "name, shapes, options",
    [
        ("kl_divergence", [(3, 5), (3, 4)], {}),
        ("kl_divergence", [(3, 5), ()], {}),
        ("kl_divergence", [(3, 0), (3, 0)], {}),
        ("kl_divergence", [(3, 5), (2, 5)], {}),
        ("kl_divergence", [(3, 5), (3, 5)], {"base": 1}),
        ("kl_divergence", [(3, 5), (3, 5)], {"axis": 2}),
        ("kl_divergence", [(3, 5), (3, 5)], {"axis": 0.5}),
        ("js_divergence", [(3, 5), (3, 5)], {"weight": 2}),
        ("kl_divergence_from_logits", [(3, 5), (3, 5)], {"temperature": 0}),
        ("distillation_loss", [(3, 5), (3, 5)], {"reduction": "mean"}),
        ("distillation_loss", [(3, 5), (3, 5)], {"temperature": 1e200}),
        ("gaussian_kl", [(3, 5), (3, 5), (3, 5)], {}),
        ("gaussian_kl", [(3, 5), (3, 5)], {"scale": "sigma"}),
        ("gaussian_kl", [(), ()], {}),
    ],
)
def test_errors_are_those_for_numpy(name, shapes, options, float64):
    operands = [np.ones(shape) if shape else 1.0 for shape in shapes]
    with pytest.raises((ValueError, TypeError)) as expected:
        getattr(fastkl, name)(*operands, **options)
    for function in (getattr(fastkl.jax, name), jax.jit(partial(getattr(fastkl.jax, name), **options))):
        with pytest.raises(type(expected.value)) as caught:
            function(*map(jnp.asarray, operands), **(options if function is getattr(fastkl.jax, name) else {}))
        assert str(caught.value) == str(expected.value)


def test_complex_numbers_and_traced_options_are_refused():
    p = jnp.ones(3)
    with pytest.raises(TypeError, match="p has dtype complex64"):
        fastkl.jax.kl_divergence(p * 1j, p)
    with pytest.raises(ValueError, match="static"):
        jax.jit(lambda t: fastkl.jax.kl_divergence_from_logits(p, p, temperature=t))(2.0)


@pytest.mark.parametrize("name", fastkl.jax.__all__)
def test_signatures(name):
    """Those for NumPy arrays, without the options that the module leaves out."""
    left_out = {"out", "n_threads", "invalid", "dtype", "return_grad"}
    ours, numpys = (inspect.signature(getattr(module, name)).parameters for module in (fastkl.jax, fastkl))
    kept = {key: x for key, x in numpys.items() if key not in left_out}
    assert list(ours) == list(kept)
    assert [(x.kind, x.default) for x in ours.values()] == [(x.kind, x.default) for x in kept.values()]


def test_docstrings():
    assert doctest.testmod(fastkl.jax).failed == 0
    for name in fastkl.jax.__all__:
        assert doctest.DocTestFinder().find(getattr(fastkl.jax, name), name)[0].examples


def test_large_arrays_on_one_cpu(tmp_path):
    """Where jax.pure_callback waits for ever: its copies of arrays beyond 100 KiB need the thread that it waits in."""
    program = """
import os
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
import jax, jax.numpy as jnp, fastkl.jax
@jax.jit
def slopes(x):
    p, q = jnp.exp(x), 1 + jnp.sin(x)
    return jax.value_and_grad(lambda p: fastkl.jax.kl_divergence(p, q).sum() + fastkl.jax.distillation_loss(p, q))(p)
x = jnp.linspace(0, 1, 400_000).reshape(-1, 100)
for i in range(4):
    value, slope = slopes(x + i)
print(slope.shape, bool(jnp.isfinite(value)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=os.environ
    )
    assert done.stdout.strip() == "(4000, 100) True"
