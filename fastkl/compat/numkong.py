"""``numkong``: ``kullbackleibler``, ``jensenshannon``, their short names, and ``cdist`` with these metrics.

NumKong's calls and types, with values that are right where it adds an epsilon to q, or leaves bins out. It judges a
call itself, by the first of the rows, and what it refuses, it refuses in its own words.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numkong
import numpy as np

import fastkl
from fastkl._kernels._batch import OPS, pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastkl._validation import Array

__all__ = ["cdist", "jensenshannon", "jsd", "kld", "kullbackleibler"]

_MEASURES: dict[str, Callable[..., Any]] = {
    "kld": fastkl.kl_divergence,
    "kullbackleibler": fastkl.kl_divergence,
    "jsd": fastkl.js_distance,
    "jensenshannon": fastkl.js_distance,
}

# How NumPy holds the types that the kernels share with NumKong, by NumKong's names.
_TYPES = {
    name: np.dtype("uint16" if name == "bfloat16" else name) for name in ("float64", "float32", "float16", "bfloat16")
}

# Of two plain rows, which need no judge, and are so few numbers that each step between them and the kernel counts.
_KL, _JS_DISTANCE = OPS["kl"], OPS["js_distance"]


def kullbackleibler(
    a: Any, b: Any, /, dtype: str | type | None = None, *, out: Any = None, out_dtype: str | type | None = None
) -> Any:
    """The Kullback-Leibler divergence Σ a log(a/b), as ``numkong.kullbackleibler``: of the numbers as they are.

    Parameters
    ----------
    a, b : buffer
        Two rows of shape (K,), or tables of shape (N, K), of one of float64, float32, float16 and bfloat16; a single
        row is compared with all of the other's. Not normalised.
    dtype : str or type, optional
        NumKong's name of the type that the elements are to be read as, which must be as wide as their own.
    out : buffer, optional
        Where to put the divergences: as many rows or more, of any type of NumKong's.
    out_dtype : str or type, optional
        The type of the result, float64 by default.

    Returns
    -------
    float, Tensor or None
        A float for two rows, else a ``numkong.Tensor`` of shape (N,), in nats; None with ``out``.

    Raises
    ------
    TypeError, ValueError, LookupError
        Where NumKong does, with its messages. And ValueError for a ``dtype`` of another width than the elements, and for
        an ``out`` that is too short or read-only, past or into which NumKong writes.

    Notes
    -----
    A bin with a = 0 adds nothing, one with a > 0 and b = 0 makes the divergence infinite. NaN, infinities and negative
    numbers give NaN.

    References
    ----------
    See :func:`fastkl.kl_divergence`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastkl.compat.numkong import kullbackleibler
    >>> kullbackleibler(np.array([0.5, 0.5]), np.array([1.0, 0.0]))
    inf
    """
    if dtype is None and out is None and out_dtype is None:
        value = pair(_KL, a, b, False, 1.0, 0.0)
        if value is not None:
            return float(value)
    return _row_by_row("kullbackleibler", a, b, dtype, out, out_dtype)


def jensenshannon(
    a: Any, b: Any, /, dtype: str | type | None = None, *, out: Any = None, out_dtype: str | type | None = None
) -> Any:
    """The Jensen-Shannon distance √(½ Σ a log(a/m) + ½ Σ b log(b/m)), m = ½ (a + b), as ``numkong.jensenshannon``.

    Parameters
    ----------
    a, b, dtype, out, out_dtype
        As in :func:`kullbackleibler`.

    Returns
    -------
    float, Tensor or None
        As from :func:`kullbackleibler`: the root of a number of nats.

    Raises
    ------
    TypeError, ValueError, LookupError
        As :func:`kullbackleibler`.

    Notes
    -----
    It is finite for all weights ≥ 0. NaN, infinities and negative numbers give NaN.

    References
    ----------
    See :func:`fastkl.js_distance`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastkl.compat.numkong import jensenshannon
    >>> jensenshannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    0.8325546111576977
    """
    if dtype is None and out is None and out_dtype is None:
        value = pair(_JS_DISTANCE, a, b, False, 1.0, 0.5)
        if value is not None:
            return float(value)
    return _row_by_row("jensenshannon", a, b, dtype, out, out_dtype)


kld = kullbackleibler
jsd = jensenshannon


def cdist(
    a: Any,
    b: Any,
    /,
    metric: Any = "euclidean",
    *,
    threads: int = 1,
    dtype: str | type | None = None,
    out: Any = None,
    out_dtype: str | type | None = None,
) -> Any:
    """The divergence or distance of each row of ``a`` from each row of ``b``, as ``numkong.cdist``.

    Parameters
    ----------
    a, b : buffer
        Tables of shape (M, K) and (N, K), or rows, as in :func:`kullbackleibler`.
    metric : str
        ``"kld"`` or ``"kullbackleibler"``, ``"jsd"`` or ``"jensenshannon"``; any other metric is NumKong's.
    threads : int
        The largest number of threads to use; less than 1 is all of them.
    dtype, out_dtype
        As in :func:`kullbackleibler`.
    out : buffer, optional
        Where to put the result: of shape (M, N), of any type of NumKong's.

    Returns
    -------
    float, Tensor or None
        A float for two rows, else a ``numkong.Tensor`` of shape (M, N), where a row counts as a table of one; None with
        ``out``.

    Raises
    ------
    TypeError, ValueError, LookupError
        As :func:`kullbackleibler`.

    Notes
    -----
    As for :func:`kullbackleibler` and :func:`jensenshannon`.

    References
    ----------
    See :func:`fastkl.kl_divergence` and :func:`fastkl.js_distance`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastkl.compat.numkong import cdist
    >>> np.asarray(cdist(np.eye(2), np.eye(2), "kld"))
    array([[ 0., inf],
           [inf,  0.]])
    """
    options = _given(dtype=dtype, out=out, out_dtype=out_dtype)
    measure = _MEASURES.get(metric) if isinstance(metric, str) else None

    def original(first: Any, second: Any, **options: Any) -> Any:
        return numkong.cdist(first, second, metric, threads=threads, **options)

    operands = _operands(a, b, original, options, 2) if measure else None
    if measure is None or operands is None:
        return original(a, b, **options)
    first, second, as_bfloat16 = operands
    table, other = np.atleast_2d(first), np.atleast_2d(second)
    shape = len(table), len(other)
    target = None if out is None else _writeable(out)
    if target is not None and target.shape != shape:
        return original(a, b, **options)  # to be refused
    if first.ndim == second.ndim == 1:
        return float(measure(first, second, normalize=False, dtype=as_bfloat16))
    call = {"normalize": False, "dtype": as_bfloat16, "n_threads": operator.index(threads) if threads > 0 else None}
    return _delivered(measure, table[:, np.newaxis], other, call, shape, target, out, out_dtype)


def _row_by_row(name: str, a: Any, b: Any, dtype: Any, out: Any, out_dtype: Any) -> Any:
    """The measure of this name of pairs of rows."""
    measure = _MEASURES[name]
    original = getattr(numkong, name)
    options = _given(dtype=dtype, out=out, out_dtype=out_dtype)
    operands = _operands(a, b, original, options, 1)
    if operands is None:
        return original(a, b, **options)
    first, second, as_bfloat16 = operands
    if first.ndim == second.ndim == 1:
        return float(measure(first, second, normalize=False, dtype=as_bfloat16))
    numbers = {len(operand) for operand in (first, second) if operand.ndim == 2}
    number = max(numbers)
    if not numbers <= {1, number}:
        return original(a, b, **options)  # to be refused
    target = None
    if out is not None:
        target = _writeable(out)
        if len(target) < number:
            raise ValueError(f"out, of shape {target.shape}, is too short for {number} results")
        target = target[:number] if target.ndim == 1 else target[:number, 0]
    call = {"normalize": False, "dtype": as_bfloat16}
    return _delivered(measure, np.atleast_2d(first), second, call, (number,), target, out, out_dtype)


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not left out, which NumKong does not take None for."""
    return {name: value for name, value in options.items() if value is not None}


