"""pandas' frames and series: one number for each row keeps the frame's index, and what is not aligned is refused."""

import numpy as np
import pytest

import fastkl

pd = pytest.importorskip("pandas")

BINS = list("abcde")


@pytest.fixture
def frames(rng):
    days = pd.date_range("2024-02-27", periods=6)
    return tuple(pd.DataFrame(x + 0.25, index=days, columns=BINS) for x in rng.random((2, 6, 5)))


def test_rows_keep_their_index(frames):
    p, q = frames
    values = [x.to_numpy() for x in frames]
    for axis, labels in ((-1, p.index), (1, p.index), (0, p.columns), (-2, p.columns)):
        for function in (fastkl.kl_divergence, fastkl.kl_divergence_from_logits, fastkl.gaussian_kl):
            result = function(p, q, axis=axis)
            assert isinstance(result, pd.Series)
            assert result.index is labels or result.index.equals(labels)
            np.testing.assert_array_equal(result.to_numpy(), function(*values, axis=axis))
    assert fastkl.entropy(p).index.equals(p.index)
    assert fastkl.kl_divergence(p.astype(np.float32), q.astype(np.float32)).dtype == np.float32
    assert fastkl.entropy(p.astype("int64")).dtype == np.float64


def test_every_kind_of_label(rng):
    values = rng.random((4, 3))
    for index in (
        pd.MultiIndex.from_product([["x", "y"], [1, 2]], names=["group", "run"]),
        pd.Index(["same", "same", "same", "other"]),
        pd.CategoricalIndex(list("aabb")),
        pd.RangeIndex(10, 14),
    ):
        result = fastkl.kl_divergence(pd.DataFrame(values, index=index), pd.DataFrame(values + 1, index=index))
        pd.testing.assert_index_equal(result.index, index)


def test_scores_and_gradients(frames):
    p, q = frames
    values = [x.to_numpy() for x in frames]
    scores = fastkl.score(p, q, ["kl", "js"])
    assert list(scores) == ["kl", "js"]
    for name, expected in fastkl.score(*values, ["kl", "js"]).items():
        pd.testing.assert_series_equal(scores[name], pd.Series(expected, p.index))
    for result, expected in (
        *zip(fastkl.kl_divergence_from_logits_grad(p, q), fastkl.kl_divergence_from_logits_grad(*values), strict=True),
        *zip(fastkl.gaussian_kl_grad(p, q), fastkl.gaussian_kl_grad(*values), strict=True),
        (fastkl.gaussian_kl(p, q, axis=None), fastkl.gaussian_kl(*values, axis=None)),
        (fastkl.kl_estimate(p, q), fastkl.kl_estimate(*values)),
    ):
        pd.testing.assert_frame_equal(result, pd.DataFrame(expected, p.index, p.columns))
    loss, slope = fastkl.distillation_loss(p, q, return_grad=True)
    expected_loss, expected_slope = fastkl.distillation_loss(*values, return_grad=True)
    assert loss == expected_loss and type(loss) is np.float64
    pd.testing.assert_frame_equal(slope, pd.DataFrame(expected_slope, p.index, p.columns))
    assert fastkl.distillation_loss(p, q, reduction="none").index.equals(p.index)


def test_series_are_one_distribution(frames):
    p, q = frames
    values = p.to_numpy(), q.to_numpy()
    one, other = p.iloc[0], q.iloc[1]
    result = fastkl.kl_divergence(one, other)
    assert result == fastkl.kl_divergence(values[0][0], values[1][1]) and type(result) is np.float64
    # One against many, either way round; along the columns as along the rows.
    for pair, arrays in (((p, other), (values[0], values[1][1])), ((other, p), (values[1][1], values[0]))):
        pd.testing.assert_series_equal(fastkl.kl_divergence(*pair), pd.Series(fastkl.kl_divergence(*arrays), p.index))
    column = q["b"]
    pd.testing.assert_series_equal(
        fastkl.kl_divergence(p, column, axis=0),
        pd.Series(fastkl.kl_divergence(values[0], values[1][:, 1:2], axis=0), p.columns),
    )
    pd.testing.assert_series_equal(
        fastkl.gaussian_kl(one, other, axis=None),
        pd.Series(fastkl.gaussian_kl(*(x.to_numpy() for x in (one, other)), axis=None), p.columns),
    )
    against_array = fastkl.kl_divergence(one, values[1])
    assert type(against_array) is np.ndarray
    np.testing.assert_array_equal(against_array, fastkl.kl_divergence(values[0][0], values[1]))


def test_frames_with_arrays(frames):
    p, q = frames
    values = p.to_numpy(), q.to_numpy()
    expected = pd.Series(fastkl.kl_divergence(*values), p.index)
    pd.testing.assert_series_equal(fastkl.kl_divergence(p, values[1]), expected)
    pd.testing.assert_series_equal(fastkl.kl_divergence(values[0], q), expected)
    pd.testing.assert_series_equal(fastkl.kl_divergence(p, values[1].tolist()), expected)
    to_one = pd.Series(fastkl.kl_divergence(values[0], values[1][2]), p.index)
    pd.testing.assert_series_equal(fastkl.kl_divergence(p, values[1][2]), to_one)
    pd.testing.assert_series_equal(fastkl.gaussian_kl(p, 1.5), pd.Series(fastkl.gaussian_kl(values[0], 1.5), p.index))


