"""xarray: by name through ``xarray.apply_ufunc``, as the README shows, or a DataArray in an array's place, by position."""

import numpy as np
import pytest

import fastkl

xr = pytest.importorskip("xarray")


@pytest.fixture
def arrays(rng):
    p, q = rng.random((2, 4, 6, 5))
    coordinates = {"day": range(4), "bin": list("abcde")}
    return tuple(xr.DataArray(x, dims=("day", "place", "bin"), coords=coordinates) for x in (p, q))


def by_name(p, q, **options):
    return xr.apply_ufunc(fastkl.kl_divergence, p, q, input_core_dims=[["bin"], ["bin"]], **options)


def test_apply_ufunc(arrays):
    p, q = arrays
    expected = fastkl.kl_divergence(p.to_numpy(), q.to_numpy())
    result = by_name(p, q)
    assert result.dims == ("day", "place")
    assert list(result.coords) == ["day"]
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(by_name(p.transpose("bin", ...), q.transpose("day", "bin", "place")), expected)
    np.testing.assert_array_equal(by_name(p, q.isel(day=0)), fastkl.kl_divergence(p.to_numpy(), q.to_numpy()[0]))
    dataset = by_name(xr.Dataset({"x": p, "y": q}), q)
    np.testing.assert_array_equal(dataset["x"], expected)
    np.testing.assert_array_equal(dataset["y"], np.zeros((4, 6)))


@pytest.mark.parametrize(
    "options",
    [
        {"dask": "allowed"},
        {"dask": "parallelized", "output_dtypes": [np.float64], "kwargs": {"n_threads": 1}},
    ],
    ids=["allowed", "parallelized"],
)
def test_apply_ufunc_with_dask(options, arrays):
    da = pytest.importorskip("dask.array")
    p, q = arrays
    result = by_name(p.chunk(day=2, place=3), q.chunk(day=2, place=3), **options)
    assert isinstance(result.data, da.Array)
    assert (result.dims, result.dtype) == (("day", "place"), np.float64)
    np.testing.assert_array_equal(result, fastkl.kl_divergence(p.to_numpy(), q.to_numpy()))
    with pytest.raises(ValueError, match="split|multiple chunks"):
        by_name(p.chunk(bin=2), q, **options)


def test_by_position(arrays):
    p, q = arrays
    values = p.to_numpy(), q.to_numpy()
    for axis in (0, 1, -1):
        result = fastkl.kl_divergence(p, q, axis=axis)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, fastkl.kl_divergence(*values, axis=axis))
    np.testing.assert_array_equal(
        fastkl.kl_divergence(p, values[1][0, 0]), fastkl.kl_divergence(values[0], values[1][0, 0])
    )
    one = q.isel(day=0, place=0)
    np.testing.assert_array_equal(fastkl.kl_divergence(p, one), fastkl.kl_divergence(values[0], one.to_numpy()))
    covariance = xr.DataArray(np.eye(5), dims=("bin", "other"))
    np.testing.assert_array_equal(fastkl.gaussian_kl_full(p, covariance), fastkl.gaussian_kl_full(values[0], np.eye(5)))
    with pytest.raises(ValueError, match="the row is invalid: sum is zero in p$"):
        fastkl.entropy(one * 0, invalid="raise")


def test_by_position_with_dask(arrays):
    da = pytest.importorskip("dask.array")
    p, q = arrays
    chunked = p.chunk(day=2)
    for result in (fastkl.kl_divergence(chunked, q), fastkl.kl_divergence(chunked, q.chunk(day=1).data)):
        assert isinstance(result, da.Array)
        np.testing.assert_array_equal(result.compute(), fastkl.kl_divergence(p.to_numpy(), q.to_numpy()))
    loss = fastkl.distillation_loss(chunked, q)
    assert isinstance(loss, da.Array)
    np.testing.assert_allclose(loss.compute(), fastkl.distillation_loss(p.to_numpy(), q.to_numpy()), rtol=1e-15)


def test_what_does_not_match_is_refused(arrays):
    p, q = arrays
    for wrong in (q.transpose("place", "day", "bin"), q.transpose("bin", ...), q.rename(bin="category")):
        with pytest.raises(ValueError, match="p has dimensions .*, q has dimensions .*, but they are compared by pos"):
            fastkl.kl_divergence(p, wrong)
    with pytest.raises(ValueError, match="p has dimensions"):
        fastkl.kl_divergence(p, q.isel(day=0, bin=0), axis=1)
    for wrong in (q.isel(bin=slice(None, None, -1)), q.assign_coords(bin=list("vwxyz"))):
        with pytest.raises(ValueError, match="p and q have different coordinates along 'bin': align them first"):
            fastkl.kl_divergence(p, wrong)
    without = q.drop_vars("bin")
    np.testing.assert_array_equal(fastkl.kl_divergence(p, without), fastkl.kl_divergence(p, q))
