"""Dask's arrays: lazy results of the right shape and type, equal to the bit to those of the arrays computed."""

import math

import numpy as np
import pytest

import fastkl
import fastkl.reference
from fastkl import discrete, logits

da = pytest.importorskip("dask.array")

# A call of each public function of arrays, with what it takes them as: weights, or means and scales by turns.
SCORED = ["kl", "renyi", "wasserstein", "js_distance"]
CALLS = {
    "clipped_ratio_objective": lambda p, q: fastkl.clipped_ratio_objective(p, q, 1.0),
    "cross_entropy": fastkl.cross_entropy,
    "cross_entropy_from_logits": fastkl.cross_entropy_from_logits,
    "distillation_loss": lambda p, q: fastkl.distillation_loss(p, q, reduction="none", return_grad=True),
    "entropy": lambda p, _: fastkl.entropy(p),
    "entropy_from_logits": lambda p, _: fastkl.entropy_from_logits(p),
    "gaussian_kl": lambda p, q: fastkl.gaussian_kl(p, q, q, p, scale="std"),
    "gaussian_kl_full": lambda p, q: fastkl.gaussian_kl_full(p, q, diagonal="p"),
    "gaussian_kl_grad": lambda p, q: fastkl.gaussian_kl_grad(p, q, 0.5, 2),
    "hellinger_distance": fastkl.hellinger_distance,
    "jeffreys_divergence": fastkl.jeffreys_divergence,
    "js_distance": lambda p, q: fastkl.js_distance(p, q, base=2, weight=0.25),
    "js_distance_from_logits": fastkl.js_distance_from_logits,
    "js_divergence": fastkl.js_divergence,
    "js_divergence_from_logits": lambda p, q: fastkl.js_divergence_from_logits(p, q, temperature=2.0),
    "kl_divergence": lambda p, q: fastkl.kl_divergence(p, q, normalize=False, keepdims=True),
    "kl_divergence_from_logits": fastkl.kl_divergence_from_logits,
    "kl_divergence_from_logits_grad": fastkl.kl_divergence_from_logits_grad,
    "kl_estimate": fastkl.kl_estimate,
    "renyi_divergence": lambda p, q: fastkl.renyi_divergence(p, q, 2),
    "score": lambda p, q: fastkl.score(p, q, SCORED, alpha=0.5),
    "score_from_logits": lambda p, q: fastkl.score_from_logits(p, q, ["kl", "top1_agreement"], keepdims=True),
    "total_variation": fastkl.total_variation,
    "wasserstein_distance": lambda p, q: fastkl.wasserstein_distance(p, q, positions=[0, 1, 3, 4, 9]),
}


def parts(results):
    if isinstance(results, dict):
        return list(results.values())
    return list(results) if isinstance(results, tuple) else [results]


def chunked(array, chunks):
    return da.from_array(array, chunks=chunks)


class Computed(Exception):
    pass


def mined(array, chunks):
    """An array that raises when a block of it is computed."""

    def explode(_):
        raise Computed

    return chunked(array, chunks).map_blocks(explode, dtype=array.dtype, meta=np.empty((0,) * array.ndim, array.dtype))


