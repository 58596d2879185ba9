"""``scipy.spatial.distance``: its ``jensenshannon``, and ``cdist`` and ``pdist`` with that metric.

What the kernels are not for, SciPy itself answers: other metrics, complex numbers, empty arrays, arguments that it
refuses, and rows that hold NaN, infinities or negative numbers, or sum to zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import cdist as scipys_cdist  # type: ignore[import-untyped, unused-ignore]
from scipy.spatial.distance import jensenshannon as scipys_jensenshannon
from scipy.spatial.distance import pdist as scipys_pdist

import fastkl
from fastkl.compat._rows import mended, ordinary, plain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastkl._validation import Array, Result

__all__ = ["cdist", "jensenshannon", "pdist"]

_FLOAT64 = np.dtype(np.float64)

# In pdist: a call of the kernels takes some microseconds, which is little beside as many elements; and as many results
# may be held until they are put in their places.
_ELEMENTS_AT_ONCE = 1 << 16
_RESULTS_AT_ONCE = 1 << 20


def jensenshannon(
    p: ArrayLike, q: ArrayLike, base: float | None = None, *, axis: int = 0, keepdims: bool = False
) -> Result:
    """The Jensen-Shannon distance of distributions, as ``scipy.spatial.distance.jensenshannon``: the rooted one.

    Parameters
    ----------
    p, q : array_like
        The distributions, along ``axis``: weights ≥ 0, which are normalised. They broadcast.
    base : float, optional
        The base of the logarithm; nats by default.
    axis : int
        The axis to reduce, the first by default.
    keepdims : bool
        Keep the reduced axis, with length 1.

    Returns
    -------
    ndarray or scalar
        √(½ Σ p log(p/m) + ½ Σ q log(q/m)), m = ½ (p + q), of each pair of rows: float32 for float32 and float16, else
        float64; and float64 for a single pair with a ``base``.

    Raises
    ------
    ValueError, TypeError
        Where SciPy does, with its messages.

    Notes
    -----
    Empty bins are no trouble. Rows that are nearly equal, or that sum to more than their type holds, get the right
    value, which SciPy's is not (NaN, with a warning, is one of its answers to rows nearly equal); the README of
    :mod:`fastkl.compat` has a table of such inputs. For rows with NaN, negative numbers, infinities or a sum of zero the
    answer is SciPy's, and so are the warnings.

    References
    ----------
    See :func:`fastkl.js_distance`.

    Examples
    --------
    >>> from fastkl.compat.scipy_distance import jensenshannon
    >>> jensenshannon([1, 0], [0, 1], base=2)
    np.float64(1.0)
    >>> jensenshannon([[1, 1], [1, 1]], [[1, 9], [1, 1]], axis=1)
    array([0.31898154, 0.        ])
    """
    operands = [np.asarray(p), np.asarray(q)]
    ours = ordinary(*operands) and _has_distances(base) and type(keepdims) is bool
    along = _common_axis(operands[0], operands[1], axis) if ours else None
    if along is None:
        return scipys_jensenshannon(*operands, base, axis=axis, keepdims=keepdims)
    if operands[0].dtype is not _FLOAT64 or operands[1].dtype is not _FLOAT64:
        operands = _promoted(operands, base is not None and not keepdims)
    try:
        values = fastkl.js_distance(*operands, base=base, axis=along)
    except ValueError:
        return scipys_jensenshannon(*operands, base, axis=axis, keepdims=keepdims)

    if values.size == 0 or (values.ndim == 0 and math.isnan(values)):
        return scipys_jensenshannon(*operands, base, axis=axis, keepdims=keepdims)
    if values.ndim:
        values = mended(values, operands, along, lambda *rows: scipys_jensenshannon(*rows, base, axis=-1))
    return np.expand_dims(values, along) if keepdims else values


def cdist(
    XA: ArrayLike, XB: ArrayLike, metric: Any = "euclidean", *, out: NDArray[np.float64] | None = None, **kwargs: Any
) -> NDArray[np.float64]:
    """The distance of each row of one table from each of another, as ``scipy.spatial.distance.cdist``.

    Parameters
    ----------
    XA, XB : array_like
        Tables of shape (M, K) and (N, K), taken as float64.
    metric : str or callable
        ``"jensenshannon"``, ``"js"`` or the function :func:`jensenshannon` of SciPy or of this module; any other metric
        is SciPy's.
    out : ndarray, optional
        Where to put the distances: float64, C-contiguous, of shape (M, N).
    **kwargs
        For the metric: the function takes ``base``, the names take nothing.

    Returns
    -------
    ndarray
        The distances, of shape (M, N), float64.

    Raises
    ------
    ValueError, TypeError
        Where SciPy does, with its messages.

    Notes
    -----
    Nothing of the size M·N·K is made, and the threads are shared over all pairs. Rows that are nearly equal get the
    right distance, where SciPy's is noise or NaN. For rows with NaN, negative numbers, infinities or a sum of zero the
    answer is SciPy's: by name, infinity for a negative number and for a sum of zero.

    References
    ----------
    See :func:`fastkl.js_distance`.

    Examples
    --------
    >>> from fastkl.compat.scipy_distance import cdist
    >>> cdist([[1, 1], [1, 9]], [[1, 1], [9, 1]], "js")
    array([[0.        , 0.31898154],
           [0.31898154, 0.60668295]])
    """
    if not _is_jensen_shannon(metric, kwargs):
        return scipys_cdist(XA, XB, metric, out=out, **kwargs)  # type: ignore[no-any-return, unused-ignore]
    first, second = np.asarray(XA), np.asarray(XB)
    fits = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1] and first.size and second.size
    if not fits or not _takes(out, (len(first), len(second))):
        return scipys_cdist(first, second, metric, out=out, **kwargs)  # type: ignore[no-any-return, unused-ignore]

    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    distances: Any = fastkl.js_distance(first[:, np.newaxis], second, out=out, **kwargs)
    if np.isnan(distances.max()):
        invalid = np.isnan(distances)
        rows, columns = invalid.all(axis=1), invalid.all(axis=0)
        if rows.any():
            distances[rows] = scipys_cdist(first[rows], second, metric, **kwargs)
        if columns.any() and not rows.all():
            distances[np.ix_(~rows, columns)] = scipys_cdist(first[~rows], second[columns], metric, **kwargs)
    return distances  # type: ignore[no-any-return]


def pdist(
    X: ArrayLike, metric: Any = "euclidean", *, out: NDArray[np.float64] | None = None, **kwargs: Any
) -> NDArray[np.float64]:
    """The distance of each two rows of a table, as ``scipy.spatial.distance.pdist``.

    Parameters
    ----------
    X : array_like
        A table of shape (M, K), taken as float64.
    metric : str or callable
        As in :func:`cdist`.
    out : ndarray, optional
        Where to put the distances: float64, C-contiguous, of shape (M (M − 1)/2,).
    **kwargs
        For the metric: as in :func:`cdist`.

    Returns
    -------
    ndarray
        The distances of rows 0 and 1, 0 and 2, ..., 1 and 2, ...; float64, of shape (M (M − 1)/2,).

    Raises
    ------
    ValueError, TypeError
        Where SciPy does, with its messages.

    Notes
    -----
    As for :func:`cdist`; each pair is computed once.

    References
    ----------
    See :func:`fastkl.js_distance`.

    Examples
    --------
    >>> from fastkl.compat.scipy_distance import pdist
    >>> pdist([[1, 1], [1, 9], [9, 1]], "js")
    array([0.31898154, 0.31898154, 0.60668295])
    """
    table = plain(X) if _is_jensen_shannon(metric, kwargs) else None
    if table is None or table.ndim != 2 or not table.size or not _takes(out, (len(table) * (len(table) - 1) // 2,)):
        return scipys_pdist(X, metric, out=out, **kwargs)  # type: ignore[no-any-return, unused-ignore]

    table = np.asarray(table, np.float64)
    size, length = table.shape
    distances: Any = np.empty(size * (size - 1) // 2) if out is None else out
    # The pairs of row i with those after it begin at starts[i].
    starts = np.concatenate([[0], np.cumsum(np.arange(size - 1, 0, -1))])
    # Some rows at a time with all that come after the first of them: pairs among these rows are done twice, which with a
    # thirty-second of the table adds as much to the time.
    step = max(size // 32, -(-_ELEMENTS_AT_ONCE // (size * length)))
    step = max(1, min(step, _RESULTS_AT_ONCE // size))
    for first in range(0, size - 1, step):
        block = fastkl.js_distance(table[first : first + step, np.newaxis], table[first + 1 :], **kwargs)
        for i in range(first, min(first + step, size - 1)):
            distances[starts[i] : starts[i + 1]] = block[i - first, i - first :]
    if size > 1 and np.isnan(distances.max()):
        invalid = np.isnan(fastkl.js_distance(table, table))
        for row in np.flatnonzero(invalid):
            this, before = table[row : row + 1], np.flatnonzero(~invalid[:row])
            if before.size:
                distances[starts[before] + row - before - 1] = scipys_cdist(table[before], this, metric, **kwargs)[:, 0]
            if row < size - 1:
                distances[starts[row] : starts[row + 1]] = scipys_cdist(this, table[row + 1 :], metric, **kwargs)[0]
    return distances  # type: ignore[no-any-return]


def _common_axis(p: Array, q: Array, axis: object) -> int | None:
    """The axis counted from the end, if it is the same one of both operands and they are equally long along it.

    SciPy takes it of each operand before they broadcast, and sums the rows that a length of 1 is stretched to only then.
    """
    if type(axis) is not int:
        return None
    if axis >= 0:
        if p.ndim != q.ndim or axis >= p.ndim:
            return None
        axis -= p.ndim
    elif -axis > min(p.ndim, q.ndim):
        return None
    return axis if p.shape[axis] == q.shape[axis] else None


def _promoted(operands: list[Array], single_is_float64: bool) -> list[Array]:
    """The operands with types of which the kernels make what SciPy does.

    Before it compares anything SciPy divides integers by their sum, which makes float64 of the smallest of them. And the
    distance of a single pair becomes float64 when it is divided by the logarithm of the base.
    """
    if single_is_float64 and all(operand.ndim == 1 for operand in operands):
        return [operand.astype(np.float64, copy=False) for operand in operands]
    if any(operand.dtype.kind == "f" for operand in operands):
        return [operand if operand.dtype.kind == "f" else operand.astype(np.float64) for operand in operands]
    return operands


def _has_distances(base: object) -> bool:
    """Whether distances in this base are real numbers, and NumPy, with which SciPy works, has its logarithm as float64."""
    if isinstance(base, np.integer) and base.itemsize < 4:
        return False
    return base is None or (isinstance(base, (int, float, np.integer)) and bool(1 < base < 2**63))


def _is_jensen_shannon(metric: object, options: dict[str, Any]) -> bool:
    """Whether the kernels are for this metric with these options."""
    if isinstance(metric, str):
        return metric.lower() in ("jensenshannon", "js") and not options
    return (metric is jensenshannon or metric is scipys_jensenshannon) and (
        not options or (options.keys() == {"base"} and _has_distances(options["base"]))
    )


def _takes(out: object, shape: tuple[int, ...]) -> bool:
    """Whether the kernels may write distances of this shape to ``out``."""
    if out is None:
        return True
    if type(out) is not np.ndarray or out.shape != shape or out.dtype != _FLOAT64:
        return False
    return bool(out.flags.c_contiguous and out.flags.writeable)