def _operands(
    a: Any, b: Any, original: Callable[..., Any], options: dict[str, Any], ndim: int
) -> tuple[Array, Array, str | None] | None:
    """The operands as arrays of a type that the kernels read, and their ``dtype=``; None if NumKong is to answer.

    NumKong raises here what it has to say about anything but the number of rows and the shape of ``out``. ``ndim`` is
    the number of axes of its results.
    """
    one, other = _described(a), _described(b)
    if one is None or other is None:
        return None
    (first, own_name), (second, _) = one, other
    if not all(array.ndim in (1, 2) and array.size for array in (first, second)):
        return None
    if first.shape[-1] != second.shape[-1]:
        return None
    name = own_name
    if "dtype" in options:
        try:
            name = _type_name(options["dtype"])
        except (TypeError, ValueError):
            return None
    held = _TYPES.get(name)
    if held is None:
        return None
    if not first.itemsize == second.itemsize == held.itemsize:
        if "dtype" not in options:
            return None
        widths = f"elements of {first.itemsize} and {second.itemsize} bytes cannot be read as {name}"
        raise ValueError(f"{widths}, which has {held.itemsize}")

    trial = dict(options)
    if "out" in options:
        place = _described(options["out"])
        if place is None or place[0].ndim not in (1, 2) or abs(place[0].strides[-1]) != place[0].itemsize:
            return None
        # Not the caller's, which may overlap an operand.
        shape = (1,) * ndim
        is_tensor = isinstance(options["out"], numkong.Tensor)
        trial["out"] = numkong.empty(shape, dtype=place[1]) if is_tensor else np.empty(shape, place[0].dtype)
    # Of tables their first rows; of two rows as much as tells how far apart their elements lie.
    most = 2 if first.ndim == second.ndim == 1 else None
    parts = []
    for x, array in ((a, first), (b, second)):
        whole: Any = x if isinstance(x, numkong.Tensor) else array
        part = whole[: most if array.ndim == 1 else 1]
        # NumKong takes a row that runs backwards, but reads on from its first element.
        parts.append(part[..., ::-1] if array.strides[-1] < 0 else part)
    original(*parts, **trial)
    return first.view(held), second.view(held), "bfloat16" if name == "bfloat16" else None