def test_every_function_of_arrays_is_called_here():
    others = {"get_num_threads", "set_simd_level", "show_config", "simd_level", "reparameterize"}
    assert set(CALLS) == set(fastkl.__all__) - others


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_results(name, dtype, rng):
    call = CALLS[name]
    p, q = rng.random((2, 7, 6, 5)).astype(dtype) + np.dtype(dtype).type(0.25)
    expected = call(p, q)
    lazy = call(mined(p, (3, 6, 5)), mined(q, (4, 2, 5)))  # nothing here is computed
    results = call(chunked(p, (3, 6, 5)), chunked(q, (4, 2, 5)))
    if isinstance(expected, dict):
        assert list(results) == list(expected)
    for mine, result, values in zip(parts(lazy), parts(results), parts(expected), strict=True):
        assert isinstance(mine, da.Array)
        assert mine.shape == result.shape == values.shape
        assert mine.dtype == result.dtype == values.dtype
        with pytest.raises(Computed):
            mine.compute()
        computed = result.compute()
        assert computed.dtype == values.dtype
        np.testing.assert_array_equal(computed, values)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axes(axis, keepdims, rng):
    p, q = rng.random((2, 4, 6, 5))
    chunks = [2, 3, 2]
    chunks[axis] = -1
    for q_given in (q, chunked(q, tuple(chunks))):
        for function in (fastkl.kl_divergence, fastkl.kl_divergence_from_logits, fastkl.gaussian_kl):
            result = function(chunked(p, tuple(chunks)), q_given, axis=axis, keepdims=keepdims)
            expected = function(p, q, axis=axis, keepdims=keepdims)
            assert result.shape == expected.shape
            np.testing.assert_array_equal(result.compute(), expected)
    grads = fastkl.kl_divergence_from_logits_grad(chunked(p, tuple(chunks)), q, axis=axis)
    for result, expected in zip(grads, fastkl.kl_divergence_from_logits_grad(p, q, axis=axis), strict=True):
        np.testing.assert_array_equal(result.compute(), expected)


def test_broadcasting(rng):
    p, q = rng.random((6, 4, 5)), rng.random((4, 5))
    expected = fastkl.kl_divergence(p, q)
    for pair in (
        (chunked(p, (2, 2, 5)), q),
        (p, chunked(q, (3, 5))),
        (chunked(p, (2, 4, 5)), chunked(q, (1, 5))),
        (p.tolist(), chunked(q, (4, 5))),
    ):
        result = fastkl.kl_divergence(*pair)
        assert isinstance(result, da.Array)
        np.testing.assert_array_equal(result.compute(), expected)
    every = fastkl.kl_divergence(chunked(p[:, :1], (2, 1, 5)), chunked(q, (3, 5)))
    np.testing.assert_array_equal(every.compute(), fastkl.kl_divergence(p[:, :1], q))
    # The axis that broadcasting puts before the first is not split, and one bin long.
    one_bin = fastkl.kl_divergence(chunked(p[:1], (1, 2, 3)), chunked(q, (2, 5)), axis=0)
    np.testing.assert_array_equal(one_bin.compute(), fastkl.kl_divergence(p[:1], q, axis=0))
    scalar = fastkl.kl_divergence(chunked(p[0, 0], 5), q[0])
    assert (scalar.shape, scalar.compute()) == ((), fastkl.kl_divergence(p[0, 0], q[0]))


def test_numbers_take_the_type_of_the_arrays(rng):
    means = rng.random((6, 5), dtype=np.float32)
    result = fastkl.gaussian_kl(chunked(means, (4, 5)), 1.5)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result.compute(), fastkl.gaussian_kl(means, 1.5))
    zero_axes = fastkl.gaussian_kl(chunked(means, (4, 5)), chunked(np.array(1.5, np.float32), ()))
    np.testing.assert_array_equal(zero_axes.compute(), result.compute())
    elements = fastkl.gaussian_kl(chunked(means, (4, 2)), 1.5, 0, 2, axis=None)
    np.testing.assert_array_equal(elements.compute(), fastkl.gaussian_kl(means, 1.5, 0, 2, axis=None))


