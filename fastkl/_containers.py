"""Operands that are no arrays in memory: Dask's arrays come back lazy, and pandas' frames keep their labels.

:mod:`fastkl._validation` knows such an operand when it sees it and raises :class:`~fastkl._validation.Contained`; what
the public function was called with goes through :func:`in_containers`, which takes the containers apart, has the same
function called with arrays, and puts the results where they belong. The packages are imported by whoever passes one of
their objects, and here then only.

* *Dask*: rows lie within a chunk, and each chunk is one call, of one thread unless ``n_threads`` says more.
* *pandas*: each row of a frame is a distribution, or each column with ``axis=0``, and so is a series. Labels must be
  equal and in the same order. Results of one number for each row are a series with the frame's index, those of the
  shape of a frame (gradients, what ``axis=None`` gives) a frame; all others are arrays.
* *xarray*: the array in a DataArray counts, by position. The dimensions of two must have the same names and
  coordinates, place by place. ``xarray.apply_ufunc`` is the way by name.
"""

from __future__ import annotations

import importlib
import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastkl._validation import Contained, FullRows, Rows, container_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: Of one axis of an operand: what it is called in messages, and its labels.
    Labels: TypeAlias = tuple[str, Any]


def in_containers(contained: Contained, call: partial[Any]) -> Any:
    """What ``call`` gives for operands in containers; its keywords are the options of a public function."""
    way = {"xarray": _by_position, "dask": _lazily, "pandas": _labelled}
    package = next(x for x in way if x in contained.packages)
    try:
        return way[package](contained, call)
    except Exception as error:
        raise error from None  # how the containers were found is no part of what is wrong


# ---------------------------------------------------------------------------------------------------------------------
# Dask


def _lazily(contained: Contained, call: partial[Any]) -> Any:
    """The results as Dask arrays. All that needs no numbers is checked at once; nothing is computed."""
    options = call.keywords
    if options.get("out") is not None:
        raise TypeError("out is for arrays in memory: the results of Dask arrays are computed later, leave it out")
    rows = contained.check(*_each(_blank, contained.operands))

    dask = importlib.import_module("dask.array")
    within: dict[str, Any] = {"n_threads": 1} if options.get("n_threads", 1) is None else {}
    if isinstance(rows, FullRows):
        within |= {"diagonal": _diagonal(rows)}  # the shapes of chunks would not tell
    elif rows.axis is not None:
        within |= {"axis": -1, "keepdims": False} if "keepdims" in options else {"axis": -1}
    on_chunk = partial(call, **within)

    # An operand that is given twice is one, and Python numbers have no type of their own: they stay as they are.
    arrays: list[Any] = []
    axes: list[tuple[int, ...]] = []
    places: list[int | float] = []
    seen: dict[int, int] = {}
    for i, (x, name) in enumerate(zip(contained.operands, contained.names, strict=True)):
        if type(x) in (int, float):
            places.append(float(x))
            continue
        if id(x) not in seen:
            seen[id(x)] = len(arrays)
            array = x if container_of(x) == "dask" else np.asarray(x)
            core = _reduced_axes(rows, i, array)
            if container_of(x) == "dask":
                _refuse_split(array, name, core)
            if core and array.ndim < -core[0]:
                array = array[(None,) * (-core[0] - array.ndim)]
            arrays.append(array)
            axes.append(core)
        places.append(seen[id(x)])

    for axis in range(-max(x.ndim for x in arrays), 0):
        lengths = [x.shape[axis] for x in arrays if x.ndim >= -axis and x.shape[axis] != 1]
        if len(lengths) > 1 and any(map(math.isnan, lengths)):
            raise ValueError(
                "lengths that are to match are not known: call compute_chunk_sizes() of the operands first"
            )

    # A chunk without rows tells what a chunk gives, and puts the options to the test.
    empty = [
        np.broadcast_to(_zero(x), (0,) * (1 + x.ndim - len(core)) + tuple(x.shape[i] for i in core) if x.ndim else ())
        for x, core in zip(arrays, axes, strict=True)
    ]
    sample = _placed(on_chunk, places, empty)
    batch_axes = 1 + max(x.ndim - len(core) for x, core in zip(arrays, axes, strict=True))
    cores = [(rows.axis,) if rows.axis is not None and x.ndim > batch_axes else () for x in _parts(sample)]
    dtypes = tuple(x.dtype for x in _parts(sample))
    results = dask.apply_gufunc(
        partial(_on_chunks, on_chunk, places),
        ",".join(map(_signature, axes)) + "->" + ",".join(map(_signature, cores)),
        *arrays,
        axes=[*axes, *cores],
        output_dtypes=dtypes if len(dtypes) > 1 else dtypes[0],
        allow_rechunk=True,  # where operands are split in different places; not along the rows, as has been seen to
    )
    results = results if isinstance(results, tuple) else (results,)
    if options.get("keepdims") and rows.axis is not None:
        results = tuple(dask.expand_dims(x, rows.axis) for x in results)
    return _like(sample, results)