def _described(x: Any) -> tuple[Array, Any] | None:
    """A buffer as an array over its memory, and the name of its type; None if NumKong does not take it for one."""
    if isinstance(x, numkong.Tensor):
        return np.asarray(x), x.dtype
    if not isinstance(x, np.ndarray) and not hasattr(x, "__array_interface__"):
        try:
            x = memoryview(x)
        except TypeError:
            return None
    array = np.asarray(x)
    return array, array.dtype.name


def _type_name(dtype: Any) -> Any:
    """NumKong's own name of a type that it knows by several."""
    return numkong.empty((1,), dtype=dtype).dtype


def _writeable(out: Any) -> Array:
    """The memory of ``out``, or ValueError if it is read-only."""
    described = _described(out)
    assert described is not None  # NumKong has accepted it
    target = described[0]
    if not target.flags.writeable:
        raise ValueError(f"out, of shape {target.shape}, is read-only")
    return target


def _delivered(
    measure: Callable[..., Any],
    p: Array,
    q: Array,
    call: dict[str, Any],
    shape: tuple[int, ...],
    target: Array | None,
    out: Any,
    out_dtype: Any,
) -> Any:
    """A new tensor with the measures, or None once they are in ``target``, which is ``out`` or a part of it."""
    own = "float64" if p.dtype == np.float64 else "float32"
    if target is None:
        name: Any = "float64" if out_dtype is None else _type_name(out_dtype)
        if name == own:
            tensor = numkong.empty(shape, dtype=name)
            measure(p, q, out=np.asarray(tensor), **call)
            return tensor
        return numkong.Tensor(measure(p, q, **call)).astype(name)
    described = _described(out)
    assert described is not None
    name = described[1] if out_dtype is None else _type_name(out_dtype)
    converted = np.asarray(numkong.Tensor(measure(p, q, **call)).astype(name))
    target.view(converted.dtype)[...] = converted
    return None