def test_full_covariances(rng):
    d = 3
    means, factors = rng.random((6, d)), rng.standard_normal((6, d, d))
    covariances = factors @ factors.transpose(0, 2, 1) + np.eye(d)
    lazy_means, lazy_covariances = chunked(means, (3, d)), chunked(covariances, (2, d, d))
    # With chunks of d rows, the shapes in a chunk would pass variances for a matrix.
    for given, given_lazily in (
        ((means, covariances), (lazy_means, lazy_covariances)),
        ((means, covariances, means + 1, means + 1), (lazy_means, lazy_covariances, lazy_means + 1, lazy_means + 1)),
        ((means, means + 1, 0.0, covariances), (lazy_means, lazy_means + 1, 0.0, lazy_covariances)),
        ((means, means + 1), (lazy_means, lazy_means + 1)),
    ):
        np.testing.assert_array_equal(fastkl.gaussian_kl_full(*given_lazily).compute(), fastkl.gaussian_kl_full(*given))
    with pytest.raises(ValueError, match=r"cov_p is split along axis 1.*\(2, 1\)"):
        fastkl.gaussian_kl_full(lazy_means, lazy_covariances.rechunk((2, 2, d)))


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_distillation(reduction, dtype, rng):
    student, teacher = rng.normal(size=(2, 7, 3, 5)).astype(dtype)
    pair = chunked(student, (2, 3, 5)), chunked(teacher, (2, 3, 5))
    options = {"temperature": 2.0, "reduction": reduction}
    expected = fastkl.distillation_loss(student, teacher, return_grad=True, **options)
    mine = fastkl.distillation_loss(mined(student, (2, 3, 5)), teacher, return_grad=True, **options)
    result = fastkl.distillation_loss(*pair, return_grad=True, **options)
    alone = fastkl.distillation_loss(*pair, **options)
    for lazy, got, wanted in zip(mine, result, expected, strict=True):
        assert isinstance(lazy, da.Array) and isinstance(got, da.Array)
        assert lazy.shape == got.shape == np.shape(wanted)
        assert got.dtype == got.compute().dtype == wanted.dtype
        # The total is that of losses rounded to their type, and the slope is divided after rounding: two roundings.
        np.testing.assert_allclose(got.compute(), wanted, rtol=2 * np.finfo(dtype).eps)
    assert alone.compute() == result[0].compute() if reduction != "none" else (alone == result[0]).all().compute()


def test_distillation_without_rows():
    nothing = da.zeros((0, 5))
    assert math.isnan(fastkl.distillation_loss(nothing, nothing).compute())
    loss, slope = fastkl.distillation_loss(nothing, nothing, reduction="sum", return_grad=True)
    assert (loss.compute(), slope.compute().shape) == (0, (0, 5))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rows_split_over_chunks(axis, rng):
    p = rng.random((6, 8))
    split = chunked(p, (4, 3))
    with pytest.raises(ValueError) as caught:
        fastkl.kl_divergence(split, p, axis=axis)
    message, advice = str(caught.value).rsplit(": pass ", 1)
    assert message == f"p is split along axis {axis % 2}, which is reduced, into chunks of {split.chunks[axis]}"
    result = fastkl.kl_divergence(eval(advice, {"p": split}), p, axis=axis)
    np.testing.assert_array_equal(result.compute(), np.zeros(p.shape[1 - axis % 2]))
    with pytest.raises(ValueError, match="q is split along axis"):
        fastkl.kl_divergence(p, split, axis=axis)