def _on_chunks(call: partial[Any], places: Sequence[int | float], *chunks: Any) -> Any:
    """What Dask runs: the results of one chunk of each operand."""
    results = _parts(_placed(call, places, chunks))
    return results if len(results) > 1 else results[0]


def _placed(call: partial[Any], places: Sequence[int | float], arrays: Sequence[Any]) -> Any:
    """A call with each operand in its place: one of the arrays, or a number itself."""
    return call(*(arrays[x] if isinstance(x, int) else x for x in places))


def _blank(operand: Any) -> Any:
    """What has the shape and dtype of an operand, and no numbers; any length for one that Dask does not know."""
    if container_of(operand) != "dask":
        return operand if type(operand) in (int, float) else np.asarray(operand)
    shape = tuple(1 if math.isnan(n) else n for n in operand.shape)
    return np.broadcast_to(_zero(operand), shape, subok=True)


def _zero(array: Any) -> Any:
    """A zero of the dtype of an array, NumPy's or Dask's; a masked one of masked arrays."""
    return np.zeros_like(getattr(array, "_meta", array), shape=())


def _diagonal(rows: FullRows) -> str:
    """The distributions whose covariance is a diagonal, as the option has it."""
    p, *q = (not whole for whole in rows.whole[1::2])
    return ("both" if any(q) else "p") if p else ("q" if any(q) else "neither")


def _reduced_axes(rows: Rows, i: int, array: Any) -> tuple[int, ...]:
    """The axes of operand i that a chunk must hold whole; none of a scalar, which is stretched."""
    if rows.axis is None or array.ndim == 0:
        return ()
    return (-2, -1) if isinstance(rows, FullRows) and rows.whole[i] else (rows.axis,)


def _refuse_split(array: Any, name: str, axes: tuple[int, ...]) -> None:
    """ValueError unless each chunk holds these axes of a Dask array whole."""
    for axis in (array.ndim + axis for axis in axes if -axis <= array.ndim):
        chunks = array.chunks[axis]
        if math.isnan(chunks[0]):
            raise ValueError(
                f"the length of {name} along axis {axis}, which is reduced, is not known: "
                f"call {name}.compute_chunk_sizes() first"
            )
        if len(chunks) > 1:
            raise ValueError(
                f"{name} is split along axis {axis}, which is reduced, into chunks of {chunks}: "
                f"pass {name}.rechunk({{{axis}: -1}})"
            )


def _signature(core: tuple[int, ...]) -> str:
    return f"({','.join('k' for _ in core)})"


# ---------------------------------------------------------------------------------------------------------------------
# pandas


def _labelled(contained: Contained, call: partial[Any]) -> Any:
    """The results with the labels of frames and series, which must be aligned."""
    options = call.keywords
    frames = [x if container_of(x) else None for x in contained.operands]
    # A series is one distribution, whichever axis these lie along.
    upright = options.get("axis") in (0, -2) and max(map(np.ndim, contained.operands)) == 2

    def numbers(x: Any) -> Any:
        if not container_of(x):
            return x
        return x.to_numpy()[:, np.newaxis] if upright and x.ndim == 1 else x.to_numpy()

    arrays = _each(numbers, contained.operands)
    labels = [
        _labels(frame, name, array.ndim, whole)
        for frame, name, array, whole in zip(frames, contained.names, arrays, _whole(contained, arrays), strict=True)
        if frame is not None
    ]
    for one, other in itertools.combinations(labels, 2):
        for ours, theirs in zip(reversed(one), reversed(other), strict=False):
            _refuse_misaligned(ours, theirs)

    rows, results = contained.check(*arrays), call(*arrays)
    if options.get("out") is not None or options.get("keepdims"):
        return results
    # From the last axis to the first, as the operands broadcast.
    axes = [
        next((x for x in places if x is not None), None)
        for places in itertools.zip_longest(*(reversed(one) for one in labels))
    ]
    batch = list(axes)
    if rows.axis is not None:
        del batch[-rows.axis - 1 : -rows.axis]
    n_axes = len(rows.batch_shape) + (rows.axis is not None)
    return _like(results, [_with_labels(x, axes if x.ndim == n_axes else batch) for x in _parts(results)])