def test_results_without_a_label_for_each_number_are_arrays(frames):
    p, q = frames
    out = np.empty(6)
    assert fastkl.kl_divergence(p, q, out=out) is out
    for result, shape in (
        (fastkl.kl_divergence(p, q, keepdims=True), (6, 1)),
        (fastkl.kl_divergence(p, q.to_numpy()[:, np.newaxis]), (6, 6)),
        (fastkl.kl_divergence(p.iloc[:1], q.to_numpy()), (6,)),
    ):
        assert type(result) is np.ndarray
        assert result.shape == shape


def test_misaligned_operands_are_refused(frames):
    p, q = frames
    another, order = "hold different labels: align", "hold the same labels in another order: align"
    for wrong, message, options in (
        (q.iloc[::-1], f"the index of p and the index of q {order}", {}),
        (q.iloc[:3], f"the index of p and the index of q {another}", {}),
        (q.iloc[:1], f"the index of p and the index of q {another}", {}),
        (q.set_axis(range(6), axis=0), f"the index of p and the index of q {another}", {}),
        (q[BINS[::-1]], f"the columns of p and the columns of q {order}", {}),
        (q.rename(columns={"a": "z"}), f"the columns of p and the columns of q {another}", {}),
        (q.iloc[0, ::-1], f"the columns of p and the index of q {order}", {}),
        (q["a"].iloc[::-1], f"the index of p and the index of q {order}", {"axis": 0}),
        (q["a"], f"the columns of p and the index of q {another}", {}),
    ):
        for function in (fastkl.kl_divergence, fastkl.score):
            with pytest.raises(ValueError, match=message) as caught:
                function(p, wrong, **options)
            assert caught.value.__suppress_context__
    with pytest.raises(ValueError, match="the index of p and the index of q"):
        fastkl.kl_divergence(p.iloc[0], q.iloc[0, ::-1])
    with pytest.raises(ValueError, match="the columns of mean_p and the columns of scale_q"):
        fastkl.gaussian_kl(p, q.to_numpy(), 0.0, q[BINS[::-1]])
    with pytest.raises(ValueError, match="the index of teacher_logits and the index of student_logits"):
        fastkl.distillation_loss(p, q.iloc[::-1])


def test_labels_of_mixed_types():
    """Strings and numbers have no order among them."""
    p = pd.DataFrame(np.ones((1, 2)), columns=["a", 1])
    with pytest.raises(ValueError, match="hold the same labels in another order"):
        fastkl.kl_divergence(p, p[[1, "a"]])


def test_full_covariances(frames):
    mean, scale = frames
    covariance = pd.DataFrame(np.eye(5) + 0.25, index=BINS, columns=BINS)
    values = mean.to_numpy(), covariance.to_numpy()
    pd.testing.assert_series_equal(
        fastkl.gaussian_kl_full(mean, covariance), pd.Series(fastkl.gaussian_kl_full(*values), mean.index)
    )
    pd.testing.assert_series_equal(
        fastkl.gaussian_kl_full(mean, scale),
        pd.Series(fastkl.gaussian_kl_full(values[0], scale.to_numpy()), mean.index),
    )
    with pytest.raises(ValueError, match="the index of cov_p and the columns of cov_p"):
        fastkl.gaussian_kl_full(mean, covariance.iloc[::-1])
    with pytest.raises(ValueError, match="the columns of mean_p and the columns of cov_p"):
        fastkl.gaussian_kl_full(mean, covariance.iloc[::-1, ::-1])


def test_what_holds_no_numbers_is_refused(frames):
    p, q = frames
    with pytest.raises(TypeError, match="p has dtype object; pass an array of numbers"):
        fastkl.entropy(p.assign(note="text"))
    with pytest.raises(TypeError, match=r"mean comes from pandas \(DataFrame\)"):
        fastkl.reparameterize(p, q)
    with pytest.raises(ValueError, match="2 of 6 rows are invalid, the first at index 0: sum is zero in p$"):
        fastkl.entropy(p * np.array([[0], [1], [0], [1], [1], [1]]), invalid="raise")
    missing = p.iloc[0].astype("Float64")
    missing.iloc[2] = pd.NA
    assert np.isnan(fastkl.entropy(missing))


def test_with_dask(frames):
    """Dask's arrays have no labels to align with: the numbers of a frame count."""
    da = pytest.importorskip("dask.array")
    p, q = frames
    result = fastkl.kl_divergence(da.from_array(p.to_numpy(), chunks=(2, 5)), q)
    assert isinstance(result, da.Array)
    np.testing.assert_array_equal(result.compute(), fastkl.kl_divergence(p.to_numpy(), q.to_numpy()))
