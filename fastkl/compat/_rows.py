"""What the namespaces over SciPy share: which operands the kernels are for, and which rows the original judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastkl._validation import _comes_from

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastkl._validation import Array, Result


def plain(operand: object) -> Array | None:
    """An operand as a plain array, or None where the original may make something else of it."""
    kind = type(operand)
    if kind is np.ndarray:
        return operand  # type: ignore[return-value]
    if kind in (list, tuple, float, int, np.memmap) or _comes_from(operand, "pandas"):
        try:
            return np.asarray(operand)
        except ValueError:  # ragged lists
            return None
    return None


def ordinary(*operands: Array) -> bool:
    """Whether the operands hold real numbers that the kernels and SciPy promote alike: no long double, no bfloat16."""
    return all(operand.dtype.kind in "fiub" and operand.dtype.itemsize <= 8 for operand in operands)


def rows_where(chosen: Array, operands: Sequence[Array], axis: int) -> list[Array]:
    """Copies of the rows along ``axis``, counted from the end, at which ``chosen`` is set, along the last axis."""
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    return [np.moveaxis(np.broadcast_to(operand, shape), axis, -1)[chosen] for operand in operands]


def mended(values: Array, operands: Sequence[Array], axis: int, original: Callable[..., Result]) -> Array:
    """The values, with those that are NaN replaced by what ``original`` makes of their rows.

    NaN is what the kernels give for all rows that hold anything but finite numbers ≥ 0, and for those that sum to 0. An
    original makes infinities of some of these, and warns about others.
    """
    invalid: Array = np.isnan(values)
    if invalid.any():
        values[invalid] = original(*rows_where(invalid, operands, axis))
    return values