def _whole(contained: Contained, arrays: Sequence[Any]) -> tuple[bool, ...]:
    """Which operands are covariances, whose last two axes are one and the same."""
    if not any(name.startswith("cov") for name in contained.names):
        return (False,) * len(arrays)
    rows = contained.check(*arrays)
    return rows.whole if isinstance(rows, FullRows) else ()


def _labels(frame: Any, name: str, ndim: int, whole: bool) -> list[Labels | None]:
    """The labels of each axis of an operand; those of a covariance count once."""
    if frame.ndim == 1:
        return [(f"index of {name}", frame.index), *[None] * (ndim - 1)]
    index, columns = (f"index of {name}", frame.index), (f"columns of {name}", frame.columns)
    if whole:
        _refuse_misaligned(index, columns)
        return [columns]
    return [index, columns]


def _refuse_misaligned(one: Labels | None, other: Labels | None) -> None:
    if one is None or other is None or one[1].equals(other[1]):
        return
    same = len(one[1]) == len(other[1]) and one[1].isin(other[1]).all() and other[1].isin(one[1]).all()
    how = "hold the same labels in another order" if same else "hold different labels"
    raise ValueError(f"the {one[0]} and the {other[0]} {how}: align them, as with reindex()")


def _with_labels(result: Any, axes: Sequence[Labels | None]) -> Any:
    """A result as a series or a frame, if there are labels for all of it; ``axes`` counts from the last axis."""
    labels = [x[1] for x in reversed(axes[: result.ndim]) if x is not None]
    if not 1 <= result.ndim <= 2 or tuple(map(len, labels)) != result.shape:
        return result
    pandas = importlib.import_module("pandas")
    return pandas.Series(result, *labels) if result.ndim == 1 else pandas.DataFrame(result, *labels)


# ---------------------------------------------------------------------------------------------------------------------
# xarray


def _by_position(contained: Contained, call: partial[Any]) -> Any:
    """What the call gives for the arrays in DataArrays, whose dimensions must be the same, place by place."""
    arrays = _each(lambda x: x.data if container_of(x) == "xarray" else x, contained.operands)
    whole = _whole(contained, _each(_blank, arrays))
    named = [
        (name, x)
        for name, x, is_matrix in zip(contained.names, contained.operands, whole, strict=True)
        if container_of(x) == "xarray" and not is_matrix
    ]
    for (one_name, one), (other_name, other) in itertools.combinations(named, 2):
        for ours, theirs in zip(reversed(one.dims), reversed(other.dims), strict=False):
            if ours != theirs:
                raise ValueError(
                    f"{one_name} has dimensions {one.dims}, {other_name} has dimensions {other.dims}, but they are "
                    "compared by position: transpose one of them, or use xarray.apply_ufunc"
                )
            if ours in one.indexes and ours in other.indexes and not one.indexes[ours].equals(other.indexes[ours]):
                raise ValueError(
                    f"{one_name} and {other_name} have different coordinates along {ours!r}: "
                    "align them first, with xarray.align"
                )
    return call(*arrays)


# ---------------------------------------------------------------------------------------------------------------------
# What a function is called with: two operands may be one and the same, which it is to see


def _each(change: Callable[[Any], Any], operands: Sequence[Any]) -> list[Any]:
    changed = {id(x): change(x) for x in operands}
    return [changed[id(x)] for x in operands]


# ---------------------------------------------------------------------------------------------------------------------
# What a function returns: one array or scalar, a tuple of them, or a dict


def _parts(results: Any) -> tuple[Any, ...]:
    if isinstance(results, dict):
        return tuple(results.values())
    return results if isinstance(results, tuple) else (results,)


def _like(results: Any, parts: Sequence[Any]) -> Any:
    """Other parts in the form of these results."""
    if isinstance(results, dict):
        return dict(zip(results, parts, strict=True))
    return tuple(parts) if isinstance(results, tuple) else parts[0]