@pytest.mark.parametrize(
    "options",
    [
        {"base": -1},
        {"axis": 2},
        {"invalid": "ignore"},
        {"n_threads": 0},
        {"dtype": "float32"},
        {"positions": [1]},
    ],
)
def test_what_is_wrong_is_said_at_once(options, rng):
    p = rng.random((6, 5))
    function = fastkl.wasserstein_distance if "positions" in options else fastkl.kl_divergence
    with pytest.raises(ValueError) as expected:
        function(p, p + 1, **options)
    with pytest.raises(ValueError) as caught:
        function(mined(p, (2, 5)), p + 1, **options)
    assert str(caught.value) == str(expected.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_operands_that_do_not_fit(rng):
    p = rng.random((6, 5))
    for wrong in (p[:, :4], p[:4]):
        with pytest.raises(ValueError) as expected:
            fastkl.kl_divergence(p, wrong)
        with pytest.raises(ValueError) as caught:
            fastkl.kl_divergence(mined(p, (2, 5)), mined(wrong, (2, -1)))
        assert str(caught.value) == str(expected.value)
    with pytest.raises(ValueError, match=r"out of bounds: p has shape \(6, 5\)$"):
        fastkl.entropy(mined(p, (2, 5)), axis=2)
    with pytest.raises(TypeError, match="p has dtype complex128"):
        fastkl.entropy(mined(p + 1j, (2, 5)))
    with pytest.raises(TypeError, match="p is a masked array"):
        fastkl.entropy(da.ma.masked_greater(chunked(p, (2, 5)), 0.5))
    with pytest.raises(TypeError, match="out is for arrays in memory"):
        fastkl.entropy(mined(p, (2, 5)), out=np.empty(6))
    with pytest.raises(TypeError, match=r"mean comes from dask \(Array\)"):
        fastkl.reparameterize(mined(p, (2, 5)), 1.0)
    with pytest.raises(TypeError, match="p comes from dask"):
        fastkl.reference.kl_divergence(mined(p, (2, 5)), p)


def test_invalid_rows_are_told_when_they_are_computed(rng):
    p = rng.random((6, 5))
    p[4, 2] = -1
    result = fastkl.kl_divergence(chunked(p, (3, 5)), p + 2, invalid="raise")
    with pytest.raises(ValueError, match="1 of 3 rows are invalid, the first at index 1: negative value in p"):
        result.compute(scheduler="synchronous")


def test_unknown_lengths(rng):
    p = rng.random((6, 5))
    lazy = chunked(p, (3, 5))
    some = lazy[lazy[:, 0] > 0.5]
    kept = p[p[:, 0] > 0.5]
    np.testing.assert_array_equal(fastkl.entropy(some).compute(), fastkl.entropy(kept))
    np.testing.assert_array_equal(fastkl.kl_divergence(some, p[0]).compute(), fastkl.kl_divergence(kept, p[0]))
    total = fastkl.distillation_loss(some, p[0], reduction="sum").compute()
    np.testing.assert_allclose(total, fastkl.distillation_loss(kept, p[0], reduction="sum"), rtol=1e-15)
    for call in (
        lambda: fastkl.kl_divergence(some, some + 1),
        lambda: fastkl.entropy(some, axis=0),
        lambda: fastkl.distillation_loss(some, p[0]),
    ):
        with pytest.raises(ValueError, match=r"compute_chunk_sizes\(\)"):
            call()


def test_bfloat16(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    p = rng.random((6, 5)).astype(ml_dtypes.bfloat16)
    expected = fastkl.entropy(p)
    for result in (
        fastkl.entropy(chunked(p, (4, 5))),
        fastkl.entropy(chunked(p.view(np.uint16), (4, 5)), dtype="bfloat16"),
    ):
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result.compute(), expected)


@pytest.mark.parametrize("asked, used", [(None, 1), (2, 2)])
@pytest.mark.parametrize("module, name", [(discrete, "kl_divergence"), (logits, "score_from_logits")])
def test_one_thread_in_each_chunk(module, name, asked, used, monkeypatch, rng):
    counts = []
    monkeypatch.setattr(module, "threads_for", lambda bound, n: counts.append((bound, n)) or 1)
    p = rng.random((6, 5))
    results = parts(getattr(fastkl, name)(chunked(p, (2, 5)), p, n_threads=asked))
    counts.clear()
    for result in da.compute(*results, scheduler="synchronous"):
        assert result.shape == (6,)
    assert counts == [(used, 10)] * 3  # a call for each of three chunks, for all the metrics of a score


def test_graphs_travel(rng):
    """Between processes, as with dask.distributed."""
    cloudpickle = pytest.importorskip("cloudpickle")
    p = rng.random((6, 5))
    for name in ("kl_divergence", "score", "distillation_loss", "gaussian_kl_full", "kl_estimate"):
        for result in parts(CALLS[name](chunked(p, (2, 5)), p)):
            copy = cloudpickle.loads(cloudpickle.dumps(result))
            np.testing.assert_array_equal(copy.compute(), result.compute())


def test_frames_are_refused(rng):
    """Dask's frames have no chunks to see to; a class like theirs stands in where pyarrow is missing."""
    frame = type("DataFrame", (), {"__module__": "dask.dataframe.core"})()
    with pytest.raises(TypeError, match=r"p is a DataFrame of Dask's; .*p\.to_dask_array\(lengths=True\)"):
        fastkl.entropy(frame)
