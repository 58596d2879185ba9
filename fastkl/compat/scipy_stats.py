"""``scipy.stats``: its ``entropy``, of one distribution and relative to another.

What the kernels are not for, SciPy itself answers: other arrays than NumPy's, masked ones, complex numbers, empty ones,
arguments that it refuses, and rows that hold NaN, infinities or negative numbers, or sum to zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.stats import entropy as scipys_entropy  # type: ignore[import-untyped, unused-ignore]

import fastkl
from fastkl.compat._rows import ordinary, plain, rows_where

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastkl._validation import Array, Result

__all__ = ["entropy"]


def entropy(
    pk: ArrayLike,
    qk: ArrayLike | None = None,
    base: float | None = None,
    axis: int | tuple[int, ...] | None = 0,
    *,
    nan_policy: Literal["propagate", "omit", "raise"] = "propagate",
    keepdims: bool = False,
) -> Result:
    """The Shannon entropy of ``pk``, or its relative entropy with respect to ``qk``, as ``scipy.stats.entropy``.

    Parameters
    ----------
    pk : array_like
        The distributions, along ``axis``: weights ≥ 0, which are normalised.
    qk : array_like, optional
        What ``pk`` is compared with; it broadcasts against ``pk``, along ``axis`` too.
    base : float, optional
        The base of the logarithm; nats by default.
    axis : int, tuple of ints or None
        The axes to reduce, the first by default; None for all.
    nan_policy : {"propagate", "omit", "raise"}
        What to do about NaN: give NaN, leave it out, raise ValueError.
    keepdims : bool
        Keep the reduced axes, with length 1.

    Returns
    -------
    ndarray or scalar
        −Σ p log p, or Σ p log(p/q), of each row: float32 for float32 and float16, else float64.

    Raises
    ------
    ValueError, TypeError
        Where SciPy does, with its messages.

    Notes
    -----
    A bin with p = 0 adds nothing, one with p > 0 and q = 0 makes the relative entropy infinite. Rows that are nearly
    equal, that sum to more than their type holds, or whose q becomes 0 in normalising, get the right value, which
    SciPy's is not; the README of :mod:`fastkl.compat` has a table of such inputs. For rows with negative numbers,
    infinities or a sum of zero the answer is SciPy's.

    References
    ----------
    See :func:`fastkl.entropy` and :func:`fastkl.kl_divergence`.

    Examples
    --------
    >>> from fastkl.compat.scipy_stats import entropy
    >>> entropy([1, 1], base=2)
    np.float64(1.0)
    >>> entropy([[1, 1], [1, 1]], [[1, 9], [3, 1]], axis=1)
    array([0.51082562, 0.14384104])
    """

    def scipys_answer() -> Result:
        # Of lazy arrays SciPy takes neither option, not even with its default.
        options: dict[str, Any] = {"nan_policy": nan_policy} if nan_policy != "propagate" else {}
        options |= {"keepdims": keepdims} if keepdims else {}
        return scipys_entropy(pk, qk, base, axis, **options)

    laid_out = _along_one_axis(pk, qk, axis) if nan_policy in ("propagate", "omit", "raise") else None
    if laid_out is None:
        return scipys_answer()
    operands, along, reduced = laid_out
    measure: Any = fastkl.entropy if qk is None else fastkl.kl_divergence
    try:
        values = measure(*operands, base=base, axis=along)
    except (TypeError, ValueError):  # what is wrong, SciPy says in its own words; and it takes bases that we refuse
        return scipys_answer()

    if values.size == 0 or (values.ndim == 0 and math.isnan(values)):
        return scipys_answer()
    invalid = np.isnan(values)
    if values.ndim and invalid.any():
        rows = rows_where(invalid, operands, along)
        with_nan = np.logical_or.reduce([np.isnan(x).any(axis=-1) for x in rows])
        if nan_policy != "propagate" and with_nan.any():
            return scipys_answer()
        # NaN for a row that holds one is final, and would cost SciPy a call of Python a row.
        if not with_nan.all():
            answers = values[invalid]
            answers[~with_nan] = scipys_entropy(*(x[~with_nan] for x in rows), base=base, axis=-1)
            values[invalid] = answers
    return np.expand_dims(values, reduced) if keepdims else values


def _along_one_axis(
    pk: ArrayLike, qk: ArrayLike | None, axis: object
) -> tuple[list[Array], int, tuple[int, ...]] | None:
    """The operands with a single axis to reduce, that axis counted from the end, and the axes that ``axis`` names.

    None if SciPy is to judge. SciPy broadcasts the operands along the reduced axes, too; for ``axis=None`` it flattens
    each first.
    """
    operands: list[Array] = []
    for given in (pk,) if qk is None else (pk, qk):
        operand = plain(given)
        if operand is None or not ordinary(operand) or (qk is not None and type(given) in (int, float)):
            return None  # a number, too, which takes on the type of what it stands beside
        operands.append(operand if operand.ndim else operand[np.newaxis])
    ndim = max(operand.ndim for operand in operands)
    if axis is None:
        operands, axis, reduced = [operand.reshape(-1) for operand in operands], -1, tuple(range(ndim))
    elif type(axis) is int:
        if not -ndim <= axis < ndim:
            return None
        reduced = (axis,)
        if axis >= 0:
            axis -= ndim
    elif type(axis) is tuple and axis and all(type(one) is int for one in axis):
        try:
            reduced = np.lib.array_utils.normalize_axis_tuple(axis, ndim)
        except ValueError:
            return None
    else:
        return None

    if len(operands) == 2 and operands[0].shape != operands[1].shape:
        try:
            shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        except ValueError:
            return None
        operands = [np.broadcast_to(operand, shape) for operand in operands]
    if type(axis) is tuple:
        last = tuple(range(-len(axis), 0))
        moved = [np.moveaxis(operand, reduced, last) for operand in operands]
        batch = moved[0].shape[: -len(axis)]
        length = math.prod(moved[0].shape[-len(axis) :])
        operands, axis = [operand.reshape(*batch, length) for operand in moved], -1
    return operands, axis, reduced  # type: ignore[return-value]
